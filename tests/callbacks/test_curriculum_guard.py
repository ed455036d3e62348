import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
import torch
from expert_cart_pole import ENV_ID, ExpertCartPole
from guarding import ACT, WARN, as_lists, causes, events, fit_small, warnings_of
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from test_skeleton import make_trainer
from torch import Tensor

from rlmods.algorithms import DQN
from rlmods.callbacks import CurriculumGuard
from rlmods.callbacks.curriculum_detector import ROWS, CurriculumRow, ShareDetector, SwitchDetector, add, decompose
from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.evaluations import Evaluation
from rlmods.callbacks.return_falls import ReturnFalls
from rlmods.callbacks.safeguard import MissingInputError
from rlmods.data import ExpertDataModule
from rlmods.types import MixtureTotals, Observation

# The decomposition


def test_golden_decomposition() -> None:
    """Means 0.25·1 + 0.75·3 = 2.5 and 0.75·2 + 0.25·3 = 2.25. Share ½·(1.5 − 3), network ½·1, expert ½·0."""
    before = MixtureTotals(25, 75, 25.0, 225.0)
    after = MixtureTotals(150, 50, 300.0, 150.0)
    assert decompose(before, after) == (-0.25, -0.75, 0.5, 0.0)


def test_an_actor_without_frames_has_not_changed() -> None:
    """Only the expert, then only the network: all of 1 − 3 is the share's."""
    assert decompose(MixtureTotals(0, 10, 0.0, 30.0), MixtureTotals(10, 0, 10.0, 0.0)) == (-2.0, -2.0, 0.0, 0.0)
    assert decompose(MixtureTotals(10, 0, 10.0, 0.0), MixtureTotals(10, 0, 30.0, 0.0)) == (2.0, 0.0, 2.0, 0.0)


frames = st.integers(1, 1_000)
reward = st.floats(-1e3, 1e3)
windows = st.builds(MixtureTotals, frames, frames, reward, reward)


@given(windows, windows)
def test_the_parts_add_up_to_the_change(before: MixtureTotals, after: MixtureTotals) -> None:
    parts = decompose(before, after)
    means = [
        (w.reward_by_network + w.reward_by_expert) / (w.frames_by_network + w.frames_by_expert) for w in (before, after)
    ]
    assert parts.total == pytest.approx(means[1] - means[0], rel=1e-6, abs=1e-9)
    assert decompose(after, before).total == pytest.approx(-parts.total, rel=1e-6, abs=1e-9)


def rows(
    generator: np.random.Generator, share: float, network: float, expert: float, num: int = ROWS, noise: float = 0.05
) -> list[MixtureTotals]:
    """Rows of 1,000 frames with mean rewards that scatter from row to row."""
    by_expert = generator.binomial(1_000, share, num)
    return [
        MixtureTotals(
            1_000 - int(count),
            int(count),
            float((1_000 - count) * (network + noise * generator.standard_normal())),
            float(count * (expert + noise * generator.standard_normal())),
        )
        for count in by_expert
    ]


def said(*windows: list[MixtureTotals]) -> list[tuple[str, Severity]]:
    """What is said when the last of these windows is full."""
    detector = ShareDetector()
    verdicts = [detector.update(row) for window in windows for row in window]
    assert not any(verdicts[:-1])
    return [(verdict.cause, verdict.severity) for verdict in verdicts[-1]]


def test_a_rise_by_the_share_alone_says_little_of_the_network() -> None:
    generator = np.random.default_rng(0)
    assert said(rows(generator, 0.9, 1.0, 3.0), rows(generator, 0.5, 1.0, 3.0)) == [
        ("share_confounds_slope", Severity.INFO)
    ]


def test_a_rise_that_hides_the_networks_fall_is_a_warning() -> None:
    """0.9·3 + 0.1·1 = 2.8 against 0.3·3 + 0.7·3.6 … the network is the better one and gets worse: 4 to 3.6."""
    generator = np.random.default_rng(0)
    assert said(rows(generator, 0.9, 4.0, 3.0), rows(generator, 0.3, 3.6, 3.0)) == [("share_hides_fall", WARN)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((0.5, 1.0, 3.0), (0.5, 1.0, 3.0)),  # nothing changes
        ((0.5, 1.0, 3.0), (0.5, 2.0, 3.0)),  # the network learns
        ((0.9, 1.0, 3.0), (0.8, 2.9, 3.0)),  # it learns while the share falls
        ((0.5, 2.0, 3.0), (0.5, 1.0, 3.0)),  # it falls, and the total with it: the evaluation says so
    ],
)
def test_changes_of_which_the_curve_tells_the_truth(
    before: tuple[float, float, float], after: tuple[float, float, float]
) -> None:
    generator = np.random.default_rng(0)
    assert said(rows(generator, *before), rows(generator, *after)) == []


