import json
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import as_lists, events, warnings_of
from lightning.pytorch import Callback, LightningModule, Trainer
from running import curves, newest_checkpoint, newest_run
from test_linear_td import ENV_ID, equal, fit, make_data, make_model, parameters_of
from torch import Tensor

from rlmods.algorithms import LinearTD
from rlmods.callbacks import GradientClipVerifier, LivenessGuard, NonFiniteGuard, TargetClamp
from rlmods.cli import run
from rlmods.data import RolloutDataModule
from rlmods.types import EpisodeBatch

HEALTHY: dict[str, Any] = {
    "dimensionless_step": 0.3,
    "actor_learning_rate": 1.0,
    "behaviour_std": 0.5,
    "target_std": 0.5,
    "behaviour_offset_scale": 0.0,
}


# Stop and resume


class SaveAt(Callback):
    """A checkpoint after an iteration."""

    def __init__(self, path: Path, iteration: int) -> None:
        self.path, self.iteration = path, iteration

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.iteration:
            trainer.save_checkpoint(self.path)


def state_of(path: Path) -> dict[str, Any]:
    """What a run's future depends on, as it loads with `weights_only`."""
    checkpoint = torch.load(path, weights_only=True)
    parts = {name: checkpoint[name] for name in ("state_dict", "algorithm", "RolloutDataModule")}
    state: dict[str, Any] = as_lists(parts)
    return state


def fit_six(folder: Path, *, ckpt_path: Path | None = None, evaluate: bool = True, **options: Any) -> LinearTD:
    """Six iterations with an evaluation after each second one, and checkpoints after the third and the last."""
    data = make_data(6, env={"max_episode_steps": 4}, eval_every=12)
    model = make_model(data, **options)
    saves = [] if ckpt_path else [SaveAt(folder / "third.ckpt", 3)]
    trainer = fit(folder, data, model, *saves, limit_val_batches=1.0 if evaluate else 0, ckpt_path=ckpt_path)
    assert model.update_steps == data.iterations == 6
    trainer.save_checkpoint(folder / ("resumed.ckpt" if ckpt_path else "whole.ckpt"))
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"random_stream": "torch"},
        {"random_stream": "numpy", "num_bootstrap_samples": 2, "seed": 3},
        {"method": "tdc", "num_bootstrap_samples": 2, "beta": 0.3},
    ],
)
def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = fit_six(tmp_path, **options)
    torch.manual_seed(1234)  # the saved one counts
    resumed = fit_six(tmp_path, ckpt_path=tmp_path / "third.ckpt", **options)
    assert equal(parameters_of(whole), parameters_of(resumed))
    assert state_of(tmp_path / "whole.ckpt") == state_of(tmp_path / "resumed.ckpt")
    assert state_of(tmp_path / "whole.ckpt") != state_of(tmp_path / "third.ckpt")


def test_a_calibration_goes_on_after_a_resume(tmp_path: Path) -> None:
    models = []
    for ckpt_path in (None, tmp_path / "calibrating.ckpt"):
        data = make_data(12)
        models.append(make_model(data, dimensionless_step=0.3))
        saves = [] if ckpt_path else [SaveAt(tmp_path / "calibrating.ckpt", 4)]
        fit(tmp_path, data, models[-1], *saves, ckpt_path=ckpt_path)
    assert models[0].learning_rate == models[1].learning_rate != 1.0
    assert equal(*map(parameters_of, models))


@pytest.mark.parametrize("options", [{}, {"num_bootstrap_samples": 2}, {"random_stream": "numpy"}])
def test_evaluations_leave_the_training_alone(tmp_path: Path, options: dict[str, Any]) -> None:
    first, second = (fit_six(tmp_path, evaluate=evaluate, **options) for evaluate in (True, False))
    assert equal(parameters_of(first), parameters_of(second))


def test_the_numpy_stream_does_not_depend_on_torchs_seed(tmp_path: Path) -> None:
    finals = []
    for seed in (5, 6):
        data = make_data(2)
        model = make_model(data, random_stream="numpy", num_bootstrap_samples=1, seed=8)
        torch.manual_seed(seed)
        fit(tmp_path, data, model)
        finals.append(parameters_of(model))
    assert equal(*finals)


