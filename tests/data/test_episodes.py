import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmods.data.episodes import EPISODE_WINDOW, EpisodeStatistics
from rlmods.types import StepResult


def step(reward: list[float], ended: str = "", valid: list[bool] | None = None) -> StepResult:
    """One step of as many environments as rewards; a letter of each: terminated, truncated, or going on."""
    observation = np.zeros((len(reward), 1))
    ends = ended or "-" * len(reward)
    return StepResult(
        observation=observation,
        reward=np.array(reward),
        terminated=np.array([end == "e" for end in ends]),
        truncated=np.array([end == "u" for end in ends]),
        next_observation=observation,
        valid=np.array([True] * len(reward) if valid is None else valid),
        success=np.full(len(reward), np.nan, np.float32),
    )


def test_golden_means() -> None:
    """The first environment ends with 1 + 2 = 3 after 2 steps, the second with 10 + 20 + 30 = 60 after 3."""
    episodes = EpisodeStatistics(2)
    assert episodes.means() == {}
    episodes.count([step([1.0, 10.0]), step([2.0, 20.0], "e-")])
    assert episodes.means() == {"rollout/ep_rew_mean": 3.0, "rollout/ep_len_mean": 2.0}
    episodes.count([step([4.0, 30.0], "-u")])
    assert episodes.means() == {"rollout/ep_rew_mean": 31.5, "rollout/ep_len_mean": 2.5}
    episodes.count([step([5.0, 7.0], "ee")])  # 9 in 2 steps, 7 in 1
    assert episodes.means() == {"rollout/ep_rew_mean": 79 / 4, "rollout/ep_len_mean": 2.0}


def test_a_frame_that_only_resets_is_no_step() -> None:
    episodes = EpisodeStatistics(1)
    episodes.count([step([1.0], "e"), step([0.0], valid=[False]), step([2.0]), step([2.0], "u")])
    assert episodes.means() == {"rollout/ep_rew_mean": 2.5, "rollout/ep_len_mean": 1.5}


def test_abandoned_episodes_do_not_count() -> None:
    episodes = EpisodeStatistics(1)
    episodes.count([step([100.0])])
    episodes.abandon()
    episodes.count([step([3.0], "e")])
    assert episodes.means() == {"rollout/ep_rew_mean": 3.0, "rollout/ep_len_mean": 1.0}


def test_only_the_last_hundred_count() -> None:
    episodes = EpisodeStatistics(1)
    for reward in range(EPISODE_WINDOW + 50):
        episodes.count([step([float(reward)], "e")])
    assert episodes.means()["rollout/ep_rew_mean"] == np.arange(50, 150).mean()


def test_a_broken_reward_is_not_hidden() -> None:
    episodes = EpisodeStatistics(2)
    episodes.count([step([float("nan"), 1.0], "ee")])
    assert np.isnan(episodes.means()["rollout/ep_rew_mean"])


@settings(max_examples=30)
@given(
    steps=st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5), st.sampled_from(["--", "e-", "-u", "eu"]))),
    cut=st.integers(0, 20),
)
def test_a_saved_state_goes_on(steps: list[tuple[int, int, str]], cut: int) -> None:
    results = [step([first, second], ended) for first, second, ended in steps]
    whole, before, after = (EpisodeStatistics(2) for _ in range(3))
    whole.count(results)
    before.count(results[:cut])
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    before.count([step([50.0, 50.0], "ee")])  # nothing of it is in the state
    file.seek(0)
    after.load_state_dict(torch.load(file, weights_only=True))
    after.count(results[cut:])
    assert after.means() == pytest.approx(whole.means())
    assert after.episode_length.tolist() == whole.episode_length.tolist()
