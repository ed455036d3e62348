import json
import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor

from rlmods.algorithms import DQN
from rlmods.callbacks import EvalEarlyStopping
from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.evaluations import (
    CollapseDetector,
    Evaluation,
    EvaluationHistory,
    difference_interval,
    interval_half_width,
)
from rlmods.callbacks.safeguard import MissingInputError
from rlmods.data import ReplayDataModule


def make_history(**arguments: Any) -> EvaluationHistory:
    defaults: dict[str, Any] = {"threshold": None, "hold": 3, "patience": None, "min_delta": 0.0, "confidence": 0.95}
    return EvaluationHistory(**(defaults | arguments))


def solved(mean: float = 500.0, std: float = 0.0) -> Evaluation:
    return Evaluation(mean, std, episodes=10)


def test_golden_interval() -> None:
    """Student's t for 9 degrees of freedom at 97.5 % is 2.262; with s = 30 over 10 episodes: 2.262·30/√9 = 22.62."""
    assert interval_half_width(Evaluation(480.0, 30.0, 10), 0.95) == pytest.approx(22.62, abs=0.01)
    assert interval_half_width(Evaluation(480.0, 0.0, 1), 0.95) == math.inf


def test_it_stops_when_solved_and_held() -> None:
    history = make_history(threshold=475.0)
    verdicts = [history.update(solved()) for _ in range(3)]
    assert [verdict.stop for verdict in verdicts] == [False, False, True]
    assert "solved and held" in verdicts[-1].reason
    assert "475.0 in 3 evaluations" in verdicts[-1].reason


def test_touching_the_threshold_is_not_holding_it() -> None:
    history = make_history(threshold=475.0)
    touches = [500.0, 500.0, 300.0, 500.0, 500.0, 474.0, 500.0, 500.0]
    assert not any(history.update(solved(mean)).stop for mean in touches)


def test_a_mean_above_with_an_interval_that_reaches_below_does_not_count() -> None:
    history = make_history(threshold=475.0, hold=1)
    assert not history.update(solved(480.0, std=30.0)).stop
    assert history.update(solved(480.0, std=6.0)).stop


