import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rlmods.algorithms.laprop import LaProp
from rlmods.functional.norms import adaptive_clip_


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def step(optimizer: LaProp, gradients: dict[nn.Parameter, Tensor | None]) -> None:
    for weight, gradient in gradients.items():
        weight.grad = None if gradient is None else gradient.clone()
    optimizer.step()


def plain_laprop(weight: float, gradients: list[float], lr: float, beta1: float, beta2: float, eps: float) -> float:
    """One number, in plain floats."""
    square = momentum = 0.0
    for number, gradient in enumerate(gradients, start=1):
        square = beta2 * square + (1.0 - beta2) * gradient**2
        rms = math.sqrt(square / (1.0 - beta2**number)) + eps
        momentum = beta1 * momentum + (1.0 - beta1) * gradient / rms
        weight -= lr * momentum / (1.0 - beta1**number)
    return weight


def test_golden_two_steps() -> None:
    """β₁ = β₂ = 1/2, lr = 1, gradients 2 and 1.

    Step 1: RMS 2, so 1, and its corrected momentum is 1. Step 2: the squares average (1/2·2 + 1/2·1)/(3/4) = 2, so
    1/√2, and the momentum (1/2·1/2 + 1/2·1/√2)/(3/4) = 1/3 + √2/3. Adam would go 4/3/√2 instead of it.
    """
    weight = parameter(10.0)
    optimizer = LaProp([weight], lr=1.0, betas=(0.5, 0.5))
    step(optimizer, {weight: torch.tensor([2.0])})
    assert weight.item() == pytest.approx(9.0)
    step(optimizer, {weight: torch.tensor([1.0])})
    assert weight.item() == pytest.approx(9.0 - (1.0 + math.sqrt(2.0)) / 3.0)
    assert weight.item() != pytest.approx(9.0 - 4.0 / 3.0 / math.sqrt(2.0), abs=1e-3)


@given(
    st.lists(st.floats(-1e3, 1e3).filter(lambda gradient: abs(gradient) > 1e-3), min_size=1, max_size=8),
    st.floats(0.0, 0.95),
    st.floats(0.0, 0.999),
)
def test_against_a_loop_in_plain_numbers(gradients: list[float], beta1: float, beta2: float) -> None:
    weight = parameter(1.0)
    optimizer = LaProp([weight], lr=0.1, betas=(beta1, beta2))
    for gradient in gradients:
        step(optimizer, {weight: torch.tensor([gradient])})
    assert weight.item() == pytest.approx(plain_laprop(1.0, gradients, 0.1, beta1, beta2, 1e-20), abs=1e-4)


def test_many_tensors_go_as_each_alone() -> None:
    torch.manual_seed(0)
    shapes = [(3,), (2, 4), ()]
    weights = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    alone = [nn.Parameter(weight.detach().clone()) for weight in weights]
    groups: list[dict[str, Any]] = [{"params": weights[:2]}, {"params": weights[2:], "lr": 0.5}]
    together = LaProp(groups, lr=0.1)
    singles = [LaProp([weight], lr=lr) for weight, lr in zip(alone, (0.1, 0.1, 0.5), strict=True)]
    for _ in range(4):
        gradients = [torch.randn(shape) for shape in shapes]
        step(together, dict(zip(weights, gradients, strict=True)))
        for optimizer, weight, gradient in zip(singles, alone, gradients, strict=True):
            step(optimizer, {weight: gradient})
    for weight, single in zip(weights, alone, strict=True):
        torch.testing.assert_close(weight, single)


@given(st.floats(1e-6, 1e6))
def test_steps_do_not_depend_on_the_scale_of_the_gradients(scale: float) -> None:
    gradients = [3.0, -1.0, 0.5]
    weights = parameter(1.0), parameter(1.0)
    for weight, factor in zip(weights, (1.0, scale), strict=True):
        optimizer = LaProp([weight], lr=0.1)
        for gradient in gradients:
            step(optimizer, {weight: torch.tensor([factor * gradient])})
    assert weights[1].item() == pytest.approx(weights[0].item(), abs=1e-5)


def test_steps_grow_back_after_an_outlier() -> None:
    """The squares are averaged, not held at their largest: with β₂ = 1/2 a gradient of 1,000 is forgotten after 40."""
    weight = parameter(0.0)
    optimizer = LaProp([weight], lr=1.0, betas=(0.0, 0.5))
    for gradient in [1e3] + [1.0] * 40:
        before = weight.item()
        step(optimizer, {weight: torch.tensor([gradient])})
    assert before - weight.item() == pytest.approx(1.0, abs=1e-3)


