import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from test_skeleton import make_data, make_trainer
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader

from rlmods.algorithms import DQN
from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.metric_range_guard import MetricRangeGuard, RangeDetector
from rlmods.signals import METRIC_BOUNDS, SIGNALS

ONES: Any = torch.ones(2, 1)
ALARM = [("metric_out_of_range", Severity.ACT)]


class Toy(LightningModule):
    """Logs one value of each list an evaluation; a training step returns the given signals."""

    def __init__(self, signals: dict[str, Tensor] | None = None, **evaluations: list[float]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(1, 1)
        self.signals = signals or {}
        self.evaluations = evaluations

    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        optimizer: Any = self.optimizers()
        self.manual_backward(self.layer(batch).sum())
        optimizer.step()
        return dict(self.signals)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        position = self.trainer.current_epoch
        for name, values in self.evaluations.items():
            self.log(f"eval/{name}", values[min(position, len(values) - 1)])

    def configure_optimizers(self) -> Optimizer:
        return SGD(self.parameters(), lr=0.1)


def fit(
    folder: Path, model: Toy, *callbacks: Callback, epochs: int = 1, ckpt_path: Path | str | None = None
) -> Trainer:
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        val_check_interval=2,
        logger=False,
    )
    trainer.fit(model, DataLoader(ONES), DataLoader(ONES[:1]), ckpt_path=ckpt_path)
    return trainer


def best(folder: Path, **arguments: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder / "best", monitor="eval/success_rate", mode="max", filename="{step}", **arguments)


