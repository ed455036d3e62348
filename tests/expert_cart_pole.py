"""CartPole with a scripted expert, as a vector environment that Gymnasium finds under `expert_cart_pole:...`."""

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

ENV_ID = "expert_cart_pole:ExpertCartPole-v0"


class ExpertCartPole(CartPoleVectorEnv):
    """The expert pushes to where the pole falls; near the edge of the track exploration needs care."""

    def expert_action(self) -> npt.NDArray[np.int64]:
        """Balances for the 500 steps of an episode nearly always."""
        state: Any = self.state
        _, velocity, angle, angular_velocity = state
        push: npt.NDArray[np.int64] = (angle + 0.2 * angular_velocity + 0.02 * velocity > 0.0).astype(np.int64)
        return push

    def needs_care(self) -> npt.NDArray[np.bool_]:
        """Where the cart is off the middle."""
        state: Any = self.state
        off: npt.NDArray[np.bool_] = np.abs(state[0]) > 0.03
        return off


gymnasium.register("ExpertCartPole-v0", vector_entry_point="expert_cart_pole:ExpertCartPole", max_episode_steps=500)
