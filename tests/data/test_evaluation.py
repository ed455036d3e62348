import numpy as np
import pytest
import torch
from torch import Tensor

from rlmods.data.evaluation import EpisodeEvaluator
from rlmods.envs.make import make_envs
from rlmods.types import Observation


class Push:
    """Pushes always to the right, or at random."""

    def __init__(self, *, at_random: bool = False) -> None:
        self.at_random = at_random
        self.deterministic: list[bool] = []

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        assert isinstance(observation, Tensor)
        self.deterministic.append(deterministic)
        if self.at_random:
            return torch.randint(2, (len(observation),))
        return torch.ones(len(observation), dtype=torch.int64)


def make_evaluator(
    num_episodes: int = 4, gamma: float = 0.5, vectorization: str = "auto", max_episode_steps: int = 500
) -> EpisodeEvaluator:
    environments = make_envs(
        "CartPole-v1",
        num_episodes,
        env_kwargs={"max_episode_steps": max_episode_steps},
        vectorization=vectorization,  # type: ignore[arg-type]
    )
    return EpisodeEvaluator(environments, gamma=gamma, seed=7, env_steps=123, device=torch.device("cpu"))


@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_each_environment_plays_one_episode(vectorization: str) -> None:
    """A constant push ends CartPole after 8 to 11 steps of reward 1; with γ = 1/2 they are worth 2 - 2^(1 - T)."""
    policy = Push()
    episodes = make_evaluator(vectorization=vectorization).run(policy)
    assert episodes.lengths.shape == (4,)
    assert bool(((episodes.lengths >= 8) & (episodes.lengths <= 11)).all())
    assert torch.equal(episodes.returns, episodes.lengths.double())
    torch.testing.assert_close(episodes.discounted_returns, 2 - 2.0 ** (1 - episodes.lengths.double()))
    assert all(policy.deterministic)
    assert all(bool(happened.isnan().all()) for happened in episodes.events.values())


def test_what_follows_an_episode() -> None:
    """A terminated episode is followed by nothing; one that is cut off after 5 steps, by γ⁵ of its last observation."""
    terminated = make_evaluator().run(Push())
    assert terminated.final_discount.tolist() == [0.0] * 4
    policy = Push()
    truncated = make_evaluator(max_episode_steps=5).run(policy)
    assert truncated.final_discount.tolist() == [2.0**-5] * 4
    recorded = make_evaluator(max_episode_steps=6).record(Push())
    sixth = [recorded["observation"][recorded["episode"] == episode][5] for episode in range(4)]
    torch.testing.assert_close(truncated.final_observation, torch.stack(sixth))


def test_a_shorter_episode_is_not_played_twice() -> None:
    """Twenty environments end at different times: the sum of lengths is what the record holds, once each."""
    evaluator = make_evaluator(20)
    lengths = evaluator.run(Push()).lengths
    recorded = evaluator.record(Push())
    assert int(lengths.max()) > int(lengths.min())
    counts = recorded["episode"].bincount(minlength=20)
    assert torch.equal(counts, lengths)
    assert int((recorded["terminated"] | recorded["truncated"]).sum()) == 20
    assert recorded["observation"].shape == (int(lengths.sum()), 4)


def test_evaluations_are_paired() -> None:
    evaluator = make_evaluator()
    first, second = evaluator.run(Push()), evaluator.run(Push())
    assert torch.equal(first.returns, second.returns)
    assert torch.equal(first.start_observation, second.start_observation)  # type: ignore[arg-type]


def test_training_randomness_is_untouched() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist())  # type: ignore[index] # noqa: NPY002
    make_evaluator().run(Push(at_random=True))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