def events(trainer: Trainer, kind: str) -> list[dict[str, Any]]:
    lines = (Path(str(trainer.log_dir)) / "events.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["kind"] == kind]


def test_golden_verdict() -> None:
    (verdict,) = RangeDetector().update({"eval/success_rate": (894.5, 894.5)}, {"eval/success_rate": (0.0, 1.0)})
    assert verdict[:2] == ALARM[0]
    assert verdict.message.startswith("eval/success_rate is 894.5, but must lie in [0, 1]: above 1 it is a count")
    assert verdict.evidence == {"metrics": {"eval/success_rate": {"value": 894.5, "bounds": [0.0, 1.0]}}}


@pytest.mark.parametrize(
    ("value", "is_outside"),
    [
        ((0.0, 1.0), False),
        ((-1e-6, 1.0 + 1e-6), False),  # rounding
        ((-0.01, 0.5), True),
        ((0.5, 1.01), True),
        ((math.nan, math.nan), True),
        ((0.5, math.inf), True),
    ],
)
def test_bounds_are_closed_and_rounding_is_forgiven(value: tuple[float, float], is_outside: bool) -> None:
    assert bool(RangeDetector().update({"rate": value}, {"rate": (0.0, 1.0)})) == is_outside


def test_what_was_not_looked_at_stays_and_quarantine_does_not_end() -> None:
    detector = RangeDetector()
    bounds = {"rate": (0.0, 1.0), "ev": (-math.inf, 1.0)}
    detector.update({"rate": (2.0, 2.0)}, bounds)
    (verdict,) = detector.update({"ev": (-9.0, 3.0)}, bounds)
    assert verdict.evidence["metrics"].keys() == {"rate", "ev"}
    restored = RangeDetector()
    restored.load_state_dict(detector.state_dict())
    (verdict,) = restored.update({"rate": (0.5, 0.5)}, bounds)
    assert verdict.evidence["metrics"].keys() == {"ev"}
    assert restored.quarantined == ["rate", "ev"]


def test_declared_bounds_are_in_order_and_agree_with_the_signals() -> None:
    for name, (low, high) in METRIC_BOUNDS.items():
        assert low < high, name
        if name in SIGNALS:
            assert (low, high) == (SIGNALS[name].low, SIGNALS[name].high)


def test_a_polluted_best_is_forgotten_and_the_fallback_ranks(tmp_path: Path) -> None:
    """In the first evaluation the rate is right, then it is a count; the second best by reward is saved last."""
    model = Toy(success_rate=[0.5, 894.0, 10.0, 20.0], mean_reward=[9.0, 1.0, 5.0, 3.0])
    guard, checkpoint = MetricRangeGuard(), best(tmp_path)
    trainer = fit(tmp_path, model, checkpoint, guard, epochs=4)
    assert guard.raised == ALARM
    assert (checkpoint.monitor, checkpoint.mode) == ("eval/mean_reward", "max")
    assert checkpoint.best_model_score == 5.0
    assert checkpoint.best_model_path.endswith("step=6.ckpt")
    # Steps 2 (of the time before) and 6; that of step 4 gave way to it as usual.
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["step=2.ckpt", "step=6.ckpt"]
    (action,) = events(trainer, "action")
    assert action["evidence"]["monitor"] == ["eval/success_rate", "eval/mean_reward"]


def test_a_best_score_from_before_the_guard_is_found(tmp_path: Path) -> None:
    fit(tmp_path, Toy(success_rate=[894.0], mean_reward=[1.0]), polluted := best(tmp_path))
    checkpoint = best(tmp_path)
    model = Toy(success_rate=[0.3], mean_reward=[1.0])
    fit(tmp_path, model, checkpoint, MetricRangeGuard(), epochs=2, ckpt_path=polluted.best_model_path)
    assert checkpoint.best_model_score == 1.0


def test_without_a_sane_fallback_the_newest_is_kept(tmp_path: Path) -> None:
    model = Toy(success_rate=[894.0], mean_reward=[math.nan])
    checkpoint = best(tmp_path, save_top_k=2, save_last=True)
    fit(tmp_path, model, MetricRangeGuard(), checkpoint, epochs=3)
    assert checkpoint.monitor is None
    assert checkpoint.best_model_path.endswith("step=6.ckpt")
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["last.ckpt", "step=6.ckpt"]


def test_a_resumed_run_goes_on_with_the_fallbacks_ranking(tmp_path: Path) -> None:
    """Two rank by the same metric now; each keeps its own state."""

    def callbacks() -> list[Any]:
        others = ModelCheckpoint(tmp_path / "by_reward", monitor="eval/mean_reward", mode="max", save_top_k=3)
        return [best(tmp_path, save_last=True), others, MetricRangeGuard()]

    evaluations: dict[str, Any] = {"success_rate": [894.0, 800.0, 0.5, 0.5], "mean_reward": [9.0, 7.0, 8.0, 10.0]}
    fit(tmp_path, Toy(**evaluations), *callbacks(), epochs=2)
    # The ninth point of reward stands at the time of the stop; a last.ckpt is of the newest that was ranked best.
    resumed = callbacks()
    fit(tmp_path, Toy(**evaluations), *resumed, epochs=3, ckpt_path=tmp_path / "best" / "last.ckpt")
    checkpoint, others, guard = resumed
    assert checkpoint.monitor == "eval/mean_reward"
    assert checkpoint.best_model_score == 9.0
    assert len(checkpoint.best_k_models) == 1
    assert len(others.best_k_models) >= 2
    assert guard.raised == ALARM
    assert guard.detector.quarantined == ["eval/success_rate"]


def test_early_stopping_does_not_listen_to_it(tmp_path: Path) -> None:
    """At once, though it stands before the guard in the list; afterwards it waits for the fallback to get better."""
    stopping = EarlyStopping("eval/success_rate", mode="max", stopping_threshold=0.99, patience=2, min_delta=0.5)
    model = Toy(success_rate=[894.0], mean_reward=[1.0, 2.0, 2.0, 2.0, 2.0])
    trainer = fit(tmp_path, model, stopping, MetricRangeGuard(), epochs=6)
    assert stopping.monitor == "eval/mean_reward"
    assert trainer.current_epoch == 4  # evaluations 3 and 4 were no better
    stopping = EarlyStopping("eval/success_rate", mode="min", patience=1)
    trainer = fit(tmp_path, Toy(success_rate=[math.nan]), stopping, MetricRangeGuard(), epochs=3)
    assert trainer.current_epoch == 3


def test_observing_changes_nothing(tmp_path: Path) -> None:
    checkpoint, guard = best(tmp_path), MetricRangeGuard(mode="observe")
    fit(tmp_path, Toy(success_rate=[894.0, 1.0], mean_reward=[1.0, 2.0]), checkpoint, guard, epochs=2)
    assert guard.raised == ALARM
    assert checkpoint.monitor == "eval/success_rate"
    assert checkpoint.best_model_score == 894.0


def test_mode_stop_ends_the_run(tmp_path: Path) -> None:
    trainer = fit(tmp_path, Toy(success_rate=[894.0]), MetricRangeGuard(mode="stop"), epochs=5)
    assert trainer.global_step == 2


def test_a_further_metric_is_announced(tmp_path: Path) -> None:
    guard = MetricRangeGuard()
    fit(tmp_path, Toy(success_rate=[3.0], explained_variance=[0.9, 1.5, 1.5]), guard, epochs=3)
    assert guard.raised == ALARM * 2


@pytest.mark.parametrize(
    ("name", "values", "is_alarmed"),
    [
        ("grad_norm/actor", [1.0, -1.0], True),
        ("exploration_rate", [1.5], True),
        ("learning_rate", [math.nan], True),
        ("learning_rate", [0.0], False),
        ("loss", [math.nan], False),
        ("my_rate", [7.0], False),
    ],
)
def test_signals(name: str, values: list[float], is_alarmed: bool, tmp_path: Path) -> None:
    guard = MetricRangeGuard(every_n_iterations=2)
    fit(tmp_path, Toy({name: torch.tensor(values)}, mean_reward=[1.0]), guard)
    assert guard.raised == ALARM * is_alarmed
    assert guard.detector.quarantined == [name] * is_alarmed


def test_a_rollback_does_not_make_it_say_so_again(tmp_path: Path) -> None:
    class Rearm(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            guard.rearm()

    guard = MetricRangeGuard()
    fit(tmp_path, Toy(success_rate=[3.0]), guard, Rearm(), epochs=3)
    assert guard.raised == ALARM


def test_bounds_of_the_user_go_first(tmp_path: Path) -> None:
    guard = MetricRangeGuard(bounds={"success_rate": (0.0, 1000.0), "td_error": (-5.0, 5.0)}, every_n_iterations=1)
    fit(tmp_path, Toy({"td_error": torch.tensor([[0.0, -6.0]])}, success_rate=[894.0]), guard)
    assert guard.detector.outside == {"td_error": (-6.0, -5.0, 5.0)}


@pytest.mark.parametrize("missing", ["eval/typo", "grad_norm/typo", "typo"])
def test_a_bound_on_nothing(missing: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"bounds for '{missing}', which never came.*'loss'"):
        fit(tmp_path, Toy({"loss": torch.zeros(1)}, mean_reward=[1.0]), MetricRangeGuard(bounds={missing: (0.0, 1.0)}))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"bounds\['loss'\] = \(1.0, 0.0\), expected the lower"):
        MetricRangeGuard(bounds={"loss": (1.0, 0.0)})
    with pytest.raises(ValueError, match="every_n_iterations = 0"):
        MetricRangeGuard(every_n_iterations=0)


def test_a_healthy_dqn(tmp_path: Path) -> None:
    data = make_data(total_env_steps=240)
    guard = MetricRangeGuard(every_n_iterations=1)
    trainer = make_trainer(tmp_path, guard)
    trainer.fit(DQN(data.spec), datamodule=data)
    assert guard.raised == []
    assert "eval/std_reward" in trainer.callback_metrics


class CountSuccesses(DQN):
    def evaluation_metrics(self, episodes: Any) -> dict[str, Tensor]:
        return super().evaluation_metrics(episodes) | {"success_rate": episodes.lengths.sum()}


def test_a_count_in_a_real_dqn(tmp_path: Path) -> None:
    data = make_data()
    guard = MetricRangeGuard()
    make_trainer(tmp_path, best(tmp_path), guard).fit(CountSuccesses(data.spec), datamodule=data)
    assert guard.raised == ALARM
