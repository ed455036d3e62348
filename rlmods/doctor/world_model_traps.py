"""What goes wrong when DreamerV3 is written again, tried on a module: each trap has a line.

The module is a small copy of the user's: the same class with the same settings and networks of the size `cpu`. All
numbers are made by the module's own methods.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlmods.algorithms.dreamer_v3 import DreamerV3
from rlmods.doctor.line import Line
from rlmods.doctor.world_model_trials import (
    CHANGED,
    ROWS,
    STEPS,
    arguments_of_observe,
    behaviour,
    has_choice,
    losses_of,
    losses_with_latents,
    noise,
    observed,
    other_action,
    replaced,
    sequences,
    states_of,
    with_other_step,
)
from rlmods.networks.rssm import LatentState

_TOLERANCE = 1e-4
# With this β₂ the updates grow 9-fold between these steps after a spike, and 1.5-fold under a running maximum.
_QUICK_BETA2, _AFTER_SPIKE, _GROWTH = 0.9, (5, 40), 4.0

Trap = Callable[[DreamerV3], str]


def traps(model: DreamerV3) -> list[Line]:
    """A line for each, PASS or FAIL. Touches neither the module nor torch's random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        copy = small_copy(model)
        # Of one action alone the probability is always 1.
        tried = [trap for trap in TRAPS if has_choice(model.spec) or trap[2] is not sees_observations]
        return [_line(name, why, _tried(trap, copy)) for name, why, trap in tried]


def small_copy(model: DreamerV3) -> DreamerV3:
    """The same class with the same settings, and small networks with fresh weights."""
    # The command line leaves marks of its own among the settings.
    settings = {name: value for name, value in model.hparams.items() if not name.startswith("_")}
    return type(model)(**(settings | {"size": "cpu"}))


def _tried(trap: Trap, model: DreamerV3) -> str:
    """What a trap says; that a module of somebody else's cannot be tried is no reason not to try the others."""
    try:
        return trap(model)
    except Exception as error:
        return f"It could not be tried: {type(error).__name__}: {error}"


def _line(name: str, arithmetic: str, reason: str) -> Line:
    if not reason:
        return Line("PASS", f"trap/{name}", arithmetic)
    return Line("FAIL", f"trap/{name}", arithmetic, reason)


# Behaviour


def lambda_returns(model: DreamerV3) -> str:
    """Four states by hand."""
    reward, discount, value = [0.0, 1.0, 2.0, 4.0], [0.9, 0.5, 0.8, 0.7], [10.0, 20.0, 30.0, 40.0]
    # 1 + 0.5 · 20, 2 + 0.8 · 30, 4 + 0.7 · 40; and 1 + 0.5 (2 + 0.8 (4 + 0.7 · 40)) from the end on.
    for gae_lambda, expected in ((0.0, [11.0, 26.0, 32.0]), (1.0, [14.8, 27.6, 32.0])):
        _, got = behaviour(model, reward, discount, value, gae_lambda)
        if not _is_close(got, torch.tensor(expected)):
            what = "the one-step target" if gae_lambda == 0.0 else "the Monte-Carlo return"
            return f"With lambda {gae_lambda:g} got {_words(got)}, expected {what} {expected}"
    return ""


def dreams_end(model: DreamerV3) -> str:
    """A state that ends the dream cuts the return before it and the weight of all after it."""
    losses, got = behaviour(model, [0.0, 1.0, 2.0, 4.0], [0.9, 0.0, 0.8, 0.7], [10.0, 20.0, 30.0, 40.0], 0.95)
    if not math.isclose(float(got[0]), 1.0, rel_tol=_TOLERANCE):
        return f"The return before an end is {float(got[0]):.4g}, expected its reward, 1: the dream goes on after it"
    state = LatentState(
        torch.zeros(ROWS, model.world_model.rssm.deter),
        torch.zeros(ROWS, model.world_model.rssm.num_features - model.world_model.rssm.deter),
    )
    with replaced(model.world_model, "continuation_logits", lambda features: torch.full(features.shape[:-1], -20.0)):
        lasting = float(model.dream(state).discount.amax())
    if lasting > _TOLERANCE:
        return f"Where the head expects every episode to end, dreams go on with {lasting:.4g}: it is not asked"
    weights = losses["critic"].abs().flatten(1).sum(1)
    if bool(weights[1:].any()) or not bool(weights[0] > 0.0):
        return f"The losses of the states from the end on are {_words(weights[1:])}, expected 0: nobody lives there"
    return ""


