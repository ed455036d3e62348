import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
import torch
from guarding import WARN, as_lists, causes, events, fit_small, warnings_of
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from test_skeleton import make_trainer
from torch import Tensor

from rlmods.algorithms import DQN
from rlmods.callbacks import LossReturnGuard
from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.divergence_detector import BLOCKS, LIMIT, LossReturnDetector, ReturnChangeDetector, largest_step
from rlmods.callbacks.evaluations import Evaluation
from rlmods.callbacks.loss_return_guard import new_ones
from rlmods.data import ReplayDataModule
from rlmods.types import Minibatch, Observation

# Loss against return


def said(*evaluations: tuple[float, float]) -> list[list[str]]:
    """What is said of evaluations of 10 episodes with these means and losses."""
    detector = LossReturnDetector(share=0.5, confidence=0.99)
    return [causes(detector.update(Evaluation(mean, 3.0, 10), loss)) for mean, loss in evaluations]


LEARNED = [(10.0, 1.0), (60.0, 1.0), (90.0, 1.0), (88.0, 1.0)]


def test_a_loss_that_halves_while_the_return_falls_is_no_good_news() -> None:
    assert said(*LEARNED, (30.0, 0.4), (30.0, 0.4), (30.0, 0.4))[-3:] == [[], [], ["loss_falls_with_return"]]


@pytest.mark.parametrize(
    "after",
    [
        [(30.0, 0.6)] * 5,  # the loss has not halved
        [(30.0, 2.0)] * 5,
        [(87.0, 0.1)] * 5,  # the return has not fallen
        [(55.0, 0.1)] * 5,  # by less than half of 88 − 10
        [(30.0, 0.4), (30.0, 0.4), (90.0, 0.4)] * 3,  # it recovers
        [(30.0, math.nan)] * 5,  # nothing was learned from
        [(math.nan, 0.1)] * 5,
    ],
)
def test_all_else_is_silent(after: list[tuple[float, float]]) -> None:
    assert not any(said(*LEARNED, *after))


def test_where_nothing_was_learned_nothing_is_lost() -> None:
    assert not any(said((10.0, 1.0), (10.5, 1.0), (9.5, 1.0), *[(2.0, 0.1)] * 5))


# Steps


def test_golden_step() -> None:
    """0 and 1 with a residual of ±0.1 in turn; the slope is 0, so the step is 1 and t its ratio to its error."""
    noise = 0.1 * np.tile([1.0, -1.0], BLOCKS // 2)
    place, t = largest_step((noise + (np.arange(BLOCKS) >= 8)).tolist())
    design = np.stack([np.ones(BLOCKS), np.arange(BLOCKS), np.arange(BLOCKS) >= 8], axis=1)
    fitted, (squares,), *_ = np.linalg.lstsq(design, noise + (np.arange(BLOCKS) >= 8), rcond=None)
    error = math.sqrt(squares / (BLOCKS - 3) * np.linalg.inv(design.T @ design)[2, 2])
    assert place == 8
    assert t == pytest.approx(fitted[2] / error)


@pytest.mark.parametrize("values", [[5.0] * BLOCKS, list(range(BLOCKS)), [0.0] * BLOCKS])
def test_a_straight_line_has_no_step(values: list[float]) -> None:
    assert largest_step(values)[1] == 0.0


def test_an_exact_step_is_infinitely_sure() -> None:
    assert largest_step([1.0] * 6 + [0.0] * 10) == (6, -math.inf)


def test_false_alarms_are_rare() -> None:
    """Of 3,000 lines with noise none came to the limit; here of 300."""
    generator = np.random.default_rng(1)
    lines = generator.uniform(-1.0, 1.0, (300, 1)) * np.arange(BLOCKS) + generator.standard_normal((300, BLOCKS))
    assert max(abs(largest_step(line.tolist())[1]) for line in lines) < LIMIT


def returns_said(values: list[float]) -> list[list[tuple[str, Severity]]]:
    detector = ReturnChangeDetector()
    return [[(v.cause, v.severity) for v in detector.update(value, 100 * n)] for n, value in enumerate(values)]


def test_a_learning_curve_is_no_jump() -> None:
    """A sigmoid over 40 blocks with 5 % of noise."""
    generator = np.random.default_rng(0)
    curve = 1.0 / (1.0 + np.exp(-(np.arange(80.0) - 40.0) / 3.0)) + 0.05 * generator.standard_normal(80)
    assert not any(returns_said(curve.tolist()))


def test_a_jump_is_told_with_when_and_a_fall_that_stays_warned_of() -> None:
    generator = np.random.default_rng(0)
    noise = 0.03 * generator.standard_normal(60)
    level = np.where(np.arange(60) < 30, 1.0, 0.0)
    found = returns_said((noise + level).tolist())
    first = next(n for n, verdicts in enumerate(found) if verdicts)
    assert 33 <= first <= 36
    assert found[first] == [("reward_changed", Severity.INFO)]
    assert found[first + BLOCKS] == [("reward_changed", WARN)]
    detector = ReturnChangeDetector()
    for n, value in enumerate(noise + level):
        detector.update(float(value), 100 * n)
        if detector.jump is not None:
            break
    assert detector.jump is not None
    assert detector.jump[0] == 2_900  # the end of the last block before it


def test_a_rise_and_a_fall_that_ends_are_for_information() -> None:
    generator = np.random.default_rng(0)
    noise = 0.03 * generator.standard_normal(60)
    for level in (np.arange(60) >= 30, ~((np.arange(60) >= 30) & (np.arange(60) < 42))):
        assert not any(
            (cause, WARN) in verdicts for verdicts in returns_said((noise + level).tolist()) for cause, _ in verdicts
        )


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        ([], [1.0, 2.0], [1.0, 2.0]),
        ([1.0, 2.0], [1.0, 2.0], []),
        ([1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [4.0]),
        ([1.0, 2.0], [3.0, 4.0], [3.0, 4.0]),
        ([5.0, 5.0, 5.0], [5.0, 5.0, 5.0], []),
        ([5.0, 5.0, 5.0], [5.0, 5.0, 4.0], [4.0]),
    ],
)
def test_what_a_ring_of_the_last_values_has_got_since(before: list[float], now: list[float], new: list[float]) -> None:
    assert new_ones(before, now) == new


