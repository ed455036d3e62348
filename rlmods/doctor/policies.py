"""Entropy, spread and noise of policies. Thresholds stand here."""

import math

from rlmods.doctor.line import Line, fail, line_of, model_option, of_model, warn

_LOUD_BONUS = 0.1  # of the spread of standardised advantages
_STANDARD_ERRORS = 3.0
_WIDE_STD = 0.5  # share of the draws outside the box


def entropy_bonus(ent_coef: float, largest_entropy: float, num_actions: int, batch_size: int, *, bounded: bool) -> Line:
    """The bonus for entropy against advantages, which are of size 1.

    Where σ is not bounded the bonus has no end: its pull on each log σ is ent_coef, whatever σ is. Standardised
    advantages pull with √2 times their correlation with z² − 1, z = (a − μ)/σ; of no signal that correlation has the
    size 1/√B in a mini-batch.

    Args:
        ent_coef: coefficient.
        largest_entropy: of a policy that draws from the whole space, in nats, above the most certain one or above the
            uniform distribution's zero.
        num_actions: A.
        batch_size: steps of a mini-batch.
        bounded: whether the entropy has an upper end.
    """
    if ent_coef == 0.0:
        return Line("PASS", "entropy_bonus", "ent_coef 0: none")
    if bounded:
        bonus = ent_coef * abs(largest_entropy)
        return line_of(
            "entropy_bonus",
            f"ent_coef {ent_coef:g} x {abs(largest_entropy):.3g} nats = {bonus:.3g} at most, advantages have the "
            "spread 1",
            warn(
                bonus > _LOUD_BONUS,
                "The bonus is more than a tenth of it: the policy is paid for being random",
                of_model("ent_coef", f"{0.2 * _LOUD_BONUS / abs(largest_entropy):.2g}"),
            ),
        )
    needed, noise = ent_coef / math.sqrt(2.0), 1.0 / math.sqrt(batch_size)
    return line_of(
        "entropy_bonus",
        f"ent_coef {ent_coef:g} pulls on each log sigma of {num_actions} actions; a correlation of {needed:.2g} "
        f"between advantage and (z^2 - 1) would hold it, noise of a mini-batch of {batch_size:,} is {noise:.2g}",
        fail(
            needed > _STANDARD_ERRORS * noise,
            "The bonus has no upper end and is louder than the noise: sigma grows until actions are coin flips",
            of_model("ent_coef", 0.0) + " or " + model_option("action_distribution", "bounded"),
        ),
        warn(
            True,
            "The bonus of an unbounded Gaussian has no upper end: nothing but the advantages keeps sigma in the box",
            of_model("ent_coef", 0.0) + " or " + model_option("action_distribution", "bounded"),
        ),
    )


def initial_std(std: float, highest: float | None, num_actions: int) -> Line:
    """σ at the start in half action ranges, and how many draws leave the box around its middle.

    Args:
        std: the largest one.
        highest: bound by construction; None where there is none.
        num_actions: A.
    """
    outside = math.erfc(1.0 / (std * math.sqrt(2.0)))
    bound = "no bound" if highest is None else f"below {highest:g} by construction"
    return line_of(
        "sigma",
        f"{std:.3g} of half the range at the start, {bound}; {outside:.1%} of the draws of each of {num_actions} "
        "actions lie outside the box, " + ("and are clipped" if highest is None else "and tanh brings them into it"),
        warn(
            highest is None and std > 1.0 - 1e-6,
            f"Of {num_actions} actions {1.0 - (1.0 - outside) ** num_actions:.0%} of the draws have a clipped one from "
            "the start, and nothing keeps sigma from growing",
            of_model("log_std_init", -0.5) + " or " + model_option("action_distribution", "bounded"),
        ),
        warn(std < 0.05, "Hardly anything is explored", of_model("log_std_init", -0.5)),
    )


def target_entropy(target: float, num_actions: int) -> Line:
    """The entropy that the temperature aims at, against the most that the cube [−1, 1]^A allows, A ln 2."""
    highest = num_actions * math.log(2.0)
    width = math.exp(target / num_actions) / 2.0
    return line_of(
        "target_entropy",
        f"{target:.4g} nats for {num_actions} actions, at most A ln 2 = {highest:.4g}: as a uniform policy on "
        f"{width:.1%} of each range",
        fail(
            target >= highest,
            "No policy has that entropy: the temperature grows without end",
            of_model("target_entropy", -num_actions),
        ),
        warn(
            width > 0.5,
            "More than half of each range stays in use: the policy is not to get better than that",
            of_model("target_entropy", -num_actions),
        ),
        warn(
            width < 1e-3,
            "The policy may become deterministic before it explores",
            of_model("target_entropy", -num_actions),
        ),
    )


def fixed_temperature(ent_coef: float, num_actions: int, gamma: float) -> Line:
    """What a fixed temperature adds to values at most: α A ln 2 γ/(1 − γ)."""
    bonus = ent_coef * num_actions * math.log(2.0) * gamma / (1.0 - gamma)
    return Line(
        "PASS",
        "temperature",
        f"ent_coef {ent_coef:g} fixed: entropy adds at most {bonus:.4g} to a value",
        "Rewards of a smaller sum are not seen beside it",
    )


def target_noise(std: float, clip: float) -> Line:
    """The noise that smooths targets, and the share of it that is clipped."""
    if std == 0.0:
        return Line("PASS", "target_noise", "none: targets are not smoothed (DDPG)")
    clipped = math.erfc(clip / (std * math.sqrt(2.0)))
    return line_of(
        "target_noise",
        f"standard deviation {std:g}, clipped at {clip:g} = {clip / std:.3g} of them: {clipped:.1%} of the draws",
        warn(
            clip < std,
            "A third or more of the noise lies at its bounds: two actions are smoothed over, not a neighbourhood",
            of_model("target_noise_clip", 2.5 * std),
        ),
        warn(std > 1.0, "The noise is larger than half the action range", of_model("target_policy_noise", 0.2)),
    )


def policy_delay(delay: int, num_updates: int, updates_per_iteration: float) -> Line:
    """How often the actor is updated."""
    return line_of(
        "policy_delay",
        f"{num_updates:,} updates of the critics, {num_updates // delay:,} of the actor, "
        f"{updates_per_iteration / delay:.3g} an iteration",
        fail(
            delay > num_updates > 0,
            "The actor is never updated",
            of_model("policy_delay", 2),
        ),
        warn(
            delay > updates_per_iteration,
            "Whole iterations are collected by an unchanged policy",
            of_model("policy_delay", 2),
        ),
    )