def first_prediction(model: DreamerV3) -> str:
    """Zero-initialised heads say 0 exactly, whatever the order of the sum."""
    features = torch.randn(ROWS, model.world_model.rssm.num_features)
    for name, head in (
        ("value", model.critic),
        ("slow value", model.slow_critic),
        ("reward", model.world_model.reward),
    ):
        got = head.mean(head(features))
        if bool(got.any()):
            return f"The first {name} is {_words(got)}, expected exactly 0: zero the last layer, sum the bins in pairs"
    return ""


def sees_observations(model: DreamerV3) -> str:
    """The policy's outputs for two observations, with the same random numbers and the same past."""
    state = model.initial_state(8)
    found = []
    for seed in (1, 2):
        observation = noise(model.spec, 8, seed)
        torch.manual_seed(0)
        with torch.no_grad():
            found.append(model.decide(observation, state).log_prob)
    if torch.equal(*found):
        return "Other observations, the same actions with the same probabilities: the policy does not see"
    return ""


# The world model


def free_nats(model: DreamerV3) -> str:
    """Two latents of 0.6 nat are 1.2 nats; one of them alone is below the free one, and nothing moves."""
    model.free_nats = 1.0
    for num, expected in ((2, 1.2), (1, 1.0)):
        losses, leaves = losses_with_latents(model, num)
        for name in ("dynamics", "representation"):
            got = float(losses[name].detach().mean())
            if not math.isclose(got, expected, rel_tol=1e-3):
                return (
                    f"{num} latents of 0.6 nat each give a {name} loss of {got:.4g}, expected {expected:g}: the KL is "
                    "summed over the latents, then held at the free nats"
                )
            gradients = torch.autograd.grad(losses[name].sum(), leaves, retain_graph=True, allow_unused=True)
            moves = any(gradient is not None and bool(gradient.any()) for gradient in gradients)
            if moves != (num == 2):
                state = "no gradient above" if num == 2 else "a gradient below"
                return f"The {name} loss has {state} the free nats, expected one above them and exactly none below"
    return ""


def prior_before_posterior(model: DreamerV3) -> str:
    """Another observation in one step leaves its prior, and those before, as they were."""
    batch = sequences(model)
    other = batch._replace(observation=with_other_step(batch.observation, noise(model.spec, ROWS, 9)))
    first, second = (observed(model, each) for each in (batch, other))
    if not torch.equal(first.prior[: CHANGED + 1], second.prior[: CHANGED + 1]):
        return "Another observation in a step changes the prior of that step: it has seen what it is to foresee"
    if torch.equal(first.posterior[CHANGED], second.posterior[CHANGED]):
        return "Another observation in a step leaves its posterior as it was: nothing is seen"
    return ""


def remembers(model: DreamerV3) -> str:
    """The posterior of a step depends on what was before it, and so does the gradient."""
    rssm = model.world_model.rssm
    tokens, action, is_first, before = arguments_of_observe(model, sequences(model))
    is_first = torch.zeros_like(is_first)
    # Not of zeros, which may stand for a beginning.
    pasts = [LatentState(torch.randn_like(before.deter), torch.ones_like(before.stoch)) for _ in range(2)]
    with torch.no_grad():
        posteriors = [rssm.observe(tokens[:1], action[:1], is_first[:1], past).posterior for past in pasts]
    if torch.equal(*posteriors):
        return "Another past leaves the posterior as it was: it does not depend on h"
    tokens.requires_grad_(True)
    state = rssm.observe(tokens, action, is_first, before).state
    (gradient,) = torch.autograd.grad(state.deter[-1].sum(), tokens, allow_unused=True)
    if gradient is None or not bool(gradient[0].any()):
        return "The last state has no gradient with regard to the first observation: the recurrence is detached"
    return ""


def beginnings(model: DreamerV3) -> str:
    """Where an episode begins, nothing before counts; where none does, everything."""
    first = torch.zeros(STEPS, ROWS, dtype=torch.bool)
    for begins in (True, False):
        first[CHANGED] = begins
        batch = sequences(model)._replace(is_first=first)
        # Action and state before are other ones too.
        action = batch.action.clone()
        action[CHANGED - 1] = other_action(model.spec, action[CHANGED - 1])
        only_action = batch._replace(action=action)
        other = only_action._replace(
            observation=with_other_step(batch.observation, noise(model.spec, ROWS, 9), before=True),
            state=torch.randn_like(batch.state),
        )
        states = [states_of(model, each)[CHANGED:] for each in (batch, other, only_action)]
        if begins and not torch.equal(states[0], states[1]):
            return "A state at the beginning of an episode depends on what came before it: h, z and the action are 0"
        if not begins and has_choice(model.spec) and torch.equal(states[0], states[2]):
            return "Another action leaves the states after it as they were: it is not in the recurrence, or is cut off"
    return ""


