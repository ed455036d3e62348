import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from test_skeleton import make_data, make_trainer
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import SGD, Adam, Optimizer

from rlmods.algorithms import DQN
from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.gradient_clip_verifier import GradientClipVerifier
from rlmods.functional.norms import global_norm

ACT, WARN, INFO = Severity.ACT, Severity.WARN, Severity.INFO


# The real DQN, one line broken


class BrokenDQN(DQN):
    """`optimize` line by line, to be broken in one of them."""

    def optimize(
        self, optimizer: LightningOptimizer, loss: Tensor, max_grad_norm: float | None, *, counts: bool
    ) -> Tensor:
        self.before_zero_grad()
        self.zero()
        self.manual_backward(loss)
        norm = global_norm(self.gradients())
        self.clip()
        self._step(optimizer, counts=counts)
        self.after_step()
        self.update_steps += 1
        return norm

    def gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.q_network.parameters() if parameter.grad is not None]

    def limit(self) -> float:
        return self.max_grad_norm or math.inf

    def before_zero_grad(self) -> None:
        pass

    def zero(self) -> None:
        self.q_network.zero_grad()

    def clip(self) -> None:
        clip_grad_norm_(self.q_network.parameters(), self.limit())

    def after_step(self) -> None:
        pass


class NeverClips(BrokenDQN):
    def clip(self) -> None:
        pass


class ClipsBeforeBackward(NeverClips):
    def before_zero_grad(self) -> None:
        clip_grad_norm_(self.q_network.parameters(), self.limit())


class ClipsAfterStep(NeverClips):
    def after_step(self) -> None:
        clip_grad_norm_(self.q_network.parameters(), self.limit())


class LeavesHeadOut(BrokenDQN):
    def clip(self) -> None:
        clip_grad_norm_(list(self.q_network.parameters())[:-2], self.limit())


class ClipsPerLayer(BrokenDQN):
    def clip(self) -> None:
        for layer in self.q_network:
            if list(layer.parameters()):
                clip_grad_norm_(layer.parameters(), self.limit())


class ClipsByValue(BrokenDQN):
    def clip(self) -> None:
        clip_grad_value_(self.q_network.parameters(), self.limit())


class ClipsToTwice(BrokenDQN):
    def limit(self) -> float:
        return 2.0 * super().limit()


class ForgetsZeroGrad(BrokenDQN):
    def zero(self) -> None:
        pass


class ReplacesNetwork(DQN):
    def on_train_start(self) -> None:
        self.q_network = copy.deepcopy(self.q_network)


class ReportsSumOfNorms(BrokenDQN):
    def optimize(self, *arguments: Any, **options: Any) -> Tensor:
        super().optimize(*arguments, **options)
        return torch.stack([gradient.norm() for gradient in self.gradients()]).sum()


def run_dqn(
    folder: Path, algorithm: type[DQN] = DQN, *, env_steps: int = 680, ckpt_path: Any = None, **options: Any
) -> tuple[GradientClipVerifier, Trainer]:
    seed_everything(0, verbose=False)
    data = make_data(
        total_env_steps=env_steps,
        learning_starts=64,
        steps_per_iteration=16,
        updates_per_iteration=16,
        batch_size=16,
        buffer_size=1000,
        eval_every=320,
    )
    guard = GradientClipVerifier(**options.pop("guard", {}))
    saving = ModelCheckpoint(folder / "saved", monitor="step", mode="max", save_top_k=-1, filename="{step}")
    trainer = make_trainer(folder, guard, saving, logger=False)
    model = algorithm(data.spec, **{"hidden_sizes": [16, 16], "max_grad_norm": 0.5, **options})
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return guard, trainer


@pytest.mark.parametrize(
    ("algorithm", "causes"),
    [
        (NeverClips, ["clip_never_applied"]),
        (ClipsBeforeBackward, ["clip_before_backward"]),
        (ClipsAfterStep, ["clip_after_step"]),
        (LeavesHeadOut, ["parameter_outside_clip"]),
        (ClipsPerLayer, ["clip_per_group"]),
        (ClipsByValue, ["clip_by_value"]),
        (ClipsToTwice, ["clip_limit_exceeded"]),
        (ForgetsZeroGrad, ["accumulated_gradients"]),
        (ReplacesNetwork, ["stale_parameters", "parameter_not_optimised"]),
    ],
)
def test_one_broken_line_in_the_real_dqn(algorithm: type[DQN], causes: list[str], tmp_path: Path) -> None:
    guard, _ = run_dqn(tmp_path, algorithm, env_steps=240)
    assert {cause for cause, severity in guard.raised if severity is ACT} == set(causes)
    assert guard.raised[0][0] == causes[0]


def test_a_sum_of_norms_is_explained_and_the_clip_is_ok(tmp_path: Path) -> None:
    guard, _ = run_dqn(tmp_path, ReportsSumOfNorms, env_steps=400)
    assert guard.raised == [("sum_of_norms", INFO)]
    (event,) = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert "grad_norm/q" in event["message"]
    assert "clip OK" in event["message"]
    assert 1.01 * event["evidence"]["l2_norm"] < event["evidence"]["value"]


