import torch
from torch import Tensor

from rlmods.functional.gradient_paths import gradient_reach, last_in_graph


def test_golden_norms_and_missing_paths() -> None:
    """d(3a + 4b)/da = 3 on each of four entries: 3√4; b 4; c has no path; d does not learn."""
    a, b, c = (torch.ones(size, requires_grad=True) for size in (4, 1, 1))
    frozen = torch.ones(1)
    losses = {"sum": 3.0 * a.sum() + 4.0 * b.sum(), "constant": torch.tensor(1.0), "zero": 0.0 * c}
    reach = gradient_reach(losses, [a, b, c, frozen])
    assert reach == {
        "sum": [6.0, 4.0, None, None],
        "constant": [None] * 4,
        "zero": [None, None, 0.0, None],
    }
    assert a.grad is b.grad is c.grad is None


def test_the_last_ones_are_those_on_which_none_depends() -> None:
    first = torch.ones(2, requires_grad=True)
    middle: Tensor = 2.0 * first
    head, other = middle.exp(), middle.tanh()
    assert last_in_graph({"middle": middle, "head": head, "same": head, "other": other}) == ["head", "other"]
    assert last_in_graph({}) == []