def test_patience() -> None:
    history = make_history(patience=3, min_delta=5.0)
    means = [100.0, 103.0, 104.0, 108.0, 108.0, 112.0, 109.0]
    stops = [history.update(solved(mean)).stop for mean in means]
    # 108 is an improvement over 100, 112 none over 108.
    assert stops == [False, False, False, False, False, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.0, "hold": 0}, "hold = 0"),
        ({"patience": 0}, "patience = 0"),
        ({"threshold": 1.0, "confidence": 1.0}, "confidence = 1.0"),
        ({"collapse_after": 0}, "collapse_after = 0"),
        ({"collapse_share": 1.5}, "collapse_share = 1.5"),
        ({"mode": "watch"}, "mode = 'watch'"),
        ({"threshold": 1.0, "monitor": "rollout/ep_rew_mean"}, "'rollout/ep_rew_mean', expected 'eval/mean_reward'"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvalEarlyStopping(**arguments)


def make_collapse(**arguments: Any) -> CollapseDetector:
    return CollapseDetector(**({"after": 4, "share": 0.8, "start": None, "confidence": 0.95} | arguments))


def severities(detector: CollapseDetector, means: list[float], std: float = 1.0) -> list[Severity | None]:
    """The severity after each evaluation, None where there is no verdict."""
    found = [detector.update(Evaluation(mean, std, 10, env_steps=step)) for step, mean in enumerate(means)]
    return [verdicts[0].severity if verdicts else None for verdicts in found]


def test_golden_welch_interval() -> None:
    """Standard errors 6/√9 = 2 and 3/√9 = 1: √5 together, 25/(16/9 + 1/9) = 13.24 degrees of freedom, t = 2.156."""
    now, then = Evaluation(100.0, 6.0, 10), Evaluation(110.0, 3.0, 10)
    low, high = difference_interval(now, then, 0.95)
    assert (low + high) / 2.0 == pytest.approx(-10.0)
    assert (high - low) / 2.0 == pytest.approx(2.156 * math.sqrt(5.0), abs=0.01)


def test_golden_paired_interval() -> None:
    """Differences −1, −2, −3 with s = 1 and t = 4.303 for 2 degrees of freedom; Welch's interval would be far wider."""
    now = Evaluation(-2.0, 0.0, 3, returns=[9.0, 98.0, 497.0])
    then = Evaluation(0.0, 0.0, 3, returns=[10.0, 100.0, 500.0])
    low, high = difference_interval(now, then, 0.95)
    assert (low + high) / 2.0 == pytest.approx(-2.0)
    assert (high - low) / 2.0 == pytest.approx(4.303 / math.sqrt(3.0), abs=0.001)


def test_differences_without_spread_and_of_single_episodes() -> None:
    assert difference_interval(Evaluation(9.0, 0.0, 10), Evaluation(500.0, 0.0, 10), 0.95) == (-491.0, -491.0)
    assert difference_interval(Evaluation(9.0, 0.0, 1), Evaluation(500.0, 0.0, 1), 0.95) == (-math.inf, math.inf)
    unequal = difference_interval(Evaluation(9.0, 1.0, 2, [8.0, 10.0]), Evaluation(9.0, 1.0, 3, [8.0, 9.0, 10.0]), 0.95)
    assert unequal[0] < 0.0 < unequal[1]


def test_a_collapse_is_confirmed_by_the_fourth_evaluation_in_a_row() -> None:
    detector = make_collapse()
    means = [9.0, 200.0, 500.0, 500.0, 9.0, 9.0, 12.0, 9.0, 9.0]
    assert severities(detector, means) == [None] * 5 + [Severity.WARN, Severity.WARN, Severity.ACT, Severity.ACT]
    (verdict,) = detector.update(Evaluation(9.0, 1.0, 10))
    assert verdict.cause == "return_collapse"
    assert verdict.evidence["best"] == 500.0
    assert verdict.evidence["best_env_steps"] == 2
    assert verdict.evidence["evaluations_in_a_row"] == 6
    assert verdict.evidence["interval"][1] < -400.0
    assert detector.update(Evaluation(400.0, 1.0, 10)) == []


@pytest.mark.parametrize(
    "means",
    [
        [10.0] + [500.0, 14.0] * 20,  # wild
        [10.0, 100.0, 500.0] + [100.0] * 20,  # one lucky evaluation is no level
        [10.0, 500.0, 500.0] + [150.0] * 20,  # a fall by 71 %
        [10.0] * 10 + [9.2] * 10,  # nothing was ever learned
        [9.0, 9.9, 9.9] + [9.0] * 20,  # nor here
        [0.0] * 40,  # a sparse reward
        [-200.0] * 20 + [-110.0] * 10,
        [500.0] * 10 + [440.0] * 10,  # began with trained weights, and no reference
        [10.0, 500.0, 500.0, *[math.nan] * 8],
    ],
)
def test_a_healthy_run_is_not_called_collapsed(means: list[float]) -> None:
    assert Severity.ACT not in severities(make_collapse(), means, std=0.1)


def test_noise_explains_a_fall() -> None:
    """Two episodes, of which one failed: no interval excludes 0."""
    detector = make_collapse()
    for mean, std in [(0.0, 0.0), (100.0, 50.0), (100.0, 50.0)] + [(10.0, 10.0)] * 8:
        assert detector.update(Evaluation(mean, std, 2)) == []


def test_a_run_from_trained_weights_needs_the_reference() -> None:
    means = [500.0, 500.0, 500.0, 9.0, 9.0, 9.0, 9.0]
    assert severities(make_collapse(), means)[-1] is None
    assert severities(make_collapse(start=9.0), means)[-1] is Severity.ACT


def test_negative_returns() -> None:
    means = [-1200.0, -400.0, -150.0, -160.0, -1250.0, -1100.0, -1200.0, -1200.0]
    assert severities(make_collapse(), means, std=80.0)[-1] is Severity.ACT


RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize(("after", "expected"), [(1, 16), (2, 7), (3, 0), (4, 0)])
def test_false_alarms_over_the_published_runs(after: int, expected: int) -> None:
    """26 runs of 49 evaluations, some of them very wild; the default is one evaluation above the longest fall."""
    alarmed = 0
    for path in sorted(RESULTS.glob("cartpole-*/seed_*.json")):
        detector = make_collapse(after=after)
        evaluations = json.loads(path.read_text())["evaluations"]
        verdicts = [detector.update(Evaluation(each["mean"], each["std"], 10)) for each in evaluations]
        alarmed += any(verdict.severity is Severity.ACT for found in verdicts for verdict in found)
    assert alarmed == expected


def test_every_published_run_that_would_collapse_for_good_is_found() -> None:
    """Each run is continued by what an untrained policy gets: found by the fourth such evaluation, where it learned."""
    for path in sorted(RESULTS.glob("cartpole-*/seed_*.json")):
        detector = make_collapse(start=9.0)
        for each in json.loads(path.read_text())["evaluations"][:30]:
            detector.update(Evaluation(each["mean"], each["std"], 10))
        assert severities(detector, [9.0] * 4)[-1] is Severity.ACT


def test_state_round_trip() -> None:
    callback, restored = (EvalEarlyStopping(threshold=475.0) for _ in range(2))
    for mean in (9.0, 500.0, 500.0):
        evaluation = Evaluation(mean, 0.0, 3, returns=[mean] * 3, env_steps=7)
        callback.history.update(evaluation)
        callback.collapse.update(evaluation)
    restored.load_state_dict(json.loads(json.dumps(callback.state_dict())))
    assert restored.history.update(solved()).stop
    for _ in range(4):
        fallen = Evaluation(9.0, 0.0, 3, returns=[9.0] * 3)
        expected = callback.collapse.update(fallen)
        assert restored.collapse.update(fallen) == expected
    assert expected[0].evidence["paired"]
    restored.rearm()
    assert restored.collapse.in_a_row == 0
    assert restored.collapse.best is not None


def fit(folder: Path, model: LightningModule, callback: EvalEarlyStopping, **arguments: Any) -> Trainer:
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[callback],
    )
    trainer.fit(model, **arguments)
    return trainer


