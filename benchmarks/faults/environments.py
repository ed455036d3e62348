"""The bench's own environments: faults around any Gymnasium environment, and two tasks for healthy runs.

Importing this module registers them: `rlmods-bench/<class>-v0`.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from .clock import CLOCK

Array = npt.NDArray[Any]
Step = tuple[Array, float, bool, bool, dict[str, Any]]


class FaultyEnv(gym.Wrapper[Array, int, Array, int]):
    """An environment that is broken from an onset on.

    Args:
        env_id: what is broken. Its time limit stays.
        onset: part of the budget before which it is intact.
    """

    def __init__(self, env_id: str, *, onset: float) -> None:
        super().__init__(gym.make(env_id))
        self.onset = onset
        self.generator = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin an episode; a seed also seeds the fault."""
        if seed is not None:
            self.generator = np.random.default_rng(seed)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: int) -> Step:
        """Step, and break what comes back."""
        result = self.env.step(action)
        step: Step = (result[0], float(result[1]), *result[2:])
        return self.broken(*step) if CLOCK.progress >= self.onset else step

    def broken(
        self, observation: Array, reward: float, terminated: bool, truncated: bool, info: dict[str, Any]
    ) -> Step:
        """A step of the broken environment."""
        raise NotImplementedError


class ScaledReward(FaultyEnv):
    """All rewards times `factor`."""

    def __init__(self, env_id: str, *, onset: float, factor: float) -> None:
        super().__init__(env_id, onset=onset)
        self.factor = factor

    def broken(self, observation: Array, reward: float, *rest: Any) -> Step:
        """Scale."""
        return (observation, reward * self.factor, *rest)


class BadReward(FaultyEnv):
    """Now and then a reward is `value`."""

    def __init__(self, env_id: str, *, onset: float, value: float, probability: float) -> None:
        super().__init__(env_id, onset=onset)
        self.value = value
        self.probability = probability

    def broken(self, observation: Array, reward: float, *rest: Any) -> Step:
        """Replace."""
        return (observation, self.value if self.generator.random() < self.probability else reward, *rest)


class BadObservation(FaultyEnv):
    """Now and then an entry of the observation is NaN."""

    def __init__(self, env_id: str, *, onset: float, probability: float) -> None:
        super().__init__(env_id, onset=onset)
        self.probability = probability

    def broken(self, observation: Array, reward: float, *rest: Any) -> Step:
        """Replace."""
        if self.generator.random() < self.probability:
            observation = observation.copy()
            observation[1] = np.nan
        return (observation, reward, *rest)


class ScaledObservation(FaultyEnv):
    """All observations times `factor`: a sensor that was recalibrated."""

    def __init__(self, env_id: str, *, onset: float, factor: float) -> None:
        super().__init__(env_id, onset=onset)
        self.factor = factor

    def broken(self, observation: Array, reward: float, *rest: Any) -> Step:
        """Scale."""
        return ((observation * self.factor).astype(observation.dtype), reward, *rest)


class Corridor(gym.Env[Array, int]):
    """A reward of 1 at the end of a corridor that a random walk seldom crosses; a long phase of zeros before that."""

    LENGTH, TIME_LIMIT = 19, 40

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(0.0, 1.0, (self.LENGTH,), np.float32)
        self.action_space = gym.spaces.Discrete(2)  # type: ignore[assignment]
        self.forward = np.random.default_rng(5).integers(2, size=self.LENGTH)  # by cell: no action is always right
        self.cell = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Go to the start."""
        super().reset(seed=seed)
        self.cell = 0
        return self._observation(), {}

    def step(self, action: int) -> Step:
        """One cell forward, or back."""
        self.cell = self.cell + 1 if action == self.forward[self.cell] else max(0, self.cell - 1)
        at_goal = self.cell == self.LENGTH - 1
        return self._observation(), float(at_goal), at_goal, False, {}

    def _observation(self) -> Array:
        observation: Array = np.eye(self.LENGTH, dtype=np.float32)[self.cell]
        return observation


class Solved(gym.Env[Array, int]):
    """Ten steps with a reward of 1 for action 1: solved in a few episodes, and then always the same."""

    LENGTH = 10

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(0.0, 1.0, (self.LENGTH + 1,), np.float32)
        self.action_space = gym.spaces.Discrete(2)  # type: ignore[assignment]
        self.time = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start."""
        super().reset(seed=seed)
        self.time = 0
        return self._observation(), {}

    def step(self, action: int) -> Step:
        """One step nearer to the end."""
        self.time += 1
        return self._observation(), float(action == 1), self.time == self.LENGTH, False, {}

    def _observation(self) -> Array:
        observation: Array = np.eye(self.LENGTH + 1, dtype=np.float32)[self.time]
        return observation


def bench_id(environment: type[gym.Env[Array, int]]) -> str:
    """The id under which an environment of this module is registered."""
    return f"rlmods-bench/{environment.__name__}-v0"


for _environment in (ScaledReward, BadReward, BadObservation, ScaledObservation, Solved):
    gym.register(id=bench_id(_environment), entry_point=f"{__name__}:{_environment.__name__}")
gym.register(id=bench_id(Corridor), entry_point=f"{__name__}:Corridor", max_episode_steps=Corridor.TIME_LIMIT)