def test_false_alarms_are_rare() -> None:
    """100 curricula of 20 windows that decay from 0.9 to 0.1, with a network as good as the expert: nothing changes."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(100):
        detector = ShareDetector()
        for share in np.linspace(0.9, 0.1, 20):
            verdicts = [detector.update(row) for row in rows(generator, share, 1.0, 1.0)]
            found += verdicts[-1]
    assert causes(found, WARN) == []
    assert len(found) <= 3  # of 1,900 comparisons, one in a thousand


def test_a_window_without_frames_is_passed_over() -> None:
    detector = ShareDetector()
    assert not any(detector.update(MixtureTotals(0, 0, 0.0, 0.0)) for _ in range(3 * ROWS))
    assert detector.before == detector.rows == []


def test_rows_are_added_up() -> None:
    assert add([MixtureTotals(1, 2, 3.0, 4.0), MixtureTotals(5, 6, 7.0, 8.0)]) == (6, 8, 10.0, 12.0)


# Falls


def evaluation(mean: float, std: float = 3.0, env_steps: int = 0) -> Evaluation:
    return Evaluation(mean, std, 10, (), env_steps)


def falls_after(*means: float) -> ReturnFalls:
    falls = ReturnFalls(share=0.2, confidence=0.99)
    for mean in means:
        falls.add(evaluation(mean))
    return falls


def test_what_was_held_is_the_lower_one_of_the_last_two() -> None:
    assert falls_after(10.0).held() is None
    held = falls_after(10.0, 90.0, 80.0).held()
    assert held is not None
    assert held.mean == 80.0


@pytest.mark.parametrize(
    ("now", "std", "fell"),
    [
        (60.0, 3.0, True),
        (68.0, 3.0, False),  # a fifth of 80 − 10 is 14
        (60.0, 60.0, False),  # within the noise
        (80.0, 3.0, False),
    ],
)
def test_a_fall_is_beyond_noise_and_a_fifth_of_what_was_learned(now: float, std: float, fell: bool) -> None:
    falls = falls_after(10.0, 80.0, 80.0)
    assert (falls.fall(evaluation(now, std), evaluation(80.0, std), 0.0) is not None) is fell


def test_a_fall_is_larger_than_those_that_the_run_has_seen() -> None:
    falls = falls_after(10.0, 90.0, 40.0, 85.0, 80.0)
    assert falls.swing == 50.0
    assert falls.fall(evaluation(35.0), evaluation(80.0), falls.swing) is None
    assert falls.fall(evaluation(25.0), evaluation(80.0), falls.swing) is not None


def test_where_nothing_is_learned_nothing_can_be_lost() -> None:
    falls = falls_after(10.0, 11.0, 10.0)
    assert falls.fall(evaluation(0.0), evaluation(10.0), 0.0) is None


# Switches


def watcher(*means: float) -> SwitchDetector:
    detector = SwitchDetector(window=1_000, watch=4_000, share=0.2, confidence=0.99)
    for mean in means:
        detector.evaluate(evaluation(mean))
    return detector


def row(env_steps: int, share: float = 0.5, override: float | None = None, at_floor: bool = False) -> CurriculumRow:
    return CurriculumRow(env_steps, share, 1_000.0, override, at_floor)


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        (row(100), row(200, 0.0, override=0.0), "override set to 0"),
        (row(100, override=0.5), row(200), "override released"),
        (row(100, override=0.5), row(200, override=0.4), "override set to 0.4"),
        (row(100), row(200, at_floor=True), "floor reached"),
        (row(100), row(200, 0.3), "share moved by -0.20"),
    ],
)
def test_each_switch_opens_a_watch(before: CurriculumRow, after: CurriculumRow, name: str) -> None:
    detector = watcher()
    detector.update(before)
    assert detector.open is None
    detector.update(after)
    assert detector.open is not None
    assert detector.open.switches == [[name, 200]]
    assert detector.open.until == 4_200


def test_a_slow_decay_and_chance_open_none() -> None:
    """0.04 a row, of which the last 1,000 steps are looked at; 20 frames scatter by 0.1 and more."""
    detector = watcher()
    for number in range(20):
        detector.update(row(600 * number, 0.9 - 0.04 * number))
    for number in range(20):
        detector.update(CurriculumRow(12_000 + number, 0.2 * (number % 2), 20.0, None, False))
    assert detector.open is None


def test_two_evaluations_below_what_was_held_are_a_fall_after_the_switch() -> None:
    detector = watcher(10.0, 80.0, 82.0)
    detector.update(row(100, 0.5))
    detector.update(row(200, 0.0, override=0.0))
    assert detector.evaluate(evaluation(40.0)) == []
    (verdict,) = detector.evaluate(evaluation(38.0))
    assert (verdict.cause, verdict.severity) == ("fell_after_switch", WARN)
    assert verdict.evidence["switches"] == [["override set to 0", 200]]
    assert (verdict.evidence["share_before"], verdict.evidence["share_now"]) == (0.5, 0.0)
    assert (verdict.evidence["before"], verdict.evidence["now"]) == (80.0, 38.0)
    assert detector.update(row(300, 0.0, override=0.0)) == [verdict]  # it stays
    assert detector.update(row(4_300, 0.0, override=0.0)) == []  # until the watch ends


@pytest.mark.parametrize("means", [(40.0, 80.0, 40.0), (81.0, 79.0, 80.0), (70.0, 70.0, 70.0)])
def test_what_recovers_or_stays_is_no_fall(means: tuple[float, ...]) -> None:
    detector = watcher(10.0, 80.0, 82.0)
    detector.update(row(100))
    detector.update(row(200, 0.0, override=0.0))
    assert not any(detector.evaluate(evaluation(mean)) for mean in means)


def test_a_fall_without_a_switch_is_not_of_the_curriculum() -> None:
    detector = watcher(10.0, 80.0, 82.0)
    detector.update(row(100))
    assert not any(detector.evaluate(evaluation(mean)) for mean in (30.0, 30.0, 30.0))


def test_a_switch_during_a_watch_prolongs_it_and_keeps_the_level() -> None:
    detector = watcher(10.0, 80.0, 82.0)
    detector.update(row(100))
    detector.update(row(200, 0.0, override=0.0))
    detector.evaluate(evaluation(40.0))
    detector.update(row(1_200, 0.5))
    (verdict,) = detector.evaluate(evaluation(40.0))
    assert verdict.evidence["switches"] == [["override set to 0", 200], ["override released", 1_200]]
    assert detector.open is not None
    assert detector.open.until == 5_200


# The guard


class Scripted(DQN):
    """A policy that knows nothing, then balances, and from `forgets` on knows nothing again."""

    forgets = math.inf

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        assert isinstance(observation, Tensor)
        push = (observation[:, 2] + 0.2 * observation[:, 3] > 0.0).long()
        return push if 400 <= env_steps < self.forgets else torch.zeros_like(push)


class Forgetful(Scripted):
    forgets = 1_300


class Override(Callback):
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if data.env_steps >= 1_200:
            data.expert_share_override = 0.0


def fit_curriculum(
    folder: Path, guard: CurriculumGuard, model_class: type[DQN] = DQN, *callbacks: Callback, **settings: Any
) -> Trainer:
    seed_everything(0)
    defaults: dict[str, Any] = {
        "env_id": ENV_ID,
        "total_env_steps": 2_400,
        "num_envs": 4,
        "expert_share": 0.5,
        "expert_share_decay": 1.0,
        "expert_share_floor": 0.5,
        "learning_starts": 100,
        "steps_per_iteration": 40,
        "updates_per_iteration": 1,
        "batch_size": 8,
        "eval_episodes": 4,
        "eval_every": 200,
        "env_kwargs": {"max_episode_steps": 60},
    }
    data = ExpertDataModule(**(defaults | settings))
    trainer = make_trainer(folder, guard, *callbacks, logger=True, enable_checkpointing=False)
    trainer.fit(model_class(data.spec, hidden_sizes=[8]), datamodule=data)
    return trainer


def test_a_network_that_falls_when_the_expert_goes_is_named(tmp_path: Path) -> None:
    guard = CurriculumGuard(watch_frames=1_000)
    trainer = fit_curriculum(tmp_path, guard, Forgetful, Override(), total_env_steps=1_800)
    assert warnings_of(guard) == ["fell_after_switch"]
    (event,) = events(trainer)
    assert event["evidence"]["switches"][0][0] == "override set to 0"
    assert event["evidence"]["share_before"] == pytest.approx(0.5, abs=0.1)
    assert event["evidence"]["share_now"] == 0.0


def test_a_curriculum_that_just_ends_is_silent(tmp_path: Path) -> None:
    guard = CurriculumGuard(watch_frames=1_000)
    fit_curriculum(tmp_path, guard, Scripted, Override(), total_env_steps=1_600)
    assert guard.switches.open is not None
    assert warnings_of(guard) == []


class PaysTheExpert(ExpertCartPole):
    """A reward of 1 for what the expert would do, at once."""

    def step(self, action: npt.NDArray[Any]) -> tuple[Any, npt.NDArray[np.float32], Any, Any, dict[str, Any]]:
        reward = (action == self.expert_action()).astype(np.float32)
        observation, _, terminated, truncated, infos = super().step(action)
        return observation, reward, terminated, truncated, infos


gymnasium.register("PaysTheExpert-v0", vector_entry_point="test_curriculum_guard:PaysTheExpert", max_episode_steps=500)


def test_the_share_of_a_better_expert_is_named_as_what_moves_the_curve(tmp_path: Path) -> None:
    """A network that is not trained gets a reward now and then, the expert always; its share falls to 0.09."""
    guard = CurriculumGuard(window_frames=1_000)
    settings: dict[str, Any] = {"expert_share": 0.9, "expert_share_decay": 0.1, "expert_share_decay_steps": 1_000}
    settings |= {"expert_share_floor": 0.0, "learning_starts": 2_300, "steps_per_iteration": 20, "eval_every": 2_400}
    fit_curriculum(tmp_path, guard, env_id="PaysTheExpert-v0", **settings)
    assert guard.raised == [("share_confounds_slope", Severity.INFO)]
    parts = guard.shares.last
    assert parts is not None
    assert parts.share < 0.7 * parts.total < 0.0
    assert abs(parts.expert) < 0.1 * abs(parts.total)


def test_the_state_goes_round(tmp_path: Path) -> None:
    guard = CurriculumGuard(watch_frames=1_000)
    fit_curriculum(tmp_path, guard, Forgetful, Override(), total_env_steps=1_600)
    state = guard.state_dict()
    torch.save(state, tmp_path / "state.pt")
    other = CurriculumGuard()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert as_lists(other.state_dict()) == as_lists(state)
    assert other.switches.open is not None
    later = evaluation(5.0)
    assert other.switches.evaluate(later) == guard.switches.evaluate(later) != []


def test_a_rollback_ends_the_watch() -> None:
    guard = CurriculumGuard()
    guard.switches = watcher(10.0, 80.0, 82.0)
    guard.switches.update(row(100))
    guard.switches.update(row(200, 0.0, override=0.0))
    guard.rearm()
    assert not any(guard.switches.evaluate(evaluation(30.0)) for _ in range(3))


def test_data_without_an_expert_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"got the data module ReplayDataModule, expected .*ExpertDataModule"):
        fit_small(tmp_path, CurriculumGuard())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window_frames": 0}, "got window_frames = 0, expected 1 or more"),
        ({"share": 0.0}, r"got share = 0.0, expected .*\(0, 1\]"),
        ({"confidence": 1.0}, "got confidence = 1.0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CurriculumGuard(**arguments)


def test_it_never_acts() -> None:
    """Thresholds that somebody chose are warnings."""
    detector = watcher(10.0, 80.0, 82.0)
    detector.update(row(100))
    detector.update(row(200, override=0.0))
    found = [verdict for mean in (1.0, 1.0, 1.0) for verdict in detector.evaluate(evaluation(mean))]
    assert causes(found, WARN)
    assert not causes(found, ACT)
