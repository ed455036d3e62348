"""The stability boundary, through the real training: an error grows where, and as fast as, the spectrum says."""

import math
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from linear_td_loop import Loop, LoopSettings
from linear_td_regimes import (
    Laboratory,
    Spectrum,
    _cross,
    frozen_growth,
    make_laboratory,
    one_rollout,
    predicted_growth,
    settled,
    spectrum_of,
)

from rlmods.configs import find_config
from rlmods.types import Rollout

Frozen = tuple[Laboratory, Rollout, Spectrum]
# Of the published run, "instability", seed 0, its first iteration.
GOLDEN = {
    "td_loss": 2.500102025332649e-05,
    "critic_teacher_error": 0.044552625510051444,
    "mean_rho": 0.6282641040620544,
    "mean_rho2": 0.42447553895329554,
    "w_norm": 9.163369275853684,
}


def freeze(**policies: Any) -> Frozen:
    """One rollout of 100 transitions, eight features that all take part."""
    env = {"feature_dim": 8, "eps_catch": 0.3, "eps_pick": 0.3}
    laboratory = make_laboratory(1, seed=0, num_envs=4, n_steps=25, gamma=0.9, env=env, **policies)
    rollout = one_rollout(laboratory, 0)
    return laboratory, rollout, spectrum_of(laboratory.model, [rollout])


@pytest.mark.parametrize(
    "policies",
    [
        {"behaviour_std": 0.3, "target_std": 0.3},
        {"behaviour_std": 0.3, "target_std": 0.35, "behaviour_offset_scale": 0.5},
    ],
)
@pytest.mark.parametrize("share", [0.5, 0.99, 1.01])
def test_an_error_grows_as_the_spectrum_says(policies: dict[str, float], share: float) -> None:
    laboratory, rollout, spectrum = freeze(**policies)
    assert spectrum.critical == pytest.approx(2.0)  # the leading eigenvalue is real
    kappa = share * spectrum.critical
    growth = frozen_growth(laboratory.model, rollout, spectrum, kappa, 24)
    assert growth == pytest.approx(predicted_growth(spectrum, kappa), abs=1e-6)
    assert (growth > 0.0) == (share > 1.0)


def test_the_fixed_point_stays() -> None:
    """At w♯ the mean update is 0."""
    laboratory, rollout, spectrum = freeze(behaviour_std=0.3, target_std=0.35)
    model = laboratory.model
    with torch.no_grad():
        model.weight.copy_(spectrum.fixed_point)
    samples = model.samples(rollout)
    update = (samples.ratio * samples.td_error) @ samples.feature / samples.reward.numel()
    assert float(update.abs().max()) < 1e-12 * float(spectrum.fixed_point.norm())


def test_golden_prediction() -> None:
    """Eigenvalues −2 and −0.5: at κ = 1 the step is 0.5, the factors are 0 and 0.75; at κ = 3 they are −2 and 0.25."""
    spectrum = Spectrum(torch.tensor([-2.0 + 0j, -0.5 + 0j]), torch.diag(torch.tensor([-2.0, -0.5])), torch.zeros(2))
    assert spectrum.critical == pytest.approx(2.0)
    assert predicted_growth(spectrum, 1.0) == pytest.approx(math.log(0.75))
    assert predicted_growth(spectrum, 3.0) == pytest.approx(math.log(2.0))


def test_cross_fitting_leaves_the_error_of_the_estimates_out() -> None:
    """Rows (3, 0), (3, 0), (0, 4): products 9, 0, 0, whose mean is 3; the mean of the squares would be 34/3."""
    assert _cross(torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 4.0]])) == pytest.approx(3.0)
    draws = torch.randn(400, 50, 8, generator=torch.Generator().manual_seed(0))
    assert statistics.fmean(_cross(each) for each in draws) == pytest.approx(0.0, abs=0.02)


def test_what_is_said_of_a_configuration() -> None:
    rows = [
        {"config": "a", "seed": 0, "gap2": gap, "drift2": 1.0, "td_loss": loss, "w_norm": gap, "mean_rho2": 1.0}
        for gap, loss in ((9.0, 9.0), (9.0, 9.0), (1.0, 2.0), (3.0, 3.0))
    ]
    (found,) = settled(rows)
    assert (found["gap2"], found["td_loss"], found["td_loss_change"], found["w_norm"]) == (3.0, 3.0, 0.5, 3.0)


def test_the_three_configurations_differ_in_what_makes_the_regime() -> None:
    model, data = zip(*(_arguments(name) for name in ("converge", "plateau", "diverge")), strict=True)
    changed = {key for one in model for key in one if one[key] != model[0][key]}
    assert changed == {"dimensionless_step", "actor_learning_rate"}
    assert [one["dimensionless_step"] > 2.0 for one in model] == [False, False, True]
    assert [one["actor_learning_rate"] > 0.0 for one in model] == [False, True, False]
    assert {key for one in data for key in one if one[key] != data[0][key]} == {"total_env_steps", "eval_every"}


def _arguments(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    config = yaml.safe_load(find_config(f"linear_td_{name}").read_text())
    return config["model"]["init_args"], config["data"]["init_args"]


@pytest.mark.slow
def test_the_straightforward_loop_makes_the_published_numbers() -> None:
    row = Loop(LoopSettings()).iterate()
    assert {name: row[name] for name in GOLDEN} == pytest.approx(GOLDEN, rel=1e-12)


def test_the_straightforward_loop_is_the_training_step(tmp_path: Path) -> None:
    """Another program, the same numbers: two trajectories of three steps."""
    from test_skeleton import make_trainer

    from rlmods.algorithms import LinearTD
    from rlmods.data import RolloutDataModule

    settings = LoopSettings(num_trajectories=2, horizon=3, feature_dim=12, actor_feature_dim=5, p_mix=0.3, beta=0.3)
    env = {"feature_dim": 12, "actor_feature_dim": 5, "p_mix": 0.3, "max_episode_steps": 3, "action_mode": "ball_clip"}
    data = RolloutDataModule(
        "rlmods/TorusGobletGhost-v0",
        12,
        num_envs=2,
        n_steps=3,
        gamma=settings.gamma,
        env_kwargs={**env, "precision": "float64"},
    )
    model = LinearTD(
        data.spec,
        learning_rate=settings.learning_rate,
        actor_learning_rate=settings.actor_learning_rate,
        beta=settings.beta,
        behaviour_std=settings.behaviour_std,
        target_std=settings.target_std,
        num_bootstrap_samples=settings.num_bootstrap_samples,
        theta_radius=settings.theta_radius,
        theta_init_scale=settings.initial_scale,
        w_init_scale=settings.initial_scale,
        random_stream="numpy",
    )
    make_trainer(tmp_path, limit_val_batches=0).fit(model, datamodule=data)
    loop = Loop(settings)
    for _ in range(2):
        loop.iterate()
    assert model.weight.detach().numpy() == pytest.approx(loop.weight, rel=1e-12)
    assert model.actors.theta.detach().numpy() == pytest.approx(loop.theta, rel=1e-12)
    assert model.actors.behaviour_theta.numpy() == pytest.approx(loop.behaviour_theta, rel=1e-12)
