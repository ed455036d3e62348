import math
from pathlib import Path

import pytest
import torch
from dreaming import GAMMA, Signals, fit_sayer, sequences
from guarding import as_lists, causes
from torch import Tensor

from rlmods.callbacks.continuation_detector import ContinuationDetector, ContinuationWindow
from rlmods.callbacks.continuation_guard import ContinuationGuard, count_batch
from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.safeguard import MissingInputError
from rlmods.types import SequenceBatch

# 8,000 rows, 320 of them terminal; the model says what is right.
KNOWS = ContinuationWindow(
    updates=10.0,
    running=7_680.0,
    predicted_running=7_680.0 * 0.99,
    target_running=7_680.0 * 0.99,
    terminal=320.0,
    predicted_terminal=16.0,
    wrong_terminal=0.0,
    wrong_running=0.0,
    ends=320.0,
    lost_ends=0.0,
    cut_episodes=0.0,
    shortest=math.inf,
    longest=-math.inf,
    env_steps=100.0,
    episode_length=25.0,
)
NO_ENDS = KNOWS._replace(terminal=0.0, predicted_terminal=0.0, ends=0.0, running=1_000.0)


def said(windows: list[ContinuationWindow], severity: Severity = Severity.WARN) -> list[list[str]]:
    detector = ContinuationDetector(learning_updates=0)
    return [causes(detector.update(window), severity) for window in windows]


# The pure detector


def test_a_model_that_knows_is_silent() -> None:
    assert not any(said([KNOWS] * 50, Severity.INFO))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"wrong_terminal": 1.0}, "bootstraps_through_termination"),
        ({"wrong_running": 1.0}, "truncation_as_termination"),
        ({"lost_ends": 1.0}, "episode_ends_lost"),
    ],
)
def test_identities_may_act_at_the_first_row(change: dict[str, float], cause: str) -> None:
    (verdict,) = ContinuationDetector(learning_updates=2_000).update(KNOWS._replace(**change))
    assert (verdict.cause, verdict.severity) == (cause, Severity.ACT)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        # 0.0496 of the rows end; three times as many are 0.1488.
        ({"predicted_running": 7_680.0 * 0.88}, ["continuation_miscalibrated"]),
        ({"predicted_running": 7_680.0 * 0.90}, []),
        ({"predicted_running": 7_680.0 * 0.998}, ["continuation_above_gamma"]),  # 0.002 < 0.01/3
        ({"predicted_running": 7_680.0 * 0.996}, []),
    ],
)
def test_golden_calibration(change: dict[str, float], found: list[str]) -> None:
    """Three blocks; a block is 256 terminal rows."""
    assert said([KNOWS._replace(**change)] * 3) == [[], [], found]


@pytest.mark.parametrize(("share", "found"), [(0.859, ["continuation_blind"]), (0.858, []), (0.69, [])])
def test_golden_blindness(share: float, found: list[str]) -> None:
    """A share x at terminal rows leaves 0.99 - x/24 to the others: 0.859 of 0.9542 is above 0.9, 0.858 is below."""
    assert said([terminals_expected(share)] * 3) == [[], [], found]


def test_a_block_waits_for_its_terminal_rows() -> None:
    window = KNOWS._replace(terminal=128.0, predicted_terminal=118.0)
    assert said([window] * 6) == [[]] * 5 + [["continuation_blind"]]


def test_a_head_that_still_learns_is_left_alone() -> None:
    """It lies above 0.9, and falls by 0.03 a block."""
    # What terminal rows lose, the others have too much: the share that ends stays right.
    falling = [0.98 - 0.03 * i for i in range(12)]
    assert not any(said([terminals_expected(share) for share in falling]))
    assert said([terminals_expected(0.9)] * 3)[-1] == ["continuation_blind"]


def terminals_expected(share: float) -> ContinuationWindow:
    return KNOWS._replace(predicted_terminal=320.0 * share, predicted_running=7_680.0 * 0.99 - 320.0 * share)


