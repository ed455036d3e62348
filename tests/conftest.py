import torch
from hypothesis import settings

# The machine may be busy with other things: a deadline would time it, not the code.
settings.register_profile("rlmods", deadline=None)
settings.load_profile("rlmods")
torch.set_num_threads(1)
