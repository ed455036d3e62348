"""Whether a model knows where episodes end: pure."""

import math
from typing import Any, NamedTuple

from rlmods.callbacks.detectors import Confirmation, Severity, Verdict, verdict_fields, verdict_of

# Rows of a kind, at least, before a mean over them is spoken of; the last, where none of them is terminal.
_TERMINALS, _ENDS, _ENDLESS = 256, 10, 2**18
# What is expected of terminal rows relative to others: 1 where the head knows nothing, whatever the rate of ends. On a
# healthy CartPole, with one terminal row in a hundred, it was 0.69. A share that falls by so much in three blocks is
# being learned.
_BLIND, _LEARNING = 0.9, 0.05
# The predicted probability of an end may be so many times the true one, or one so-manieth; where that comes closer by a
# factor of e**0.2 in three blocks, it is being learned.
_FACTOR, _CLOSER = 3.0, 0.2
# Ends that uniform replay must show at least: none of so many has the probability e⁻²⁰.
_EXPECTED_ENDS = 20.0


class ContinuationWindow(NamedTuple):
    """What one window counted over all its batches; the sums are over rows."""

    updates: float
    running: float  # rows that are not terminal
    predicted_running: float  # sum of γ·P(goes on) there
    target_running: float  # sum of its target there
    terminal: float  # rows that are
    predicted_terminal: float
    wrong_terminal: float  # terminal rows with a target above 0
    wrong_running: float  # other rows with a target of 0
    ends: float  # rows that end an episode, for good or not
    lost_ends: float  # first rows after a row that ended nothing
    cut_episodes: float  # whole episodes in a sequence that were truncated
    shortest: float  # of them, rows; inf where there is none
    longest: float  # −inf where there is none
    env_steps: float  # of the run so far, over all processes
    episode_length: float  # mean of the training episodes; NaN before the first has ended


