import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmods.functional.expert_share import expert_floor_reached, expert_share

# The curriculum of the post-mortem.
SEED: dict[str, Any] = {"start": 0.95, "decay": 0.996, "decay_steps": 10_000, "floor": 0.10}


def test_golden_schedule() -> None:
    """0.8 for 10 steps, then 0.4, 0.2, and the floor in the place of 0.1."""
    halving: dict[str, Any] = {"start": 0.8, "decay": 0.5, "decay_steps": 10, "floor": 0.15}
    shares = [expert_share(env_steps, **halving) for env_steps in (0, 9, 10, 19, 20, 29, 30, 10_000)]
    assert shares == [0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.15, 0.15]
    assert expert_floor_reached(**halving) == 30


def test_golden_floor_of_the_post_mortem() -> None:
    """ln(0.10 / 0.95) / ln 0.996 = 561.7, so 562 steps of 10,000 frames: 5.62 M, not 17 M."""
    assert expert_floor_reached(**SEED) == 5_620_000
    assert expert_share(5_619_999, **SEED) > 0.10
    assert expert_share(5_620_000, **SEED) == 0.10


@pytest.mark.parametrize(("decay", "steps"), [(0.5, 29), (0.5, 39), (0.9, 4), (0.99, 2), (0.99, 13)])
def test_a_floor_that_is_a_power_of_the_decay_is_reached_with_it(decay: float, steps: int) -> None:
    assert expert_floor_reached(start=1.0, decay=decay, decay_steps=10, floor=decay**steps) == 10 * steps


def test_a_floor_that_is_never_reached() -> None:
    assert expert_floor_reached(start=0.5, decay=1.0, decay_steps=10, floor=0.1) == math.inf
    assert expert_floor_reached(start=0.5, decay=0.9, decay_steps=10, floor=0.0) == math.inf
    assert expert_floor_reached(start=0.5, decay=1.0, decay_steps=10, floor=0.5) == 0.0


@given(st.floats(0.01, 1.0), st.floats(0.5, 0.999), st.integers(1, 1000), st.floats(0.01, 0.99), st.integers(0, 10**6))
def test_the_share_never_rises_nor_leaves_its_bounds(
    start: float, decay: float, decay_steps: int, part: float, env_steps: int
) -> None:
    schedule: dict[str, Any] = {"start": start, "decay": decay, "decay_steps": decay_steps, "floor": part * start}
    share = expert_share(env_steps, **schedule)
    assert part * start <= share <= start
    assert expert_share(env_steps + 1, **schedule) <= share
    reached = expert_floor_reached(**schedule)
    assert expert_share(int(reached), **schedule) == pytest.approx(part * start, rel=1e-9)
