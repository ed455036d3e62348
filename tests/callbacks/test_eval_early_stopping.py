import json
import math
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor

from rlmods.algorithms import DQN
from rlmods.callbacks import EvalEarlyStopping
from rlmods.callbacks.eval_early_stopping import Evaluation, EvaluationHistory, interval_half_width
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
        ({}, "neither threshold nor patience"),
        ({"threshold": 1.0, "hold": 0}, "hold = 0"),
        ({"patience": 0}, "patience = 0"),
        ({"threshold": 1.0, "confidence": 1.0}, "confidence = 1.0"),
        ({"threshold": 1.0, "monitor": "rollout/ep_rew_mean"}, "'rollout/ep_rew_mean', expected 'eval/mean_reward'"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvalEarlyStopping(**arguments)


def test_state_round_trip() -> None:
    callback, restored = EvalEarlyStopping(threshold=475.0), EvalEarlyStopping(threshold=475.0)
    for _ in range(2):
        callback.history.update(solved())
    restored.load_state_dict(callback.state_dict())
    assert restored.state_key == callback.state_key
    assert restored.history.update(solved()).stop


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

    with pytest.raises(RuntimeError, match=r"needs \['eval/mean_reward'.*logged only \['eval/loss'\]"):
        fit(tmp_path, Stranger(), EvalEarlyStopping(patience=2))