class ContinuationDetector:
    """See `ContinuationGuard` for what each cause means.

    Args:
        learning_updates: before anything is said of what the model has learned.
    """

    def __init__(self, *, learning_updates: int) -> None:
        if learning_updates < 0:
            raise ValueError(f"ContinuationGuard got learning_updates = {learning_updates}, expected at least 0")
        self.learning_updates = learning_updates
        self.reset()

    def reset(self) -> None:
        """Start anew: at the beginning, and after the weights have jumped."""
        self.updates = 0.0
        self.at_ends: list[float] = []  # of the last blocks: γ·P(goes on) at terminal rows, relative to others
        self.off_by: list[float] = []  # of the last blocks: |ln(predicted/true probability of an end)|
        self.endless = Confirmation(3, 3)
        self.seen = {"rows": 0.0, "ends": 0.0, "terminal": 0.0, "cut_episodes": 0.0, "expected_ends": 0.0}
        self.knows_an_end = False  # whether an episode had ended before this window
        self.lengths = [math.inf, -math.inf]  # of truncated episodes
        # Of the block that is being filled.
        self.sums = dict.fromkeys(_SUMMED, 0.0)
        self.block_verdicts: list[Verdict] = []

    def update(self, window: ContinuationWindow) -> list[Verdict]:
        """Take in a window."""
        self.updates += window.updates
        self.seen["rows"] += window.running + window.terminal
        for name in ("ends", "terminal", "cut_episodes"):
            self.seen[name] += getattr(window, name)
        if self.knows_an_end:
            # One end at least is among all the steps, and replay is uniform or prefers what is new.
            self.seen["expected_ends"] += (window.running + window.terminal) / max(window.env_steps, 1.0)
        self.knows_an_end = not math.isnan(window.episode_length)
        self.lengths = [min(self.lengths[0], window.shortest), max(self.lengths[1], window.longest)]
        for name in _SUMMED:
            self.sums[name] += getattr(window, name)
        if self.sums["terminal"] >= _TERMINALS or (not self.sums["terminal"] and self.sums["running"] >= _ENDLESS):
            self._judge_block()
        # Where an identity is broken, what is counted is too.
        return self._identities(window) or [*self._ends(window), *self.block_verdicts]

    # Identities: they hold exactly, in every batch

    def _identities(self, window: ContinuationWindow) -> list[Verdict]:
        found = []
        for name, cause, text in (
            (
                "wrong_terminal",
                "bootstraps_through_termination",
                "rows that end an episode for good have a target above 0, expected exactly 0: values go on after the "
                "end",
            ),
            (
                "wrong_running",
                "truncation_as_termination",
                "rows that do not end an episode for good have the target 0, expected γ: a time limit is learned as "
                "death. Make the target of is_terminal, not of is_last",
            ),
            (
                "lost_ends",
                "episode_ends_lost",
                "episodes begin after a row that ended none: what was remembered or returned goes on into another "
                "episode. Mark the last row of each episode with is_last",
            ),
        ):
            number = getattr(window, name)
            if number > 0:
                found.append(Verdict(cause, Severity.ACT, f"{number:.0f} {text}", {"rows": number}))
        return found

    # What was replayed

    def _ends(self, window: ContinuationWindow) -> list[Verdict]:
        rows, ends, expected = self.seen["rows"], self.seen["ends"], self.seen["expected_ends"]
        if self.seen["terminal"] > 0:
            return []
        evidence: dict[str, Any] = {**self.seen}
        if ends == 0:
            if not expected > _EXPECTED_ENDS:
                return []
            evidence |= {"episode_length": window.episode_length}
            message = (
                f"no end of an episode among {rows:,.0f} rows that were replayed, while the episodes of the training "
                f"end after {window.episode_length:.4g} steps: {expected:.0f} were to be expected at least. The model "
                "cannot learn that anything ends"
            )
            return [Verdict("ends_not_replayed", Severity.WARN, message, evidence)]
        shortest, longest = self.lengths
        if self.seen["cut_episodes"] >= _ENDS and shortest < longest:
            evidence |= {"shortest": shortest, "longest": longest}
            message = (
                f"of {ends:,.0f} ends that were replayed none is terminal, but whole episodes have {shortest:.0f} to "
                f"{longest:.0f} rows: a time limit would cut them all at the same length. Are real ends stored as "
                "truncations?"
            )
            return [Verdict("terminals_stored_as_truncations", Severity.WARN, message, evidence)]
        if ends >= _ENDS:
            message = f"of {ends:,.0f} ends that were replayed none is terminal: the model cannot know what death is"
            return [Verdict("no_terminal_seen", Severity.INFO, message, evidence)]
        return []

    # What the model has learned

    def _judge_block(self) -> None:
        sums, self.sums = self.sums, dict.fromkeys(_SUMMED, 0.0)
        self.block_verdicts = []
        if self.updates < self.learning_updates:
            return
        rows = sums["running"] + sums["terminal"]
        running = sums["predicted_running"] / sums["running"] if sums["running"] else math.nan
        gamma = sums["target_running"] / sums["running"] if sums["running"] else math.nan
        at_end = sums["predicted_terminal"] / sums["terminal"] if sums["terminal"] else math.nan
        ends, expected = 1.0 - (sums["predicted_running"] + sums["predicted_terminal"]) / rows, 1.0
        expected -= sums["target_running"] / rows
        evidence = {
            "predicted_running": running,
            "predicted_terminal": at_end,
            "target_running": gamma,
            "rows": rows,
            "terminal_rows": sums["terminal"],
        }
        self.at_ends = [*self.at_ends, at_end / running][-3:] if sums["terminal"] else self.at_ends
        is_learning = bool(self.at_ends) and self.at_ends[-1] < self.at_ends[0] - _LEARNING
        if len(self.at_ends) == 3 and min(self.at_ends) > _BLIND and not is_learning:
            message = (
                f"where episodes end for good the model expects {at_end:.3f} of going on, and {running:.3f} elsewhere "
                f"({sums['terminal']:.0f} and {sums['running']:.0f} rows, in 3 blocks), and does not learn it: no "
                "dream ends. Is its loss part of the sum, with a gradient into the latents?"
            )
            self.block_verdicts.append(Verdict("continuation_blind", Severity.WARN, message, evidence))
        if not expected > 0.0:
            return  # nothing ends, and nothing is discounted
        self.off_by = [*self.off_by, abs(math.log(max(ends, 1e-9) / expected))][-3:]
        is_learning = self.off_by[-1] < self.off_by[0] - _CLOSER
        if len(self.off_by) == 3 and min(self.off_by) > math.log(_FACTOR) and not is_learning:
            message = (
                f"the model lets go of {ends:.4f} of the future a step, the replayed rows of {expected:.4f}: dreams "
                f"look {1.0 / max(ends, 1e-9):,.0f} steps ahead instead of {1.0 / expected:,.0f} (in 3 blocks)"
            )
            self.block_verdicts.append(
                Verdict("continuation_miscalibrated", Severity.WARN, message, {**evidence, "factor": _FACTOR})
            )
        if self.endless.update(1.0 - running < (1.0 - gamma) / _FACTOR):
            message = (
                f"where episodes go on the model expects {running:.5f}, above γ = {gamma:.5f}: dreams look "
                f"{1.0 / max(1.0 - running, 1e-9):,.0f} steps ahead instead of {1.0 / (1.0 - gamma):,.0f}, and values "
                "rise above what the task has (in 3 blocks)"
            )
            self.block_verdicts.append(
                Verdict("continuation_above_gamma", Severity.WARN, message, {**evidence, "factor": _FACTOR})
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything that it remembers."""
        return {
            "endless": self.endless.state_dict(),
            "updates": self.updates,
            "seen": dict(self.seen),
            "knows_an_end": self.knows_an_end,
            "lengths": list(self.lengths),
            "at_ends": list(self.at_ends),
            "off_by": list(self.off_by),
            "sums": dict(self.sums),
            "block": [verdict_fields(verdict) for verdict in self.block_verdicts],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.endless.load_state_dict(state_dict["endless"])
        self.updates, self.knows_an_end = state_dict["updates"], state_dict["knows_an_end"]
        self.seen, self.sums = dict(state_dict["seen"]), dict(state_dict["sums"])
        self.lengths, self.at_ends = list(state_dict["lengths"]), list(state_dict["at_ends"])
        self.off_by = list(state_dict["off_by"])
        self.block_verdicts = [verdict_of(fields) for fields in state_dict["block"]]


_SUMMED = ("running", "predicted_running", "target_running", "terminal", "predicted_terminal")