def test_a_checkpoint_makes_the_same_module_again(tmp_path: Path) -> None:
    model = fit_six(tmp_path, method="tdc")
    loaded = LinearTD.load_from_checkpoint(tmp_path / "whole.ckpt", weights_only=True)
    assert equal(parameters_of(model), parameters_of(loaded))
    assert loaded.hparams["method"] == "tdc"
    assert loaded.update_steps == 6


# Evaluation


def test_an_evaluation_compares_the_critic_with_what_came(tmp_path: Path) -> None:
    data = make_data(2, env={"max_episode_steps": 4})
    trainer = fit(tmp_path, data, make_model(data), limit_val_batches=1.0)
    metrics = {name.removeprefix("eval/") for name in trainer.callback_metrics}
    assert {"mean_reward", "mean_discounted_reward", "q_start", "q_gap", "q_gap_sem"} <= metrics
    assert trainer.callback_metrics["eval/mean_ep_length"] == 4.0


def test_golden_gap() -> None:
    """w reads ‖a‖² alone: Q = 8·E‖a‖²/√8 with E‖a‖² = 2·0.36 where θ is 0. Gap: Q − (1 + 0.5 Q), and Q − (2 + 0)."""
    model = make_model(make_data(), theta_init_scale=0.0, behaviour_offset_scale=0.0)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([0.0] * 7 + [8.0]))
    two = torch.zeros(2, 18, dtype=torch.float64)
    numbers = torch.tensor([1.0, 2.0], dtype=torch.float64)
    episodes = EpisodeBatch(numbers, torch.tensor([4, 4]), numbers, {}, two, two, torch.tensor([0.5, 0.0]))
    metrics = model.evaluation_metrics(episodes)
    value = 8 * 0.72 / 8**0.5
    gaps = [value - 1.0 - 0.5 * value, value - 2.0]
    assert float(metrics["q_start"]) == pytest.approx(value)
    assert float(metrics["q_gap"]) == pytest.approx(sum(gaps) / 2)
    assert float(metrics["q_gap_sem"]) == pytest.approx(abs(gaps[0] - gaps[1]) / 2)  # n = 2: half of the range


# Safeguards


class Norms(Callback):
    """Of the gradients that the step uses, and of those before the clip."""

    def __init__(self) -> None:
        self.after: list[float] = []
        self.before: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.optimizers[0].register_step_pre_hook(self._measure)

    def _measure(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.after.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.before.append(float(outputs["grad_norm/linear"]))


def test_safeguards_are_silent_on_a_healthy_run(tmp_path: Path) -> None:
    data = make_data(40, num_envs=4, n_steps=8, env={"feature_dim": 32, "actor_feature_dim": 8})
    guards = [NonFiniteGuard(), GradientClipVerifier(), LivenessGuard()]
    model = make_model(data, **HEALTHY)
    trainer = fit(tmp_path, data, model, *guards, logger=True, log_every_n_steps=10)
    assert model.update_steps == 30
    assert [warnings_of(guard) for guard in guards] == [[], [], []]
    assert events(trainer) == []


def test_a_learning_rate_that_moves_nothing_is_said(tmp_path: Path) -> None:
    data = make_data(30, env={"feature_dim": 32, "actor_feature_dim": 8})
    guard = LivenessGuard()
    fit(tmp_path, data, make_model(data, learning_rate=1e-9, actor_learning_rate=1e-9), guard)
    assert "inert_update" in " ".join(warnings_of(guard))


def test_the_clip_is_seen(tmp_path: Path) -> None:
    data, norms, guard = make_data(10), Norms(), GradientClipVerifier(every_n_iterations=5)
    fit(tmp_path, data, make_model(data, max_grad_norm=0.01), norms, guard)
    assert min(norms.before) > 0.01
    assert norms.after == pytest.approx([0.01] * 10, rel=1e-3)
    # That it always clips is what it has to say, and that the limit holds.
    assert set(warnings_of(guard)) <= {"clip_always_active"}
    unclipped = Norms()
    other = make_data(10)
    fit(tmp_path, other, make_model(other), unclipped)
    assert unclipped.after == pytest.approx(unclipped.before, rel=1e-6)


def test_targets_pass_through_the_transforms(tmp_path: Path) -> None:
    data = make_data(2)
    model = make_model(data)
    outputs: list[dict[str, Tensor]] = []

    class Keep(Callback):
        def on_train_batch_end(
            self, trainer: Trainer, pl_module: LightningModule, results: Any, batch: Any, batch_idx: int
        ) -> None:
            outputs.append(results)

    fit(tmp_path, data, model, TargetClamp(low=-0.01, high=0.02), Keep())
    targets = torch.cat([one["td_target"] for one in outputs])
    assert float(targets.min()) >= -0.01 - 1e-12
    assert float(targets.max()) <= 0.02 + 1e-12
    assert bool((targets - targets.clamp(-0.0099, 0.0199)).any())


# Hyper-parameters and the command line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", -0.1),
        ("actor_learning_rate", -0.1),
        ("auxiliary_learning_rate", 0.0),
        ("beta", 1.1),
        ("behaviour_std", 0.0),
        ("target_std", -1.0),
        ("num_bootstrap_samples", -1),
        ("method", "sarsa"),
        ("ratio_clip", 0.0),
        ("vtrace_lambda", 1.5),
        ("scale_mode", "T"),
        ("dimensionless_step", 0.0),
        ("theta_radius", -1.0),
        ("theta_init_scale", float("nan")),
        ("w_init_scale", -1.0),
        ("behaviour_offset_scale", -1.0),
        ("max_grad_norm", 0.0),
        ("random_stream", "jax"),
    ],
)
def test_hyper_parameters_outside_their_range_are_refused(name: str, value: Any) -> None:
    data = make_data()
    with pytest.raises(ValueError, match=rf"got {name} = .*expected a value .*--model\.init_args\.{name} VALUE"):
        LinearTD(data.spec, **{name: value})


