"""The recurrent state-space model, against a plain one in double precision that torch differentiates itself."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rlmods.networks.rssm import RSSM, BlockGRU, LatentState, Observed

TOKENS, ACTIONS, DETER, LATENTS, CLASSES = 5, 3, 16, 3, 4
STEPS, ROWS, RESET = 5, 2, 3  # the second row begins anew at step 3
PARTS = ("deter", "stoch", "prior", "posterior")


@torch.no_grad()
def make_rssm(unimix: float = 0.01, num_blocks: int = 4) -> RSSM:
    """With biases and scales that are not those of the start, and biases of the prior that are not its posterior's."""
    torch.manual_seed(0)
    rssm = RSSM(
        TOKENS,
        ACTIONS,
        deter=DETER,
        hidden=6,
        num_latents=LATENTS,
        num_classes=CLASSES,
        num_blocks=num_blocks,
        unimix=unimix,
    )
    for parameter in rssm.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    return rssm


def make_certain(rssm: RSSM) -> RSSM:
    """With latents that are drawn of one class each, whatever the draw."""
    assert rssm.unimix == 0.0
    with torch.no_grad():
        rssm.posterior_output.weight.mul_(1e5)
    return rssm


class Life(NamedTuple):
    """What `observe` is given."""

    tokens: Tensor
    previous_action: Tensor
    is_first: Tensor
    state: LatentState


def make_life(seed: int = 1) -> Life:
    torch.manual_seed(seed)
    is_first = torch.zeros(STEPS, ROWS, dtype=torch.bool)
    is_first[RESET, 1] = True
    stoch = F.one_hot(torch.randint(CLASSES, (ROWS, LATENTS)), CLASSES).flatten(1).float()
    return Life(
        torch.randn(STEPS, ROWS, TOKENS),
        torch.rand(STEPS, ROWS, ACTIONS) * 2.0 - 1.0,
        is_first,
        LatentState(torch.randn(ROWS, DETER), stoch),
    )


def observe(rssm: RSSM, life: Life, seed: int = 2) -> Observed:
    """Lives with one seed draw the same latents as long as they are the same."""
    torch.manual_seed(seed)
    return rssm.observe(*life)


def parts_of(observed: Observed) -> dict[str, Tensor]:
    return dict(zip(PARTS, (*observed.state, observed.prior, observed.posterior), strict=True))


# The plain model: one layer on each concatenation, dense matrices, one step after the other.


