"""Actor and critic that wait for the world model: how many steps each group really makes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import events, fit_stranger, warnings_of
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from rlmods.algorithms import DreamerV3
from rlmods.callbacks import (
    SurpriseLearningRate,
    WorldModelBootstrap,
    WorldModelFocus,
    WorldModelRatio,
    WorldModelStart,
)
from rlmods.callbacks.behaviour_schedule import FocusClock, ModelSurprise, UpdateRatio
from rlmods.callbacks.group_pause import GroupPause
from rlmods.data import SequenceDataModule
from rlmods.functional.schedules import scheduled
from rlmods.types import EnvSpec

GROUPS = ("world_model", "actor", "critic")
K = 3  # updates of an iteration


class Dreamer(LightningModule):
    """Three groups that learn; says how large its loss is, and counts the steps that moved each group.

    Batches are of 64 time steps, so that whoever counts those is found out.
    """

    def __init__(self, loss_at: Callable[[int], float] = lambda _: 1.0, *, num_optimizers: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.world_model, self.actor, self.critic = (nn.Linear(2, 1) for _ in GROUPS)
        self.loss_at = loss_at
        self.num_optimizers = num_optimizers
        self.moved: dict[str, list[bool]] = {name: [] for name in GROUPS}
        self.acted: list[Tensor] = []
        self.rates: list[list[float]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        found: Any = self.optimizers()
        optimizers = found if isinstance(found, list) else [found]
        for _ in range(K):
            before = {name: getattr(self, name).weight.detach().clone() for name in GROUPS}
            self.acted.append(self.actor(batch[0]).detach())
            loss = torch.stack([getattr(self, name)(batch).square().mean() for name in GROUPS]).sum()
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = 0.01
                optimizer.step()
            self.rates.append([group["lr"] for optimizer in optimizers for group in optimizer.param_groups])
            for name in GROUPS:
                self.moved[name].append(not torch.equal(getattr(self, name).weight, before[name]))
        return {"reward_loss": torch.full((K,), self.loss_at(batch_idx))}

    def steps(self, name: str) -> int:
        return sum(self.moved[name])

    def configure_optimizers(self) -> Any:
        groups = [{"params": list(getattr(self, name).parameters()), "name": name} for name in GROUPS]
        made: list[Optimizer] = [Adam([group], lr=0.01) for group in groups]
        return Adam(groups, lr=0.01) if self.num_optimizers == 1 else made


def batches(number: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(64, 2) for _ in range(number)]


def fit(folder: Path, model: Dreamer, iterations: int, *callbacks: Callback, **options: Any) -> Trainer:
    return fit_stranger(folder, model, batches(iterations), *callbacks, **options)


# Ratio.


@pytest.mark.parametrize(("ratio", "passes"), [(1.0, "1111111"), (2.0, "0101010"), (3.0, "0010010"), (1.5, "0110110")])
def test_golden_which_updates_pass(ratio: float, passes: str) -> None:
    clock = UpdateRatio()
    assert "".join(str(int(clock.passes(ratio))) for _ in passes) == passes


@given(ratio=st.floats(1.0, 20.0), updates=st.integers(0, 300))
def test_the_share_is_exact_at_any_moment(ratio: float, updates: int) -> None:
    clock = UpdateRatio()
    passed = sum(clock.passes(ratio) for _ in range(updates))
    assert passed == clock.passed
    assert passed == pytest.approx(updates / ratio, abs=1.0)


@pytest.mark.parametrize("ratio", range(1, 50))
def test_a_whole_ratio_has_its_own_rhythm(ratio: int) -> None:
    clock = UpdateRatio()
    passed = [number for number in range(1, 20 * ratio + 1) if clock.passes(float(ratio))]
    assert passed == [ratio * number for number in range(1, 21)]


@pytest.mark.parametrize("num_optimizers", [1, 3])
def test_real_steps_of_each_group_are_counted(tmp_path: Path, num_optimizers: int) -> None:
    """30 updates, each on 64 time steps: at 4 to 1 the groups make 7, whatever the length of the sequences."""
    model = Dreamer(num_optimizers=num_optimizers)
    fit(tmp_path, model, 10, WorldModelRatio(4))
    assert {name: model.steps(name) for name in GROUPS} == {"world_model": 30, "actor": 7, "critic": 7}
    assert model.moved["actor"] == model.moved["critic"] == [number % 4 == 3 for number in range(30)]


def test_an_observer_leaves_nothing_out(tmp_path: Path) -> None:
    model = Dreamer()
    fit(tmp_path, model, 4, WorldModelRatio(4, mode="observe"))
    assert model.steps("actor") == 12


def test_a_ratio_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """Stopped after 6 updates, in the middle of four."""
    parts, ratio = Dreamer(), WorldModelRatio(4)
    trainer = fit(tmp_path, parts, 2, ratio)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    states = torch.load(tmp_path / "stopped.ckpt", weights_only=True)["callbacks"]
    again = WorldModelRatio(4)
    again.load_state_dict(states[ratio.state_key])
    fit(tmp_path, parts, 2, again)
    assert parts.moved["actor"] == [number % 4 == 3 for number in range(12)]


def test_a_schedule_needs_a_budget(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"final_ratio = 2.0, but NoneType does not say env_steps"):
        fit(tmp_path, Dreamer(), 1, WorldModelRatio(8.0, final_ratio=2.0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: WorldModelRatio(0.5), "wm_ac_ratio = 0.5, expected at least 1"),
        (lambda: WorldModelRatio(2.0, final_ratio=0.0), "final_ratio = 0.0"),
        (lambda: WorldModelRatio(2.0, groups="actor"), "groups = 'actor'"),
        (lambda: WorldModelFocus(threshold=0.0), "threshold = 0.0"),
        (lambda: WorldModelFocus(duration=0), "duration = 0"),
        (lambda: SurpriseLearningRate(strength=-1.0), "strength = -1.0"),
        (lambda: SurpriseLearningRate(groups=[]), r"groups = \[\]"),
        (lambda: WorldModelBootstrap(0), "num_updates = 0"),
        (lambda: WorldModelStart("a.ckpt", "both"), "init_actor_critic = 'both', expected 'reset' or 'resume'"),  # type: ignore[arg-type]
    ],
)
def test_arguments_outside_their_range(make: Callable[[], Callback], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    "make", [lambda: WorldModelRatio(2, groups=["policy"]), lambda: SurpriseLearningRate(groups=["policy"])]
)
def test_groups_that_are_not_there(tmp_path: Path, make: Callable[[], Callback]) -> None:
    with pytest.raises(ValueError, match=r"needs the parameter groups \['policy'\], but .*'actor', 'critic', 'world"):
        fit(tmp_path, Dreamer(), 1, make())


def test_a_schedule_on_the_real_algorithm(tmp_path: Path) -> None:
    """From one in four to all along half a cosine: at progress 1/4 to 1 one in 3.56, 2.5, 1.44 and 1.

    With 4 updates an iteration these let 1, 1, 3 and 4 of them pass: 4/3.56 = 1.12, and 1.6, 2.78, 4 on top of what
    was left.
    """
    seed_everything(0)
    data = SequenceDataModule(
        "CartPole-v1",
        128,
        num_envs=1,
        buffer_size=200,
        batch_size=2,
        batch_length=4,
        train_ratio=1,
        steps_per_iteration=32,
        eval_episodes=1,
        eval_every=1_000,
    )
    model = DreamerV3(spec=data.spec, size="cpu", num_bins=15, imagination_horizon=2)
    ratio = WorldModelRatio(4.0, final_ratio=1.0)
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[ratio],
    )
    trainer.fit(model, datamodule=data)
    state = trainer.optimizers[0].state
    steps = {name: int(state[next(module.parameters())]["step"]) for name, module in model.groups.items()}
    updates = model.update_steps
    assert updates == 16
    ratios = [scheduled(quarter / 4, start=4.0, end=1.0, schedule="cosine") for quarter in range(1, 5)]
    passed = math.floor(sum(4 / one for one in ratios) + 1e-9)
    assert steps == {"world_model": updates, "actor": passed, "critic": passed}
    assert ratio.clocks[0].passed == passed


# Focus.


def test_golden_a_focus_lasts_and_cools_down() -> None:
    clock = FocusClock(threshold=0.1, duration=2, cooldown=3)
    said = []
    for _ in range(9):
        said.append((clock.update(0.5), clock.is_focused))
        clock.count()
    begins = (True, True)
    during, cooling = (False, True), (False, False)
    assert said == [begins, during, cooling, cooling, cooling, begins, during, cooling, cooling]
    assert clock.focuses == 2
    assert not clock.update(0.1)
    assert not clock.update(math.nan)


def test_a_surprise_gives_the_world_model_the_stage(tmp_path: Path) -> None:
    """The loss jumps in iteration 5; the focus of 9 updates lets every third pass: iterations 6, 7 and 8."""
    model = Dreamer(lambda iteration: 3.0 if iteration == 5 else 1.0)
    focus = WorldModelFocus(threshold=0.5, wm_ac_ratio=3.0, duration=9, cooldown=100)
    trainer = fit(tmp_path, model, 12, focus)
    left_out = [number for number, moved in enumerate(model.moved["actor"]) if not moved]
    assert left_out == [18, 19, 21, 22, 24, 25]
    assert model.moved["critic"] == model.moved["actor"]
    assert model.steps("world_model") == 36
    assert ["for 9 updates" in event["message"] for event in events(trainer, "action")] == [True]


def test_no_surprise_no_focus(tmp_path: Path) -> None:
    model = Dreamer(lambda iteration: 1.0 + 0.02 * (iteration % 3))
    trainer = fit(tmp_path, model, 12, WorldModelFocus())
    assert model.steps("actor") == 36
    assert events(trainer, "action") == []


def test_a_focus_survives_a_round_trip() -> None:
    ours, theirs = WorldModelFocus(wm_ac_ratio=3.0), WorldModelFocus(wm_ac_ratio=3.0)
    for loss in (1.0, 1.0, 4.0):
        ours.surprise.of_loss.update(loss)
    ours._clock(0)[0].update(ours.surprise.of_loss.smoothed)
    assert ours.leaves_out(0)
    theirs.load_state_dict(ours.state_dict())
    assert [theirs.leaves_out(0) for _ in range(30)] == [ours.leaves_out(0) for _ in range(30)]
    assert theirs.state_dict() == ours.state_dict()


# Learning rate.


def test_golden_the_factor() -> None:
    """A loss of e^0.4 times its average is a surprise of 0.4: 1 / (1 + 10 · 0.4) = 0.2. Relief is no surprise."""
    surprise = ModelSurprise()
    surprise.update(1.0)
    assert surprise.learning_rate_factor(10.0) == 1.0
    surprise.update(math.exp(0.4))
    assert surprise.learning_rate_factor(10.0) == pytest.approx(0.2)
    assert surprise.learning_rate_factor(0.0) == 1.0
    calm = ModelSurprise()
    calm.update(1.0)
    calm.update(0.1)
    assert calm.learning_rate_factor(10.0) == 1.0


class Seen(Callback):
    """The learning rates with which each step is made."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_pre_hook(
                lambda stepped, *_: self.rates.append([group["lr"] for group in stepped.param_groups])
            )


