"""The backward pass that was written by hand against automatic differentiation of the same steps."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from rlmods.functional.discrete_latents import one_hot_sample, straight_through, with_uniform
from rlmods.functional.normed_silu import normed_silu
from rlmods.functional.recurrent_scan import CoreWeights, PosteriorWeights, core_step, posterior_scan

STEPS, ROWS, DETER, HIDDEN, LATENTS, CLASSES, BLOCKS = 6, 3, 12, 5, 4, 3, 2
STOCH = LATENTS * CLASSES
UNIMIX = 0.01

Outputs = tuple[Tensor, Tensor, Tensor]


class Case(NamedTuple):
    of_action: Tensor
    of_tokens: Tensor
    goes_on: Tensor
    deter: Tensor
    stoch: Tensor
    uniform: Tensor
    core: CoreWeights
    posterior: PosteriorWeights

    def leaves(self) -> list[Tensor]:
        """All that has a gradient."""
        return [self.of_action, self.of_tokens, self.deter, self.stoch, *self.core, *self.posterior]


@pytest.fixture
def case() -> Case:
    torch.manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape).requires_grad_()

    size = DETER // BLOCKS
    return Case(
        of_action=leaf(STEPS, ROWS, DETER),
        of_tokens=leaf(STEPS, ROWS, HIDDEN),
        goes_on=(torch.rand(STEPS, ROWS, 1) > 0.3).float(),
        deter=leaf(ROWS, DETER),
        stoch=leaf(ROWS, STOCH),
        uniform=torch.rand(STEPS, ROWS, 1, LATENTS),
        core=CoreWeights(
            deter=leaf(HIDDEN, DETER),
            deter_bias=leaf(HIDDEN),
            stoch=leaf(HIDDEN, STOCH),
            stoch_bias=leaf(HIDDEN),
            both_scale=leaf(2, HIDDEN),
            inputs=leaf(DETER, 2 * HIDDEN),
            block=leaf(BLOCKS, size, size),
            scale=leaf(DETER),
            gates=leaf(3, BLOCKS, size, size),
            gates_bias=leaf(3, BLOCKS, 1, size),
        ),
        posterior=PosteriorWeights(
            deter=leaf(HIDDEN, DETER), scale=leaf(HIDDEN), output=leaf(STOCH, HIDDEN), output_bias=leaf(STOCH)
        ),
    )


def scanned(case: Case) -> Outputs:
    return posterior_scan(
        case.of_action,
        case.of_tokens,
        case.goes_on,
        case.deter,
        case.stoch,
        case.uniform,
        UNIMIX,
        case.core,
        case.posterior,
    )


def stepped(case: Case) -> Outputs:
    deter, stoch = case.deter, case.stoch
    deters, stochs, probabilities = [], [], []
    for step, running in enumerate(case.goes_on):
        deter = core_step(deter * running, stoch * running, case.of_action[step], case.core).deter
        query = case.of_tokens[step] + deter @ case.posterior.deter.T
        logits = normed_silu(query, case.posterior.scale) @ case.posterior.output.T + case.posterior.output_bias
        mixed = with_uniform(logits.view(ROWS, CLASSES, LATENTS).softmax(-2), UNIMIX)
        stoch = straight_through(one_hot_sample(mixed, case.uniform[step]), mixed).flatten(-2)
        deters.append(deter)
        stochs.append(stoch)
        probabilities.append(mixed)
    return torch.stack(deters), torch.stack(stochs), torch.stack(probabilities)


def test_it_is_the_same_function_as_step_after_step(case: Case) -> None:
    for scan, steps in zip(scanned(case), stepped(case), strict=True):
        torch.testing.assert_close(scan, steps)


def _gradients(function: Callable[[Case], Outputs], case: Case) -> list[Tensor]:
    torch.manual_seed(1)
    loss = torch.stack([(output * torch.randn_like(output)).sum() for output in function(case)]).sum()
    return list(torch.autograd.grad(loss, case.leaves()))


def test_it_has_the_same_gradients(case: Case) -> None:
    for scan, steps in zip(_gradients(scanned, case), _gradients(stepped, case), strict=True):
        assert steps.abs().max() > 0.0
        torch.testing.assert_close(scan, steps, rtol=1e-4, atol=1e-4)


def test_a_gradient_crosses_the_steps_of_an_episode_and_not_its_beginning(case: Case) -> None:
    goes_on = torch.ones_like(case.goes_on)
    goes_on[3, 0] = 0.0
    deter, _, _ = scanned(case._replace(goes_on=goes_on))
    (gradient,) = torch.autograd.grad(deter[4].square().sum(), case.of_action)
    assert gradient[2, 1].abs().max() > 0.0
    assert not gradient[:3, 0].any()
    assert not gradient[5].any()


@pytest.mark.parametrize("rows", [3, 5_000])  # the second takes the path in chunks
def test_norm_and_activation_in_one_are_those_of_torch(rows: int) -> None:
    torch.manual_seed(0)
    x, scale = torch.randn(rows, 40, requires_grad=True), torch.randn(40, requires_grad=True)
    ours = normed_silu(x, scale)
    theirs = torch.nn.functional.silu(torch.nn.functional.rms_norm(x, (40,), scale, 1e-4))
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(rows, 40)
    for gradient, expected in zip(
        torch.autograd.grad(ours, (x, scale), weight), torch.autograd.grad(theirs, (x, scale), weight), strict=True
    ):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(normed_silu(x, scale), theirs)
