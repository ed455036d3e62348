import pytest
import torch

from rlmods.functional.exploration import epsilon_greedy
from rlmods.functional.schedules import Schedule, linear_schedule, scheduled


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 1.0), (0.05, 0.55), (0.1, 0.1), (0.5, 0.1), (1.0, 0.1)])
def test_golden_linear_schedule(progress: float, expected: float) -> None:
    """From 1 to 0.1 over the first tenth: half way through it, 1 - 0.9/2 = 0.55."""
    assert linear_schedule(progress, start=1.0, end=0.1, fraction=0.1) == pytest.approx(expected)


def test_fraction_of_zero_is_the_end_from_the_beginning() -> None:
    assert linear_schedule(0.0, start=1.0, end=0.1, fraction=0.0) == 0.1


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1.0, 1.0, 1.0, 1.0]), ("linear", [1.0, 0.775, 0.55, 0.1]), ("cosine", [1.0, 0.868198, 0.55, 0.1])],
)
def test_golden_schedules(schedule: Schedule, expected: list[float]) -> None:
    """From 1 to 0.1; a quarter of the way along the cosine: 0.1 + 0.9·(1 + √½)/2 = 0.868198."""
    values = [scheduled(at, start=1.0, end=0.1, schedule=schedule) for at in (0.0, 0.25, 0.5, 1.0)]
    assert values == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("schedule", "after"), [("constant", 1.0), ("linear", 0.75), ("cosine", 0.853553)])
def test_golden_warmup(schedule: Schedule, after: float) -> None:
    """Over the first fifth up to 1; of the four fifths that are left a quarter has passed at 0.4."""
    values = [scheduled(at, start=1.0, end=0.0, schedule=schedule, warmup=0.2) for at in (0.0, 0.05, 0.2, 0.4)]
    assert values == pytest.approx([0.0, 0.25, 1.0, after], abs=1e-6)


def test_a_budget_that_is_passed_stays_at_the_end() -> None:
    for schedule in ("linear", "cosine"):
        assert scheduled(1.01, start=1.0, end=0.1, schedule=schedule) == pytest.approx(0.1)


def test_epsilon_of_each_row() -> None:
    """0 keeps the greedy action, 1 draws; the draws are those of one ε for all."""
    greedy = torch.zeros(1_000, dtype=torch.int64)
    torch.manual_seed(0)
    uniform = epsilon_greedy(greedy, 5, 1.0)
    torch.manual_seed(0)
    half = epsilon_greedy(greedy, 5, torch.cat([torch.zeros(500), torch.ones(500)]))
    assert not half[:500].any()
    assert torch.equal(half[500:], uniform[500:])


def test_epsilon_of_zero_is_greedy_and_of_one_is_uniform() -> None:
    torch.manual_seed(0)
    greedy = torch.zeros(30_000, dtype=torch.int64)
    assert bool((epsilon_greedy(greedy, 3, 0.0) == greedy).all())
    counts = epsilon_greedy(greedy, 3, 1.0).bincount(minlength=3)
    # Five standard deviations of a binomial of 30,000 draws at 1/3.
    assert bool(((counts - 10_000).abs() < 5 * (30_000 * 2 / 9) ** 0.5).all())


def test_epsilon_counts_the_greedy_action_among_the_random_ones() -> None:
    """ε = 0.5 with two actions: the greedy one is taken with probability 0.75."""
    torch.manual_seed(0)
    taken = epsilon_greedy(torch.ones(40_000, dtype=torch.int64), 2, 0.5).float().mean().item()
    assert taken == pytest.approx(0.75, abs=5 * (0.75 * 0.25 / 40_000) ** 0.5)