def make_data() -> ReplayDataModule:
    return ReplayDataModule(
        "CartPole-v1", 400, learning_starts=20, steps_per_iteration=10, updates_per_iteration=1, eval_every=20
    )


class NeverLearns(DQN):
    """Evaluates to 100 whatever it does."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log_dict({"eval/mean_reward": 100.0, "eval/std_reward": 1.0, "eval/episodes": 10.0}, batch_size=1)


def test_it_stops_a_run_that_does_not_improve_and_says_why(tmp_path: Path) -> None:
    data = make_data()
    fit(tmp_path, NeverLearns(data.spec), EvalEarlyStopping(patience=2), datamodule=data)
    assert data.env_steps == 60
    (event,) = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert event["kind"] == "stop"
    assert "no improvement over 100.0 in 2 evaluations" in event["message"]
    assert event["env_steps"] == 60


def test_it_leaves_an_improving_run_alone(tmp_path: Path) -> None:
    class Improves(DQN):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            mean = float(batch.env_steps)
            self.log_dict({"eval/mean_reward": mean, "eval/std_reward": 1.0, "eval/episodes": 10.0}, batch_size=1)

    data = make_data()
    fit(tmp_path, Improves(data.spec), EvalEarlyStopping(threshold=475.0, patience=2), datamodule=data)
    assert data.env_steps == 400
    assert not (tmp_path / "events.jsonl").exists()


def test_a_strangers_module_that_logs_something_else_is_told_what_is_missing(tmp_path: Path) -> None:
    class Stranger(BoringModel):
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.log("eval/loss", self.loss(self(batch)))

    with pytest.raises(MissingInputError, match=r"needs \['eval/mean_reward'.*logged only \['eval/loss'\]"):
        fit(tmp_path, Stranger(), EvalEarlyStopping(patience=2))


class Collapses(DQN):
    """Evaluates to 10, 200, then always to 9; returns the episodes."""

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        mean = {20: 10.0, 40: 200.0, 60: 210.0}.get(batch.env_steps, 9.0)
        returns = torch.tensor([mean - 1.0, mean, mean + 1.0])
        self.log_dict({"eval/mean_reward": mean, "eval/std_reward": 0.8, "eval/episodes": 3.0}, batch_size=1)
        return {"returns": returns}


def events(folder: Path) -> list[dict[str, Any]]:
    path = folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(("mode", "env_steps"), [("observe", 400), ("act", 400), ("stop", 140)])
def test_a_collapse_is_an_alarm_and_ends_the_run_only_in_the_mode_stop(
    tmp_path: Path, mode: Literal["observe", "act", "stop"], env_steps: int
) -> None:
    data = make_data()
    callback = EvalEarlyStopping(mode=mode)
    fit(tmp_path, Collapses(data.spec), callback, datamodule=data)
    assert data.env_steps == env_steps
    assert callback.active == {"return_collapse": Severity.ACT}
    assert callback.raised == [("return_collapse", Severity.WARN), ("return_collapse", Severity.ACT)]
    alarms = [event for event in events(tmp_path) if event["kind"] == "alarm"]
    assert [event["env_steps"] for event in alarms] == [100, 140]
    assert alarms[1]["evidence"]["best"] == 200.0
    assert alarms[1]["evidence"]["best_env_steps"] == 40
    assert alarms[1]["evidence"]["paired"]
    assert alarms[1]["evidence"]["interval"] == pytest.approx([-191.0, -191.0])


def test_observe_stops_nothing_but_says_that_it_would(tmp_path: Path) -> None:
    data = make_data()
    callback = EvalEarlyStopping(patience=2, mode="observe")
    fit(tmp_path, NeverLearns(data.spec), callback, datamodule=data)
    assert data.env_steps == 400
    assert callback.raised == [("no_improvement", Severity.INFO)]
    assert [event["kind"] for event in events(tmp_path)] == ["alarm"]


def test_two_with_one_name_are_refused(tmp_path: Path) -> None:
    twins: list[Any] = [EvalEarlyStopping(patience=2), EvalEarlyStopping(threshold=475.0)]
    trainer = Trainer(default_root_dir=tmp_path, max_epochs=1, accelerator="cpu", logger=False, callbacks=twins)
    with pytest.raises(ValueError, match="2 callbacks EvalEarlyStopping with the name 'eval_early_stopping'"):
        trainer.fit(BoringModel())


def test_the_episodes_of_the_real_dqn_are_paired(tmp_path: Path) -> None:
    data = make_data()
    callback = EvalEarlyStopping()
    fit(tmp_path, DQN(data.spec), callback, datamodule=data)
    assert callback.collapse.previous is not None
    assert len(callback.collapse.previous.returns) == callback.collapse.previous.episodes > 1
    assert sum(callback.collapse.previous.returns) / callback.collapse.previous.episodes == pytest.approx(
        callback.collapse.previous.mean
    )
