from collections import deque

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from rlmods.data.collector import Collector
from rlmods.envs.environments import Environments
from rlmods.envs.make import env_spec, make_envs
from rlmods.types import Observation, Transition

CPU = torch.device("cpu")


class Alternate:
    """Pushes left and right in turn, by the clock; keeps the clocks that it was given."""

    def __init__(self) -> None:
        self.clocks: list[int] = []

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        assert isinstance(observation, Tensor)
        self.clocks.append(env_steps)
        return torch.full((len(observation),), len(self.clocks) % 2, dtype=torch.int64)


def collect(collector: Collector, policy: Alternate, until: int) -> Transition:
    return collector.collect(policy, until, num_processes=1, device=CPU).transition


def concatenate(parts: list[Transition]) -> Transition:
    return Transition(*(torch.cat([getattr(part, name) for part in parts]) for name in Transition._fields))


@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_transitions_of_one_environment_follow_one_another(vectorization: str) -> None:
    """Each next observation is the next row's observation, but where an episode ended; there a new one starts."""
    environments = make_envs("CartPole-v1", 1, vectorization=vectorization)  # type: ignore[arg-type]
    collector = Collector(environments, gamma=0.9, n_steps=1, seed=0)
    transition = collect(collector, Alternate(), 300)
    assert transition.reward.shape == (300,) == transition.action.shape
    assert collector.env_steps == 300
    assert bool((transition.reward == 1).all())
    ended = transition.terminated | transition.truncated
    assert int(ended.sum()) > 3
    assert isinstance(transition.observation, Tensor)
    assert isinstance(transition.next_observation, Tensor)
    follows = (transition.next_observation[:-1] == transition.observation[1:]).all(-1)
    assert torch.equal(follows, ~ended[:-1])
    # CartPole's own limits: a final observation is outside them, a first one is near zero.
    outside = (transition.next_observation[:, 0].abs() > 2.4) | (transition.next_observation[:, 2].abs() > 0.2095)
    assert torch.equal(outside, transition.terminated)
    assert bool((transition.observation[1:][ended[:-1]].abs() <= 0.05).all())
    torch.testing.assert_close(transition.discount, 0.9 * (~transition.terminated).float())


@pytest.mark.parametrize("num_envs", [1, 5, 8])
@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_reset_frames_are_neither_stored_nor_counted(num_envs: int, vectorization: str) -> None:
    environments = make_envs("CartPole-v1", num_envs, vectorization=vectorization)  # type: ignore[arg-type]
    collector = Collector(environments, gamma=0.9, n_steps=1, seed=0)
    policy = Alternate()
    rows = [len(collect(collector, policy, until).reward) for until in range(80, 881, 80)]
    assert sum(rows) == collector.env_steps
    assert 880 <= collector.env_steps < 880 + num_envs
    assert policy.clocks == sorted(policy.clocks)


@pytest.mark.parametrize("num_envs", [1, 6])
@pytest.mark.parametrize("vectorization", ["sync", "native"])
@pytest.mark.parametrize("n_steps", [2, 5])
def test_n_steps_in_blocks_equal_sums_over_single_steps(num_envs: int, vectorization: str, n_steps: int) -> None:
    """The same environments collected with n = 1, and summed by hand, give the same transitions, however cut."""

    def gather(n: int, blocks: list[int]) -> Transition:
        environments = make_envs("CartPole-v1", num_envs, vectorization=vectorization)  # type: ignore[arg-type]
        collector = Collector(environments, gamma=0.9, n_steps=n, seed=3)
        policy = Alternate()
        return concatenate([collect(collector, policy, until) for until in blocks])

    single = gather(1, [700])
    several = gather(n_steps, [7 * num_envs, 9 * num_envs, 200, 203, 600])
    assert isinstance(single.observation, Tensor)
    assert isinstance(several.observation, Tensor)
    by_start = {tuple(observation.tolist()): i for i, observation in enumerate(single.observation)}
    assert len(several.reward) > 500
    for i, observation in enumerate(several.observation):
        row, reward, discount = by_start[tuple(observation.tolist())], 0.0, 1.0
        for _ in range(n_steps):
            reward, discount = reward + discount * single.reward[row].item(), discount * 0.9
            last = row
            if single.terminated[row] or single.truncated[row]:
                break
            row = by_start[tuple(single.next_observation[row].tolist())]  # type: ignore[index]
        assert several.reward[i].item() == pytest.approx(reward)
        assert several.discount[i].item() == pytest.approx(0.0 if single.terminated[last] else discount)
        assert torch.equal(several.next_observation[i], single.next_observation[last])  # type: ignore[index]
        assert bool(several.terminated[i] == single.terminated[last])


def test_rollout_statistics_are_those_of_the_last_hundred_episodes() -> None:
    environments = make_envs("CartPole-v1", 1)
    collector = Collector(environments, gamma=0.9, n_steps=1, seed=0)
    assert collector.rollout_statistics() == {}
    transition = collect(collector, Alternate(), 6000)
    ends = (transition.terminated | transition.truncated).nonzero().flatten().tolist()
    lengths = deque((b - a for a, b in zip([-1, *ends[:-1]], ends, strict=True)), maxlen=100)
    assert len(ends) > 100
    expected = float(np.mean(lengths))
    statistics = collector.rollout_statistics()
    assert statistics == pytest.approx({"rollout/ep_rew_mean": expected, "rollout/ep_len_mean": expected})


def test_state_round_trip_continues_bit_for_bit() -> None:
    def make(seed: int) -> Collector:
        return Collector(make_envs("CartPole-v1", 8), gamma=0.9, n_steps=3, seed=seed)

    collector = make(seed=0)
    collect(collector, Alternate(), 100)
    state = collector.state_dict()
    expected = collect(collector, Alternate(), 300)
    restored = make(seed=1)
    assert restored.load_state_dict(state) is None
    continued = collect(restored, Alternate(), 300)
    for mine, theirs in zip(continued, expected, strict=True):
        assert torch.equal(mine, theirs)  # type: ignore[arg-type]
    assert restored.rollout_statistics() == collector.rollout_statistics()


class Unsavable(gymnasium.Wrapper[npt.NDArray[np.float32], np.int64, npt.NDArray[np.float32], np.int64]):
    """Holds what cannot be saved."""

    def __init__(self, env: gymnasium.Env[npt.NDArray[np.float32], np.int64]) -> None:
        super().__init__(env)
        self.handle = object()


@pytest.mark.parametrize("n_steps", [1, 3])
def test_where_environments_cannot_be_saved_the_running_episodes_are_truncated(n_steps: int) -> None:
    def make() -> Collector:
        vector_env = gymnasium.vector.SyncVectorEnv(
            [lambda: Unsavable(gymnasium.make("CartPole-v1"))] * 2,
            autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP,
        )
        return Collector(Environments(vector_env, env_spec("CartPole-v1")), gamma=0.5, n_steps=n_steps, seed=0)

    collector = make()
    stored = len(collect(collector, Alternate(), 12).reward)
    restored = make()
    truncated = restored.load_state_dict(collector.state_dict())
    assert truncated is not None
    assert stored + len(truncated.transition.reward) == 12
    assert bool(truncated.transition.truncated.all())
    # The horizons left, of both environments: n steps from the oldest open row, then ever fewer, bootstrapped.
    horizons = [float(h) for h in range(n_steps, 0, -1) for _ in range(2)]
    assert truncated.transition.discount.tolist() == [0.5**h for h in horizons]
    assert len(collect(restored, Alternate(), 24).reward) > 0
    assert restored.env_steps == 24