# The guard


class Forgets(DQN):
    """Balances at first, then does not, while the loss that it reports falls."""

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        assert isinstance(observation, Tensor)
        push = (observation[:, 2] + 0.2 * observation[:, 3] > 0.0).long()
        return push if 200 <= env_steps < 600 else torch.zeros_like(push)

    def signals(self, minibatch: Minibatch) -> dict[str, Tensor]:
        signals = super().signals(minibatch)
        env_steps = self.trainer.datamodule.env_steps  # type: ignore[attr-defined]
        return signals | {"loss": signals["loss"] * (1.0 if env_steps < 600 else 1e-3)}


SETTINGS: dict[str, Any] = {
    "updates_per_iteration": 1,
    "eval_every": 96,
    "eval_episodes": 4,
    "total_env_steps": 1_008,
    "env_kwargs": {"max_episode_steps": 60},
}


def test_a_run_that_forgets_while_its_loss_falls_is_named(tmp_path: Path) -> None:
    guard = LossReturnGuard()
    trainer = fit_small(tmp_path, guard, model_class=Forgets, **SETTINGS)
    assert warnings_of(guard) == ["loss_falls_with_return"]
    (event,) = events(trainer)
    assert event["evidence"]["best"] == 60.0
    assert event["evidence"]["loss"] < 0.5 * event["evidence"]["best_loss"]


def test_a_healthy_run_is_silent_and_its_state_goes_round(tmp_path: Path) -> None:
    guard = LossReturnGuard(episodes=2)
    fit_small(tmp_path, guard, **SETTINGS)
    assert guard.losses.best is not None
    assert len(guard.returns.blocks) == BLOCKS
    assert warnings_of(guard) == []
    torch.save(guard.state_dict(), tmp_path / "state.pt")
    other = LossReturnGuard(episodes=2)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert as_lists(other.state_dict()) == as_lists(guard.state_dict())


class ChangesItsRewards(CartPoleVectorEnv):
    """Pays three times as much from the six hundredth step on."""

    frames = 0

    def step(self, action: npt.NDArray[Any]) -> tuple[Any, npt.NDArray[Any], Any, Any, dict[str, Any]]:
        observation, reward, terminated, truncated, infos = super().step(action)
        self.frames += 1
        return observation, reward * (3.0 if self.frames >= 600 else 1.0), terminated, truncated, infos


gymnasium.register(
    "ChangesItsRewards-v0", vector_entry_point="test_loss_return_guard:ChangesItsRewards", max_episode_steps=500
)


@pytest.mark.parametrize(("env_id", "expected"), [("ChangesItsRewards-v0", ["reward_changed"]), ("CartPole-v1", [])])
def test_rewards_that_change_in_a_real_run(env_id: str, expected: list[str], tmp_path: Path) -> None:
    """Episodes of 22 steps at random: 600 steps of 16 environments are 21 blocks of 20 episodes."""
    torch.manual_seed(0)
    data = ReplayDataModule(
        env_id,
        16_000,
        num_envs=16,
        steps_per_iteration=160,
        learning_starts=15_900,
        eval_every=16_000,
        eval_episodes=2,
        seed=0,
    )
    guard = LossReturnGuard(every_n_iterations=2)
    trainer = make_trainer(tmp_path, guard, logger=False, enable_checkpointing=False)
    trainer.fit(DQN(data.spec, exploration_final_eps=1.0), datamodule=data)
    assert [cause for cause, _ in guard.raised] == expected
    if expected:
        assert guard.returns.jump is not None
        assert 8_000 <= guard.returns.jump[0] <= 11_000  # 9,600 less the frames that only reset


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="got episodes = 0, expected 1 or more"):
        LossReturnGuard(episodes=0)
