from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from expert_cart_pole import ENV_ID
from torch import Tensor

from rlmods.data.collector import Collected, Collector
from rlmods.data.mixture import ExpertMixture, ExpertSchedule
from rlmods.envs.make import make_envs
from rlmods.types import MixtureTotals, Observation, StepResult

CPU = torch.device("cpu")
HALF = ExpertSchedule(start=0.5, decay=1.0, decay_steps=1, floor=0.0, care_scale=1.0)


def zeros(num: int) -> npt.NDArray[np.int64]:
    return np.zeros(num, dtype=np.int64)


def ones(num: int) -> npt.NDArray[np.int64]:
    return np.ones(num, dtype=np.int64)


def shares(schedule: ExpertSchedule, *, care: bool, env_steps: int = 0, override: float | None = None) -> float:
    """How often the expert, who does 1, acts in 20,000 environments."""
    num = 20_000
    mixture = ExpertMixture(schedule, num, seed=0)
    mixture.override = override
    action, by_expert = mixture.choose(zeros(num), lambda: ones(num), np.full(num, care), env_steps)
    assert np.array_equal(action == 1, by_expert)
    return float(by_expert.mean())


def test_the_coin_falls_as_often_as_the_schedule_says() -> None:
    """Five standard deviations of 20,000 coins are at most 0.018."""
    decaying = ExpertSchedule(start=0.8, decay=0.5, decay_steps=10, floor=0.3, care_scale=1.5)
    assert shares(decaying, care=False) == pytest.approx(0.8, abs=0.018)
    assert shares(decaying, care=False, env_steps=10) == pytest.approx(0.4, abs=0.018)
    assert shares(decaying, care=False, env_steps=10_000) == pytest.approx(0.3, abs=0.018)
    assert shares(decaying, care=True, env_steps=10) == pytest.approx(0.6, abs=0.018)
    assert shares(decaying, care=True) == 1.0  # 0.8 · 1.5, cut at 1
    assert shares(decaying, care=False, env_steps=10, override=0.9) == pytest.approx(0.9, abs=0.018)
    assert shares(decaying, care=False, override=0.0) == 0.0
    assert shares(decaying, care=False, env_steps=10_000, override=1.0) == 1.0


def test_care_counts_environment_by_environment() -> None:
    never_alone = HALF._replace(start=0.5, care_scale=2.0)
    mixture = ExpertMixture(never_alone, 4, seed=0)
    care = np.array([True, False, True, False])
    chosen = np.stack([mixture.choose(zeros(4), lambda: ones(4), care, 0)[1] for _ in range(50)])
    assert chosen[:, care].all()
    assert 0.0 < chosen[:, ~care].mean() < 1.0


def test_the_expert_is_not_asked_where_the_network_acts_everywhere() -> None:
    def nobody() -> npt.NDArray[np.int64]:
        raise AssertionError

    mixture = ExpertMixture(HALF._replace(start=0.0), 3, seed=0)
    action, by_expert = mixture.choose(zeros(3), nobody, None, 0)
    assert action.tolist() == [0, 0, 0]
    assert not by_expert.any()


def step(reward: list[float], ended: list[bool], valid: list[bool]) -> StepResult:
    observation = np.zeros((len(reward), 1), dtype=np.float32)
    no = np.zeros(len(reward), dtype=np.bool_)
    return StepResult(
        observation, np.array(reward, np.float32), np.array(ended), no, observation, np.array(valid), {}, {}
    )


def test_golden_accounts() -> None:
    """Two environments, three steps. By the network 1 + 4 + 5 = 10 on 3 frames, by the expert 2 + 8 = 10 on 2.

    The first episode of environment 0 ends with its second step: 1 by the network, 8 by the expert. The reset frame of
    environment 1 counts for nobody.
    """
    mixture = ExpertMixture(HALF, 2, seed=0)
    results = [
        step([1.0, 2.0], [False, False], [True, True]),
        step([8.0, 4.0], [True, False], [True, True]),
        step([5.0, 0.0], [False, False], [True, False]),
    ]
    mixture.count(results, [np.array([False, True]), np.array([True, False]), np.array([False, True])])
    assert mixture.totals == MixtureTotals(3, 2, 10.0, 10.0)
    assert mixture.means() == {"rollout/ep_rew_network_mean": 1.0, "rollout/ep_rew_expert_mean": 8.0}
    mixture.count([step([0.0, 1.0], [False, True], [True, True])], [np.array([False, False])])
    # Environment 1: 4 + 1 by the network, 2 by the expert.
    assert mixture.means() == {"rollout/ep_rew_network_mean": 3.0, "rollout/ep_rew_expert_mean": 5.0}


def test_frames_that_need_care_are_counted_with_the_step_that_was_decided() -> None:
    """Three frames need care; one of them only resets."""
    mixture = ExpertMixture(HALF, 2, seed=0)
    for care in ([True, False], [True, True]):
        mixture.choose(zeros(2), lambda: zeros(2), np.array(care), 0)
    results = [step([0.0, 0.0], [False, True], [True, True]), step([0.0, 0.0], [False, False], [True, False])]
    mixture.count(results, [np.array([False, False])] * 2)
    assert mixture.frames_with_care == 2
    mixture.choose(zeros(2), lambda: zeros(2), None, 0)
    mixture.count([step([0.0, 0.0], [False, False], [True, True])], [np.array([False, False])])
    assert mixture.frames_with_care == 2
    other = ExpertMixture(HALF, 2, seed=1)
    other.load_state_dict(mixture.state_dict())
    assert other.frames_with_care == 2