@pytest.mark.parametrize(("algorithm", "limit"), [(DQN, 10.0), (BrokenDQN, 10.0), (DQN, 0.5), (DQN, None)])
def test_a_healthy_dqn(algorithm: type[DQN], limit: float | None, tmp_path: Path) -> None:
    guard, _ = run_dqn(tmp_path, algorithm, max_grad_norm=limit, guard={"every_n_iterations": 2})
    assert guard.raised == []
    assert guard.detector.samples["q"] > 100


def test_a_clip_that_always_works_only_warns(tmp_path: Path) -> None:
    guard, _ = run_dqn(tmp_path, max_grad_norm=1e-3, guard={"every_n_iterations": 2, "mode": "stop"})
    assert guard.raised == [("clip_always_active", WARN)]


def test_a_resumed_run_decides_like_one_that_was_never_stopped(tmp_path: Path) -> None:
    """Stopped in the middle of a window."""
    whole, _ = run_dqn(tmp_path, NeverClips)
    (saved,) = [path for path in (tmp_path / "saved").iterdir() if path.name == "step=320.ckpt"]
    assert torch.load(saved, weights_only=True)["callbacks"][whole.state_key]["samples"]
    resumed, _ = run_dqn(tmp_path / "resumed", NeverClips, ckpt_path=saved)
    assert resumed.raised == whole.raised
    assert resumed.detector.state_dict() == whole.detector.state_dict()


def test_what_was_wrapped_is_put_back(tmp_path: Path) -> None:
    _, trainer = run_dqn(tmp_path, env_steps=100)
    assert not {"backward", "clip_gradients"} & vars(trainer.lightning_module).keys()


# Strangers


class Automatic(BoringModel):
    def configure_optimizers(self) -> Optimizer:  # type: ignore[override]
        return SGD(self.parameters(), lr=0.01)


class IgnoresTheTrainer(Automatic):
    def configure_gradient_clipping(self, *arguments: Any, **options: Any) -> None:
        pass


