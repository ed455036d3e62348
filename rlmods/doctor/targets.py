"""How fast target networks follow. Thresholds stand here."""

import math

from rlmods.doctor.line import Line, fail, line_of, model_option, of_model, warn

# ReAgent's default of 0.2 (3 updates) was found to diverge; 0.05 (14 updates) is the fastest in common use.
_FAST = 10.0
_SLOW = 0.2  # of all updates
_MANY_LAGS = 4.0  # between two collections


def half_life(tau: float, interval: int) -> float:
    """Updates after which half of an old target network is replaced: interval · ln 2 / −ln(1 − τ)."""
    return 0.0 if tau >= 1.0 else interval * math.log(2.0) / -math.log1p(-tau)


def share_left(tau: float, interval: int, num_updates: int) -> float:
    """What is left of the target network of `num_updates` updates ago: (1 − τ)^⌊k / interval⌋."""
    return float((1.0 - tau) ** (num_updates // interval))


def target_mixing(
    tau: float,
    interval: int,
    interval_name: str,
    num_updates: int,
    frames_per_update: float,
    updates_per_iteration: float,
) -> Line:
    """The lag of a target network in updates and in frames.

    Args:
        tau: share of the online network in a target update, in (0, 1].
        interval: updates between two target updates.
        interval_name: setting that holds it.
        num_updates: of the run.
        frames_per_update: environment steps between two updates.
        updates_per_iteration: updates between two collections.
    """
    if tau >= 1.0:
        lag = float(interval)
        arithmetic = (
            f"a copy every {interval:,} updates = {interval * frames_per_update:,.0f} frames, "
            f"{num_updates // interval:,} in the run: the target is {interval / 2:,.4g} updates old on average"
        )
    else:
        lag = half_life(tau, interval)
        left = share_left(tau, interval, 1_000)
        arithmetic = (
            f"tau {tau:g} every {interval:,} update{'s' * (interval > 1)}: half of the old target is gone after "
            f"{lag:,.4g} updates = {lag * frames_per_update:,.0f} frames; after 1,000 updates {left:.2g} of it is left"
        )
    never = interval > num_updates
    return line_of(
        "target_mixing",
        arithmetic,
        fail(
            never and num_updates > 0,
            f"No target update comes in {num_updates:,} updates: targets stay those of the network at the start",
            of_model(interval_name, max(num_updates // 100, 1)),
        ),
        warn(
            lag < _FAST,
            "The target hardly lags behind the network that it is meant to steady",
            of_model("tau", 0.005) if tau < 1.0 else of_model(interval_name, 500),
        ),
        warn(
            updates_per_iteration > _MANY_LAGS * lag,
            f"{updates_per_iteration:,.4g} updates are made between two collections: values are bootstrapped from "
            f"themselves {updates_per_iteration / lag:,.3g} times before the environment says anything new",
            "lower --data.init_args.updates_per_iteration, or " + model_option("tau", 0.005)
            if tau < 1.0
            else of_model(interval_name, max(int(updates_per_iteration), 1)),
        ),
        warn(
            lag > _SLOW * num_updates,
            f"The lag is more than a fifth of the run's {num_updates:,} updates: values spread that slowly",
            of_model(interval_name, 1) if tau < 1.0 else of_model(interval_name, max(num_updates // 100, 1)),
        ),
    )


def hard_copies(hard_interval: int, tau: float, interval: int, num_updates: int) -> Line:
    """What full copies add to soft updates."""
    left = share_left(tau, interval, hard_interval)
    lag = half_life(tau, interval)
    return line_of(
        "hard_copies",
        f"a full copy every {hard_interval:,} updates, {num_updates // hard_interval:,} in the run; by then the soft "
        f"updates have left {left:.2g} of the target of the copy before",
        warn(
            hard_interval > num_updates > 0,
            f"No copy comes in {num_updates:,} updates",
            of_model("target_hard_update_interval", "null"),
        ),
        warn(
            hard_interval < lag,
            f"A copy comes before the soft updates have replaced half of the target ({lag:,.4g} updates): tau {tau:g} "
            "does next to nothing",
            of_model("tau", 1.0),
        ),
        warn(
            hard_interval < _FAST,
            "The target hardly lags behind the network that it is meant to steady",
            of_model("target_hard_update_interval", 500),
        ),
        note="Copies hardly matter: the age since the last update of any kind says nothing of them" * (left < 0.01),
    )
