import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlmods.functional.td import action_value, double_q_bootstrap, q_learning_bootstrap, td_target


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_q_learning_target(dtype: torch.dtype) -> None:
    """Row 0: 1 + 0.9·max(2, 3) = 3.7. Row 1 is terminated, discount 0: the reward alone, -1."""
    target_q_values = torch.tensor([[2.0, 3.0], [5.0, 4.0]], dtype=dtype)
    reward, discount = torch.tensor([1.0, -1.0], dtype=dtype), torch.tensor([0.9, 0.0], dtype=dtype)
    target = td_target(reward, discount, q_learning_bootstrap(target_q_values))
    torch.testing.assert_close(target, torch.tensor([3.7, -1.0], dtype=dtype))


def test_golden_double_q_selects_with_the_online_network() -> None:
    """Online prefers actions 1 and 0, which the target network values 3 and 5."""
    online_q_values = torch.tensor([[0.0, 9.0], [8.0, 7.0]])
    target_q_values = torch.tensor([[2.0, 3.0], [5.0, 6.0]])
    assert double_q_bootstrap(target_q_values, online_q_values).tolist() == [3.0, 5.0]


@given(st.lists(st.tuples(*[st.floats(-1e3, 1e3)] * 3), min_size=1, max_size=8))
def test_double_q_with_equal_networks_is_q_learning(rows: list[tuple[float, ...]]) -> None:
    q_values = torch.tensor(rows)
    torch.testing.assert_close(double_q_bootstrap(q_values, q_values), q_learning_bootstrap(q_values))


@given(st.lists(st.tuples(*[st.floats(-1e3, 1e3)] * 6), min_size=1, max_size=8))
def test_double_q_never_exceeds_q_learning(rows: list[tuple[float, ...]]) -> None:
    q_values = torch.tensor(rows)
    double = double_q_bootstrap(q_values[:, :3], q_values[:, 3:])
    assert bool((double <= q_learning_bootstrap(q_values[:, :3])).all())


def test_action_value_takes_the_taken_action() -> None:
    assert action_value(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0])).tolist() == [2.0, 3.0]


@pytest.mark.parametrize("action", [torch.zeros(2, 1, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)])
def test_action_value_refuses_shapes_that_would_broadcast(action: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \[B, A\], \[B\]"):
        action_value(torch.zeros(2, 2), action)


def test_td_target_refuses_shapes_that_would_broadcast() -> None:
    with pytest.raises(ValueError, match=r"discount \(2, 1\).*expected the same shape"):
        td_target(torch.zeros(2), torch.zeros(2, 1), torch.zeros(2))


def test_a_truncated_transition_bootstraps() -> None:
    """Truncation leaves the discount as it is: the target is that of a running episode."""
    running = td_target(torch.ones(1), torch.tensor([0.99]), torch.tensor([10.0]))
    assert running.item() == pytest.approx(10.9)