class ClipsStaleGradients(IgnoresTheTrainer):
    """As nano-world-model did: in automatic optimisation `training_step` comes before zero_grad."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        clip_grad_norm_(self.parameters(), 0.1)
        return super().training_step(batch, batch_idx)


class KeepsGradients(Automatic):
    def optimizer_zero_grad(self, *arguments: Any, **options: Any) -> None:
        pass


class Manual(BoringModel):
    """The order of an update in letters."""

    order = "zbcs"  # zero_grad, backward, clip, step
    limit: float | None = 0.1

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        loss: Any = self.loss(self(batch))
        lines: dict[str, Any] = {
            "z": optimizer.zero_grad,
            "b": lambda: self.manual_backward(loss, retain_graph=True),
            "l": lambda: loss.backward(retain_graph=True),
            "c": lambda: self.clip_gradients(optimizer, self.limit, "norm"),
            "s": optimizer.step,
            "r": optimizer.optimizer.step,
        }
        for line in self.order:
            lines[line]()
        return {}

    def configure_optimizers(self) -> Any:
        return SGD([{"params": self.parameters(), "name": "boring"}], lr=0.01)


def fit(
    folder: Path,
    model: LightningModule,
    guard: GradientClipVerifier | None = None,
    *,
    batches: int = 20,
    **options: Any,
) -> GradientClipVerifier:
    guard = guard or GradientClipVerifier(every_n_iterations=4)
    defaults: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "limit_train_batches": batches}
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=1,
        accelerator="cpu",
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[guard],
        **(defaults | options),
    )
    trainer.fit(model)
    return guard


@pytest.mark.parametrize(
    ("model", "causes"),
    [
        (Automatic, []),
        (IgnoresTheTrainer, ["clip_never_applied"]),
        (ClipsStaleGradients, ["clip_before_backward"]),
        (KeepsGradients, ["accumulated_gradients"]),
    ],
)
def test_automatic_optimisation(model: type[LightningModule], causes: list[str], tmp_path: Path) -> None:
    guard = fit(tmp_path, model(), gradient_clip_val=0.1)
    assert guard.raised == [(cause, ACT) for cause in causes]


def test_automatic_optimisation_by_value_and_in_windows_of_accumulation(tmp_path: Path) -> None:
    options: dict[str, Any] = {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}
    assert fit(tmp_path, Automatic(), accumulate_grad_batches=2, **options).raised == []
    assert fit(tmp_path, IgnoresTheTrainer(), **options).raised == [("clip_never_applied", ACT)]


@pytest.mark.parametrize(
    ("order", "causes"),
    [
        ("zbcs", []),
        ("zbcr", []),  # past Lightning's wrapper
        ("zbbbcs", []),  # accumulated on purpose
        ("bcsz", []),
        ("zlcs", []),
        ("zcbs", []),  # nobody declared a limit but the clip itself, which then clipped nothing
        ("bcs", ["accumulated_gradients"]),
    ],
)
def test_manual_optimisation(order: str, causes: list[str], tmp_path: Path) -> None:
    model = Manual()
    model.order = order
    expected = [(cause, ACT) for cause in causes] or ([("clip_never_applied", ACT)] if order == "zcbs" else [])
    assert fit(tmp_path, model).raised == expected


def test_a_bare_backward_leaves_the_cause_open(tmp_path: Path) -> None:
    model = Manual()
    model.order = "zls"
    assert fit(tmp_path, model, GradientClipVerifier(max_norm=0.1, every_n_iterations=4)).raised == [
        ("clip_limit_exceeded", ACT)
    ]


def test_a_limit_by_group_holds_for_that_group_alone(tmp_path: Path) -> None:
    class TwoGroups(Manual):
        order = "zbs"

        def __init__(self) -> None:
            super().__init__()
            self.other = torch.nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.other(self.layer(x))
            return output

        def configure_optimizers(self) -> Any:
            groups = [{"params": getattr(self, name).parameters(), "name": name} for name in ("layer", "other")]
            return SGD(groups, lr=0.01)

    guard = GradientClipVerifier(max_norm={"other": 1e-6}, every_n_iterations=4)
    assert fit(tmp_path, TwoGroups(), guard).raised == [("clip_never_applied", ACT)]
    assert guard.detector.samples.keys() == {"layer", "other"}
    with pytest.raises(
        ValueError, match=r"max_norm for \['othr'\], but the optimisers have the groups \['layer\+other"
    ):
        fit(tmp_path, TwoGroups(), GradientClipVerifier(max_norm={"othr": 1.0}))


def test_dangling_gradients_that_are_zeroed_in_time_and_parameters_shared(tmp_path: Path) -> None:
    """As in most code of TD3: the actor's loss leaves gradients in the critic, which zeroes them before its own."""

    class ActorCritic(Manual):
        def __init__(self) -> None:
            super().__init__()
            self.critic = torch.nn.Linear(2, 1)
            self.is_shared = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizers: Any = self.optimizers()
            actor, critic = optimizers
            updates: list[tuple[Any, Any]] = [
                (critic, lambda: self.critic(self.layer(batch).detach()).square().mean()),
                (actor, lambda: -self.critic(self.layer(batch)).mean()),
            ]
            for optimizer, loss in updates:
                optimizer.zero_grad()
                self.manual_backward(loss())
                optimizer.step()
            return {}

        def configure_optimizers(self) -> Any:
            shared = list(self.layer.parameters()) if self.is_shared else []
            return [SGD(self.layer.parameters(), lr=0.01), SGD([*self.critic.parameters(), *shared], lr=0.01)]

    model = ActorCritic()
    assert fit(tmp_path, model).raised == []
    model.is_shared = True
    assert ("shared_parameters", WARN) in fit(tmp_path, model).raised


def test_an_optimizer_that_lightning_does_not_know(tmp_path: Path) -> None:
    class Hidden(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.hidden.zero_grad()
            self.manual_backward(self.loss(self(batch)))
            self.hidden.step()
            return {}

        def configure_optimizers(self) -> Any:
            self.hidden = Adam(self.parameters())

    assert fit(tmp_path, Hidden()).raised == [("unobserved_optimizer", WARN)]


def test_scaled_gradients_are_clipped(tmp_path: Path) -> None:
    guard = GradientClipVerifier(max_norm=0.1, every_n_iterations=4)
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=16.0))
    assert fit(tmp_path, Manual(), guard, plugins=[plugin]).raised == [("scaled_gradients_clipped", WARN)]


def test_coarse_gradients_have_a_wider_tolerance(tmp_path: Path) -> None:
    assert fit(tmp_path, Automatic(), precision="bf16-true", gradient_clip_val=0.1).raised == []


def test_curves_and_a_stop(tmp_path: Path) -> None:
    model = Manual()
    model.order = "zbs"
    guard = GradientClipVerifier(max_norm=0.1, every_n_iterations=4, mode="stop")
    fit(tmp_path, model, guard, logger=CSVLogger(tmp_path, flush_logs_every_n_steps=1))
    header, *rows = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()
    assert {
        "stability/gradient_clip/boring/before",
        "stability/gradient_clip/boring/after",
        "stability/gradient_clip/boring/clipped_fraction",
        "stability/gradient_clip/boring/layer/before",
    } <= set(header.split(","))
    assert len(rows) == 1
    assert guard.stopped is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_norm": 0.0}, r"max_norm = 0.0, expected an L2 norm above 0"),
        ({"max_norm": {"q": -1.0}}, r"max_norm = {'q': -1.0}"),
        ({"max_norm": {}}, r"max_norm = {}"),
        ({"depth": 0}, "depth = 0, expected at least 1"),
        ({"every_n_updates": 0}, "every_n_updates = 0"),
        ({"every_n_iterations": 0}, "every_n_iterations = 0"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientClipVerifier(**options)
