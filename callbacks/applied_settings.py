"""A table of what was configured against what was applied: pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlmods.callbacks.detectors import Severity, Verdict
from rlmods.functional.expert_share import expert_share

_NEVER = 0.5  # of a configured learning rate: a schedule that falls from it has not left it before the first update
_ROUNDING = 0.05  # of a target's weight: the parameters are float32, and their change is small against them
_CHANCE = 6.0  # standard deviations of coins


class Applied(NamedTuple):
    """A setting, and what was applied of it.

    Attributes:
        name: as it is typed.
        configured: its value.
        first: when the first update was made.
        last: at the end so far.
        low: the lowest of all.
        high: the highest of all.
    """

    name: str
    configured: float
    first: float
    last: float
    low: float
    high: float

    def with_value(self, value: float) -> "Applied":
        """After one more value."""
        return self._replace(last=value, low=min(self.low, value), high=max(self.high, value))


class Frames(NamedTuple):
    """A stretch of the training in which network or expert acted."""

    begin: int  # environment steps
    end: int
    by_network: float
    by_expert: float
    with_care: float | None = None  # frames of both in which care was needed; None where nobody counts them


def never_in_effect(row: Applied) -> Verdict | None:
    """Whether a configured rate was not applied at any time of the run."""
    if _NEVER * row.configured <= row.high and row.low <= 1.01 * row.configured:
        return None
    message = (
        f"{row.name} = {row.configured:.4g} was configured, and never in effect: {row.first:.4g} was applied first, "
        f"{row.last:.4g} last, from {row.low:.4g} to {row.high:.4g} in the whole run. A schedule or a callback "
        "replaces it: what is changed there changes nothing; look who writes it"
    )
    return Verdict("setting_not_in_effect", Severity.WARN, message, row._asdict())


def mixing_not_in_effect(row: Applied) -> Verdict | None:
    """Whether a target network at no time mixed with the weight that is configured."""
    if row.low <= row.configured * (1.0 + _ROUNDING) and row.high >= row.configured * (1.0 - _ROUNDING):
        return None
    message = (
        f"{row.name} = {row.configured:.4g} was configured, but the target network's parameters moved by "
        f"{row.low:.4g} to {row.high:.4g} of their distance from the online network in a target update: another number "
        "is used, or one update makes several of them"
    )
    return Verdict("setting_not_in_effect", Severity.WARN, message, row._asdict())


def ratio_not_in_effect(drawn_per_new: float, configured: float, limit: float | None) -> Verdict | None:
    """Whether the replay ratio exceeds its limit, or is another one than is configured.

    Args:
        drawn_per_new: transitions drawn for each new one, as counted.
        configured: updates · batch size / new transitions.
        limit: on it; None has none.
    """
    expected = configured if limit is None else min(configured, limit)
    if expected / 1.5 <= drawn_per_new <= 1.05 * expected:
        return None
    what = f"a limit of {limit:g}" if limit is not None and limit < configured else f"{configured:.4g} as configured"
    message = (
        f"{drawn_per_new:.4g} transitions were drawn for each new one, expected {what}: updates or collection are not "
        "those that the settings say"
    )
    evidence = {"replay_ratio": drawn_per_new, "configured": configured, "limit": limit}
    return Verdict("setting_not_in_effect", Severity.WARN, message, evidence)


def high_replay_ratio(drawn_per_new: float, values_beyond: bool) -> Verdict | None:
    """Above 100 draws of a transition, where DQN on Atari has 8 (Mnih et al. 2015)."""
    if drawn_per_new <= 100.0:
        return None
    message = f"each new transition is learned from {drawn_per_new:.0f} times; DQN on Atari does so 8 times"
    if values_beyond:
        message += (
            ". Q lies beyond its bound as well, and this is a likely cause: type --data.init_args.max_replay_ratio 8, "
            "or fewer updates_per_iteration, before anything else"
        )
    severity = Severity.WARN if values_beyond else Severity.INFO
    return Verdict("high_replay_ratio", severity, message, {"replay_ratio": drawn_per_new, "values": values_beyond})


def share_not_in_effect(frames: Sequence[Frames], settings: Mapping[str, Any]) -> Verdict | None:
    """Whether the expert acted on another share of the frames than its schedule says, by more than chance.

    Each frame is a coin. Where care scales the share, and nobody counts the frames that need it, all that lies between
    the two schedules is right.

    Args:
        frames: stretches of the run, short against the schedule.
        settings: `expert_share`, `expert_share_decay`, `expert_share_decay_steps`, `expert_share_floor` and
            `expert_care_scale`, as configured.
    """
    low = high = variance = total = by_expert = 0.0
    for stretch in frames:
        # At its ends the schedule has its highest and its lowest share.
        shares = [_scheduled(step, settings) for step in (stretch.begin, stretch.end)]
        cared = [min(1.0, share * settings["expert_care_scale"]) for share in shares]
        number = stretch.by_network + stretch.by_expert
        if stretch.with_care is None:
            groups = [(number, [*shares, *cared])]
        else:
            groups = [(number - stretch.with_care, shares), (stretch.with_care, cared)]
        for count, possible in groups:
            low, high = low + count * min(possible), high + count * max(possible)
            # Of the share within the bounds whose coins scatter most.
            variance += count * max(share * (1.0 - share) for share in possible)
        total, by_expert = total + number, by_expert + stretch.by_expert
    slack = _CHANCE * math.sqrt(variance + 1.0)
    if low - slack <= by_expert <= high + slack:
        return None
    begin, end = frames[0].begin, frames[-1].end
    message = (
        f"from {begin} to {end} environment steps the expert acted on {by_expert / total:.3f} of {total:.0f} frames, "
        f"expected {low / total:.3f} to {high / total:.3f} as its schedule is configured: an override that nobody "
        "logged, or a schedule that does not follow expert_share, its decay and its floor"
    )
    evidence = {"share": by_expert / total, "expected": [low / total, high / total], "frames": total}
    return Verdict("share_not_in_effect", Severity.WARN, message, evidence | {"env_steps": [begin, end]})


def _scheduled(env_steps: int, settings: Mapping[str, Any]) -> float:
    return expert_share(
        env_steps,
        start=settings["expert_share"],
        decay=settings["expert_share_decay"],
        decay_steps=settings["expert_share_decay_steps"],
        floor=settings["expert_share_floor"],
    )


def rows_as_text(rows: Sequence[Applied]) -> str:
    """The table."""
    cells = [["setting", "configured", "first", "last", "lowest", "highest"]]
    cells += [[row.name, *(f"{value:.4g}" for value in row[1:])] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