def test_steps_are_scaled_and_the_learning_rate_is_put_back(tmp_path: Path) -> None:
    """The loss jumps to e^0.4 in iteration 1: the steps of iteration 2 have a fifth, but not those of the model."""
    model, seen = Dreamer(lambda iteration: math.exp(0.4) if iteration == 1 else 1.0), Seen()
    fit(tmp_path, model, 3, SurpriseLearningRate(), seen)
    assert seen.rates[: 2 * K] == [[0.01] * 3] * 2 * K
    assert seen.rates[2 * K :] == [[0.01, pytest.approx(0.002), pytest.approx(0.002)]] * K
    assert model.rates == [[0.01] * 3] * 3 * K


# Bootstrap.


def test_the_world_model_learns_alone_on_random_actions(tmp_path: Path) -> None:
    """For 5 updates; the policy acts from the next iteration on."""
    model = Dreamer()
    trainer = fit(tmp_path, model, 4, WorldModelBootstrap(5))
    assert model.moved["critic"] == [False] * 5 + [True] * 7
    assert model.steps("world_model") == 12
    assert [not bool(acted.any()) for acted in model.acted] == [True] * 6 + [False] * 6
    assert len(events(trainer, "action")) == 1
    assert model.actor._forward_hooks == {}


@pytest.mark.parametrize("num_updates", [5, 12, 13])
def test_a_bootstrap_that_outlasts_the_training_says_so(tmp_path: Path, num_updates: int) -> None:
    """Of 12 updates."""
    callback = WorldModelBootstrap(num_updates)
    fit(tmp_path, Dreamer(), 4, callback)
    assert warnings_of(callback) == ["bootstrap_never_ended"] * (num_updates > 12)


