import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor

from rlmods.algorithms import DQN
from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.failure_bundle import minibatch_of, pack, unpack
from rlmods.callbacks.non_finite_detector import GRADIENT, PARAMETER, REWARD, Finding, NonFiniteDetector
from rlmods.callbacks.non_finite_guard import NonFiniteGuard
from rlmods.data import ReplayDataModule
from rlmods.types import ReplayBatch, Transition

NAN, INF = math.nan, math.inf


def make_detector(**arguments: Any) -> NonFiniteDetector:
    return NonFiniteDetector(**({"max_skips_in_window": 3, "window": 10, "skips": True} | arguments))


def find(cause: str) -> Finding:
    return Finding(cause, "batch.reward", "nan", [3], [], 0)


def test_single_bad_updates_act_and_the_third_in_a_window_is_fatal() -> None:
    detector = make_detector()
    good, bad = [False] * 4, [False, True, False, False]
    # Bad are the updates 1, 5 and 13: the window of ten behind update 15 holds two of them.
    verdicts = [detector.update([flags], find(REWARD) if any(flags) else None) for flags in (bad, bad, good, bad)]
    assert [[verdict.severity for verdict in found] for found in verdicts] == [[2], [2], [], [2]]
    assert not detector.must_stop
    (verdict,) = detector.update([[True, True, False, False]], find(REWARD))
    assert verdict.severity is Severity.FATAL
    assert verdict.evidence["bad_updates_in_window"] == 3
    assert detector.must_stop


def test_each_optimiser_has_its_own_window() -> None:
    detector = make_detector()
    for _ in range(2):
        (verdict,) = detector.update([[False] * 4, [True]], find(REWARD))
        assert verdict.severity is Severity.ACT
    (verdict,) = detector.update([[False] * 4, [True]], find(REWARD))
    assert verdict.severity is Severity.FATAL


def test_a_cause_lasts_for_ten_windows() -> None:
    detector = make_detector()
    detector.update([[True]], find(REWARD))
    detector.update([[False] * 99], None)
    assert [verdict.cause for verdict in detector.still_active()] == [REWARD]
    detector.update([[False]], None)
    assert detector.still_active() == []


def test_parameters_stop_at_the_second_look() -> None:
    """In between a rollback, which rearms, may have cured them."""
    detector = make_detector(max_skips_in_window=10)
    for _ in range(2):
        (verdict,) = detector.update([[True]], find(PARAMETER))
        assert (verdict.severity, detector.must_stop) == (Severity.FATAL, False)
        detector.reset()
    for expected in (False, True):
        detector.update([[True]], find(PARAMETER))
        assert detector.must_stop == expected


def test_what_a_loss_scaler_skips_counts_for_the_limit_alone() -> None:
    detector = make_detector()
    assert detector.update([[True]], None) == detector.update([[True]], None) == []
    (verdict,) = detector.update([[True]], None)
    assert (verdict.cause, verdict.severity) == (GRADIENT, Severity.FATAL)


def test_pack_makes_what_weights_only_loads(tmp_path: Path) -> None:
    transition = Transition(*(torch.rand(2, 3) for _ in Transition._fields))._replace(observation={"a": torch.ones(2)})
    value = {"t": transition, "n": [np.float64(0.5), (1, None, "x", True)], 3: Severity.ACT}
    torch.save(pack(value), tmp_path / "file")
    loaded = unpack(torch.load(tmp_path / "file", weights_only=True))
    assert isinstance(loaded["t"], Transition)
    assert torch.equal(loaded["t"].reward, transition.reward)
    assert loaded["n"] == [0.5, (1, None, "x", True)]
    assert loaded[3] == 2
    assert loaded["t"].observation["a"].tolist() == [1.0, 1.0]  # type: ignore[index]
    with pytest.raises(TypeError, match="got a set"):
        pack([{1}])


def test_unpack_runs_nothing_but_named_tuples() -> None:
    with pytest.raises(TypeError, match="expected the import path of a NamedTuple"):
        unpack({"<NamedTuple>": "subprocess.Popen", "fields": ["true"]})


class Batches:
    """A loader of ready batches."""

    def __init__(self, *batches: Any) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class Edit(Callback):
    """Changes the batch, or the module, of chosen iterations, and remembers the weights around them."""

    def __init__(self, iterations: set[int]) -> None:
        self.iterations = iterations
        self.before: dict[str, Tensor] = {}
        self.changed: dict[int, bool] = {}

    def edit(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        raise NotImplementedError

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx in self.iterations:
            self.edit(trainer, pl_module, batch)
        self.before = {name: value.clone() for name, value in pl_module.state_dict().items()}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        after = pl_module.state_dict()
        self.changed[batch_idx] = any(not torch.equal(after[name], value) for name, value in self.before.items())


class BadReward(Edit):
    """One NaN in the mini-batch number 2 of an iteration."""

    def edit(self, trainer: Trainer, pl_module: LightningModule, batch: ReplayBatch) -> None:
        batch.transition.reward[2, 5] = NAN


class BadRewards(Edit):
    def edit(self, trainer: Trainer, pl_module: LightningModule, batch: ReplayBatch) -> None:
        batch.transition.reward.fill_(NAN)


class BadObservation(Edit):
    def edit(self, trainer: Trainer, pl_module: LightningModule, batch: ReplayBatch) -> None:
        observation: Any = batch.transition.next_observation
        observation[1, 3, 0] = INF


class BadParameter(Edit):
    def edit(self, trainer: Trainer, pl_module: LightningModule, batch: ReplayBatch) -> None:
        for parameter in pl_module.parameters():
            parameter.data.fill_(NAN)


class BadTargetNetwork(Edit):
    def edit(self, trainer: Trainer, pl_module: LightningModule, batch: ReplayBatch) -> None:
        next(iter(pl_module.target_network.parameters())).data[0, 0] = INF  # type: ignore[union-attr]


class BadTarget(Edit):
    def edit(self, trainer: Trainer, pl_module: LightningModule, batch: ReplayBatch) -> None:
        pl_module.target_transforms.append(lambda target: target / 0.0)  # type: ignore[union-attr, operator]


class OnDevice(NonFiniteGuard):
    """Decides as it does on an accelerator, by a flag that the fused optimiser reads."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._is_deferred = self._can_defer(trainer.optimizers)
        assert self._is_deferred


def train(
    folder: Path, *callbacks: Callback, budget: int = 600, env_id: str = "CartPole-v1", loss: Any = "huber", **data: Any
) -> tuple[Trainer, DQN]:
    settings = {"steps_per_iteration": 20, "updates_per_iteration": 4, "batch_size": 8, "buffer_size": 300}
    settings |= {"learning_starts": 60, "eval_episodes": 1, "eval_every": 100_000, "seed": 0}
    torch.manual_seed(0)
    source = ReplayDataModule(env_id, total_env_steps=budget, **(settings | data))
    model = DQN(source.spec, hidden_sizes=(16,), target_update_interval=1_000, loss=loss)
    trainer = make_trainer(folder, *callbacks, max_epochs=1)
    trainer.fit(model, datamodule=source)
    return trainer, model


def make_trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines() if (folder / "events.jsonl").exists() else []
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def is_finite(module: LightningModule) -> bool:
    return all(bool(value.isfinite().all()) for value in module.state_dict().values())


@pytest.mark.parametrize("guard_class", [NonFiniteGuard, OnDevice])
@pytest.mark.parametrize(
    ("edit", "cause", "where", "element"),
    [
        (BadReward, "non_finite_reward", "batch.transition.reward", [2, 5]),
        (BadObservation, "non_finite_observation", "batch.transition.next_observation", [1, 3, 0]),
    ],
)
def test_bad_data_is_named_and_survived(
    tmp_path: Path, guard_class: type[NonFiniteGuard], edit: type[Edit], cause: str, where: str, element: list[int]
) -> None:
    guard, fault = guard_class(), edit({10})
    trainer, model = train(tmp_path, fault, guard)
    assert guard.raised == [(cause, Severity.ACT)]
    assert guard.finding is not None
    assert (guard.finding.where, guard.finding.element) == (where, element)
    assert guard.detector.total_bad == 1
    assert trainer.global_step == 30
    assert is_finite(model)
    assert fault.changed[10]  # by the other three updates
    (alarm,) = events(tmp_path, "alarm")
    assert f"{where}{element} is" in alarm["message"]


def test_without_the_guard_the_same_reward_destroys_the_network(tmp_path: Path) -> None:
    assert not is_finite(train(tmp_path, BadReward({10}))[1])


@pytest.mark.parametrize("guard_class", [NonFiniteGuard, OnDevice])
def test_a_skipped_update_leaves_weights_and_optimiser_bit_identical(
    tmp_path: Path, guard_class: type[NonFiniteGuard]
) -> None:
    """An iteration of bad rewards alone changes nothing, and does not end in the replay's exception."""
    guard, fault = guard_class(max_bundles=0), BadRewards({10})
    trainer, _ = train(tmp_path, fault, guard, prioritized_replay=True)
    assert not fault.changed[10]
    assert fault.changed[9]
    assert fault.changed[11]
    steps = {int(state["step"]) for state in trainer.optimizers[0].state.values()}
    assert steps == {(30 - 2) * 4 - 4}
    assert trainer.global_step == 30
    assert guard.raised == [("non_finite_reward", Severity.ACT)]
    assert not {"feedback"} & vars(trainer.datamodule).keys()  # type: ignore[attr-defined]
    assert not {"found_inf", "grad_scale"} & vars(trainer.optimizers[0]).keys()


@pytest.mark.parametrize("prioritized_replay", [False, True])
@pytest.mark.parametrize("is_first", [False, True])
def test_a_network_of_nan_stops_the_run(tmp_path: Path, prioritized_replay: bool, is_first: bool) -> None:
    guard, fault = NonFiniteGuard(), BadParameter({10})
    callbacks: list[Callback] = [guard, fault] if is_first else [fault, guard]
    trainer, _ = train(tmp_path, *callbacks, prioritized_replay=prioritized_replay)
    assert guard.raised == [("non_finite_parameter", Severity.FATAL)]
    assert trainer.global_step == 12
    assert "eval/mean_reward" in trainer.callback_metrics
    (stop,) = events(tmp_path, "stop")
    assert "q_network.1.weight[0, 0] is nan" in stop["message"]


def test_a_target_network_is_looked_at_as_well(tmp_path: Path) -> None:
    guard = NonFiniteGuard()
    train(tmp_path, BadTargetNetwork({10}), guard)
    assert guard.finding is not None
    assert (guard.finding.where, guard.finding.value) == ("target_network.1.weight", "inf")


@pytest.mark.parametrize("guard_class", [NonFiniteGuard, OnDevice])
@pytest.mark.parametrize("mode", ["observe", "act"])
def test_too_many_bad_updates_stop_the_run(tmp_path: Path, guard_class: type[NonFiniteGuard], mode: Any) -> None:
    """An infinite target: the batch and the weights are finite, the loss is not."""
    guard = guard_class(mode=mode, max_skips_in_window=10, window=20)
    trainer, model = train(tmp_path, BadTarget({10}), guard, loss="mse")
    assert guard.raised[0] == ("non_finite_loss", Severity.ACT)
    alarm = events(tmp_path, "alarm")[0]
    assert alarm["evidence"]["where"] == "loss"
    assert "td_target" in alarm["evidence"]["also"]
    if mode == "act":
        assert guard.raised[1:] == [("non_finite_loss", Severity.FATAL)]
        assert trainer.global_step == 13  # ten bad updates, four an iteration
        assert is_finite(model)
        assert len(events(tmp_path, "stop")) == 1
    else:
        assert guard.raised[1][0] == "non_finite_parameter"
        assert trainer.global_step == 30
        assert not is_finite(model)
        assert not events(tmp_path, "stop")


def test_an_infinite_loss_with_finite_gradients_is_named(tmp_path: Path) -> None:
    """Huber: the gradient of an infinite error is 1."""
    guard = NonFiniteGuard()
    _, model = train(tmp_path, BadTarget({10}), guard, loss="huber")
    assert guard.raised == [("non_finite_loss", Severity.ACT)]
    assert guard.detector.total_bad == 0
    assert is_finite(model)
    assert "left out" not in events(tmp_path, "alarm")[0]["message"]


def test_mode_stop_ends_the_run_at_the_first(tmp_path: Path) -> None:
    trainer, _ = train(tmp_path, BadReward({10}), NonFiniteGuard(mode="stop"))
    assert trainer.global_step == 11
    assert len(events(tmp_path, "stop")) == 1


class RareNaN(gym.RewardWrapper):
    """NaN instead of the reward once in a while."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.generator = np.random.default_rng(1)

    def reward(self, reward: Any) -> float:
        return NAN if self.generator.random() < 5e-3 else float(reward)


def test_rare_nan_rewards_of_an_environment_are_survived(tmp_path: Path) -> None:
    gym.register("RareNaN-v0", lambda **_: RareNaN(gym.make("CartPole-v1")))
    try:
        guard = NonFiniteGuard()
        trainer, model = train(tmp_path, guard, budget=1500, env_id="RareNaN-v0", buffer_size=2000)
    finally:
        del gym.registry["RareNaN-v0"]
    assert guard.raised == [("non_finite_reward", Severity.ACT)]
    assert 3 < guard.detector.total_bad < 60
    assert trainer.global_step == 75
    assert is_finite(model)
    steps = {int(state["step"]) for state in trainer.optimizers[0].state.values()}
    assert steps == {model.update_steps - guard.detector.total_bad}


@pytest.mark.parametrize("guard_class", [NonFiniteGuard, OnDevice])
def test_a_healthy_run_is_left_alone(tmp_path: Path, guard_class: type[NonFiniteGuard]) -> None:
    guard = guard_class()
    _, guarded = train(tmp_path, guard, prioritized_replay=True)
    _, bare = train(tmp_path, prioritized_replay=True)
    assert guard.raised == []
    assert guard.detector.updates == [(30 - 2) * 4]
    assert not list(tmp_path.iterdir())
    for name, value in bare.state_dict().items():
        assert torch.equal(guarded.state_dict()[name], value), name


class Roots(LightningModule):
    """A stranger: √ of a hidden layer of zeros; the loss is finite, the gradient behind the root is not."""

    def __init__(self, *, automatic: bool, bad_from: int = 3, zero: bool = True) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = automatic
        self.below = torch.nn.Linear(2, 3)
        self.above = torch.nn.Linear(3, 1)
        self.register_buffer("mask", torch.tensor([0.0, -INF]))  # as attention has

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        hidden = self.below(batch[0]).exp()
        if batch_idx >= self.hparams["bad_from"]:
            hidden = hidden * 0.0
        loss = self.above(hidden.sqrt() if batch_idx >= self.hparams["bad_from"] else hidden).square().mean()
        if self.automatic_optimization:
            return loss
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return {"loss": loss.detach()}

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.1)


@pytest.mark.parametrize("automatic", [False, True])
def test_gradients_alone_of_a_stranger(tmp_path: Path, automatic: bool) -> None:
    module, guard, fault = Roots(automatic=automatic), NonFiniteGuard(max_skips_in_window=3), Edit(set())
    options: dict[str, Any] = {"gradient_clip_val": 1.0} if automatic else {}
    trainer = make_trainer(tmp_path, fault, guard, max_epochs=1, **options)
    trainer.fit(module, Batches(*[(torch.ones(4, 2),)] * 10))
    assert guard.raised == [("non_finite_gradient", Severity.ACT), ("non_finite_gradient", Severity.FATAL)]
    assert guard.finding is not None
    # What lies above the root is finite; of the layer below, the bias is the last parameter.
    assert guard.finding.where == "the gradient of below.bias"
    assert guard.finding.also == ["the gradient of below.weight"]
    assert fault.changed == {0: True, 1: True, 2: True, 3: False, 4: False, 5: False}
    assert trainer.global_step == 6


class Refuses(BoringModel):
    """Gives up on NaN, as torch's distributions do."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch.isnan().any():
            raise ValueError("expected no NaN")
        return super().training_step(batch, batch_idx)


def test_where_the_module_itself_gives_up_the_cause_is_named(tmp_path: Path) -> None:
    guard = NonFiniteGuard()
    with pytest.raises(ValueError, match="expected no NaN"):
        make_trainer(tmp_path, guard, max_epochs=1).fit(Refuses(), Batches(torch.ones(1, 32), torch.full((1, 32), NAN)))
    assert guard.raised == [("non_finite_batch", Severity.ACT)]
    assert len(list((tmp_path / "failures").iterdir())) == 1


def test_an_exception_of_another_kind_is_none_of_its_business(tmp_path: Path) -> None:
    class Breaks(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("broken")

    guard = NonFiniteGuard()
    with pytest.raises(RuntimeError, match="broken"):
        make_trainer(tmp_path, guard, max_epochs=1).fit(Breaks())
    assert guard.raised == []


def test_the_key_of_a_dict_observation_is_named() -> None:
    def observe(value: float) -> dict[str, Tensor]:
        return {"image": torch.zeros(2, 3, 4), "speed": torch.full((2, 3), value)}

    fields = {name: torch.zeros(2, 3) for name in Transition._fields}
    transition = Transition(**(fields | {"observation": observe(NAN), "next_observation": observe(0.0)}))  # type: ignore[arg-type]
    batch = ReplayBatch(transition, torch.zeros(2, 3), torch.ones(2, 3), 0, 0.0)
    first = minibatch_of(batch, 1)
    assert first.num_updates == 1
    assert first.transition.observation["image"].shape == (1, 3, 4)

    class Reads(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(torch.ones(1, 32)).sum() * batch.transition.observation["speed"].sum()

    guard = NonFiniteGuard()
    Trainer(fast_dev_run=True, accelerator="cpu", callbacks=[guard], enable_progress_bar=False).fit(
        Reads(), Batches(batch)
    )
    assert guard.raised == [("non_finite_observation", Severity.ACT)]
    assert guard.finding is not None
    assert guard.finding.where == "batch.transition.observation['speed']"


def test_bundles_are_few_and_whole(tmp_path: Path) -> None:
    guard = NonFiniteGuard(max_bundles=1, max_skips_in_window=100)
    train(tmp_path, BadReward({10}), BadObservation({12}), guard)
    assert [cause for cause, _ in guard.raised] == ["non_finite_reward", "non_finite_observation"]
    (folder,) = (tmp_path / "failures").iterdir()
    assert folder.name == "non_finite_reward-220"
    assert {file.name for file in folder.iterdir()} == {"batch.pt", "state.ckpt", "rng.pt", "failure.json"}
    batch = unpack(torch.load(folder / "batch.pt", weights_only=True))
    assert batch.num_updates == 1
    assert batch.transition.reward[0, 5].isnan()
    assert torch.load(folder / "state.ckpt", weights_only=True)["algorithm"]["update_steps"] == (10 - 2) * 4 + 2


def test_a_disk_that_refuses_does_not_end_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "failures").write_text("a file where the folder should be")
    trainer, _ = train(tmp_path, BadReward({10}), NonFiniteGuard())
    assert trainer.global_step == 30
    (action,) = events(tmp_path, "action")
    assert "could not keep the failure, and goes on without" in action["message"]


def test_state_round_trip(tmp_path: Path) -> None:
    guard = NonFiniteGuard(max_bundles=5)
    train(tmp_path, BadReward({10, 20}), guard)
    torch.save(guard.state_dict(), tmp_path / "state")
    other = NonFiniteGuard(max_bundles=5)
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert (other.state_dict(), other.bundles) == (guard.state_dict(), 1)
    for each in (guard, other):
        assert each.detector.update([[True] * 30], find(REWARD))[0].severity is Severity.FATAL
    assert other.detector.state_dict() == guard.detector.state_dict()
    other.rearm()
    assert (other.detector.still_active(), other.active) == ([], {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_skips_in_window": 0}, "max_skips_in_window = 0 and window = 100"),
        ({"max_skips_in_window": 11, "window": 10}, "expected 1 ≤ max_skips_in_window ≤ window"),
        ({"max_bundles": -1}, "max_bundles = -1"),
        ({"mode": "on"}, "mode = 'on'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NonFiniteGuard(**arguments)
