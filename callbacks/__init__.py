"""The safeguards and the other callbacks of rlmods, usable with any LightningModule."""

if __name__ != "rlmods.callbacks":
    raise ImportError(f"imported as {__name__!r}; type: import rlmods.callbacks")

from rlmods.callbacks.curves import Curves
from rlmods.callbacks.eval_early_stopping import EvalEarlyStopping
from rlmods.callbacks.global_rng import GlobalRNG
from rlmods.callbacks.graceful_stop import GracefulStop
from rlmods.callbacks.progress import EnvStepsProgressBar
from rlmods.callbacks.run_record import RunRecord

__all__ = ["Curves", "EnvStepsProgressBar", "EvalEarlyStopping", "GlobalRNG", "GracefulStop", "RunRecord"]
