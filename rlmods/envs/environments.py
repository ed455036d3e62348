"""Our one reading of a Gymnasium vector environment, whatever its way to reset itself."""

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from rlmods.envs import env_state
from rlmods.envs.events import EVENTS, read_events, read_reported_rates, read_sums
from rlmods.types import ArrayObservation, EnvSpec, StepResult

AnyVectorEnv: TypeAlias = VectorEnv[Any, Any, Any]


class Environments:
    """N environments that step together and reset themselves.

    Attributes:
        spec: What an algorithm must know of one of them.
        num_envs: N.
        autoreset_mode: How the vector environment resets, as it says itself.
    """

    def __init__(
        self,
        vector_env: AnyVectorEnv,
        spec: EnvSpec,
        *,
        reward_dtype: type[np.floating[Any]] = np.float32,
        borrow: bool = False,
    ) -> None:
        """Take over a vector environment, which `close` will close.

        Args:
            vector_env: N environments.
            spec: of one of them.
            reward_dtype: of the rewards.
            borrow: whether the observations of a step may be the environment's own memory, valid until the next one.

        Raises:
            ValueError: The vector environment does not say how it resets.
        """
        mode = vector_env.metadata.get("autoreset_mode")
        if mode is None:
            raise ValueError(
                f"{vector_env} does not say how it resets. Expected an AutoresetMode; type "
                'metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP} (or its mode) in its class.'
            )
        self.spec = spec
        self.num_envs = vector_env.num_envs
        self.autoreset_mode = AutoresetMode(mode)
        self._vector_env = vector_env
        self._reward_dtype = reward_dtype
        space = vector_env.action_space
        self._action_shape, self._action_dtype = space.shape, space.dtype
        single = vector_env.single_action_space
        self._action_start = int(single.start) if isinstance(single, spaces.Discrete) else 0
        self._all_valid = np.ones(self.num_envs, np.bool_)
        nothing = np.full(self.num_envs, np.nan, np.float32)
        self._no_events = dict.fromkeys(EVENTS, nothing)
        self._nothing: dict[str, npt.NDArray[np.float32]] = {}
        self._valid = self._all_valid
        self._borrows = borrow and self.autoreset_mode is not AutoresetMode.DISABLED

    @property
    def parts(self) -> "list[Environments]":
        """What is stepped apart: here all at once."""
        return [self]

    def reset(self, seed: int | list[int]) -> ArrayObservation:
        """Begin new episodes in all environments.

        Args:
            seed: One of each environment, or one from which the vector environment derives them.

        Returns:
            Observations `[N, *shape]`.
        """
        self._valid = self._all_valid
        observation, _ = self._vector_env.reset(seed=seed)  # type: ignore[arg-type]  # Gymnasium's take a list too
        return _copy(observation)

    def reset_share(self, seed: int, first: int) -> ArrayObservation:
        """Begin new episodes in environments that are the `first` and following ones of more, whose seed this is.

        One after the other (sync), they do what they would do among all.
        """
        if isinstance(self._vector_env, SyncVectorEnv):
            return self.reset(list(range(seed + first, seed + first + self.num_envs)))
        return self.reset(int(np.random.SeedSequence([seed, first]).generate_state(1)[0]))

    def start(self, action: npt.NDArray[Any]) -> None:
        """Keep the actions; `finish` steps."""
        self._action = action

    def finish(self) -> StepResult:
        """The step that was started."""
        return self.step(self._action)

    def step(self, action: npt.NDArray[Any]) -> StepResult:
        """Step all environments.

        Where nothing ended, `next_observation` is the same array as `observation`; `valid`, and events that nobody
        reports, are shared between steps: read them, do not write into them. No array is overwritten by a later step.

        Args:
            action: `[N]` from 0 to n - 1, or `[N, A]`.

        Raises:
            ValueError: The environment reports an event that is neither 0 nor 1.
        """
        if self._action_start:
            action = action + self._action_start
        observation, reward, terminated, truncated, infos = self._vector_env.step(
            np.asarray(action, self._action_dtype).reshape(self._action_shape)
        )
        observation = successor = observation if self._borrows else _copy(observation)
        terminated = np.array(terminated, np.bool_)
        truncated = np.greater(truncated, terminated)  # truncated and not terminated
        valid, events, rates, sums = self._valid, self._no_events, self._nothing, self._nothing
        self._valid = self._all_valid
        ended = terminated | truncated
        if np.count_nonzero(ended):  # a quarter of the cost of ended.any()
            events = events | read_events(self.spec["env_id"], ended, infos)
            rates, sums = read_reported_rates(ended, infos), read_sums(ended, infos)
            observation, successor = self._begin_episodes(observation, ended, infos)
        return StepResult(
            observation=observation,
            reward=np.array(reward, self._reward_dtype),
            terminated=terminated,
            truncated=truncated,
            next_observation=successor,
            valid=valid,
            events=events,
            reported_rates=rates,
            sums=sums,
        )

    def defer_rewards(self) -> Callable[[npt.NDArray[Any], npt.NDArray[Any]], npt.NDArray[np.float64]] | None:
        """Where the reward is a function of observation and action alone: that function of many steps at once.

        Steps then give rewards of 0. None where the environment has none.
        """
        env: Any = self._vector_env.unwrapped
        if not hasattr(env, "defer_rewards"):
            return None
        env.defer_rewards()
        rewards: Callable[[npt.NDArray[Any], npt.NDArray[Any]], npt.NDArray[np.float64]] = env.rewards
        return rewards

    def expert_action(self) -> npt.NDArray[np.int64] | None:
        """What the environment's own expert would do now, `[N]` from 0 to n - 1; None where it has none.

        Where a game begins anew, it is that of the new game.
        """
        env: Any = self._vector_env.unwrapped
        if not hasattr(env, "expert_action"):
            return None
        action: npt.NDArray[np.int64] = np.array(env.expert_action(), np.int64) - self._action_start
        return action

    def needs_care(self) -> npt.NDArray[np.bool_] | None:
        """In which environments exploration is lethal now, `[N]`; None where the environment never says.

        Where a game begins anew, it is that of the new game.
        """
        env: Any = self._vector_env.unwrapped
        return np.array(env.needs_care(), np.bool_) if hasattr(env, "needs_care") else None

    def set_progress(self, progress: float) -> None:
        """Say how far the training is, 0 to 1, to environments that have a curriculum; others do not hear it.

        Those of an evaluation are never told: they are as they will be at the end.
        """
        env: Any = self._vector_env.unwrapped
        if hasattr(env, "set_progress"):
            env.set_progress(progress)

    def render(self) -> list[npt.NDArray[np.uint8]]:
        """One frame `[height, width, 3]` of each environment.

        Raises:
            RuntimeError: The environments were made without rendering.
        """
        frames = self._vector_env.render() if self._vector_env.render_mode == "rgb_array" else None
        if frames is None:
            raise RuntimeError(
                f'{self.spec["env_id"]} has render mode {self._vector_env.render_mode!r}, expected "rgb_array". '
                "Type make_envs(..., render=True)."
            )
        return [np.asarray(frame) for frame in frames]

    @property
    def render_fps(self) -> int:
        """Frames per second at which a video of it looks natural."""
        return int(self._vector_env.metadata.get("render_fps", 30))

    def close(self) -> None:
        """Free the environments' processes and windows."""
        self._vector_env.close()

    @property
    def can_save(self) -> bool:
        """Whether `state_dict` gives a state. If not, running episodes cannot be continued after a resume."""
        return self.state_dict() is not None

    def state_dict(self) -> dict[str, Any] | None:
        """All environments' state with their random generators, for the same future bit for bit.

        It loads with `weights_only`. None where an environment holds something that cannot be saved: give it
        `get_state()` and `set_state(state)`. The current observation is not part of it.
        """
        layers = self._get_layers()
        if layers is None:
            return None
        state = {
            "env_id": self.spec["env_id"],
            "autoreset_mode": self.autoreset_mode.value,
            "valid": self._valid,
            "layers": layers,
        }
        return cast(dict[str, Any], _map(state, np.ndarray, lambda array: torch.from_numpy(array.copy())))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of environments that were made alike.

        Raises:
            ValueError: The state is of another environment, number of environments or autoreset mode.
        """
        saved = cast(dict[str, Any], _map(state, torch.Tensor, lambda tensor: tensor.cpu().numpy().copy()))
        expected = (saved["env_id"], saved["autoreset_mode"], len(saved["valid"]))
        got = (self.spec["env_id"], self.autoreset_mode.value, self.num_envs)
        if expected != got:
            raise ValueError(
                f"Expected the env_id, autoreset mode and num_envs of the saved run, {expected}, got {got}."
            )
        self._vector_env.reset(seed=0)  # makes what the environments only make at a reset
        self._valid = saved["valid"]
        if not isinstance(self._vector_env, SyncVectorEnv | AsyncVectorEnv):
            env_state.set_state(self._vector_env, saved["layers"])
            return
        for layers, valid in zip(saved["layers"], saved["valid"], strict=True):
            layers["reset_next"] = not valid
        self._vector_env.set_attr("env_state", saved["layers"])

    def _get_layers(self) -> list[dict[str, Any]] | None:
        """The layers of a native vector environment, or for each environment of a sync or async one its state."""
        if not isinstance(self._vector_env, SyncVectorEnv | AsyncVectorEnv):
            try:
                return env_state.get_state(self._vector_env)
            except env_state.UnsavableError:
                return None
        # An attribute that is missing would end an async worker.
        if not all(self._vector_env.call("has_wrapper_attr", "env_state")):
            return None
        states = list(self._vector_env.get_attr("env_state"))
        return None if None in states else states

    def _begin_episodes(
        self, observation: ArrayObservation, ended: npt.NDArray[np.bool_], infos: dict[str, Any]
    ) -> tuple[ArrayObservation, ArrayObservation]:
        """What the policy sees next, and the true successor, of a step after which some episodes ended."""
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self._valid = ~ended
            return observation, observation
        if self.autoreset_mode is AutoresetMode.DISABLED:
            first, _ = self._vector_env.reset(options={"reset_mask": ended.copy()})
            return _copy(first), observation
        return observation, self._final(observation, ended, infos)

    def _final(
        self, observation: ArrayObservation, ended: npt.NDArray[np.bool_], infos: dict[str, Any]
    ) -> ArrayObservation:
        """A copy of the observations with the ended episodes' last ones."""
        if "final_obs" not in infos:
            raise RuntimeError(
                f"{self._vector_env} resets in the same step, but its infos have {sorted(infos)}. "
                'Expected infos["final_obs"]; return the last observation of an ended episode there.'
            )
        final, successor = infos["final_obs"], _copy(observation)
        if not isinstance(successor, dict):
            successor[ended] = _stack(final[ended])
            return successor
        for key, rows in successor.items():
            rows[ended] = _stack(final[key][ended] if isinstance(final, dict) else [one[key] for one in final[ended]])
        return successor


def _copy(observation: ArrayObservation) -> ArrayObservation:
    if isinstance(observation, dict):
        return {key: array.copy() for key, array in observation.items()}
    return observation.copy()


def _stack(rows: Any) -> npt.NDArray[Any]:
    """Rows of one array, or an array or list of arrays, to one array."""
    return rows if isinstance(rows, np.ndarray) and rows.dtype != np.object_ else np.stack(list(rows))


def _map(tree: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    """The same dicts and lists with the leaves of a kind converted."""
    if isinstance(tree, dict):
        return {key: _map(value, kind, convert) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_map(value, kind, convert) for value in tree]
    return convert(tree) if isinstance(tree, kind) else tree
