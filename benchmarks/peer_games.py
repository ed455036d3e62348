"""The lane shooter as Stable-Baselines3 wants a vector environment; imported only where that is installed."""
# ruff: noqa: D102

from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from rlmods.envs.lane_shooter import LaneShooter


class PeerGames(VecEnv):  # type: ignore[misc]
    """N games, one numpy step for all."""

    def __init__(self, num_envs: int, seed: int) -> None:
        self.games, self.seeds = LaneShooter(num_envs), seed
        super().__init__(num_envs, self.games.single_observation_space, self.games.single_action_space)

    def reset(self) -> Any:
        return self.games.reset(seed=self.seeds)[0]

    def step_async(self, actions: Any) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        observation, reward, terminated, truncated, infos = self.games.step(self.actions)
        done = terminated | truncated
        told: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for game in done.nonzero()[0]:
            last = infos["final_obs"][game]
            told[game] = {"terminal_observation": last, "TimeLimit.truncated": bool(truncated[game])}
        return observation, reward, done, told

    def close(self) -> None:
        self.games.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.games, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs
