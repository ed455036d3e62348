"""What the bootstrap of a distribution is held against: the means of the target network's atoms."""

from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import fit_small, small_data, warnings_of
from torch import Tensor

from rlmods.algorithms import DQN
from rlmods.callbacks import ValueBoundGuard
from rlmods.callbacks.target_probe import probe_targets
from rlmods.types import ReplayBatch, Transition

ATOMS: dict[str, Any] = {"hidden_sizes": [16], "num_atoms": 51, "v_min": -50.0, "v_max": 150.0}


class SecondGamma(DQN):
    """Half of it comes from the batch, half is added: no discount alone shows it."""

    @torch.no_grad()
    def td_target(self, transition: Transition, bootstrap: Tensor | None = None) -> Tensor:
        return super().td_target(transition._replace(discount=1.1 * transition.discount), bootstrap)


def batch(size: int = 8) -> ReplayBatch:
    """Observations of CartPole, `[1, B, 4]`, with the discount 0.9."""
    generator = torch.Generator().manual_seed(0)
    observation, next_observation = torch.randn(2, 1, size, 4, generator=generator).unbind()
    row = torch.zeros(1, size)
    flags = row > 0
    transition = Transition(observation, row.long(), row + 1.0, row + 0.9, next_observation, flags, flags)
    return ReplayBatch(transition, row.long(), row + 1.0, 0, 0.0)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("double_q", [False, True])
def test_a_distribution_bootstraps_with_its_mean(double_q: bool, noisy: bool) -> None:
    torch.manual_seed(0)
    model = DQN(small_data().spec, **ATOMS, double_q=double_q, noisy=noisy)
    probed = probe_targets(model, batch())
    assert float(probed["bootstrap_outside"]) == pytest.approx(0.0, abs=1e-3)
    assert float(probed["discount_ignored"]) == pytest.approx(0.0, abs=1e-3)


def test_another_factor_on_a_distribution_is_found() -> None:
    """Every mean begins near the middle of the atoms, 50: a tenth of 0.9 · 50 too much, 4.5."""
    torch.manual_seed(0)
    probed = probe_targets(SecondGamma(small_data().spec, **ATOMS), batch())
    assert float(probed["bootstrap_outside"]) == pytest.approx(4.5, abs=1.0)
    assert float(probed["discount_ignored"]) == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(("model_class", "expected"), [(DQN, []), (SecondGamma, ["discount_mismatch"])])
def test_a_run_with_atoms(tmp_path: Path, model_class: type[DQN], expected: list[str]) -> None:
    guard = ValueBoundGuard(every_n_iterations=2)
    fit_small(tmp_path, guard, model_class=model_class, arguments=ATOMS, total_env_steps=160)
    assert warnings_of(guard) == expected