def plain_layer(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    linear = F.linear(x, weight, bias)
    return F.silu(linear / (linear.square().mean(-1, keepdim=True) + 1e-4).sqrt() * scale)


def plain_core(weights: dict[str, Tensor], deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
    """Every block sees its own part of h and a copy of all inputs; the gates are dense, with zeros off the blocks."""
    inputs = torch.cat(
        [
            plain_layer(
                x,
                weights[f"core.{name}.linear.weight"],
                weights[f"core.{name}.linear.bias"],
                weights[f"core.{name}.norm.scale"],
            )
            for name, x in (("of_deter", deter), ("of_stoch", stoch), ("of_action", action))
        ],
        -1,
    )
    of_inputs = torch.cat([weights["core.inputs.weight"], weights["core.action_input.weight"]], 1)
    mixed = []
    for block, own in enumerate(weights["core.block"]):
        rows = slice(block * len(own), (block + 1) * len(own))
        kernel = torch.cat([own.T, of_inputs[rows]], 1)
        seen = torch.cat([deter[:, rows], inputs], -1)
        mixed.append(F.linear(seen, kernel, weights["core.action_input.bias"][rows]))
    linear = torch.cat(mixed, -1)
    hidden = F.silu(linear / (linear.square().mean(-1, keepdim=True) + 1e-4).sqrt() * weights["core.norm.scale"])
    reset, candidate, update = (
        hidden @ torch.block_diag(*blocks) + bias.flatten()  # type: ignore[no-untyped-call]
        for blocks, bias in zip(weights["core.gates"], weights["core.gates_bias"], strict=True)
    )
    candidate = (reset.sigmoid() * candidate).tanh()
    update = (update - 1.0).sigmoid()
    following: Tensor = update * candidate + (1.0 - update) * deter
    return following


def plain_log_probabilities(logits: Tensor, unimix: float) -> Tensor:
    probabilities = logits.view(-1, CLASSES, LATENTS).softmax(-2)
    return (probabilities * (1.0 - unimix) + unimix / CLASSES).log()


def plain_prior(weights: dict[str, Tensor], deter: Tensor, unimix: float) -> Tensor:
    for number in range(2):
        name = f"prior.hidden.{number}"
        layer = (weights[f"{name}.linear.weight"], weights[f"{name}.linear.bias"], weights[f"{name}.norm.scale"])
        deter = plain_layer(deter, *layer)
    return plain_log_probabilities(
        F.linear(deter, weights["prior.output.weight"], weights["prior.output.bias"]), unimix
    )


def plain_posterior(weights: dict[str, Tensor], deter: Tensor, tokens: Tensor, unimix: float) -> Tensor:
    hidden = plain_layer(
        torch.cat([deter, tokens], -1),
        torch.cat([weights["posterior_of_deter.weight"], weights["posterior_of_tokens.weight"]], 1),
        weights["posterior_of_tokens.bias"],
        weights["posterior_norm.scale"],
    )
    output = F.linear(hidden, weights["posterior_output.weight"], weights["posterior_output.bias"])
    return plain_log_probabilities(output, unimix)


def plain_observe(rssm: RSSM, life: Life, samples: Tensor) -> dict[str, Tensor]:
    """With given draws `[T, B, S]`, so that it does not matter how they were drawn."""
    weights = {name: parameter.double() for name, parameter in rssm.named_parameters()}
    deter, stoch = life.state.deter.double(), life.state.stoch.double()
    steps: list[tuple[Tensor, ...]] = []
    for tokens, action, is_first, sample in zip(*life[:3], samples, strict=True):
        goes_on = (~is_first).double().unsqueeze(-1)
        deter = plain_core(weights, deter * goes_on, stoch * goes_on, action.double() * goes_on)
        posterior = plain_posterior(weights, deter, tokens.double(), rssm.unimix)
        probabilities = posterior.exp()
        stoch = sample.double() + (probabilities - probabilities.detach()).flatten(-2)
        steps.append((deter, stoch, plain_prior(weights, deter, rssm.unimix), posterior))
    return dict(zip(PARTS, map(torch.stack, zip(*steps, strict=True)), strict=True))


@pytest.mark.parametrize("num_blocks", [1, 4])
@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_a_life_is_that_of_the_plain_model(unimix: float, num_blocks: int) -> None:
    rssm, life = make_rssm(unimix, num_blocks), make_life()
    lived = parts_of(observe(rssm, life))
    for name, expected in plain_observe(rssm, life, lived["stoch"].detach()).items():
        torch.testing.assert_close(lived[name].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("asked", [PARTS, *((part,) for part in PARTS)])
@pytest.mark.parametrize("steps", [1, STEPS])
def test_gradients_are_those_of_the_plain_model(asked: tuple[str, ...], steps: int) -> None:
    """Of all outputs together and of each, to all weights, to everything that was seen and to the state before it."""
    rssm, life = make_rssm(), make_life()
    life = Life(life.tokens[-steps:], life.previous_action[-steps:], life.is_first[-steps:], life.state)
    seen = [life.tokens, life.previous_action, *life.state]
    for tensor in seen:
        tensor.requires_grad_()
    lived = parts_of(observe(rssm, life))
    plain = plain_observe(rssm, life, lived["stoch"].detach())
    directions = {name: torch.randn_like(lived[name]) for name in asked}
    names = [*(name for name, _ in rssm.named_parameters()), "tokens", "action", "deter", "stoch"]
    gradients, expected = (
        torch.autograd.grad(
            torch.stack([(directions[name] * outputs[name]).sum() for name in asked]).sum(),
            [*rssm.parameters(), *seen],
            allow_unused=True,
            materialize_grads=True,
        )
        for outputs in (lived, plain)
    )
    for name, gradient, other in zip(names, gradients, expected, strict=True):
        assert torch.allclose(gradient, other, rtol=1e-3, atol=1e-4), name


def test_a_life_is_one_step_after_another() -> None:
    """Where the latents are certain; a row that begins anew is stepped from zeros."""
    rssm, life = make_certain(make_rssm(unimix=0.0)), make_life()
    lived = observe(rssm, life).state
    state = life.state
    for step in range(STEPS):
        goes_on = (~life.is_first[step]).float().unsqueeze(-1)
        state = LatentState(state.deter * goes_on, state.stoch * goes_on)
        state = rssm.step(life.tokens[step], life.previous_action[step] * goes_on, state)
        torch.testing.assert_close(state.deter, lived.deter[step], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state.stoch, lived.stoch[step], rtol=0.0, atol=1e-5)


def test_a_life_in_two_parts_is_the_whole() -> None:
    rssm, life = make_certain(make_rssm(unimix=0.0)), make_life()
    whole = observe(rssm, life).state
    first = observe(rssm, Life(life.tokens[:2], life.previous_action[:2], life.is_first[:2], life.state)).state
    before = LatentState(first.deter[-1], first.stoch[-1])
    second = observe(rssm, Life(life.tokens[2:], life.previous_action[2:], life.is_first[2:], before)).state
    torch.testing.assert_close(torch.cat([first.deter, second.deter]), whole.deter, rtol=1e-4, atol=1e-5)


def test_a_dream_is_the_core_and_a_draw_of_the_prior() -> None:
    """Its h is that of the life with the same action; no observation is needed."""
    rssm, life = make_rssm(), make_life()
    action = life.previous_action[0]
    dreamt = rssm.imagine(life.state, action)
    lived = rssm.step(life.tokens[0], action, life.state)
    torch.testing.assert_close(dreamt.deter, lived.deter)
    weights = {name: parameter.double() for name, parameter in rssm.named_parameters()}
    expected = plain_core(weights, life.state.deter.double(), life.state.stoch.double(), action.double())
    torch.testing.assert_close(dreamt.deter.double(), expected, rtol=1e-4, atol=1e-5)
    prior = rssm.prior_of(dreamt.deter)
    torch.testing.assert_close(prior.log().double(), plain_prior(weights, expected, 0.01), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_draws_have_the_probabilities_of_posterior_and_prior() -> None:
    """Of 8,000 rows that have seen the same: 4 standard errors of a half are 0.022."""
    rssm, many = make_rssm(), 8_000
    torch.manual_seed(3)
    tokens, action = torch.randn(TOKENS).expand(many, -1), torch.rand(ACTIONS).expand(many, -1)
    state = LatentState(torch.randn(DETER).expand(many, -1), torch.zeros(many, LATENTS * CLASSES))
    is_first = torch.zeros(1, many, dtype=torch.bool)
    lived = rssm.observe(tokens.unsqueeze(0), action.unsqueeze(0), is_first, state)
    stepped, dreamt = rssm.step(tokens, action, state), rssm.imagine(state, action)
    posterior, prior = lived.posterior[0, 0].exp().flatten(), lived.prior[0, 0].exp().flatten()
    assert float((posterior - prior).abs().max()) > 0.1
    for stoch, expected in ((lived.state.stoch[0], posterior), (stepped.stoch, posterior), (dreamt.stoch, prior)):
        assert torch.equal(stoch.view(many, CLASSES, LATENTS).sum(1), torch.ones(many, LATENTS))
        assert float((stoch.mean(0) - expected).abs().max()) < 0.022


@torch.no_grad()
def test_each_latent_of_each_row_and_step_is_drawn_for_itself() -> None:
    """Pairs of draws that have the same uniform distribution agree in a quarter of 4,000 cases, ±4 standard errors."""
    rssm, many = make_rssm(), 4_000
    rssm.posterior_output.weight.zero_()
    rssm.posterior_output.bias.zero_()
    rssm.prior.output.weight.zero_()
    rssm.prior.output.bias.zero_()
    tokens, action = torch.zeros(2, many, TOKENS), torch.zeros(2, many, ACTIONS)
    stoch = rssm.observe(tokens, action, tokens[..., 0] > 0.0, rssm.initial_state(many)).state.stoch
    dreamt = rssm.imagine(rssm.initial_state(many), action[0]).stoch
    drawn = torch.stack([*stoch, dreamt]).view(3, many, CLASSES, LATENTS).argmax(-2)
    pairs = [
        (drawn[0], drawn[1]),
        (drawn[0], drawn[2]),
        (drawn[:, 1:], drawn[:, :-1]),
        (drawn[..., 0], drawn[..., 1]),
    ]
    for first, second in pairs:
        assert float((first == second)[..., :many].float().mean()) == pytest.approx(0.25, abs=0.03)


def test_the_prior_of_a_step_has_not_seen_the_step() -> None:
    """Other tokens at the last step change its posterior and not a bit of its prior; the one before has passed on."""
    rssm, life = make_rssm(), make_life()
    tokens = life.tokens.clone()
    tokens[-1] += 3.0
    lived, other = observe(rssm, life), observe(rssm, life._replace(tokens=tokens))
    assert torch.equal(lived.prior, other.prior)
    assert torch.equal(lived.state.deter, other.state.deter)
    assert not torch.allclose(lived.posterior[-1], other.posterior[-1], atol=0.1)
    tokens = life.tokens.clone()
    tokens[-2] += 30.0
    assert not torch.equal(observe(rssm, life._replace(tokens=tokens)).prior[-1], lived.prior[-1])


def test_the_posterior_remembers() -> None:
    """The last tokens are the same, what was before them is not."""
    rssm, life = make_rssm(), make_life()
    state = LatentState(life.state.deter + 1.0, life.state.stoch)
    lived, other = observe(rssm, life), observe(rssm, life._replace(state=state))
    assert not torch.allclose(lived.posterior[-1, 0], other.posterior[-1, 0], atol=1e-3)


@pytest.mark.parametrize("step", [0, RESET, STEPS - 1])
def test_nothing_before_a_first_step_counts(step: int) -> None:
    """Neither tokens, nor actions, nor the state, nor the action that led to it: not a bit."""
    rssm, life = make_rssm(), make_life()
    is_first = life.is_first.clone()
    is_first[step] = True
    tokens, action = life.tokens.clone(), life.previous_action.clone()
    tokens[:step] += 1.0
    action[: step + 1] = 0.5
    other_state = LatentState(life.state.deter - 1.0, life.state.stoch.flip(-1))
    lived = parts_of(observe(rssm, Life(life.tokens, life.previous_action, is_first, life.state)))
    other = parts_of(observe(rssm, Life(tokens, action, is_first, other_state)))
    for name in PARTS:
        assert torch.equal(lived[name][step:], other[name][step:]), name
        assert step == 0 or not torch.equal(lived[name][:step], other[name][:step]), name


def test_the_last_step_of_an_episode_is_not_blank() -> None:
    """A new beginning at step 3 changes nothing until then, and everything from then on; in its own row alone."""
    rssm, life = make_rssm(), make_life()
    lived = parts_of(observe(rssm, life))
    other = parts_of(observe(rssm, life._replace(is_first=torch.zeros_like(life.is_first))))
    for name in PARTS:
        assert torch.equal(lived[name][:RESET], other[name][:RESET]), name
        assert torch.equal(lived[name][:, 0], other[name][:, 0]), name
    assert not torch.allclose(lived["deter"][RESET, 1], other["deter"][RESET, 1], atol=1e-3)


def test_gradients_cross_steps_but_no_beginning() -> None:
    """Of the last h to the first tokens, through z and h alike."""
    rssm, life = make_rssm(), make_life()
    life.tokens.requires_grad_()
    life.state.deter.requires_grad_()
    of_tokens, of_state = torch.autograd.grad(
        observe(rssm, life).state.deter[-1].square().sum(), [life.tokens, life.state.deter]
    )
    assert bool(of_tokens[0, 0].any())
    assert bool(of_state[0].any())
    assert not of_tokens[:RESET, 1].any()
    assert bool(of_tokens[RESET, 1].any())
    assert not of_state[1].any()


def test_no_class_is_impossible() -> None:
    """1 % of the uniform distribution over 4 classes, in the prior and in the posterior that the KL sees."""
    rssm, life = make_rssm(unimix=0.01), make_life()
    with torch.no_grad():
        rssm.prior.output.weight.mul_(1e3)
        rssm.posterior_output.weight.mul_(1e3)
    lived = observe(rssm, life)
    for log_probabilities in (lived.prior, lived.posterior):
        probabilities = log_probabilities.detach().exp()
        assert float(probabilities.min()) == pytest.approx(0.0025, rel=1e-3)
        assert float(probabilities.max()) == pytest.approx(0.9925, rel=1e-3)
        torch.testing.assert_close(probabilities.sum(-2), torch.ones(STEPS, ROWS, LATENTS))


def test_golden_initial_weights_of_blocks_are_of_the_whole_input() -> None:
    """8 blocks of 64 and 8 copies of 3 · 32 inputs: 1/√(512 + 768); the gates 1/√512. None beyond 2 · 1.1368 of it."""
    torch.manual_seed(0)
    core = BlockGRU(512, 40, 3, 32, 8)
    mixing = (core.block, core.inputs.weight, core.action_input.weight)
    for weight, fan_in in [*((weight, 1280) for weight in mixing), (core.gates, 512)]:
        values = weight.detach()
        assert float(values.std()) == pytest.approx(fan_in**-0.5, rel=0.03)
        assert float(values.abs().max()) <= 2.0 * 1.1368 * fan_in**-0.5 * (1.0 + 1e-6)
    assert not core.action_input.bias.any()
    assert not core.gates_bias.any()


def test_golden_the_two_parts_of_the_posteriors_layer_are_of_one_fan_in() -> None:
    """100 tokens and 300 of h: 1/20."""
    torch.manual_seed(0)
    rssm = RSSM(100, 3, deter=300, hidden=64, num_latents=2, num_classes=2, num_blocks=4, unimix=0.01)
    for layer in (rssm.posterior_of_tokens, rssm.posterior_of_deter):
        assert float(layer.weight.detach().std()) == pytest.approx(0.05, rel=0.03)


def test_blocks_that_do_not_divide_the_state_are_refused() -> None:
    with pytest.raises(ValueError, match="got deter = 10 in 4 blocks, expected a multiple of them"):
        BlockGRU(10, 4, 2, 4, 4)


def test_the_initial_state_is_zeros() -> None:
    state = make_rssm().initial_state(2)
    assert state.features.shape == (2, DETER + LATENTS * CLASSES)
    assert not state.features.any()
