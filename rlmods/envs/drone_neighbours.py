"""The nearest other drone of the same swarm."""

import numpy as np

from rlmods.envs.drone_dynamics import Array


def nearest_others(position: Array) -> tuple[Array, Array]:
    """The way to the nearest other drone of each, and its length.

    Args:
        position: `[3, E, A]`, of E swarms of A drones.

    Returns:
        `[3, E, A]`, and `[E, A]`. A drone alone has a way of zeros, infinitely long.
    """
    num_drones = position.shape[2]
    if num_drones == 1:
        return np.zeros_like(position), np.full(position.shape[1:], np.inf, np.float32)
    ways = position[:, :, None, :] - position[:, :, :, None]  # [3, E, from, to]
    x, y, z = ways
    squares = x * x + y * y + z * z
    squares[:, range(num_drones), range(num_drones)] = np.inf
    nearest = squares.argmin(2)[..., None]  # [E, A, 1]
    way = np.take_along_axis(ways, nearest[None], axis=3)[..., 0]
    return way, np.sqrt(np.take_along_axis(squares, nearest, axis=2)[..., 0])
