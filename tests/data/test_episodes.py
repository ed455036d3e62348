import io
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmods.data.episodes import EPISODE_WINDOW, EpisodeStatistics
from rlmods.types import StepResult


def step(
    reward: list[float],
    ended: str = "",
    valid: list[bool] | None = None,
    *,
    success: list[float] | None = None,
    success_rate: list[float] | None = None,
    points: list[float] | None = None,
) -> StepResult:
    """One step of as many environments as rewards; a letter of each: terminated, truncated, or going on."""
    observation = np.zeros((len(reward), 1))
    ends = ended or "-" * len(reward)
    nothing = [math.nan] * len(reward)
    return StepResult(
        observation=observation,
        reward=np.array(reward),
        terminated=np.array([end == "e" for end in ends]),
        truncated=np.array([end == "u" for end in ends]),
        next_observation=observation,
        valid=np.array([True] * len(reward) if valid is None else valid),
        events={"success": rows(success or nothing), "collision": rows(nothing), "out_of_bounds": rows(nothing)},
        reported_rates={} if success_rate is None else {"success_rate": rows(success_rate)},
        sums={} if points is None else {"points": rows(points)},
    )


def rows(values: list[float]) -> Any:
    return np.array(values, np.float32)


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


def test_sums_of_episodes_are_drawn_apart() -> None:
    """Ended with 30, 10 and, at once with an environment that does not say, 5; those that go on say nothing."""
    episodes = EpisodeStatistics(2)
    episodes.count([step([1.0, 1.0], "-e", points=[math.nan, 30.0]), step([1.0, 1.0])])
    episodes.count([step([1.0, 1.0], "e-", points=[10.0, math.nan]), step([1.0, 1.0], "eu", points=[math.nan, 5.0])])
    assert episodes.means()["rollout/points_mean"] == 15.0
    restored = EpisodeStatistics(2)
    restored.load_state_dict(episodes.state_dict())
    assert restored.means() == episodes.means()


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


def test_golden_rates() -> None:
    """Two of three episodes succeed: Wilson's interval of 2/3 is 0.2077 to 0.9385."""
    episodes = EpisodeStatistics(2)
    episodes.count([step([1.0, 1.0], "e-", success=[1.0, math.nan]), step([1.0, 1.0], "ee", success=[0.0, 1.0])])
    means = episodes.means()
    assert means["rollout/episodes"] == 3.0
    assert means["rollout/success_rate"] == pytest.approx(2 / 3)
    assert means["rollout/success_rate_low"] == pytest.approx(0.20766, abs=1e-5)
    assert means["rollout/success_rate_high"] == pytest.approx(0.93851, abs=1e-5)
    assert not any("collision" in tag or "out_of_bounds" in tag for tag in means)


def test_many_environments_that_end_together_all_count() -> None:
    episodes = EpisodeStatistics(EPISODE_WINDOW + 100)
    success = [1.0] * 100 + [0.0] * EPISODE_WINDOW
    for _ in range(2):
        episodes.count([step([0.0] * 200, "e" * 200, success=success)])
    assert episodes.means()["rollout/success_rate"] == 0.5
    assert episodes.means()["rollout/episodes"] == 200.0


def test_a_rate_that_is_a_count_is_quarantined_for_ever() -> None:
    """Below 1 nothing tells a count from a rate; the first above 1 does, and it stays what it is."""
    episodes = EpisodeStatistics(2)
    episodes.count([step([1.0, 1.0], "e-", success_rate=[0.5, math.nan])])
    assert episodes.means()["rollout/reported/success_rate"] == 0.5
    with pytest.warns(UserWarning, match=r"success_rate = 894 .* is a count, a sum or a percentage and no rate"):
        episodes.count([step([1.0, 1.0], "-e", success_rate=[math.nan, 894.0])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said once
        episodes.count([step([1.0, 1.0], "ee", success_rate=[1716.0, 0.5])])
    means = episodes.means()
    assert means["rollout/quarantined/success_rate"] == pytest.approx((0.5 + 894 + 1716 + 0.5) / 4)
    assert not any("reported" in tag for tag in means)
    restored = EpisodeStatistics(2)
    restored.load_state_dict(episodes.state_dict())
    assert restored.means() == means


def test_a_reported_rate_that_is_no_number_is_quarantined() -> None:
    episodes = EpisodeStatistics(1)
    with pytest.warns(UserWarning, match="success_rate = nan"):
        episodes.count([step([1.0], "e", success_rate=[math.nan])])
    assert math.isnan(episodes.means()["rollout/quarantined/success_rate"])


@settings(max_examples=30)
@given(
    steps=st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5), st.sampled_from(["--", "e-", "-u", "eu"]))),
    cut=st.integers(0, 20),
)
def test_a_saved_state_goes_on(steps: list[tuple[int, int, str]], cut: int) -> None:
    results = [step([first, second], ended, success=[first % 2, second % 2]) for first, second, ended in steps]
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