def time_limits(model: DreamerV3) -> str:
    """An episode that a time limit ends is learned to go on; one that ends for good is not."""
    batch = sequences(model)
    ends = torch.zeros_like(batch.is_last)
    ends[CHANGED] = True
    truncated = batch._replace(is_last=ends)
    dead = truncated._replace(is_terminal=ends, discount=batch.discount * ~ends)
    of_running, of_truncated, of_dead = (losses_of(model, each)["continuation"] for each in (batch, truncated, dead))
    if not torch.equal(of_running, of_truncated):
        return "A time limit changes the loss of the continuation: it is learned as death"
    if torch.equal(of_running[CHANGED], of_dead[CHANGED]):
        return "Death does not change the loss of the continuation: nothing is learned to end"
    return ""


def mixed_latents(model: DreamerV3) -> str:
    """No class has less than its share of the uniform distribution."""
    rssm = model.world_model.rssm
    least = rssm.unimix / rssm.num_classes
    with torch.no_grad():
        rssm.posterior_output.weight.mul_(1e3)
        posterior = observed(model, sequences(model)).posterior
        rssm.posterior_output.weight.div_(1e3)
    got = float(posterior.exp().amin())
    if got < least * (1.0 - 1e-3):
        return f"A certain latent gives its other classes {got:.3g}, expected unimix / C = {least:.3g} or more"
    return ""


# Optimisation


def forgets_spikes(model: DreamerV3) -> str:
    """After one large gradient the steps grow again; under a running maximum only the bias correction lets them."""
    optimizer: Any = model.configure_optimizers()
    optimizer = optimizer[0] if isinstance(optimizer, list) else optimizer
    parameter = min(optimizer.param_groups[0]["params"], key=lambda candidate: candidate.numel())
    for group in optimizer.param_groups:
        group["betas"] = (0.0, _QUICK_BETA2)
    optimizer.zero_grad()
    moved = []
    for number in range(_AFTER_SPIKE[1] + 1):
        parameter.grad = torch.full_like(parameter, 1.0 if number else 1e3)
        before = parameter.detach().clone()
        optimizer.step()
        moved.append(float((parameter.detach() - before).abs().mean()))
    early, late = (moved[number] for number in _AFTER_SPIKE)
    if not late > _GROWTH * early:
        return (
            f"From {_AFTER_SPIKE[0]} to {_AFTER_SPIKE[1]} steps after a spike the updates have grown "
            f"{late / max(early, 1e-30):.3g}-fold, expected {_GROWTH:g} or more: the mean square of the gradients "
            "never falls"
        )
    return ""


TRAPS: list[tuple[str, str, Trap]] = [
    ("lambda_return", "lambda 1 is Monte Carlo and lambda 0 the value of the next state, on a chain", lambda_returns),
    ("dreams_end", "an end in a dream cuts the return before it and the weight after it", dreams_end),
    ("first_prediction", "value and reward are exactly 0 at first", first_prediction),
    ("sees_observations", "two observations give two distributions of actions", sees_observations),
    ("free_nats", "two latents of 0.6 nat are 1.2, and below 1 nat there is no gradient", free_nats),
    ("prior_before_posterior", "the prior of a step does not depend on its observation", prior_before_posterior),
    ("remembers", "the posterior depends on h, and gradients go back in time", remembers),
    ("beginnings", "no state depends on what came before its episode", beginnings),
    ("time_limits", "a time limit is no death", time_limits),
    ("mixed_latents", "no class has less than its share of the uniform distribution", mixed_latents),
    ("forgets_spikes", "the steps grow again after a large gradient", forgets_spikes),
]


def _is_close(got: Tensor, expected: Tensor) -> bool:
    return got.shape == expected.shape and bool(torch.allclose(got, expected, rtol=_TOLERANCE))


def _words(numbers: Tensor) -> str:
    return str([round(float(number), 4) for number in numbers.detach().flatten()[:8]])