def test_an_outlier_is_divided_by_its_own_size_for_good() -> None:
    """Its share of the momentum is at most 0.1/√0.5, and falls from there.

    Adam divides its momentum of 100, which falls by 10 % a step, by an RMS of 707 that falls by 30 %: its steps grow
    to 11.
    """
    weight = parameter(0.0)
    optimizer = LaProp([weight], lr=1.0, betas=(0.9, 0.5))
    for gradient in [1.0] * 20 + [1e3] + [1.0] * 40:
        before = weight.item()
        step(optimizer, {weight: torch.tensor([gradient])})
        assert abs(before - weight.item()) <= 1.2


def test_a_parameter_without_a_gradient_keeps_its_weight_and_its_moments() -> None:
    """And goes on from them as if the steps in between had not been."""
    paused, running, never = parameter(1.0), parameter(1.0), parameter(1.0)
    optimizer = LaProp([{"params": [paused, running, never]}], lr=0.1)
    step(optimizer, {paused: torch.tensor([2.0]), running: torch.tensor([2.0]), never: None})
    weight, moments = paused.item(), {name: value.clone() for name, value in moments_of(optimizer, paused).items()}
    for _ in range(3):
        step(optimizer, {paused: None, running: torch.tensor([-1.0]), never: None})
    assert paused.item() == weight
    assert moments_of(optimizer, paused) == moments
    assert never.item() == 1.0
    step(optimizer, {paused: torch.tensor([0.5]), running: torch.tensor([0.5]), never: torch.tensor([0.5])})
    assert paused.item() == pytest.approx(plain_laprop(1.0, [2.0, 0.5], 0.1, 0.9, 0.999, 1e-20))
    assert running.item() == pytest.approx(plain_laprop(1.0, [2.0, -1.0, -1.0, -1.0, 0.5], 0.1, 0.9, 0.999, 1e-20))
    assert never.item() == pytest.approx(0.9)


def moments_of(optimizer: LaProp, weight: nn.Parameter) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value) for name, value in optimizer.state[weight].items()}


def test_a_gradient_of_zero_moves_nothing_and_is_no_nan() -> None:
    weight = parameter(1.0, 1.0)
    step(LaProp([weight], lr=0.1), {weight: torch.tensor([0.0, 1.0])})
    assert weight.tolist() == pytest.approx([1.0, 0.9])


def test_the_clip_comes_before_the_rms() -> None:
    """Gradients 0.001 and 0.1, the second held at 0.3·‖w‖ = 0.003: its RMS is that of 0.001 and 0.003."""
    weight = parameter(0.01)
    optimizer, gradients = LaProp([weight], lr=1e-6, betas=(0.0, 0.5)), [1e-3, 0.1]
    for gradient in gradients:
        weight.grad = torch.tensor([gradient])
        adaptive_clip_([weight.grad], [weight.detach()], 0.3)
        optimizer.step()
    clipped = [1e-3, 0.3 * (0.01 - 1e-6)]
    assert weight.item() == pytest.approx(plain_laprop(0.01, clipped, 1e-6, 0.0, 0.5, 1e-20), abs=2e-9)
    (square,) = (state["square"] for state in optimizer.state.values())
    assert square.item() == pytest.approx(0.25 * clipped[0] ** 2 + 0.5 * clipped[1] ** 2, rel=1e-5)


def test_a_state_that_was_saved_goes_on_bit_for_bit(tmp_path: Any) -> None:
    torch.manual_seed(0)
    weights = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2))
    optimizer = LaProp(weights, lr=0.1)
    gradients = torch.randn(6, 3)
    for row in gradients[:3]:
        step(optimizer, {weights[0]: row, weights[1]: row[:2]})
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    copies = [nn.Parameter(weight.detach().clone()) for weight in weights]
    resumed = LaProp(copies, lr=1.0)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for row in gradients[3:]:
        step(optimizer, {weights[0]: row, weights[1]: row[:2]})
        step(resumed, {copies[0]: row, copies[1]: row[:2]})
    assert all(torch.equal(weight, copy) for weight, copy in zip(weights, copies, strict=True))


def test_a_closure_is_evaluated_with_gradients() -> None:
    weight = parameter(3.0)
    optimizer = LaProp([weight], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    assert optimizer.step(closure) == 9.0
    assert weight.item() == pytest.approx(2.9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "got lr = 0.0, expected above 0"),
        ({"betas": (0.9, 1.0)}, r"got betas = \(0.9, 1.0\), expected two numbers in \[0, 1\)"),
        ({"eps": 0.0}, "got eps = 0.0, expected above 0"),
    ],
)
def test_values_outside_their_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LaProp([parameter(1.0)], **settings)
