"""A lane shooter: a tube of 16 lanes from which enemies climb, N games in one numpy step, with a scripted expert."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rlmods.envs.episode_streams import Indices
from rlmods.envs.frame_streams import FrameStreams
from rlmods.envs.lane_board import LEVEL_POINTS, NUM_LANES, Array, Board, Flags
from rlmods.envs.lane_bonus import DiversityBonus
from rlmods.envs.lane_enemies import move_enemies
from rlmods.envs.lane_expert import choose_actions
from rlmods.envs.lane_observation import SIZE, observe
from rlmods.envs.lane_render import draw_board
from rlmods.envs.lane_rules import (
    MAX_MOVE,
    NUM_ACTIONS,
    is_caught,
    move_player,
    shoot,
    strike_enemies,
    strike_spikes,
    superzap,
    zoom_on,
)
from rlmods.envs.lane_settings import check_lane_settings, reward_bounds

ALL = slice(None)
_PLACEMENT, _MISTAKES = 1, 2  # salts of the streams


class LaneShooter(VectorEnv[Any, Any, Any]):
    """N games, each with an episode, a reset and a random stream of its own.

    The player moves along the rim of a tube and shoots down its lanes, from which enemies climb:

    - a flipper (150 points) changes lanes, on the rim too, towards the player;
    - a spiker (50) climbs three quarters of the way and back, and leaves a spike;
    - a tanker (100) becomes two flippers where it is shot or near the rim;
    - a pulsar (200) changes lanes, and its lane is deadly in 8 of 32 frames, up to three quarters of the depth;
    - a fuseball (250) is quick and changes lanes all the time.

    An enemy on the rim in the player's lane kills, and so does a pulse. Eight shots may be in flight. Once a level the
    superzap ends all enemies at once. When those of a level are gone, the player flies down the tube (zoom), where a
    spike in its lane kills and shots shorten spikes; at the bottom the next level begins, quicker and with other
    enemies. An episode terminates with the last life; at `max_episode_steps` it is truncated. With a life that is not
    the last all enemies go, and the level goes on.

    An action is 4·(move + 2) + 2·fire + zap, move in {−2 … 2} lanes.

    The reward is the sum of four streams: points, a death penalty, a shaping and a bonus. Their sums over an episode,
    and as `levels` the number of levels finished in it, are in the infos of its end, as `episode_sums`. Every step's
    reward lies in `settings["reward_bounds"]`.

    Args:
        num_envs: N.
        max_episode_steps: after which an episode is truncated.
        num_lanes: 16.
        open: whether the lanes 0 and 15 are no neighbours; nothing opens the third and fourth of every four levels.
        lives: of an episode, 1 to 9.
        points_scale: reward of a point.
        points_clip: most that the points of a step are worth, as reward; nothing has no limit.
        death_penalty: for each life.
        shaping: of this times the difference of the potential −(lanes to the nearest enemy)/16, which is 0 where there
            is none and where the episode has terminated.
        bonus: for the first action in a cluster of states (`DiversityBonus`); 0 has none.
        expert_mistakes: probability with which the expert moves and fires at random.
        render_mode: "rgb_array", or None.

    Raises:
        ValueError: where a setting lies outside its range.
    """

    metadata = {  # noqa: RUF012, as Gymnasium's
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": ["rgb_array"],
        "render_fps": 20,
    }

    def __init__(
        self,
        num_envs: int = 8,
        max_episode_steps: int = 2000,
        *,
        num_lanes: int = NUM_LANES,
        open: bool | None = None,
        lives: int = 1,
        points_scale: float = 0.01,
        points_clip: float | None = None,
        death_penalty: float = 5.0,
        shaping: float = 0.0,
        bonus: float = 0.0,
        expert_mistakes: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        self.num_lanes = num_lanes
        self.open = open
        self.lives = lives
        self.points_scale = points_scale
        self.points_clip = points_clip
        self.death_penalty = death_penalty
        self.shaping = shaping
        self.bonus = bonus
        self.expert_mistakes = expert_mistakes
        self.render_mode = render_mode
        check_lane_settings(vars(self))
        self.settings: dict[str, Any] = {
            "reward_bounds": reward_bounds(vars(self)),
            "max_episode_steps": max_episode_steps,
            "lives": lives,
            "expert_mistakes": expert_mistakes,
        }
        self.single_observation_space = spaces.Box(-1.0, 1.0, (SIZE,), np.float32)
        self.single_action_space = spaces.Discrete(NUM_ACTIONS)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.board = Board(num_envs)
        self._streams = FrameStreams(num_envs)
        self._bonus = DiversityBonus(num_envs, bonus) if bonus else None
        self._elapsed = np.zeros(num_envs, np.int64)
        self._score = np.zeros(num_envs, np.int64)
        self._potential = np.zeros(num_envs)
        self._sums = {name: np.zeros(num_envs) for name in ("points", "death", "shaping", "bonus", "levels")}
        self._first = self._first_observations()

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Begin new games: those after the present ones, or with a seed the first ones of new streams.

        With a seed the bonus forgets what was tried: the same games are worth the same.
        """
        if isinstance(seed, Sequence) and len(seed) != self.num_envs:
            raise ValueError(f"got {len(seed)} seeds, expected one number or {self.num_envs} of them")
        if seed is not None:
            self._streams.seed(seed)
            if self._bonus is not None:
                self._bonus.forget()
        elif not self._streams.seeds.any():
            self._streams.seed(int(self.np_random.integers(2**63)))
        self._begin(ALL)
        return self._see(self._first[self.board.lane]), {}

    def step(self, actions: npt.NDArray[Any]) -> tuple[Array, npt.NDArray[np.float32], Flags, Flags, dict[str, Any]]:
        """Play a frame with actions `[N]` in [0, 20).

        Raises:
            ValueError: where there are others.
        """
        if actions.min() < 0 or actions.max() >= NUM_ACTIONS:
            raise ValueError(f"got actions from {actions.min()} to {actions.max()}, expected 0 to {NUM_ACTIONS - 1}")
        action = actions.astype(np.int8)
        streams: dict[str, Array] = {} if self._bonus is None else {"bonus": self._bonus.pay(action)}
        points, died = self._play(action)
        self._elapsed += 1
        terminated = died & (self.board.lives == 0)
        truncated = (self._elapsed >= self.max_episode_steps) & ~terminated
        streams |= {"points": self._worth(points), "death": -self.death_penalty * died}
        if self.shaping:
            streams["shaping"] = self._shape(terminated)
        reward = np.zeros(self.num_envs)
        for name, values in streams.items():
            reward += values
            self._sums[name] += values
        observation = observe(self.board)
        ended = terminated | truncated
        infos: dict[str, Any] = {}
        if ended.any():
            games = np.flatnonzero(ended)
            infos = self._final_infos(ended, games, observation)
            self._begin(games)
            observation[games] = self._first[self.board.lane[games]]
        return self._see(observation), reward.astype(np.float32), terminated, truncated, infos

    def expert_action(self) -> npt.NDArray[np.int64]:
        """What the scripted expert does in the present states, `[N]`; its mistakes belong to the state."""
        return choose_actions(self.board, self._streams.peek(_MISTAKES, ALL), self.expert_mistakes)

    def needs_care(self) -> Flags:
        """`[N]`, whether the player flies down the tube, where a wrong step is fatal."""
        return self.board.is_zooming

    def render(self) -> tuple[npt.NDArray[np.uint8], ...] | None:
        """Of each game the tube, `[360, 360, 3]`; None without a render mode."""
        if self.render_mode is None:
            return None
        return tuple(draw_board(self.board, game, int(self._score[game])) for game in range(self.num_envs))

    def get_state(self) -> dict[str, Any]:
        """Everything that the future depends on."""
        return {
            "board": self.board.get_state(),
            "streams": self._streams.get_state(),
            "bonus": None if self._bonus is None else self._bonus.get_state(),
            "sums": {name: sums.copy() for name, sums in self._sums.items()},
        } | {name: getattr(self, name).copy() for name in _ARRAYS}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state that `get_state` gave."""
        self.board.set_state(state["board"])
        self._streams.set_state(state["streams"])
        if self._bonus is not None:
            self._bonus.set_state(state["bonus"])
        self._sums = {name: sums.copy() for name, sums in state["sums"].items()}
        for name in _ARRAYS:
            setattr(self, name, state[name].copy())

    # A frame

    def _play(self, action: Array) -> tuple[Array, Flags]:
        """Points `[N]` and whether a life was lost `[N]`."""
        board = self.board
        board.clock += 1
        move_player(board, (action >> 2) - np.int8(MAX_MOVE))
        swept = shoot(board, (action & 2) != 0)
        points = strike_spikes(board).astype(np.float64)
        move_enemies(board, self._streams.draw())
        points += superzap(board, (action & 1) != 0)
        points += strike_enemies(board, swept)
        through = zoom_on(board)
        died = is_caught(board)
        if len(through):
            points[through] += LEVEL_POINTS
            self._sums["levels"][through] += 1
            board.begin_level(through, board.level[through] + 1, self.open)
        if died.any():
            board.lives -= died
            dead = np.flatnonzero(died)
            board.clear(dead)
            board.zoom[dead[board.is_zooming[dead]]] = 0
        self._score += points.astype(np.int64)
        return points, died

    def _worth(self, points: Array) -> Array:
        worth = self.points_scale * points
        return worth if self.points_clip is None else np.minimum(worth, self.points_clip)

    def _shape(self, terminated: Flags) -> Array:
        before, self._potential = self._potential, self._potential_of() * ~terminated
        shaped: Array = self.shaping * (self._potential - before)
        return shaped

    def _potential_of(self) -> Array:
        distance = np.where(self.board.kind > 0, np.abs(self.board.relative()), np.int8(NUM_LANES)).min(0)
        potential: Array = -(distance % NUM_LANES) / NUM_LANES
        return potential

    # Games

    def _begin(self, games: Indices) -> None:
        self._streams.begin(games)
        self.board.lane[games] = self._streams.peek(_PLACEMENT, games)[0] & NUM_LANES - 1
        self.board.lives[games] = self.lives
        self.board.begin_level(games, np.ones_like(self._elapsed[games]), self.open)
        self._elapsed[games] = self._score[games] = 0
        self._potential[games] = 0.0
        for sums in self._sums.values():
            sums[games] = 0.0

    def _see(self, observation: Array) -> Array:
        if self._bonus is not None:
            self._bonus.see(observation)
        return observation

    def _first_observations(self) -> Array:
        """`[16, D]`, of a new game by the lane in which it begins: there is nothing else to be seen."""
        board = Board(NUM_LANES)
        board.lane[:] = np.arange(NUM_LANES)
        board.lives[:] = self.lives
        board.begin_level(ALL, np.ones(NUM_LANES, np.int64), self.open)
        return observe(board)

    def _final_infos(self, ended: Flags, games: Array, observation: Array) -> dict[str, Any]:
        final = np.empty_like(observation)  # the rows of games that go on are nobody's
        final[games] = observation[games]
        sums: dict[str, Any] = {name: sums.copy() for name, sums in self._sums.items()}
        sums |= {f"_{name}": ended for name in self._sums}
        return {
            "final_obs": final,
            "_final_obs": ended,
            "final_info": {"episode_sums": sums, "_episode_sums": ended},
            "_final_info": ended,
        }


_ARRAYS = ("_elapsed", "_score", "_potential")
