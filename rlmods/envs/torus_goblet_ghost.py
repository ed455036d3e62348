"""A torus with a ghost and goblets: the environment of the off-policy laboratory.

An adventurer walks on a periodic square, a ghost follows, goblets lie about. Touching the ghost costs, goblets pay or
cost by their type. It goes on for ever; with a small probability a step begins anew. The reward is linear in frozen
random features of state and action: a teacher that a linear critic can find exactly where γ = 0.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rlmods.functional.gaussian_policy import ActionMode, executed_action
from rlmods.networks.random_features import (
    CriticFeatures,
    FeatureSettings,
    Precision,
    check_feature_settings,
    teacher_weight,
)

OBSERVATION_SIZE, ACTION_SIZE = 18, 2

Array = npt.NDArray[np.float64]


class TorusGobletGhost(VectorEnv[Any, Any, Any]):
    """B adventurers, each on a torus of its own, stepped together.

    An observation holds 18 numbers: sine and cosine of the adventurer's and the ghost's position (8), the way to the
    ghost and to the nearest goblet in units of the torus (4), the type of that goblet and the mean type (2), and what
    happened in the step that led here: caught, picked a good goblet, picked a bad one, began anew (4).

    A step, from the state s with the action a:

    1. The reward is w_R·φ(s, a)/√D: an event is rewarded one step after it happened.
    2. The adventurer moves by dt·a, the ghost by dt·v_ghost towards it; both are jostled.
    3. A ghost within `eps_catch` catches, and appears elsewhere.
    4. The first goblet within `eps_pick` is picked, and appears elsewhere, perhaps with another type.
    5. With probability `p_mix` everything is drawn anew.

    `reset(seed=int)` gives all of them one generator, `reset(seed=[...])` each its own, which draws in a fixed order.

    Args:
        num_envs: B.
        max_episode_steps: steps after which an episode is truncated; None never does.
        torus_size: side of the square, L.
        dt: length of a step.
        v_max: largest speed, used by the action modes that limit it.
        v_ghost: speed of the ghost.
        sigma_env: standard deviation of the adventurer's jostling, per coordinate and step.
        sigma_ghost: the same of the ghost.
        eps_catch: distance at which the ghost catches.
        eps_pick: distance at which a goblet is picked.
        num_goblets: at least one.
        p_mix: probability of a step to begin anew.
        p_type_positive: probability that a type is drawn as good.
        type_resample_p: probability that a picked goblet draws a new type.
        action_mode: what is executed of a chosen action: its projection on the disc of radius `v_max` (ball_clip) or on
            the square (box_clip), `v_max`·tanh of it, or itself (raw).
        feature_dim: D, of the critic and the teacher.
        actor_feature_dim: features of the actor; the environment does not use them, but says them with the others.
        feature_sigma: scale of the critic's random frequencies.
        actor_feature_norm: largest norm of the actor's features.
        lambda_action_penalty: what the teacher takes for ‖a‖².
        teacher_base_scale: of the teacher's other weights.
        feature_seed: of the features and the teacher; not the training's.
        precision: of the observations and the features.
        use_teacher_reward: false gives rewards of 0.

    Raises:
        ValueError: where a setting lies outside its range.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012, as Gymnasium's

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        *,
        torus_size: float = 1.0,
        dt: float = 0.05,
        v_max: float = 0.4,
        v_ghost: float = 0.3,
        sigma_env: float = 0.01,
        sigma_ghost: float = 0.01,
        eps_catch: float = 0.05,
        eps_pick: float = 0.04,
        num_goblets: int = 3,
        p_mix: float = 0.05,
        p_type_positive: float = 0.5,
        type_resample_p: float = 0.5,
        action_mode: ActionMode = "raw",
        feature_dim: int = 128,
        actor_feature_dim: int = 32,
        feature_sigma: float = 1.0,
        actor_feature_norm: float = 1.0,
        lambda_action_penalty: float = 0.1,
        teacher_base_scale: float = 0.05,
        feature_seed: int = 0,
        precision: Precision = "float32",
        use_teacher_reward: bool = True,
    ) -> None:
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        self.torus_size = torus_size
        self.dt = dt
        self.v_max = v_max
        self.v_ghost = v_ghost
        self.sigma_env = sigma_env
        self.sigma_ghost = sigma_ghost
        self.eps_catch = eps_catch
        self.eps_pick = eps_pick
        self.num_goblets = num_goblets
        self.p_mix = p_mix
        self.p_type_positive = p_type_positive
        self.type_resample_p = type_resample_p
        self.action_mode = action_mode
        self.use_teacher_reward = use_teacher_reward
        features: FeatureSettings = {
            "observation_size": OBSERVATION_SIZE,
            "action_size": ACTION_SIZE,
            "feature_dim": feature_dim,
            "actor_feature_dim": actor_feature_dim,
            "feature_sigma": feature_sigma,
            "actor_feature_norm": actor_feature_norm,
            "lambda_action_penalty": lambda_action_penalty,
            "teacher_base_scale": teacher_base_scale,
            "feature_seed": feature_seed,
            "precision": precision,
        }
        _check_types({**{name: getattr(self, name) for name in _NUMBERS}, **features})
        _check(self)
        check_feature_settings(features)
        self.settings: dict[str, Any] = {
            "features": features,
            "action_mode": action_mode,
            "v_max": v_max,
            "max_episode_steps": max_episode_steps,
        }
        self._dtype = np.dtype(precision)
        self._features = CriticFeatures(features)
        self._teacher = teacher_weight(features) / feature_dim**0.5
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE,), self._dtype.type)
        self.single_action_space = spaces.Box(-np.inf, np.inf, (ACTION_SIZE,), self._dtype.type)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators: list[np.random.Generator] = []  # one each, or none where all share `np_random`
        self._position = np.zeros((num_envs, 2))
        self._others = np.zeros((num_envs, 1 + num_goblets, 2))  # the ghost, then the goblets
        self._types = np.zeros((num_envs, num_goblets))
        self._events = np.zeros((num_envs, 4))
        self._elapsed = np.zeros(num_envs, np.int64)
        self._observation = np.zeros((num_envs, OBSERVATION_SIZE), self._dtype)
        self._reach = np.array([eps_catch] + [eps_pick] * num_goblets)
        self._rows = np.arange(num_envs)
        self._no_end = np.zeros(num_envs, np.bool_)
        self._no_reward = np.zeros(num_envs)
        self._defers_rewards = False

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        """Draw all states anew; where `options` has a `reset_mask` `[B]`, only those."""
        if isinstance(seed, Sequence):
            if len(seed) != self.num_envs or any(one is None for one in seed):
                raise ValueError(f"got the seeds {list(seed)}, expected {self.num_envs} whole numbers")
            self._generators = [seeding.np_random(one)[0] for one in seed]
        elif seed is not None:
            super().reset(seed=seed)
            self._generators = []
        mask = None if options is None else options.get("reset_mask")
        self._begin(np.arange(self.num_envs) if mask is None else np.flatnonzero(mask))
        self._observe(self._ways())
        return self._observation.copy(), {}

    def step(
        self, actions: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[Any], Array, npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]:
        """Step all of them with actions `[B, 2]` as the policy chose them."""
        reward = self._no_reward if self._defers_rewards else self.rewards(self._observation, actions)
        chosen = torch.from_numpy(np.ascontiguousarray(actions, np.float64))
        self._move(executed_action(chosen, self.action_mode, self.v_max).numpy())
        self._elapsed += 1
        truncated = self._no_end
        infos: dict[str, Any] = {}
        if self.max_episode_steps is not None and self._elapsed.max() >= self.max_episode_steps:
            truncated = self._elapsed >= self.max_episode_steps
            infos = {"final_obs": self._observation.copy(), "_final_obs": truncated}
            self._begin(np.flatnonzero(truncated))
            self._observe(self._ways())
        return self._observation.copy(), reward.copy(), self._no_end.copy(), truncated.copy(), infos

    def rewards(self, observations: npt.NDArray[Any], actions: npt.NDArray[Any]) -> Array:
        """w_R·φ(s, a)/√D, `[M]`, of observations `[M, 18]` and actions `[M, 2]` as the policy chose them."""
        if not self.use_teacher_reward:
            return np.zeros(len(observations))
        chosen = torch.from_numpy(np.ascontiguousarray(actions, self._dtype))
        action = executed_action(chosen, self.action_mode, self.v_max)
        value = self._features.value(self._teacher, torch.from_numpy(observations), action)
        return cast(Array, value.numpy().astype(np.float64))

    def defer_rewards(self) -> None:
        """From now on steps give rewards of 0: the caller asks `rewards` for those of many steps at once."""
        self._defers_rewards = True

    def get_state(self) -> dict[str, Any]:
        """Everything that the future depends on."""
        state = {name: value for name, value in vars(self).items() if name in _STATE} | {"np_random": self.np_random}
        return deepcopy(state)  # a step writes into the arrays

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state that `get_state` gave."""
        for name, value in deepcopy(state).items():
            setattr(self, name, value)

    def _move(self, action: Array) -> None:
        noise = self._normals()
        size, others = self.torus_size, self._others
        self._position = (self._position + self.dt * action + self.sigma_env * noise[:, :2]) % size
        way = self._way(others[:, 0], self._position)
        distance = np.sqrt(way[:, :1] ** 2 + way[:, 1:] ** 2)
        distance[distance < 1e-12] = np.inf
        others[:, 0] = (others[:, 0] + self.dt * self.v_ghost * way / distance + self.sigma_ghost * noise[:, 2:]) % size
        self._events[:] = 0.0
        ways, distances = self._ways()
        reached = distances <= self._reach
        happens = reached.any()
        if happens:
            for env in np.flatnonzero(reached.any(1)).tolist():
                self._meet(env, reached[env])
        begins = np.flatnonzero(self._uniforms() < self.p_mix)
        if len(begins):
            elapsed = self._elapsed[begins]
            self._begin(begins)
            self._elapsed[begins] = elapsed
            self._events[begins, 3] = 1.0
        self._observe(self._ways() if happens or len(begins) else (ways, distances))

    def _meet(self, env: int, reached: npt.NDArray[np.bool_]) -> None:
        """The ghost catches; the first goblet within reach is picked."""
        generator = self._generator(env)
        if reached[0]:
            self._events[env, 0] = 1.0
            self._others[env, 0] = self.torus_size * generator.random(2)
        if reached[1:].any():
            goblet = int(reached[1:].argmax())
            self._events[env, 1 if self._types[env, goblet] > 0 else 2] = 1.0
            self._others[env, 1 + goblet] = self.torus_size * generator.random(2)
            if generator.random() < self.type_resample_p:
                self._types[env, goblet] = 1.0 if generator.random() < self.p_type_positive else -1.0

    def _begin(self, envs: npt.NDArray[np.intp]) -> None:
        for env in envs.tolist():
            generator = self._generator(env)
            self._position[env] = self.torus_size * generator.random(2)
            self._others[env] = self.torus_size * generator.random((1 + self.num_goblets, 2))
            self._types[env] = np.where(generator.random(self.num_goblets) < self.p_type_positive, 1.0, -1.0)
        self._events[envs] = 0.0
        self._elapsed[envs] = 0

    def _ways(self) -> tuple[Array, Array]:
        """From the adventurers to ghost and goblets, `[B, 1 + K, 2]`, and how far it is, `[B, 1 + K]`."""
        ways = self._way(self._position[:, None], self._others)
        return ways, np.sqrt(ways[..., 0] ** 2 + ways[..., 1] ** 2)

    def _observe(self, ways_and_distances: tuple[Array, Array]) -> None:
        ways, distances = ways_and_distances
        size, observation = self.torus_size, self._observation
        nearest = distances[:, 1:].argmin(1)
        angles = 2.0 * np.pi / size * self._position
        np.sin(angles, out=observation[:, 0:2])
        np.cos(angles, out=observation[:, 2:4])
        angles = 2.0 * np.pi / size * self._others[:, 0]
        np.sin(angles, out=observation[:, 4:6])
        np.cos(angles, out=observation[:, 6:8])
        observation[:, 8:10] = ways[:, 0] / size
        observation[:, 10:12] = ways[self._rows, 1 + nearest] / size
        observation[:, 12] = self._types[self._rows, nearest]
        observation[:, 13] = self._types.sum(1) / self.num_goblets
        observation[:, 14:] = self._events

    def _way(self, start: Array, end: Array) -> Array:
        """The shortest way on the torus, per coordinate in [−L/2, L/2)."""
        half = 0.5 * self.torus_size
        return (end - start + half) % self.torus_size - half

    def _generator(self, env: int) -> np.random.Generator:
        return self._generators[env] if self._generators else self.np_random

    def _normals(self) -> Array:
        """`[B, 4]`: two numbers for the adventurer, two for the ghost."""
        if not self._generators:
            return self.np_random.standard_normal((self.num_envs, 4))
        return np.stack([generator.standard_normal(4) for generator in self._generators])

    def _uniforms(self) -> Array:
        """`[B]`."""
        if not self._generators:
            return self.np_random.random(self.num_envs)
        return np.array([generator.random() for generator in self._generators])


_STATE = {"_generators", "_position", "_others", "_types", "_events", "_elapsed", "_observation"}


_WHOLE = ("num_goblets", "max_episode_steps", "feature_dim", "actor_feature_dim", "feature_seed")
_NUMBERS = (
    "torus_size", "dt", "v_max", "v_ghost", "sigma_env", "sigma_ghost", "eps_catch", "eps_pick", "num_goblets", "p_mix",
    "p_type_positive", "type_resample_p", "max_episode_steps",
)  # fmt: skip


def _check_types(settings: Mapping[str, Any]) -> None:
    """The command line passes on what it cannot check: a word in the place of a number."""
    for name, value in settings.items():
        if name == "precision" or (name == "max_episode_steps" and value is None):
            continue
        kinds = (int,) if name in _WHOLE else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool) or not np.isfinite(value):
            expected = "a whole number" if name in _WHOLE else "a finite number"
            raise ValueError(
                f"got {name} = {value!r}, expected {expected}: type --data.init_args.env_kwargs.{name} VALUE, or write "
                "env_kwargs into a configuration file, where null means none"
            )


def _check(env: TorusGobletGhost) -> None:
    probability = "a probability in [0, 1]"
    expectations = {
        "torus_size": (env.torus_size > 0.0, "a length above 0"),
        "dt": (env.dt > 0.0, "a time above 0"),
        "v_max": (env.v_max > 0.0, "a speed above 0"),
        "v_ghost": (env.v_ghost >= 0.0, "a speed of at least 0"),
        "sigma_env": (env.sigma_env >= 0.0, "at least 0"),
        "sigma_ghost": (env.sigma_ghost >= 0.0, "at least 0"),
        "eps_catch": (env.eps_catch >= 0.0, "a distance of at least 0"),
        "eps_pick": (env.eps_pick >= 0.0, "a distance of at least 0"),
        "num_goblets": (env.num_goblets >= 1, "at least one"),
        "p_mix": (0.0 <= env.p_mix <= 1.0, probability),
        "p_type_positive": (0.0 <= env.p_type_positive <= 1.0, probability),
        "type_resample_p": (0.0 <= env.type_resample_p <= 1.0, probability),
        "action_mode": (env.action_mode in get_args(ActionMode), f"one of {', '.join(get_args(ActionMode))}"),
        "max_episode_steps": (env.max_episode_steps is None or env.max_episode_steps >= 1, "at least 1, or null"),
    }
    for name, (is_right, expected) in expectations.items():
        if not is_right:
            raise ValueError(
                f"got {name} = {getattr(env, name)!r}, expected {expected}: type "
                f"--data.init_args.env_kwargs.{name} VALUE"
            )
