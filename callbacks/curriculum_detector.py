"""What an expert's share does to a curve of rewards, and what its changes do to the evaluation: pure."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from rlmods.callbacks.detectors import Severity, Verdict, autocorrelation, verdict_fields, verdict_of
from rlmods.callbacks.evaluations import Evaluation, Interval, difference_interval
from rlmods.callbacks.return_falls import ReturnFalls, to_fields
from rlmods.types import MixtureTotals

ROWS = 8  # of a window
# Of about 20 comparisons in a run, two-sided: one run in a hundred where nothing has changed.
_CONFIDENCE = 0.999
_MOVED = 0.1  # of the share within a window
# Evaluations in a row that must lie below.
_FELL_AFTER = 2


class Decomposition(NamedTuple):
    """The change of the mean reward of a frame between two windows; the three parts add up to the total."""

    total: float
    share: float  # because others acted
    network: float  # because the network got another reward on its frames
    expert: float  # likewise


def decompose(before: MixtureTotals, after: MixtureTotals) -> Decomposition:
    """Split the change of m = s·n + (1 − s)·e into that of the share s and those of the actors' own n and e.

    Δm = Δs·(n̄ − ē) + s̄·Δn + (1 − s̄)·Δe with means over the two windows, an identity (Kitagawa 1955, "Components of a
    difference between two rates"). An actor without frames in one window counts as unchanged.

    Args:
        before: frames and rewards within one window.
        after: likewise within a later one.
    """
    shares = [window.frames_by_network / _frames(window) for window in (before, after)]
    network = _rates(*((window.reward_by_network, window.frames_by_network) for window in (before, after)))
    expert = _rates(*((window.reward_by_expert, window.frames_by_expert) for window in (before, after)))
    mean_share = sum(shares) / 2
    share_part = (shares[1] - shares[0]) * (sum(network) - sum(expert)) / 2
    parts = share_part, mean_share * (network[1] - network[0]), (1.0 - mean_share) * (expert[1] - expert[0])
    return Decomposition(sum(parts), *parts)


def _rates(before: tuple[float, float], after: tuple[float, float]) -> tuple[float, float]:
    rates = [reward / frames if frames else math.nan for reward, frames in (before, after)]
    known = next((rate for rate in rates if not math.isnan(rate)), 0.0)
    first, second = (known if math.isnan(rate) else rate for rate in rates)
    return first, second


def _frames(window: MixtureTotals) -> int:
    return window.frames_by_network + window.frames_by_expert


def add(rows: Sequence[MixtureTotals]) -> MixtureTotals:
    """Of several pieces of a training together."""
    return MixtureTotals(*(sum(column) for column in zip(*rows, strict=True)))


class ShareDetector:
    """Compares each window of rewards with the one before it.

    A window is 8 rows. The noise is that between its rows, inflated by their autocorrelation, and both changes are held
    against Student's interval at 99.9 %.
    """

    def __init__(self) -> None:
        self.rows: list[MixtureTotals] = []  # of the window that is being filled
        self.before: list[MixtureTotals] = []
        self.last: Decomposition | None = None
        self.verdicts: list[Verdict] = []

    def reset(self) -> None:
        """Start anew."""
        self.rows, self.before, self.last, self.verdicts = [], [], None, []

    def update(self, row: MixtureTotals) -> list[Verdict]:
        """Take in the frames and rewards since the last row; the verdicts of a window hold until the next is full."""
        if _frames(row):
            self.rows.append(row)
        if len(self.rows) == ROWS:
            if self.before:
                self.verdicts = self._compare(self.before, self.rows)
            self.before, self.rows = self.rows, []
        return self.verdicts

    def _compare(self, before: list[MixtureTotals], after: list[MixtureTotals]) -> list[Verdict]:
        parts = self.last = decompose(add(before), add(after))
        total = _difference(
            *(
                [(row.reward_by_network + row.reward_by_expert, _frames(row)) for row in rows]
                for rows in (before, after)
            )
        )
        network = _difference(
            *([(row.reward_by_network, row.frames_by_network) for row in rows] for rows in (before, after))
        )
        shares = [add(rows).frames_by_expert / _frames(add(rows)) for rows in (before, after)]
        evidence = {
            **{f"{name}_part": value for name, value in parts._asdict().items()},
            "expert_share": shares,
            "interval": list(total),
            "network_interval": list(network),
            "confidence": _CONFIDENCE,
            "frames": [_frames(add(rows)) for rows in (before, after)],
        }
        if total.low > 0.0 and network.high < 0.0:
            message = (
                f"the reward of a frame rose by {parts.total:.4g}, but that of the network's own frames fell by "
                f"{-sum(network) / 2:.4g}: the share of the expert, {shares[0]:.2f} before and {shares[1]:.2f} now, "
                "hides that the network gets worse. Look at rollout/network_reward_per_frame and at the evaluation"
            )
            return [Verdict("share_hides_fall", Severity.WARN, message, evidence)]
        is_change = total.low > 0.0 or total.high < 0.0
        if is_change and parts.share * parts.total > 0.0 and abs(parts.share) > 0.5 * abs(parts.total):
            message = (
                f"the reward of a frame changed by {parts.total:.4g}, {parts.share:.4g} of it because the expert acted "
                f"on {shares[1]:.2f} of the frames instead of {shares[0]:.2f}: its slope says little of the network, "
                f"whose own frames account for {parts.network:.4g}"
            )
            return [Verdict("share_confounds_slope", Severity.INFO, message, evidence)]
        return []

    def state_dict(self) -> dict[str, Any]:
        """The windows."""
        return {
            "rows": [list(row) for row in self.rows],
            "before": [list(row) for row in self.before],
            "last": None if self.last is None else list(self.last),
            "verdicts": [verdict_fields(verdict) for verdict in self.verdicts],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""
        self.rows, self.before = ([MixtureTotals(*row) for row in state[name]] for name in ("rows", "before"))
        self.last = None if state["last"] is None else Decomposition(*state["last"])
        self.verdicts = [verdict_of(fields) for fields in state["verdicts"]]


def _difference(before: Sequence[tuple[float, float]], after: Sequence[tuple[float, float]]) -> Interval:
    """Of the mean after − before; each a list of (reward, frames)."""
    return difference_interval(_mean(after), _mean(before), _CONFIDENCE)


def _mean(rows: Sequence[tuple[float, float]]) -> Evaluation:
    """The ratio of two sums and its standard error, in the form of an evaluation of as many episodes as rows."""
    known = [(reward, frames) for reward, frames in rows if frames]
    if len(known) < 2:
        return Evaluation(0.0, 0.0, 1)
    total = sum(frames for _, frames in known)
    mean = sum(reward for reward, _ in known) / total
    residuals = [reward - mean * frames for reward, frames in known]
    phi = autocorrelation([reward / frames for reward, frames in known])
    # With equal frames √(n − 1) standard errors are the population's standard deviation.
    spread = math.sqrt(len(known) * sum(residual**2 for residual in residuals)) / total
    return Evaluation(mean, spread * math.sqrt((1.0 + phi) / (1.0 - phi)), len(known))


class CurriculumRow(NamedTuple):
    """Where the curriculum stands."""

    env_steps: int
    share: float  # of the expert, since the last row
    frames: float  # that it is the share of
    override: float | None  # None is the schedule
    at_floor: bool  # whether the schedule has come to its end


class Watch(NamedTuple):
    """What is looked at since a switch."""

    switches: list[list[Any]]  # name and environment step of each
    share_before: float
    until: int  # environment steps
    level: Evaluation | None  # held before; None where there was nothing to lose yet
    swing: float
    below: int  # evaluations in a row


class SwitchDetector:
    """Opens a watch where the curriculum switches, and says where the evaluation falls within it.

    Switches are an override that is set, changed or released, the schedule's arrival at its floor, and an effective
    share that has moved by more than 0.1, and not by chance, within a window. A switch during a watch prolongs it.
    `fell_after_switch` takes two evaluations in a row below what was held before, as `ReturnFalls` says.

    Of 1,405 places in 82 healthy runs of all algorithms, in `benchmarks/results`, 24 would have been called a fall
    within six evaluations, most of them of DQN on CartPole, which jumps from 500 to 14 and back.

    Args:
        window: environment steps in which a share may move by 0.1.
        watch: environment steps that a watch lasts.
        share: of what was learned that must be lost.
        confidence: of the intervals of the evaluations.
    """

    def __init__(self, *, window: float, watch: float, share: float, confidence: float) -> None:
        self.window = window
        self.watch = watch
        self.falls = ReturnFalls(share=share, confidence=confidence)
        self.rows: list[CurriculumRow] = []  # of a window
        self.open: Watch | None = None
        self.verdicts: list[Verdict] = []

    def reset(self) -> None:
        """The weights have jumped: whatever fell is not of the switch."""
        self.open, self.verdicts = None, []

    def update(self, row: CurriculumRow) -> list[Verdict]:
        """Take in a row."""
        if self.open is not None and row.env_steps > self.open.until:
            self.open, self.verdicts = None, []
        names = _switches(self.rows, row) if self.rows else []
        if names:
            self._open(row, names)
            self.rows = []
        self.rows = [kept for kept in self.rows if kept.env_steps > row.env_steps - self.window] + [row]
        return self.verdicts

    def _open(self, row: CurriculumRow, names: list[str]) -> None:
        switches = [[name, row.env_steps] for name in names]
        until = int(row.env_steps + self.watch)
        if self.open is not None:
            self.open = self.open._replace(switches=[*self.open.switches, *switches][-5:], until=until)
            return
        before = sum(kept.share for kept in self.rows) / len(self.rows)
        self.open = Watch(switches, before, until, self.falls.held(), self.falls.swing, 0)

    def evaluate(self, evaluation: Evaluation) -> list[Verdict]:
        """Take in an evaluation; one that is not finite is passed over."""
        if not math.isfinite(evaluation.mean):
            return self.verdicts
        if self.open is not None and self.open.level is not None:
            level = self.open.level
            interval = self.falls.fall(evaluation, level, self.open.swing)
            self.open = self.open._replace(below=0 if interval is None else self.open.below + 1)
            fell = self.open.below >= _FELL_AFTER
            self.verdicts = [self._verdict(self.open, level, evaluation, interval)] if interval and fell else []
        self.falls.add(evaluation)
        return self.verdicts

    def _verdict(self, watch: Watch, level: Evaluation, now: Evaluation, interval: Interval) -> Verdict:
        names = ", ".join(f"{name} at {env_steps}" for name, env_steps in watch.switches)
        share = self.rows[-1].share if self.rows else math.nan
        message = (
            f"after a switch of the curriculum ({names}; expert share {watch.share_before:.2f} before, {share:.2f} "
            f"now) the evaluation fell from {level.mean:.4g} to {now.mean:.4g}, in {watch.below} evaluations in a row: "
            "the network does not hold alone what it did with the expert. Type a higher expert_share_floor or a slower "
            "decay, or give the share back in control.yaml"
        )
        evidence = {
            "switches": watch.switches,
            "share_before": watch.share_before,
            "share_now": share,
            "before": level.mean,
            "before_env_steps": level.env_steps,
            "now": now.mean,
            "interval": list(interval),
            "earlier_swing": watch.swing,
            "evaluations_in_a_row": watch.below,
        }
        return Verdict("fell_after_switch", Severity.WARN, message, evidence)

    def state_dict(self) -> dict[str, Any]:
        """Rows, evaluations, the open watch."""
        watch = self.open
        return {
            "rows": [list(row) for row in self.rows],
            "falls": self.falls.state_dict(),
            "open": None if watch is None else [*watch[:3], watch.level and to_fields(watch.level), *watch[4:]],
            "verdicts": [verdict_fields(verdict) for verdict in self.verdicts],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""
        self.rows = [CurriculumRow(*row) for row in state["rows"]]
        self.falls.load_state_dict(state["falls"])
        if state["open"] is not None:
            switches, share, until, level, swing, below = state["open"]
            self.open = Watch(switches, share, until, None if level is None else Evaluation(*level), swing, below)
        self.verdicts = [verdict_of(fields) for fields in state["verdicts"]]


def _switches(rows: Sequence[CurriculumRow], row: CurriculumRow) -> list[str]:
    """What has switched between the rows before and this one."""
    last, found = rows[-1], []
    if row.override != last.override:
        found.append("override released" if row.override is None else f"override set to {row.override:g}")
    if row.at_floor and not last.at_floor:
        found.append("floor reached")
    moved = max((row.share - kept.share for kept in rows if _is_moved(kept, row)), key=abs, default=0.0)
    if moved and not found:
        found.append(f"share moved by {moved:+.2f}")
    return found


def _is_moved(before: CurriculumRow, now: CurriculumRow) -> bool:
    """Four standard deviations of the coins count as chance."""
    if not (before.frames and now.frames):
        return False
    share = (before.share * before.frames + now.share * now.frames) / (before.frames + now.frames)
    chance = math.sqrt(share * (1.0 - share) * (1.0 / before.frames + 1.0 / now.frames))
    return abs(now.share - before.share) > max(_MOVED, 4.0 * chance)
