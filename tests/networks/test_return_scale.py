import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlmods.networks.return_scale import ReturnScale


def test_golden_percentiles_are_averaged_from_zero() -> None:
    """Returns 0, 10, …, 200: percentiles 10 and 190. With rate 1/2: 5 and 95, so 90; then 7.5 and 142.5, so 135."""
    scale, returns = ReturnScale(0.5), 10.0 * torch.arange(21.0)
    assert scale.update(returns).item() == pytest.approx(90.0)
    assert scale.percentiles.tolist() == pytest.approx([5.0, 95.0])
    assert scale.update(returns.flip(0)).item() == pytest.approx(135.0)
    assert scale.scale.item() == pytest.approx(135.0)


def test_golden_percentiles_between_two_returns() -> None:
    """Of 0 and 100: 5 and 95."""
    scale = ReturnScale(1.0)
    assert scale.update(torch.tensor([[100.0], [0.0]])).item() == pytest.approx(90.0)
    assert scale.percentiles.tolist() == pytest.approx([5.0, 95.0])


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40))
def test_percentiles_are_those_of_torch(returns: list[float]) -> None:
    scale = ReturnScale(1.0)
    scale.update(torch.tensor(returns))
    expected = torch.quantile(torch.tensor(returns), torch.tensor([0.05, 0.95]))
    torch.testing.assert_close(scale.percentiles, expected, rtol=1e-4, atol=1e-3)


@given(st.lists(st.floats(-10.0, 10.0), min_size=1, max_size=20), st.floats(0.0, 1.0))
def test_small_returns_are_not_blown_up(returns: list[float], rate: float) -> None:
    """Least of all where they are all alike."""
    scale = ReturnScale(rate)
    assert scale.scale.item() == 1.0
    spread = max(returns) - min(returns)
    assert 1.0 <= scale.update(torch.tensor(returns)).item() <= max(1.0, 20.0 * rate, spread) * (1.0 + 1e-5)


def test_a_few_outliers_move_nothing() -> None:
    """2 of 101 lie beyond the 5th and the 95th percentile."""
    scale, returns = ReturnScale(1.0), torch.arange(101.0)
    before = scale.update(returns).item()
    assert before == pytest.approx(90.0)
    returns[0], returns[-1] = -1e6, 1e6
    assert scale.update(returns).item() == pytest.approx(90.0)


def test_no_gradient_and_a_state_that_is_saved() -> None:
    scale = ReturnScale(0.5)
    assert not scale.update(torch.tensor([0.0, 100.0], requires_grad=True)).requires_grad
    resumed = ReturnScale(0.5)
    resumed.load_state_dict(scale.state_dict())
    assert resumed.scale.item() == scale.scale.item() == pytest.approx(45.0)
