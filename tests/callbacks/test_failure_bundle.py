import torch

from rlmods.callbacks.failure_bundle import minibatch_of
from rlmods.types import ReplayBatch, Transition


def test_the_mini_batch_of_a_bundle_keeps_what_an_expert_chose() -> None:
    columns = [torch.arange(6.0).view(2, 3)] * 7
    by_expert = torch.tensor([[True, False, True], [False, False, True]])
    batch = ReplayBatch(Transition(*columns), torch.zeros(2, 3), torch.ones(2, 3), 0, 0.0, by_expert)
    (only,) = minibatch_of(batch, 1).minibatches()
    assert only.by_expert is not None
    assert only.by_expert.tolist() == [False, False, True]