class Left:
    """Does 0 everywhere."""

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        assert isinstance(observation, Tensor)
        return torch.zeros(len(observation), dtype=torch.int64)


class Careful(Left):
    """Does 1 where care is needed, and keeps what it was told."""

    def __init__(self) -> None:
        self.cares: list[Tensor] = []

    def act_with_care(self, observation: Observation, care: Tensor, *, env_steps: int) -> Tensor:
        self.cares.append(care)
        return care.long()


def make_collector(num_envs: int = 1, *, n_steps: int = 1, share: float = 0.5, **options: Any) -> Collector:
    environments = make_envs(ENV_ID, num_envs, vectorization="native")
    mixture = ExpertMixture(HALF._replace(start=share), num_envs, seed=7)
    return Collector(environments, gamma=0.5, n_steps=n_steps, seed=3, mixture=mixture, **options)


def collect(collector: Collector, until: int, policy: Any = None) -> Collected:
    return collector.collect(policy or Left(), until, num_processes=1, device=CPU)


def test_the_expert_acts_where_its_flag_says_so() -> None:
    transition, by_expert = collect(make_collector(6), 600)
    assert isinstance(transition.observation, Tensor)
    _, velocity, angle, angular_velocity = transition.observation.double().unbind(1)
    leaning = angle + 0.2 * angular_velocity + 0.02 * velocity
    clear = leaning.abs() > 1e-4
    assert torch.equal(transition.action[by_expert & clear], (leaning > 0)[by_expert & clear].long())
    assert not transition.action[~by_expert].any()
    assert 0.4 < float(by_expert.float().mean()) < 0.6


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_without_coins_it_is_the_network_or_the_expert_alone(share: float) -> None:
    collector = make_collector(6, share=share)
    _, by_expert = collect(collector, 300)
    assert by_expert.all() if share else not by_expert.any()
    totals = collector.mixture.totals  # type: ignore[union-attr]
    assert (totals.frames_by_expert, totals.frames_by_network) == ((300, 0) if share else (0, 300))
    assert totals.reward_by_expert == totals.frames_by_expert


@pytest.mark.parametrize("through", [True, False])
def test_horizons_over_mixed_actions_have_their_own_discount(through: bool) -> None:
    """Against sums by hand over the same frames, collected with n = 1."""
    single, flags = collect(make_collector(), 400)
    several, first_actors = collect(make_collector(n_steps=4, n_step_through_expert=through), 400)
    assert isinstance(single.next_observation, Tensor)
    assert isinstance(several.next_observation, Tensor)
    # A reset frame is no row here: the end of an episode stops the sum before it.
    by_start = {tuple(row.tolist()): i for i, row in enumerate(single.observation)}
    horizons = []
    for i, start in enumerate(several.observation):
        row = by_start[tuple(start.tolist())]
        horizon = 1
        while not (single.terminated[row + horizon - 1] or horizon == 4):
            if not through and flags[row + horizon] != flags[row]:
                break
            horizon += 1
        last = row + horizon - 1
        horizons.append(horizon)
        assert several.reward[i].item() == pytest.approx(sum(0.5**k for k in range(horizon)))
        assert several.discount[i].item() == (0.0 if single.terminated[last] else 0.5**horizon)
        assert torch.equal(several.next_observation[i], single.next_observation[last])
        assert first_actors[i] == flags[row]
    assert len(horizons) > 380
    assert set(horizons) == {1, 2, 3, 4}


def test_a_careful_policy_is_told_where_care_is_needed() -> None:
    policy = Careful()
    transition, by_expert = collect(make_collector(6, share=0.0), 300, policy)
    assert isinstance(transition.observation, Tensor)
    position = transition.observation[:, 0].abs()
    clear = (position - 0.03).abs() > 1e-5
    assert torch.equal(transition.action[clear], (position > 0.03)[clear].long())
    assert 0.0 < float(torch.stack(policy.cares).float().mean()) < 1.0
    assert not by_expert.any()


def test_environments_that_never_ask_for_care_are_acted_in_as_ever() -> None:
    policy = Careful()
    collector = Collector(make_envs("CartPole-v1", 6), gamma=0.5, n_steps=1, seed=0)
    assert not collect(collector, 60, policy).transition.action.any()
    assert policy.cares == []


def test_state_round_trip_continues_bit_for_bit() -> None:
    collector, restored = make_collector(6, n_steps=3), make_collector(6, n_steps=3)
    collect(collector, 100)
    restored.load_state_dict(collector.state_dict())
    expected, continued = collect(collector, 300), collect(restored, 300)
    torch.testing.assert_close(continued, expected, rtol=0, atol=0)
    assert restored.mixture.totals == collector.mixture.totals  # type: ignore[union-attr]
    assert restored.mixture.means() == collector.mixture.means()  # type: ignore[union-attr]
    state = collector.state_dict() | {"environments": None}
    restored.load_state_dict(state)
    assert not restored.mixture._episode.any()  # type: ignore[union-attr]


def test_rows_that_were_saved_before_there_were_experts_are_nobodys() -> None:
    collector = make_collector(6, n_steps=3, share=1.0)
    collect(collector, 60)
    state = collector.state_dict()
    del state["rows"]["by_expert"]
    restored = make_collector(6, n_steps=3, share=1.0)
    restored.load_state_dict(state)
    _, by_expert = collect(restored, 120)
    assert by_expert[:12].tolist() == [False] * 12
    assert by_expert[12:].all()
