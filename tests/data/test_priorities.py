import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmods.data.priorities import PriorityTree

Items = list[tuple[int, float]]
priorities = st.one_of(st.just(0.0), st.floats(2.0**-100, 2.0**100, width=32))


def tree_of(values: npt.NDArray[np.float32]) -> PriorityTree:
    tree = PriorityTree(len(values))
    tree.set(np.arange(len(values)), values)
    return tree


def set_items(tree: PriorityTree, items: Items) -> None:
    index, priority = zip(*items, strict=True)
    tree.set(np.array(index), np.array(priority, dtype=np.float32))


@given(st.integers(1, 300), st.data())
@settings(max_examples=60, deadline=None)
def test_set_equals_a_list(capacity: int, data: st.DataObject) -> None:
    tree, model = PriorityTree(capacity), [0.0] * capacity
    for items in data.draw(st.lists(st.lists(st.tuples(st.integers(0, capacity - 1), priorities), min_size=1))):
        set_items(tree, items)
        for index, priority in items:
            model[index] = priority
    assert tree.priorities(np.arange(capacity)).tolist() == model
    assert tree.total == pytest.approx(sum(model), rel=1e-12)


@given(st.lists(priorities, min_size=1, max_size=300), st.data())
@settings(max_examples=100, deadline=None)
def test_never_an_item_of_priority_zero(values: list[float], data: st.DataObject) -> None:
    values[data.draw(st.integers(0, len(values) - 1))] = data.draw(st.floats(2.0**-100, 2.0**100, width=32))
    tree = tree_of(np.array(values, dtype=np.float32))
    fractions = data.draw(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20))
    edges = np.array(values, dtype=np.float32).cumsum(dtype=np.float64)
    mass = np.concatenate([np.array([*fractions, 0.0, 1.0, np.nextafter(1.0, 0.0)]) * tree.total, edges])
    index = tree.sample(mass)
    assert (tree.priorities(index) > 0).all()


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000])
def test_a_grid_of_mass_equals_a_naive_sampler(size: int) -> None:
    values = np.random.default_rng(size).integers(0, 5, size).astype(np.float32) + np.float32(size == 1)
    # Small integers are exact in float: item i is found once for each unit of its priority.
    mass = np.arange(values.sum()) + 0.5
    np.testing.assert_array_equal(tree_of(values).sample(mass), np.repeat(np.arange(size), values.astype(np.int64)))


def test_a_boundary_belongs_to_the_next_item() -> None:
    tree = tree_of(np.array([0.0, 2.0, 0.0, 3.0], dtype=np.float32))
    assert tree.sample(np.array([0.0, 1.9, 2.0, 4.9, 5.0, 6.0])).tolist() == [1, 1, 3, 3, 3, 3]


@given(st.lists(st.lists(st.tuples(st.integers(0, 199), priorities), min_size=1), min_size=1))
@settings(max_examples=60, deadline=None)
def test_a_restored_tree_samples_bit_for_bit_alike(rounds: list[Items]) -> None:
    tree = PriorityTree(200)
    for items in [*rounds, [(7, 1.0)]]:
        set_items(tree, items)
    buffer = io.BytesIO()
    torch.save(tree.state_dict(), buffer)
    buffer.seek(0)
    restored = PriorityTree(200)
    state: dict[str, Any] = torch.load(buffer, weights_only=True)
    restored.load_state_dict(state)
    assert (restored.total, restored.maximum) == (tree.total, tree.maximum)
    mass = np.random.default_rng(0).random(100) * tree.total
    np.testing.assert_array_equal(restored.sample(mass), tree.sample(mass))


def test_the_maximum_is_that_of_all_times() -> None:
    tree = PriorityTree(3)
    set_items(tree, [(0, 0.5)])
    assert tree.maximum == 1.0
    set_items(tree, [(0, 4.0), (1, 2.0)])
    set_items(tree, [(0, 0.1)])
    assert tree.maximum == 4.0


@pytest.mark.parametrize("priority", [-1.0, np.nan, np.inf])
def test_a_bad_priority_is_refused_before_anything_is_set(priority: float) -> None:
    tree = PriorityTree(3)
    with pytest.raises(ValueError, match="expected finite ones"):
        set_items(tree, [(0, 1.0), (1, priority)])
    assert tree.total == 0.0


@pytest.mark.parametrize("index", [-1, 3])
def test_an_item_out_of_range_is_refused(index: int) -> None:
    with pytest.raises(IndexError, match="expected 0 to 2"):
        set_items(PriorityTree(3), [(index, 1.0)])


def test_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(2,\), priority \(1,\)"):
        PriorityTree(3).set(np.array([0, 1]), np.ones(1, dtype=np.float32))


def test_nothing_to_sample() -> None:
    with pytest.raises(ValueError, match="all priorities are 0"):
        PriorityTree(3).sample(np.array([0.0]))
    assert PriorityTree(3).sample(np.empty(0)).shape == (0,)


def test_bad_capacity_and_foreign_state() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        PriorityTree(0)
    with pytest.raises(ValueError, match=r"shape \[4\], expected \[3\]"):
        PriorityTree(3).load_state_dict(PriorityTree(4).state_dict())