def test_vtrace_with_another_method_is_refused() -> None:
    with pytest.raises(ValueError, match="with the method td0"):
        LinearTD(make_data().spec, vtrace_lambda=0.5, method="etd")


def test_an_environment_without_features_is_refused() -> None:
    data = RolloutDataModule("CartPole-v1", 1024)
    with pytest.raises(ValueError, match=rf"CartPole-v1, which names no frozen features.*{ENV_ID}"):
        LinearTD(data.spec)


def test_a_mode_without_a_closed_form_is_sampled() -> None:
    data = make_data(env={"action_mode": "tanh"})
    model = LinearTD(data.spec)
    assert model.num_bootstrap_samples == 4
    with pytest.raises(ValueError, match=r"num_bootstrap_samples = None in the action mode tanh.*type"):
        model.linear_transitions(None, None)  # type: ignore[arg-type]


CONFIG = f"""\
seed_everything: 3
trainer: {{accelerator: cpu, enable_progress_bar: false, enable_model_summary: false, log_every_n_steps: 1}}
model: {{class_path: rlmods.algorithms.LinearTD, init_args: {{beta: 0.5, learning_rate: 1.0}}}}
data:
  class_path: rlmods.data.RolloutDataModule
  init_args:
    env_id: {ENV_ID}
    total_env_steps: 36
    num_envs: 2
    n_steps: 3
    eval_episodes: 2
    eval_every: 12
    env_kwargs: {{feature_dim: 8, actor_feature_dim: 4, max_episode_steps: 4}}
"""


def test_the_command_line_stops_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)

    def fit_at(name: str, *more: str) -> Path:
        root = tmp_path / name
        run(["fit", "--config", str(tmp_path / "config.yaml"), "--trainer.default_root_dir", str(root), *more])
        return newest_run(root)

    assert newest_checkpoint(fit_at("run", "--trainer.max_steps", "3"))["RolloutDataModule"]["env_steps"] == 18
    finished = fit_at("run", "--ckpt_path", "last")
    assert finished.name == "version_0"
    checkpoint = newest_checkpoint(finished)
    assert checkpoint["RolloutDataModule"]["env_steps"] == 36
    assert checkpoint["algorithm"]["update_steps"] == 6
    # Every 12 steps, and where the first part ended.
    assert [step for step, _ in curves(finished)["eval/q_start"]] == [12, 18, 24, 36]
    assert json.loads((finished / "run.json").read_text())["seed"] == 3
