"""Schedules over the progress of a run (0 at its start, 1 when its budget of environment steps is spent)."""


def linear_schedule(progress: float, *, start: float, end: float, fraction: float) -> float:
    """From `start` to `end` in a straight line over the first `fraction` of the run, `end` thereafter.

    Args:
        progress: environment steps as a fraction of the budget, 0 to 1.
        start: value at progress 0.
        end: value from progress `fraction` on.
        fraction: in `[0, 1]`; 0 means `end` from the beginning.
    """
    if progress >= fraction:
        return end
    return start + (end - start) * progress / fraction
