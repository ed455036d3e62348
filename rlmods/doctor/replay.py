"""What is drawn from a replay, and what it costs. Thresholds stand here.

Replay ratio: transitions drawn for each new one. Mnih et al. 2015 draw 8 (32 every 4 steps), data-efficient Rainbow
(van Hasselt et al. 2019) 32, the RL Zoo's DQN 64 on MountainCar and 128 on Acrobot (128 for every step). Actors with
the lesser of several critics draw 256 (TD3 and SAC: 256 for every step), with ten critics 5,120 (REDQ, Chen et al.
2021). Beyond these, networks fit their early data for good (Nikishin et al. 2022) unless they are reset.
"""

from collections.abc import Mapping
from typing import NamedTuple

from rlmods.doctor.line import Line, fail, line_of, of_data, size, warn

_HUGE_BUFFER = 10.0  # times the budget
_FEW_UNIFORM = 0.1
_MUCH_MEMORY = 0.5  # of what is available


class RatioBounds(NamedTuple):
    """Transitions drawn for each new one up to which nothing is said, and from which on it is wrong."""

    usual: float
    highest: float
    source: str


VALUE_BASED = RatioBounds(64.0, 256.0, "8 in DQN on Atari, 32 in data-efficient Rainbow, 64 to 128 in the RL Zoo")
ACTOR_CRITIC = RatioBounds(512.0, 5_120.0, "256 in TD3 and SAC, 5,120 in REDQ with ten critics")


def replay_ratio(drawn: int, collected: int, limit: float | None, bounds: RatioBounds) -> Line:
    """How often a transition is drawn on average.

    Args:
        drawn: transitions of one iteration.
        collected: environment steps of one iteration.
        limit: `max_replay_ratio`.
        bounds: of the kind of algorithm.
    """
    configured = drawn / collected
    effective = configured if limit is None else min(configured, limit)
    arithmetic = f"{drawn:,} drawn for {collected:,} new transitions: {configured:,.4g} draws of each"
    if limit is not None:
        arithmetic += f", at most {limit:g} by max_replay_ratio"
    advice = of_data("max_replay_ratio", f"{bounds.usual:g}") + ", or lower updates_per_iteration or batch_size"
    return line_of(
        "replay_ratio",
        arithmetic,
        fail(
            effective > bounds.highest,
            f"Above {bounds.highest:g}, beyond what is known to be stable ({bounds.source})",
            advice,
        ),
        warn(effective > bounds.usual, f"Above {bounds.usual:g}; {bounds.source}", advice),
        note="" if effective == configured else "The limiter makes fewer updates than are configured",
    )


def first_batch(batch_size: int, num_held: int, learning_starts: int) -> Line:
    """What the first update draws from."""
    return line_of(
        "first_batch",
        f"{batch_size:,} of the {num_held:,} transitions that there are at the first update",
        warn(
            batch_size > num_held,
            f"batch_size {batch_size:,} is larger: each is drawn several times (learning_starts {learning_starts:,})",
            of_data("learning_starts", 10 * batch_size),
        ),
    )


def buffer(buffer_size: int, num_collected: int, first_update: int) -> Line:
    """Which part of a process's experience the replay holds."""
    arithmetic = f"{buffer_size:,} transitions for the {num_collected:,} that a process collects"
    share = buffer_size / num_collected
    return line_of(
        "buffer_size",
        f"{arithmetic}: the last {share:.0%}" if share < 1.0 else f"{arithmetic}: it holds them all",
        warn(
            buffer_size < first_update,
            f"The first updates come after {first_update:,}: what was collected before is overwritten by then",
            of_data("buffer_size", first_update),
        ),
        warn(
            share > _HUGE_BUFFER,
            "More than ten times what ever comes",
            of_data("buffer_size", num_collected),
        ),
        note="It is never full" * (share > 1.0),
    )


def memory(needed: int, networks: int, available: int, buffer_size: int | None) -> Line:
    """The bytes of a process against what the machine can give.

    Args:
        needed: by the experience.
        networks: parameters with gradients, targets and moments.
        available: by what the system says.
        buffer_size: transitions of the replay; None where a rollout is all that is kept.
    """
    share = (needed + networks) / available
    if buffer_size is None:
        fitting = of_data("n_steps", "N with a smaller N")
    else:
        fitting = of_data("buffer_size", int(0.8 * _MUCH_MEMORY * available / max(needed, 1) * buffer_size))
    return line_of(
        "memory",
        f"{size(needed)} of experience, {size(networks)} of networks with their optimisers: {share:.1%} of the "
        f"{size(available)} that are available",
        fail(share > 1.0, "It does not fit", fitting),
        warn(share > _MUCH_MEMORY, "More than half of it", fitting),
    )


def strata(shares: Mapping[str, float], beta: float) -> Line:
    """What is drawn from the parts of a stratified replay, and whether weights take it back."""
    uniform = shares.get("uniform", 0.0)
    return line_of(
        "replay_strata",
        ", ".join(f"{share:.0%} {name}" for name, share in shares.items()) + f"; weights (N P)^-{beta:g}",
        warn(
            uniform < _FEW_UNIFORM,
            "Less than a tenth is drawn from all transitions: what is in no other stratum is forgotten",
            of_data("replay_strata.uniform", "0.2, and less of the others"),
        ),
        warn(
            beta == 0.0,
            "Nothing takes back that good outcomes are drawn more often: values come out too high",
            of_data("replay_strata_beta", 1.0),
        ),
    )


def priorities(alpha: float, beta0: float, per_priority: int) -> Line:
    """Prioritised replay: exponents, and how old a priority gets within an iteration."""
    return line_of(
        "priorities",
        f"P ~ |TD error|^{alpha:g}, weights (N P)^-beta with beta from {beta0:g} to 1; priorities are up to "
        f"{per_priority:,} updates old",
        warn(
            alpha == 0.0,
            "With an exponent of 0 replay is uniform, at the price of a prioritised one",
            of_data("prioritized_replay", "false"),
        ),
    )
