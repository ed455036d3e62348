import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from test_datamodule import fit
from torch import Tensor
from torch.optim import SGD, Optimizer

from rlmods.data import RolloutDataModule
from rlmods.data.rollout_collector import RolloutCollector
from rlmods.envs.make import make_envs
from rlmods.types import Decision, ExperienceSource, Observation, Rollout, RolloutSource

TORUS = "rlmods/TorusGobletGhost-v0"
TORUS_KWARGS: dict[str, Any] = {"feature_dim": 8, "actor_feature_dim": 4, "max_episode_steps": 5}
CPU = torch.device("cpu")


class Walker(LightningModule):
    """Acts at random, on the torus or (two actions) on CartPole, and keeps what it was given."""

    def __init__(self, *, is_discrete: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.is_discrete = is_discrete
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[Rollout] = []
        self.acted_at: list[int] = []
        self.evaluated_at: list[int] = []

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        assert isinstance(observation, Tensor)
        self.acted_at.append(env_steps)
        if self.is_discrete:
            return torch.randint(2, (observation.shape[0],))
        return torch.randn(observation.shape[0], 2)

    def training_step(self, batch: Rollout, batch_idx: int) -> None:
        self.batches.append(batch)
        optimizer: Any = self.optimizers()
        optimizer.step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluated_at.append(batch.env_steps)

    def configure_optimizers(self) -> Optimizer:
        return SGD(self.parameters(), lr=0.1)


class Still:
    """Always the same action."""

    def __init__(self, action: float) -> None:
        self.action = action

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        assert isinstance(observation, Tensor)
        return torch.full((observation.shape[0], 2), self.action)


def make_data(**options: Any) -> RolloutDataModule:
    defaults = {"num_envs": 2, "n_steps": 3, "gamma": 0.5, "eval_episodes": 2, "eval_every": 12, "seed": 0}
    kwargs = {"env_id": TORUS, "total_env_steps": 36, "env_kwargs": TORUS_KWARGS}
    return RolloutDataModule(**(kwargs | defaults | options))  # type: ignore[arg-type]


def observations(batch: Rollout) -> tuple[Tensor, Tensor]:
    assert isinstance(batch.observation, Tensor)
    assert isinstance(batch.next_observation, Tensor)
    return batch.observation, batch.next_observation


def same(first: Rollout, second: Rollout) -> bool:
    pairs: Any = zip(first, second, strict=True)
    return all(torch.equal(one, other) if isinstance(one, Tensor) else one == other for one, other in pairs)


def test_it_keeps_its_protocols() -> None:
    data = make_data()
    assert isinstance(data, ExperienceSource)
    assert isinstance(data, RolloutSource)


# A rollout


def collect(num_steps: int, *, num_envs: int = 2, **options: Any) -> tuple[RolloutCollector, Rollout]:
    environments = make_envs(TORUS, num_envs, env_kwargs=TORUS_KWARGS | options, reward_dtype=np.float64)
    collector = RolloutCollector(environments, gamma=0.5, seed=1)
    torch.manual_seed(0)
    return collector, collector.collect(Walker(), num_steps, num_processes=1, device=CPU)


def test_the_fields_of_a_rollout() -> None:
    collector, batch = collect(3)
    observation, successor = observations(batch)
    assert observation.shape == successor.shape == (3, 2, 18)
    assert batch.action.shape == (3, 2, 2)
    for field in (batch.reward, batch.discount, batch.terminated, batch.truncated, batch.valid):
        assert field.shape == (3, 2)
    assert (batch.reward.dtype, batch.valid.dtype) == (torch.float64, torch.bool)
    assert not any(field.is_inference() for field in batch if isinstance(field, Tensor))
    assert torch.equal(batch.discount, torch.full((3, 2), 0.5, dtype=torch.float64))
    assert bool(batch.valid.all())
    assert not batch.terminated.any()
    assert (batch.env_steps, collector.env_steps) == (6, 6)


def test_steps_follow_each_other_and_a_truncation_shows_the_true_successor() -> None:
    """An episode has 5 steps: the fifth successor is not the sixth observation, all others are."""
    collector, batch = collect(7)
    observation, successor = observations(batch)
    assert batch.truncated.any(1).tolist() == [False] * 4 + [True] + [False] * 2
    follows = [torch.equal(successor[t], observation[t + 1]) for t in range(6)]
    assert follows == [True] * 4 + [False] + [True]
    _, endless = collect(5, max_episode_steps=None)
    assert torch.equal(successor[4], observations(endless)[1][4])
    # The next rollout begins where this one ended; its fifth step completes the second episode.
    after = collector.collect(Walker(), 3, num_processes=1, device=CPU)
    assert torch.equal(observations(after)[0][0], successor[6])
    assert after.truncated.any(1).tolist() == [False, False, True]
    assert collector.episodes.means()["rollout/ep_len_mean"] == 5.0


def test_rewards_are_those_of_the_environments() -> None:
    """The collector asks for them at the end of a rollout; a step asks at once."""
    _, batch = collect(7)
    environments = make_envs(TORUS, 2, env_kwargs=TORUS_KWARGS, reward_dtype=np.float64)
    environments.reset(1)
    expected = [environments.step(action.numpy()).reward for action in batch.action]
    np.testing.assert_allclose(batch.reward, expected, rtol=1e-5, atol=1e-8)  # single precision
    assert float(batch.reward.abs().min()) > 0.0


def test_what_was_collected_is_not_overwritten() -> None:
    collector, batch = collect(3)
    copies: list[Any] = [field.clone() if isinstance(field, Tensor) else field for field in batch]
    collector.collect(Walker(), 6, num_processes=1, device=CPU)
    assert same(batch, Rollout(*copies))


@pytest.mark.parametrize("vectorization", ["native", "sync"])
def test_frames_that_only_reset_are_masked_and_not_counted(vectorization: Any) -> None:
    """CartPole's native environments reset in the step after an end, the others in the same one."""
    environments = make_envs("CartPole-v1", 4, vectorization=vectorization)
    collector = RolloutCollector(environments, gamma=0.9, seed=0)
    torch.manual_seed(0)
    batch = collector.collect(Walker(is_discrete=True), 60, num_processes=1, device=CPU)
    ended = batch.terminated | batch.truncated
    assert int(ended.sum()) >= 4
    expected = torch.ones(60, 4, dtype=torch.bool)
    if vectorization == "native":
        expected[1:] = ~ended[:-1]
    assert torch.equal(batch.valid, expected)
    assert collector.env_steps == batch.env_steps == int(expected.sum())
    assert torch.equal(batch.discount, 0.9 * (~batch.terminated).float())
    assert float(batch.reward[batch.valid].sum()) == batch.env_steps  # CartPole pays 1 a step
    assert batch.action.dtype == torch.int64
    observation, successor = observations(batch)
    goes_on = batch.valid[:-1] & ~ended[:-1]
    assert torch.equal(successor[:-1][goes_on], observation[1:][goes_on])
    # Where a frame only resets, it begins at the old episode's end.
    assert torch.equal(successor[:-1][ended[:-1]], observation[1:][ended[:-1]]) == (vectorization == "native")


class Seeded(Walker):
    """Owns the seeds of its rollouts."""

    def __init__(self, seeds: list[int] | None) -> None:
        super().__init__()
        self.seeds = seeds
        self.asked: list[tuple[int, int]] = []

    def begin_rollout(self, num_envs: int, num_steps: int) -> list[int] | None:
        self.asked.append((num_envs, num_steps))
        return self.seeds


def test_a_policy_may_seed_its_rollouts() -> None:
    collector, _ = collect(3)
    policy = Seeded([5, 6])
    starts = [observations(collector.collect(policy, 2, num_processes=1, device=CPU))[0][0] for _ in range(2)]
    assert torch.equal(*starts)
    expected: Any = make_envs(TORUS, 2, env_kwargs=TORUS_KWARGS).reset([5, 6])
    assert np.array_equal(starts[0], expected)
    assert policy.asked == [(2, 2)] * 2
    assert collector.episodes.episode_length.tolist() == [2, 2]
    policy.seeds = None
    goes_on = collector.collect(policy, 1, num_processes=1, device=CPU)
    assert not torch.equal(observations(goes_on)[0][0], starts[0])


def test_the_policy_is_told_the_steps_of_all_processes() -> None:
    collector, _ = collect(3)
    policy = Walker()
    collector.collect(policy, 2, num_processes=4, device=CPU)
    assert policy.acted_at == [24, 32]


# A run


def test_the_clock_the_budget_and_the_rhythm(tmp_path: Path) -> None:
    data, model = make_data(total_env_steps=32), Walker()
    assert data.rollout_statistics() == {}
    fit(tmp_path, data, model)  # type: ignore[arg-type]
    assert [batch.env_steps for batch in model.batches] == [6, 12, 18, 24, 30, 36]
    assert [batch.progress for batch in model.batches] == pytest.approx([6 / 32, 12 / 32, 18 / 32, 24 / 32, 30 / 32, 1])
    assert model.evaluated_at == [12, 24, 36]
    assert (data.env_steps, data.total_env_steps) == (36, 32)
    # 18 steps each: three whole episodes of 5.
    assert data.rollout_statistics()["rollout/ep_len_mean"] == 5.0


@pytest.mark.parametrize(("eval_every", "expected"), [(1, [6, 12, 18]), (13, [12, 18]), (10**9, [18])])
def test_evaluations_follow_eval_every_and_there_is_one_at_the_end(
    tmp_path: Path, eval_every: int, expected: list[int]
) -> None:
    data, model = make_data(total_env_steps=18, eval_every=eval_every), Walker()
    fit(tmp_path, data, model)  # type: ignore[arg-type]
    assert model.evaluated_at == expected


class Prober(Walker):
    """Asks for rollouts that the training never sees."""

    def __init__(self, *, probes: bool = True) -> None:
        super().__init__()
        self.probes = probes
        self.probed: list[list[Rollout]] = []

    def training_step(self, batch: Rollout, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        if self.probes:
            source: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            self.probed.append(source.probe_rollout([Walker(), Still(0.25)], num_envs=2, num_steps=7, seed=9))


def test_probes_leave_the_training_alone_and_repeat(tmp_path: Path) -> None:
    with_probes, without = Prober(), Prober(probes=False)
    for model in (with_probes, without):
        torch.manual_seed(0)
        fit(tmp_path, make_data(), model)  # type: ignore[arg-type]
    assert len(with_probes.batches) == 6
    assert all(map(same, with_probes.batches, without.batches))
    first, second = with_probes.probed[:2]
    assert all(map(same, first, second))


def test_a_probe_has_a_rollout_of_each_policy_and_its_episodes_never_end(tmp_path: Path) -> None:
    model = Prober()
    fit(tmp_path, make_data(total_env_steps=6), model)  # type: ignore[arg-type]
    walker, still = model.probed[0]
    for rollout in (walker, still):
        observation, successor = observations(rollout)
        assert observation.shape == (7, 2, 18)
        assert rollout.reward.shape == (7, 2)
        assert rollout.reward.dtype == torch.float64
        assert torch.equal(observation[1:], successor[:-1])
        assert not rollout.truncated.any()
    assert bool((still.action == 0.25).all())
    assert not bool((walker.action == 0.25).any())
    assert not torch.equal(observations(walker)[0][0], observations(still)[0][0])


@pytest.mark.parametrize("num_envs", [2, 6])
def test_a_probe_of_an_ordinary_environment(tmp_path: Path, num_envs: int) -> None:
    """Its own limit of steps is lifted too; poles fall nevertheless."""

    class CartPoleProber(Walker):
        def training_step(self, batch: Rollout, batch_idx: int) -> None:
            super().training_step(batch, batch_idx)
            source: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            (self.probed,) = source.probe_rollout([self], num_envs=num_envs, num_steps=40, seed=1)

    model = CartPoleProber(is_discrete=True)
    data = make_data(env_id="CartPole-v1", env_kwargs={"max_episode_steps": 3}, total_env_steps=6)
    fit(tmp_path, data, model)  # type: ignore[arg-type]
    assert bool(model.probed.terminated.any())
    assert not model.probed.truncated.any()
    assert bool(model.batches[0].truncated.any())


class Elsewhere:
    """Decides on another device, and sends its actions to the CPU."""

    device = torch.device("meta")  # no accelerator is needed for it

    def __init__(self) -> None:
        self.devices: set[torch.device] = set()

    def initial_state(self, num_envs: int) -> Tensor:
        return torch.zeros(num_envs, 1, device=self.device)

    def decide(self, observation: Observation, state: Tensor, *, deterministic: bool = False) -> Decision:
        assert isinstance(observation, Tensor)
        self.devices |= {observation.device, state.device}
        action = torch.zeros(len(observation), 2)
        return Decision(action, action, torch.zeros(len(action)), state + 1.0)

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        raise NotImplementedError


def test_a_state_from_a_checkpoint_goes_to_the_policy_and_the_rollout_where_it_is_wanted() -> None:
    collector, _ = collect(3)
    state = collector.state_dict() | {"state": torch.zeros(collector.environments.num_envs, 1)}
    assert collector.load_state_dict(state)
    policy = Elsewhere()
    rollout = collector.collect(policy, 2, num_processes=1, device=policy.device, rollout_device=CPU)
    assert policy.devices == {policy.device}
    assert {rollout.reward.device, rollout.valid.device, observations(rollout)[0].device} == {CPU}


def test_collecting_goes_on_from_a_state() -> None:
    collector, _ = collect(3)
    state = collector.state_dict()
    torch.manual_seed(5)
    expected = collector.collect(Walker(), 6, num_processes=1, device=CPU)
    collector.close()
    other, _ = collect(1)
    assert other.load_state_dict(state)
    torch.manual_seed(5)
    assert same(other.collect(Walker(), 6, num_processes=1, device=CPU), expected)
    # What was closed can still be saved.
    closed = collector.state_dict()
    assert closed["env_steps"] == 18
    assert closed["environments"] is not None


# Settings


def test_a_continuing_environment_is_refused() -> None:
    kwargs = {"feature_dim": 8, "actor_feature_dim": 4}
    with pytest.raises(ValueError, match=r"whose episodes never end.*--data\.init_args\.env_kwargs\.max_episode_steps"):
        make_data(env_kwargs=kwargs)
    with pytest.raises(ValueError, match="whose episodes never end"):
        make_data(env_kwargs=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("total_env_steps", 0),
        ("num_envs", 0),
        ("n_steps", 0),
        ("eval_episodes", 0),
        ("eval_every", 0),
        ("gamma", 1.0),
        ("gamma", -0.1),
        ("gamma", math.nan),
    ],
)
def test_settings_outside_their_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"got {name} = .*expected .*--data\.init_args\.{name} "):
        make_data(**{name: value})


