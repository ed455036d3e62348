"""The share of the frames on which an expert acts: a schedule in steps, down to a floor."""

import math


def expert_share(env_steps: int, *, start: float, decay: float, decay_steps: int, floor: float) -> float:
    """max(floor, start · decay^⌊env_steps / decay_steps⌋).

    Args:
        env_steps: environment steps so far.
        start: share at the beginning, in [0, 1].
        decay: factor of one step of the schedule, in (0, 1].
        decay_steps: environment steps between two steps of the schedule, at least 1.
        floor: the share never falls below it; in [0, start].

    Returns:
        In [floor, start].
    """
    return max(floor, start * decay ** (env_steps // decay_steps))


def expert_floor_reached(*, start: float, decay: float, decay_steps: int, floor: float) -> float:
    """The environment step from which on the share is the floor: decay_steps · ⌈ln(floor/start) / ln decay⌉.

    Infinite where it only comes near to it: without a decay, or with a floor of 0.
    """
    if floor == start:
        return 0.0
    if decay == 1.0 or floor == 0.0:
        return math.inf
    steps = math.log(floor / start) / math.log(decay)
    return float(decay_steps * math.ceil(steps * (1.0 - 1e-12)))  # a whole number may be rounded to just above it