def test_a_model_that_still_learns_is_left_alone() -> None:
    window = terminals_expected(0.9)
    detector = ContinuationDetector(learning_updates=101)
    assert not any(detector.update(window) for _ in range(12))
    assert causes(detector.update(window)) == ["continuation_blind"]


def test_ends_that_are_never_replayed_are_told() -> None:
    """One end at least is among 100 steps: after it 20 were to be expected among 2,000 rows."""
    window = NO_ENDS._replace(running=1_000.0)
    assert said([window] * 4) == [[], [], [], ["ends_not_replayed"]]
    assert not any(said([window._replace(episode_length=math.nan)] * 50))
    assert not any(said([window._replace(ends=1.0), *[window] * 50]))


def test_the_first_end_of_long_episodes_is_waited_for() -> None:
    """Rows that were replayed before any episode had ended say nothing; and 1 row in 3,000 is rare."""
    running = NO_ENDS._replace(running=65_536.0, env_steps=3_000.0)
    ended = running._replace(episode_length=3_000.0)
    assert said([running._replace(episode_length=math.nan)] * 20 + [ended]) == [[]] * 21
    assert said([ended, ended]) == [[], ["ends_not_replayed"]]
    assert said([ended, ended._replace(env_steps=10_000.0)]) == [[], []]


def test_a_head_is_judged_where_nothing_is_terminal() -> None:
    """Blocks of 2**18 rows. A head that says 1 instead of 0.99, one that ends too much, and one that learns not to."""
    window = NO_ENDS._replace(running=2.0**18, ends=2.0**8, predicted_running=2.0**18, target_running=0.99 * 2.0**18)
    wrong = [["continuation_miscalibrated", "continuation_above_gamma"], ["continuation_miscalibrated"], []]
    for share, found in zip((1.0, 0.9, 0.99), wrong, strict=True):
        said_so = window._replace(predicted_running=share * 2.0**18)
        assert said([said_so] * 3) == [[], [], found]
    learns = [window._replace(predicted_running=(0.99 - 0.9 * 0.8**i) * 2.0**18) for i in range(20)]
    assert not any(said(learns))
    endless = window._replace(predicted_running=0.9 * 2.0**18, target_running=2.0**18)
    assert not any(said([endless] * 5))  # γ is not in these targets, and nothing was seen to end
    half = window._replace(running=2.0**17, predicted_running=2.0**17, target_running=0.99 * 2.0**17)
    assert said([half] * 5) == [[]] * 5


def test_truncations_of_all_lengths_are_no_time_limit() -> None:
    window = NO_ENDS._replace(ends=5.0, cut_episodes=5.0, shortest=20.0, longest=20.0)
    assert not any(said([window] * 9))
    assert said([window, window._replace(longest=31.0)]) == [[], ["terminals_stored_as_truncations"]]


def test_a_task_without_terminal_states_is_for_information() -> None:
    window = NO_ENDS._replace(ends=5.0)
    assert said([window] * 2, Severity.INFO) == [[], ["no_terminal_seen"]]
    assert not any(said([window] * 2))


def test_a_saved_detector_goes_on() -> None:
    window = terminals_expected(0.9)
    detector, other = (ContinuationDetector(learning_updates=0) for _ in range(2))
    for _ in range(2):
        detector.update(window)
    other.load_state_dict(detector.state_dict())
    assert other.state_dict() == detector.state_dict()
    assert causes(other.update(window)) == ["continuation_blind"]


# What a batch counts


def flags(*rows: int, length: int = 6) -> Tensor:
    marked = torch.zeros(1, length, 1, dtype=torch.bool)
    marked[0, list(rows), 0] = True
    return marked


def counted(*columns: Tensor) -> ContinuationWindow:
    return ContinuationWindow(*[*count_batch(*columns).tolist(), math.nan, math.nan])