def test_a_module_that_cannot_act_is_refused(tmp_path: Path) -> None:
    class Mute(LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> None: ...

        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

        def configure_optimizers(self) -> Optimizer:
            return SGD([torch.nn.Parameter(torch.zeros(()))])

    with pytest.raises(TypeError, match="Mute without a method act"):
        fit(tmp_path, make_data(), Mute())  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "value"), [("n_steps", 6), ("gamma", 0.6), ("num_envs", 4)])
def test_a_resume_cannot_change_what_the_data_are(tmp_path: Path, name: str, value: Any) -> None:
    def save(trainer: Trainer, path: Path) -> Path:
        trainer.save_checkpoint(path)
        return path

    path = save(fit(tmp_path, make_data(total_env_steps=6), Walker()), tmp_path / "end.ckpt")  # type: ignore[arg-type]
    state = torch.load(path, weights_only=True)["RolloutDataModule"]
    with pytest.raises(ValueError, match=rf"got {name} = {value}, but the checkpoint was written with"):
        make_data(**{name: value}).check_checkpoint(state, 1)
    make_data().check_checkpoint(state, 1)
    with pytest.raises(ValueError, match="the budget is spent"):
        make_data(total_env_steps=6).check_checkpoint(state, 1)


def test_a_budget_is_spent_where_reset_frames_took_a_part_of_it(tmp_path: Path) -> None:
    """100 frames of one-step episodes are 50 steps and 50 resets."""
    kwargs: dict[str, Any] = {"env_id": "CartPole-v1", "vectorization": "native", "n_steps": 25}
    data = make_data(**kwargs, env_kwargs={"max_episode_steps": 1}, total_env_steps=100)
    trainer = fit(tmp_path, data, Walker(is_discrete=True))  # type: ignore[arg-type]
    assert (data.iterations, data.env_steps) == (2, 50)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    state = torch.load(tmp_path / "end.ckpt", weights_only=True)["RolloutDataModule"]
    with pytest.raises(ValueError, match="the budget is spent"):
        data.check_checkpoint(state, 1)
    make_data(**kwargs, env_kwargs={"max_episode_steps": 1}, total_env_steps=101).check_checkpoint(state, 1)
