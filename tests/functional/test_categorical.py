import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlmods.functional.categorical import (
    categorical_cross_entropy,
    categorical_kl,
    expected_value,
    project_onto_atoms,
)

ATOMS = torch.tensor([0.0, 1.0, 2.0])


def project(positions: list[float], probabilities: list[float], atoms: Tensor = ATOMS) -> list[float]:
    projected: list[float] = project_onto_atoms(torch.tensor([positions]), torch.tensor([probabilities]), atoms)[
        0
    ].tolist()
    return projected


def test_golden_projection_between_two_atoms() -> None:
    """A quarter of the way from 1 to 2: three quarters of the mass stay at 1."""
    assert project([1.25, 0.0, 0.0], [1.0, 0.0, 0.0]) == [0.0, 0.75, 0.25]


@pytest.mark.parametrize("atom", [0, 1, 2])
def test_golden_projection_exactly_on_an_atom(atom: int) -> None:
    """The case in which the rounded neighbours coincide, and the mass of the paper's Algorithm 1 is lost."""
    expected = [0.0, 0.0, 0.0]
    expected[atom] = 1.0
    assert project([float(atom), 0.5, 0.5], [1.0, 0.0, 0.0]) == expected


def test_golden_projection_of_a_bellman_update() -> None:
    """1 + z/2 of (0, 1, 2) is (1, 1.5, 2); with masses 0.2, 0.4 and 0.4 atom 1 gets 0.2 + 0.2, atom 2 0.2 + 0.4."""
    assert project([1.0, 1.5, 2.0], [0.2, 0.4, 0.4]) == pytest.approx([0.0, 0.4, 0.6])


def test_mass_beyond_the_support_goes_to_its_ends() -> None:
    assert project([-5.0, 1.0, 7.0], [0.25, 0.25, 0.5]) == [0.25, 0.25, 0.5]


def test_atoms_need_not_begin_at_zero() -> None:
    """−2, 0, 2: −1.5 lies a quarter of the way."""
    assert project([-1.5, 0.0, 0.0], [1.0, 0.0, 0.0], torch.tensor([-2.0, 0.0, 2.0])) == [0.75, 0.25, 0.0]


_ROWS = st.lists(st.tuples(st.floats(-3, 5, width=32), st.floats(0, 1, width=32)), min_size=51, max_size=51)


@settings(max_examples=25)
@given(_ROWS, st.floats(-3, 0, width=32), st.floats(1, 5, width=32))
def test_projection_conserves_mass_and_within_the_support_the_mean(
    rows: list[tuple[float, float]], low: float, high: float
) -> None:
    atoms = torch.linspace(low, high, 51)
    positions, mass = torch.tensor(rows).unbind(-1)
    probabilities = (mass + 0.01) / (mass + 0.01).sum()
    projected = project_onto_atoms(positions.unsqueeze(0), probabilities.unsqueeze(0), atoms)[0]
    assert float(projected.sum()) == pytest.approx(1.0, abs=1e-5)
    assert bool((projected >= -1e-7).all())
    expected = expected_value(probabilities, positions.clamp(low, high))
    torch.testing.assert_close(expected_value(projected, atoms), expected, rtol=1e-4, atol=1e-4)


def test_a_distribution_on_the_atoms_is_its_own_projection() -> None:
    atoms = torch.linspace(-10.0, 10.0, 51)
    probabilities = torch.rand(4, 51, generator=torch.Generator().manual_seed(0)).softmax(-1)
    torch.testing.assert_close(project_onto_atoms(atoms.expand(4, -1), probabilities, atoms), probabilities)


def test_a_target_that_is_no_number_stays_visible() -> None:
    assert all(math.isnan(mass) for mass in project([math.nan, 0.0, 1.0], [0.5, 0.25, 0.25])[:2])


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"positions \(1, 3\), probabilities \(1, 2\)"):
        project_onto_atoms(torch.zeros(1, 3), torch.zeros(1, 2), ATOMS)
    with pytest.raises(ValueError, match=r"atoms \(2,\)"):
        project_onto_atoms(torch.zeros(1, 3), torch.zeros(1, 3), ATOMS[:2])


def test_golden_cross_entropy_and_divergence() -> None:
    """m = (1/2, 1/2, 0) against p = (1/4, 1/4, 1/2): ln 4, less the entropy ln 2."""
    target, log_probabilities = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5]).log()
    assert float(categorical_cross_entropy(target, log_probabilities)) == pytest.approx(math.log(4.0))
    assert float(categorical_kl(target, log_probabilities)) == pytest.approx(math.log(2.0))
    assert float(categorical_kl(log_probabilities.exp(), log_probabilities)) == pytest.approx(0.0, abs=1e-6)


def test_golden_expected_value() -> None:
    assert expected_value(torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.25, 0.75]]), ATOMS).tolist() == [1.0, 1.75]