def test_evaluations_see_the_actor_as_it_is() -> None:
    policy = nn.Linear(2, 1)
    callback = WorldModelBootstrap(5)
    policy.register_forward_hook(callback._silence)
    outputs = policy(torch.ones(1, 2))
    assert outputs.tolist() == [[0.0]]
    assert outputs.requires_grad  # several processes must find every parameter in the loss
    assert policy.eval()(torch.ones(1, 2)).tolist() != [[0.0]]


def test_a_bootstrap_goes_on_where_it_was_stopped() -> None:
    ours, theirs = WorldModelBootstrap(5), WorldModelBootstrap(5)
    assert [ours.leaves_out(0) for _ in range(3)] == [True] * 3
    theirs.load_state_dict(ours.state_dict())
    assert [theirs.leaves_out(0) for _ in range(4)] == [True, True, False, False]


def test_a_policy_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"policy = 'pi', which Dreamer does not have: pass one of \['world_model'"):
        fit(tmp_path, Dreamer(), 1, WorldModelBootstrap(5, policy="pi"))


# Start from a checkpoint.


@pytest.mark.parametrize("choice", ["reset", "resume"])
def test_actor_and_critic_are_reset_or_resumed_as_was_said(tmp_path: Path, choice: Any) -> None:
    parent, child = Dreamer(), Dreamer()
    own = {name: weight.clone() for name, weight in child.state_dict().items()}
    file = tmp_path / "parent.ckpt"
    torch.save({"state_dict": parent.state_dict()}, file)
    start = WorldModelStart(str(file), choice)
    child.loss_at = lambda _: 1.0
    begun: dict[str, Tensor] = {}

    class Look(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            begun.update({name: weight.clone() for name, weight in pl_module.state_dict().items()})

    trainer = fit(tmp_path, child, 1, start, Look())
    for name, weight in begun.items():
        is_copied = name.startswith("world_model") or choice == "resume"
        assert torch.equal(weight, parent.state_dict()[name] if is_copied else own[name])
    assert [event["kind"] for event in events(trainer, "action")] == ["action"]


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    other = Dreamer()
    other.world_model = nn.Linear(3, 1)
    file = tmp_path / "other.ckpt"
    torch.save({"state_dict": other.state_dict()}, file)
    with pytest.raises(ValueError, match=r"whose world_model.weight is \[1, 3\], expected \[1, 2\]: type the --model"):
        fit(tmp_path, Dreamer(), 1, WorldModelStart(str(file), "reset"))
    torch.save({"state_dict": {}}, file)
    with pytest.raises(ValueError, match=r"whose world_model.weight is missing"):
        fit(tmp_path, Dreamer(), 1, WorldModelStart(str(file), "reset"))
    torch.save({}, file)
    with pytest.raises(ValueError, match="holds no state_dict"):
        fit(tmp_path, Dreamer(), 1, WorldModelStart(str(file), "reset"))
    with pytest.raises(ValueError, match="where there is no file"):
        fit(tmp_path, Dreamer(), 1, WorldModelStart(str(tmp_path / "none.ckpt"), "reset"))


def test_a_world_model_of_another_size_is_refused(tmp_path: Path) -> None:
    spec = EnvSpec(
        env_id="Toy-v0",
        observation={"shape": [4], "dtype": "float32"},
        action={"kind": "discrete", "n": 2, "shape": [], "low": [], "high": []},
    )
    file = tmp_path / "cpu.ckpt"
    torch.save({"state_dict": DreamerV3(spec=spec, size="cpu").state_dict()}, file)
    start = WorldModelStart(str(file), "resume")
    with pytest.raises(ValueError, match=r"whose world_model\..* is \[.*\], expected \[.*\]: type .*size, version"):
        start.setup(Trainer(logger=False), DreamerV3(spec=spec, size="1M"), "fit")
    start.setup(Trainer(logger=False), DreamerV3(spec=spec, size="cpu"), "fit")


def test_a_resumed_run_keeps_what_it_has(tmp_path: Path) -> None:
    """It no longer looks at the file."""
    parent = Dreamer()
    file = tmp_path / "parent.ckpt"
    torch.save({"state_dict": parent.state_dict()}, file)
    child = Dreamer()
    fit(tmp_path, child, 2, WorldModelStart(str(file), "reset")).save_checkpoint(tmp_path / "own.ckpt")
    learned = child.world_model.weight.detach().clone()
    file.unlink()
    resumed = Dreamer()
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[WorldModelStart(str(file), "reset")],
    )
    loader: Any = torch.utils.data.DataLoader(batches(2), batch_size=None)  # type: ignore[arg-type]
    trainer.fit(resumed, loader, ckpt_path=tmp_path / "own.ckpt")
    assert torch.equal(resumed.world_model.weight, learned)


def test_what_pauses_says_when() -> None:
    with pytest.raises(NotImplementedError):
        GroupPause(["actor"], name="pause", mode="act").leaves_out(0)
