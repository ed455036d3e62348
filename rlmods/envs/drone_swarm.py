"""Swarms of drones with a task each: many agents in one numpy step, for on-policy algorithms on one machine."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rlmods.envs.drone_dynamics import ALL, Array, Dynamics, PointMass, Quadrotor
from rlmods.envs.drone_neighbours import nearest_others
from rlmods.envs.drone_observations import SIZES, Felt, Layout, Seen, full, lite
from rlmods.envs.drone_render import Scene, draw_swarm
from rlmods.envs.drone_settings import check_drone_settings, make_reward_weights
from rlmods.envs.drone_tasks import Situation, Task, draw_targets, is_outside, make_stages, potential, situation_of
from rlmods.envs.episode_streams import EpisodeStreams, Indices
from rlmods.envs.success_counter import SuccessCounter

Level: TypeAlias = Literal[0, 1]

DT = 0.05  # s


class DroneSwarm(VectorEnv[Any, Any, Any]):
    """N drones in swarms of A, each with a task, an episode and a reset of its own: a row of the batch is a drone.

    The world is ±30 × ±30 × ±10 m and a step 0.05 s. A drone begins anywhere in the arena, at rest, and has one of
    these tasks, whose targets lie in the arena as well:

    - `waypoint`: fly through `num_waypoints` places, within 0.5 m of each, in order.
    - `hover`: be within 0.4 m of a place and slower than 0.4 m/s for the episode's last 20 steps.
    - `pick_and_place`: hover 1 m above a box, grip it, hover 1 m above the drop, let go; within 0.4 m, 0.2 m, 0.4 m and
      0.2 m, slower than 0.4 m/s each time.

    An episode terminates where its task is done, or where the drone has left the world or gone below its floor; at
    `max_episode_steps` it is truncated. So an episode is one attempt, and a rate of episodes counts attempts: the drone
    that is done makes room for a new one. Hovering is done only at the time limit, because it has to last.

    The reward of a step is the difference of a potential (`RewardWeights`) towards the target that the drone had, plus
    the bonus of a stage that is done, minus 1 on leaving the world. Nothing is clipped. Actions are: outside of
    [−1, 1] they are those of the bound.

    The infos of an episode's end say `is_success` (the task was done), `collision` (at any step another drone of the
    swarm was within `collision_distance`; it goes on) and `out_of_bounds`: 0 or 1, once an episode.

    All drones of a row draw from a stream of their own: nothing that happens in a swarm changes another one.

    Args:
        num_envs: N, drones in all, a multiple of `num_agents`.
        max_episode_steps: after which an episode is truncated.
        num_agents: A, drones of a swarm.
        level: 0 is a point mass with 3 accelerations, 1 a quadrotor with 4 rotors.
        task: as above.
        observation: `full` has 42 numbers, `lite` 20.
        num_waypoints: of the task of that name, 1 to 5.
        arena: half of the sides of the box in which drones begin and targets lie, m.
        randomization: largest relative deviation of a drone's body from the nominal one, in [0, 1).
        curriculum: share of the training over which the windows of the stages and the reward radius shrink to their
            final size; 0 has that from the start. Who trains says how far it is (`set_progress`); without a word, as in
            an evaluation, it is the end.
        curriculum_scale: how many times as wide they are at the beginning.
        reward_radius: R of the potential, m.
        reward_weights: those of `RewardWeights` that differ from its defaults.
        collision_distance: between the centres of two drones, m.
        counter_metric: the infos of an episode's end have a `success_rate` as well, which is a count and no rate
            (`SuccessCounter`): it is there to be found out.
        render_mode: "rgb_array", or None.

    Raises:
        ValueError: where a setting lies outside its range.
    """

    metadata = {  # noqa: RUF012, as Gymnasium's
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": ["rgb_array"],
        "render_fps": round(1 / DT),
    }

    def __init__(
        self,
        num_envs: int = 8,
        max_episode_steps: int = 200,
        *,
        num_agents: int = 8,
        level: Level = 0,
        task: Task = "waypoint",
        observation: Layout = "full",
        num_waypoints: int = 3,
        arena: Sequence[float] = (6.0, 6.0, 3.0),
        randomization: float = 0.1,
        curriculum: float = 0.0,
        curriculum_scale: float = 4.0,
        reward_radius: float = 8.0,
        reward_weights: Mapping[str, float] | None = None,
        collision_distance: float = 0.5,
        counter_metric: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        self.num_agents = num_agents
        self.level = level
        self.task: Task = task
        self.observation: Layout = observation
        self.num_waypoints = num_waypoints
        self.arena = arena
        self.randomization = randomization
        self.curriculum = curriculum
        self.curriculum_scale = curriculum_scale
        self.reward_radius = reward_radius
        self.collision_distance = collision_distance
        self.counter_metric = counter_metric
        self.render_mode = render_mode
        check_drone_settings(vars(self))
        self.weights = make_reward_weights(reward_weights)
        self.settings: dict[str, Any] = {
            "num_agents": num_agents,
            "level": level,
            "task": task,
            "max_episode_steps": max_episode_steps,
        }
        self.stages = make_stages(task, num_waypoints)
        self.dynamics: Dynamics = (Quadrotor if level else PointMass)(num_envs, DT, randomization)
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (SIZES[observation],), np.float32)
        self.single_action_space = spaces.Box(-1.0, 1.0, (self.dynamics.action_size,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._half_arena = np.array(self.arena, np.float32)[:, None]
        self._streams = EpisodeStreams(num_envs, 3 + self.stages.draws + self.dynamics.draws)
        self._scale = 1.0  # of the windows and the reward radius
        self._targets = np.zeros((self.stages.size, 3, num_envs), np.float32)
        self._target = np.zeros((3, num_envs), np.float32)
        self._stage = np.zeros(num_envs, np.intp)
        self._elapsed = np.zeros(num_envs, np.int64)
        self._held = np.zeros(num_envs, np.int64)  # steps on end in the window
        self._collided = np.zeros(num_envs, np.bool_)
        self._potential = np.zeros(num_envs, np.float32)
        self._rewards = np.zeros((3, num_envs), np.float32)  # as they are observed
        self._way = np.zeros((3, num_envs), np.float32)  # to the nearest other drone
        self._nearest = np.zeros(num_envs, np.float32)
        self._counter = SuccessCounter(num_envs // num_agents, num_agents, max_episode_steps)

    @property
    def target(self) -> Array:
        """Of the present stage, `[3, N]` m."""
        return self._target

    def set_progress(self, progress: float) -> None:
        """How far the training is, 0 to 1: the curriculum follows it, whatever the episodes do."""
        left = max(0.0, 1.0 - progress / self.curriculum) if self.curriculum else 0.0
        scale = 1.0 + (self.curriculum_scale - 1.0) * left
        if scale != self._scale:
            self._scale = scale
            self._measure(ALL)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Begin new episodes: those after the present ones, or with a seed the first ones of new streams."""
        if isinstance(seed, Sequence) and len(seed) != self.num_envs:
            raise ValueError(f"got {len(seed)} seeds, expected one number or {self.num_envs} of them")
        if seed is not None:
            self._streams.seed(seed)
        elif not self._streams.seeds.any():
            self._streams.seed(int(self.np_random.integers(2**63)))
        self._begin(ALL)
        self._counter.reset()
        return self._observe(ALL), {}

    def step(
        self, actions: npt.NDArray[Any]
    ) -> tuple[Array, Array, npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]:
        """Fly for 0.05 s with actions `[N, 3]` or, at level 1, `[N, 4]`."""
        self.dynamics.step(np.clip(np.asarray(actions, np.float32).T, -1.0, 1.0))
        self._look_around(ALL)
        self._elapsed += 1
        self._collided |= self._nearest < self.collision_distance
        situation = self._situation(ALL)
        is_done = situation.is_near & situation.is_slow
        is_out = is_outside(self.dynamics.position)
        reward = self._reward(situation, is_done, is_out)
        if self.stages.hold_steps:
            self._held = (self._held + 1) * is_done
            has_succeeded, moved_on = np.zeros_like(is_done), np.flatnonzero(())
        else:
            self._stage += is_done
            has_succeeded, moved_on = self._stage == self.stages.size, np.flatnonzero(is_done)
        terminated = has_succeeded | is_out
        truncated = (self._elapsed >= self.max_episode_steps) & ~terminated
        if self.stages.hold_steps:
            has_succeeded = truncated & (self._held >= self.stages.hold_steps)
        if self.counter_metric:
            self._counter.tick(has_succeeded)
        ended = terminated | truncated
        infos: dict[str, Any] = {}
        if len(moved_on):
            self._aim(moved_on)
            self._measure(moved_on)
        if ended.any():
            infos = self._final_infos(ended, {"is_success": has_succeeded, "out_of_bounds": is_out})
            self._begin(np.flatnonzero(ended))
        return self._observe(ALL), reward, terminated, truncated, infos

    def render(self) -> tuple[npt.NDArray[np.uint8], ...] | None:
        """Of each drone its swarm from above and from the side, `[360, 720, 3]`; None without a render mode."""
        if self.render_mode is None:
            return None
        frames = [draw_swarm(self._scene(swarm)) for swarm in range(self.num_envs // self.num_agents)]
        return tuple(frames[drone // self.num_agents] for drone in range(self.num_envs))

    def get_state(self) -> dict[str, Any]:
        """Everything that the future depends on."""
        state = {name: value for name, value in vars(self).items() if name in _STATE}
        # A step writes into the arrays.
        return deepcopy(
            state
            | {"np_random": self.np_random, "flight": self.dynamics.state, "body": self.dynamics.body}
            | {"streams": self._streams.get_state(), "counter": self._counter.get_state()}
        )

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state that `get_state` gave."""
        state = deepcopy(state)
        self.dynamics.state, self.dynamics.body = state.pop("flight"), state.pop("body")
        self._streams.set_state(state.pop("streams"))
        self._counter.set_state(state.pop("counter"))
        for name, value in state.items():
            setattr(self, name, value)

    # Episodes

    def _begin(self, drones: Indices) -> None:
        """New episodes of some drones; what the others of their swarms see changes with it."""
        uniforms = self._streams.begin(drones)
        first, last = 3, 3 + self.stages.draws
        self.dynamics.begin(drones, (2.0 * uniforms[:first] - 1.0) * self._half_arena, uniforms[last:])
        self._targets[:, :, drones] = draw_targets(self.task, self._half_arena, uniforms[first:last])
        self._stage[drones] = self._elapsed[drones] = self._held[drones] = 0
        self._collided[drones] = False
        self._rewards[:, drones] = 0.0
        swarms = np.unique(np.arange(self.num_envs)[drones] // self.num_agents)
        self._look_around(swarms)
        self._aim(drones)
        self._measure((swarms[:, None] * self.num_agents + np.arange(self.num_agents)).reshape(-1))

    def _aim(self, drones: Indices) -> None:
        """At the targets of the present stages."""
        stage = np.minimum(self._stage[drones], self.stages.size - 1)
        self._target[:, drones] = self._targets[stage, :, np.arange(self.num_envs)[drones]].T

    def _measure(self, drones: Indices) -> None:
        """The potential from which the next reward is counted."""
        self._potential[drones] = self._potential_of(drones, self._situation(drones))

    def _final_infos(self, ended: npt.NDArray[np.bool_], events: dict[str, npt.NDArray[np.bool_]]) -> dict[str, Any]:
        rows = np.flatnonzero(ended)
        final = np.zeros((self.num_envs, SIZES[self.observation]), np.float32)
        final[rows] = self._observe(rows)
        reported: dict[str, npt.NDArray[Any]] = events | {"collision": self._collided.copy()}
        if self.counter_metric:
            reported["success_rate"] = self._counter.report(ended)
        return {
            "final_obs": final,
            "_final_obs": ended,
            "final_info": reported | {f"_{name}": ended for name in reported},
            "_final_info": ended,
        }

    # Rewards

    def _reward(self, situation: Situation, is_done: npt.NDArray[np.bool_], is_out: npt.NDArray[np.bool_]) -> Array:
        before, self._potential = self._potential, self._potential_of(ALL, situation)
        bonus = self.weights.reach * self.stages.bonus[self._stage] * is_done
        shaped = self._potential - before
        reward: Array = shaped + bonus
        reward[is_out] -= self.weights.out_of_bounds
        self._rewards[0] = -self.weights.proximity * (self._nearest < 1.0)
        self._rewards[1] = bonus
        self._rewards[2] = reward
        return reward

    def _situation(self, drones: Indices) -> Situation:
        position, velocity = self.dynamics.position[:, drones], self.dynamics.velocity[:, drones]
        stage = np.minimum(self._stage[drones], self.stages.size - 1)
        return situation_of(self.stages, stage, self._target[:, drones], position, velocity, self._scale)

    def _potential_of(self, drones: Indices, situation: Situation) -> Array:
        rates = self.dynamics.attitude(drones).rates if self.level else None
        velocity, radius = self.dynamics.velocity[:, drones], self._scale * self.reward_radius
        return potential(self.weights, situation, velocity, rates, self._nearest[drones], radius)

    # Observations

    def _look_around(self, swarms: Indices) -> None:
        """For the nearest other drone, in some swarms."""
        shape = (self.num_envs // self.num_agents, self.num_agents)
        way, nearest = nearest_others(self.dynamics.position.reshape(3, *shape)[:, swarms])
        self._way.reshape(3, *shape)[:, swarms], self._nearest.reshape(shape)[swarms] = way, nearest

    def _observe(self, drones: Indices) -> Array:
        position = self.dynamics.position[:, drones]
        seen = Seen(
            position,
            self.dynamics.velocity[:, drones],
            self._target[:, drones] - position,
            self._way[:, drones],
            self._stage[drones].astype(np.float32),
        )
        if self.observation == "lite":
            return lite(seen)
        near_by, beyond = self._landmarks(drones)
        felt = Felt(
            self.dynamics.attitude(drones),
            self._rewards[:, drones],
            self.dynamics.to_body(near_by - position, drones),
            self.dynamics.to_body(beyond - position, drones),
            seen.stage * np.float32(1.0 / self.stages.size),
        )
        return full(seen, felt)

    def _landmarks(self, drones: Indices) -> tuple[Array, Array]:
        """The box and the drop, or for the other tasks the present target and the last one, `[3, n]` each."""
        last = self._targets[-1][:, drones]
        return self._targets[1][:, drones] if self.task == "pick_and_place" else self._target[:, drones], last

    def _scene(self, swarm: int) -> Scene:
        drones = slice(swarm * self.num_agents, (swarm + 1) * self.num_agents)
        position, stage, targets = self.dynamics.position[:, drones], self._stage[drones], self._targets[:, :, drones]
        cargo = None
        if self.task == "pick_and_place":
            cargo = np.where(stage >= 2, position, targets[1])
        return Scene(
            caption=f"{self.task}, step {int(self._elapsed[drones].max())}",
            arena=self.arena,
            position=position,
            velocity=self.dynamics.velocity[:, drones],
            targets=targets,
            stage=stage,
            radius=self._scale * self.stages.radius[np.minimum(stage, self.stages.size - 1)],
            has_collided=self._collided[drones],
            cargo=cargo,
        )


_STATE = {
    "_scale", "_targets", "_target", "_stage", "_elapsed", "_held", "_collided", "_potential", "_rewards", "_way",
    "_nearest",
}  # fmt: skip