def test_golden_counts() -> None:
    """Six rows of one sequence: an episode that began before it ends for good at 1, one of three rows is cut at 4."""
    first, last, terminal = flags(2, 5), flags(1, 4), flags(1)
    target = 0.9 * (~terminal).float()
    counts = counted(torch.full((1, 6, 1), 0.5), target, first, last, terminal)
    assert counts[:2] == (1.0, 5.0)
    assert counts.predicted_running == 2.5
    assert counts.target_running == pytest.approx(4.5)
    assert (counts.terminal, counts.predicted_terminal, counts.ends) == (1.0, 0.5, 2.0)
    assert (counts.wrong_terminal, counts.wrong_running, counts.lost_ends) == (0.0, 0.0, 0.0)
    assert (counts.cut_episodes, counts.shortest, counts.longest) == (1.0, 3.0, 3.0)


def test_an_episode_that_began_before_the_sequence_has_no_length() -> None:
    nothing = flags()
    counts = counted(torch.ones(1, 6, 1), torch.ones(1, 6, 1), nothing, flags(3), nothing)
    assert (counts.ends, counts.cut_episodes) == (1.0, 0.0)


# The hook


def batch_of(first: Tensor, last: Tensor, terminal: Tensor) -> SequenceBatch:
    return sequences(torch.ones(first.shape), is_first=first, is_last=last, is_terminal=terminal)


def right(batch: SequenceBatch, batch_idx: int) -> Signals:
    return {"continuation": batch.discount, "discount": batch.discount}


def time_limit_is_death(batch: SequenceBatch, batch_idx: int) -> Signals:
    return {"continuation": batch.discount, "discount": GAMMA * (~batch.is_last).float()}


def test_a_time_limit_that_is_learned_as_death_is_found(tmp_path: Path) -> None:
    batches = [batch_of(flags(2), flags(1), flags())] * 2
    for say, found in ((right, []), (time_limit_is_death, [("truncation_as_termination", Severity.ACT)])):
        guard = ContinuationGuard(every_n_iterations=1)
        fit_sayer(tmp_path, say, batches, guard)
        assert guard.raised == found


def test_a_beginning_without_an_end_is_found(tmp_path: Path) -> None:
    guard = ContinuationGuard(every_n_iterations=2)
    fit_sayer(tmp_path, right, [batch_of(flags(2), flags(1), flags(1)), batch_of(flags(3), flags(), flags())], guard)
    assert guard.raised == [("episode_ends_lost", Severity.ACT)]


def test_a_head_that_knows_no_end_is_found(tmp_path: Path) -> None:
    """Sixteen terminal rows a batch: a block is 16 batches."""
    guard = ContinuationGuard(learning_updates=10, every_n_iterations=4)
    batches = [batch_of(*(each.expand(16, -1, -1) for each in (flags(2), flags(1), flags(1))))] * 48
    fit_sayer(
        tmp_path, lambda b, i: {"continuation": torch.full((16, 6, 1), 0.8), "discount": b.discount}, batches, guard
    )
    assert [cause for cause, _ in guard.raised] == ["continuation_blind"]


def test_the_state_goes_on_within_a_window(tmp_path: Path) -> None:
    guard, other = ContinuationGuard(every_n_iterations=2), ContinuationGuard(every_n_iterations=1)
    fit_sayer(tmp_path, time_limit_is_death, [batch_of(flags(2), flags(1), flags())], guard)
    assert guard.raised == []
    other.load_state_dict(guard.state_dict())
    assert as_lists(other.state_dict()) == as_lists(guard.state_dict())
    fit_sayer(tmp_path, right, [batch_of(flags(2), flags(1), flags())], other)
    assert other.raised == [("truncation_as_termination", Severity.ACT)]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"needs the signals \['continuation'\]"):
        fit_sayer(
            tmp_path, lambda b, i: {"discount": b.discount}, [batch_of(flags(), flags(), flags())], ContinuationGuard()
        )
