import math
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import as_lists, fit_small, fit_stranger
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from running import curves
from test_skeleton import make_trainer
from torch import Tensor

from rlmods.algorithms.linear_td import LinearTD
from rlmods.callbacks.distribution_probe import DistributionProbe
from rlmods.callbacks.fixed_point_probe import FixedPointProbe
from rlmods.callbacks.probe import PlateauTrigger, Probe
from rlmods.callbacks.safeguard import MissingInputError
from rlmods.callbacks.stability_probe import StabilityProbe
from rlmods.callbacks.td_error_kernel_probe import TDErrorKernelProbe
from rlmods.data.rollouts import RolloutDataModule
from rlmods.functional.linear_dynamics import solve_fixed_point
from rlmods.types import LinearTransitions, Rollout

SEED_STDS: dict[str, Any] = {"behaviour_std": 0.25, "target_std": 0.4}
ON_POLICY: dict[str, Any] = {"behaviour_std": 0.3, "target_std": 0.3, "beta": 1.0}


class Lab:
    """A small laboratory: 2 environments, 5 steps, 16 features; the run is made when it is fitted."""

    def __init__(self, folder: Path, *callbacks: Callback, iterations: int = 1, gamma: float = 0.9, **options: Any):
        environment = {"max_episode_steps": 20, "feature_dim": 16, "actor_feature_dim": 4, "precision": "float64"}
        seed_everything(options.pop("seed", 0))
        self.data = RolloutDataModule(
            "rlmods/TorusGobletGhost-v0",
            options.pop("total_iterations", iterations) * 10,
            num_envs=2,
            n_steps=5,
            gamma=gamma,
            eval_episodes=1,
            eval_every=10**9,
            env_kwargs=environment | options.pop("environment", {}),
        )
        trainer_options = {"logger": False, "enable_checkpointing": False} | options.pop("trainer", {})
        self.model = LinearTD(self.data.spec, **options)
        self.trainer = make_trainer(folder, *callbacks, max_steps=iterations, **trainer_options)

    def fit(self, ckpt_path: Path | None = None) -> "Lab":
        self.trainer.fit(self.model, datamodule=self.data, ckpt_path=ckpt_path)
        return self

    def batch(self, seed: int, num_chains: int, num_steps: int, num_samples: int | None) -> LinearTransitions:
        """As the probes draw theirs."""
        (rollout,) = self.data.probe_rollout(
            [self.model.behaviour_policy()], num_envs=num_chains, num_steps=num_steps, seed=seed
        )
        torch.manual_seed(seed + 1)
        return self.model.linear_transitions(rollout, num_samples)


def small_probes(every: int = 2, **options: Any) -> list[Probe]:
    shared: dict[str, Any] = {"every_n_iterations": every, "num_chains": 4} | options
    kernel = {name: value for name, value in shared.items() if name not in ("num_chains", "seed")}
    return [
        FixedPointProbe(batch_size=32, num_bootstrap_samples=2, max_iters=20, **shared),
        StabilityProbe(batch_size=32, num_bootstrap_samples=2, num_batches=2, power_iters=3, **shared),
        DistributionProbe(num_samples=32, action_samples=4, permutations=20, **shared),
        TDErrorKernelProbe(**kernel),
    ]


def row_of(probe: Probe) -> dict[str, float]:
    assert probe.latest is not None
    return probe.latest[1]


def rows(path: Path) -> list[dict[str, str]]:
    header, *lines = [line.split(",") for line in path.read_text().splitlines()]
    return [dict(zip(header, line, strict=True)) for line in lines]


# When


def firings(trigger: PlateauTrigger, losses: list[float], every: int) -> list[int]:
    fired = []
    for iteration, loss in enumerate(losses):
        trigger.record(loss)
        if (iteration + 1) % every == 0 or trigger.fires(iteration):
            fired.append(iteration)
    return fired


def test_the_absolute_rule_holds_for_all_small_losses() -> None:
    """Those of the published run: 2.5e-5, whatever they do."""
    losses = [2.5e-5 * (1.0 + n % 7) for n in range(31)]
    assert firings(PlateauTrigger("absolute", 1e-3), losses, 10) == [5, 9, 10, 15, 19, 20, 25, 29, 30]


def test_the_relative_rule_wants_a_plateau() -> None:
    """From 8 on, the last five lie within 4 % of their mean; then the cooldown."""
    losses = [1e-5 * factor for factor in (9.0, 8.0, 5.0, 3.0, 1.04, 1.0, 1.0, 1.0, 1.0, *[1.0] * 6)]
    assert firings(PlateauTrigger("relative", 0.05), losses, 100) == [8, 13]
    assert firings(PlateauTrigger("relative", 0.03), losses, 100) == [9, 14]


def test_a_loss_that_is_no_number_is_no_plateau() -> None:
    assert firings(PlateauTrigger("relative", 1.0), [math.nan] * 9, 100) == []


@settings(max_examples=30)
@given(st.lists(st.floats(0.9, 1.1), min_size=12, max_size=12), st.integers(0, 11))
def test_a_resumed_trigger_goes_on(losses: list[float], stop: int) -> None:
    whole, first, second = (PlateauTrigger("relative", 0.1) for _ in range(3))
    expected = firings(whole, losses, 100)
    found = firings(first, losses[:stop], 100)
    second.load_state_dict(first.state_dict())
    for iteration in range(stop, len(losses)):
        second.record(losses[iteration])
        found += [iteration] if second.fires(iteration) else []
    assert found == expected


def test_the_seeds_are_those_of_the_published_runs() -> None:
    """(seed + 10007 (n + 1) + 97 j) mod (2³¹ − 1)."""
    assert FixedPointProbe(seed=0).seed_of(19) == 200_237
    assert StabilityProbe(seed=3).seed_of(0) == 10_204
    assert DistributionProbe(seed=2**31 - 2).seed_of(0) == 10_297


# Where to


def test_a_firing_leaves_a_row_and_curves(tmp_path: Path) -> None:
    probe = FixedPointProbe(every_n_iterations=2, batch_size=32, num_chains=4, max_iters=20)
    lab = Lab(tmp_path, probe, iterations=4, trainer={"logger": True}).fit()
    run = Path(str(lab.trainer.log_dir))
    table = rows(run / "probes/fixed_point_probe.csv")
    assert [row["iter"] for row in table] == ["1", "3"]
    assert list(table[0])[1:8] == [
        "w_gap", "w_sharp_drift", "w_sharp_drift_defined", "converged", "num_iters", "batch_size", "tol",
    ]  # fmt: skip
    assert (table[0]["converged"], table[0]["num_iters"], table[0]["tol"]) == ("False", "20", "1e-07")
    assert [row["w_sharp_drift_defined"] for row in table] == ["0.0", "1.0"]
    assert probe.latest is not None
    assert probe.latest[0] == 3
    assert float(table[1]["w_gap"]) == row_of(probe)["w_gap"] > 0.0
    (first, second) = curves(run)["stability/fixed_point/w_gap"]
    assert (first[0], second[0]) == (20, 40)
    assert second[1] == pytest.approx(row_of(probe)["w_gap"])


# Apart from the training


def test_the_training_is_the_same_without_probes(tmp_path: Path) -> None:
    with_probes = Lab(tmp_path, *small_probes(every=1, plateau="absolute"), iterations=4, **SEED_STDS).fit()
    after_probes = torch.get_rng_state()
    without = Lab(tmp_path, iterations=4, **SEED_STDS).fit()
    for name, value in without.model.state_dict().items():
        assert torch.equal(value, with_probes.model.state_dict()[name])
    assert as_lists(without.data.state_dict()["processes"]) == as_lists(with_probes.data.state_dict()["processes"])
    assert torch.equal(after_probes, torch.get_rng_state())


def test_the_seed_of_the_run_is_taken(tmp_path: Path) -> None:
    probes = [DistributionProbe(num_samples=8, num_chains=2, every_n_iterations=1) for _ in range(3)]
    for probe, seed in zip(probes, (5, 5, 6), strict=True):
        Lab(tmp_path, probe, seed=seed, theta_init_scale=0.0).fit()
    assert row_of(probes[0]) == row_of(probes[1]) != row_of(probes[2])
    assert probes[0].seed == 5


def test_parameters_that_are_no_numbers_leave_an_empty_row(tmp_path: Path) -> None:
    class Spoil(Callback):
        def on_train_batch_end(
            self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx == 1:
                next(pl_module.parameters()).data.fill_(math.nan)

    probes = small_probes(every=1)
    lab = Lab(tmp_path, Spoil(), *probes, iterations=2, trainer={"logger": True}).fit()
    assert [probe.latest for probe in probes] == [(1, {})] * 4
    table = rows(Path(str(lab.trainer.log_dir)) / "probes/stability_probe.csv")
    assert table[1]["spectral_radius"] == "nan" != table[0]["spectral_radius"]


# Fixed point


@pytest.mark.parametrize("num_samples", [None, 3])
def test_the_published_iteration_by_hand(tmp_path: Path, num_samples: int | None) -> None:
    """w ← w + α_w · mean ρ (r + (γφ̄ − φ)·w/√D) φ, 30 times; the first is the second's probe of a drift."""
    probe = FixedPointProbe(
        every_n_iterations=1, batch_size=40, num_chains=4, num_bootstrap_samples=num_samples, max_iters=30, seed=7
    )
    lab = Lab(tmp_path, probe, iterations=1, learning_rate=0.7, **SEED_STDS).fit()
    seen = lab.batch(probe.seed_of(0), 4, 10, num_samples)
    weight = lab.model.critic_weight.clone()
    for _ in range(30):
        value = (seen.discount * seen.bootstrap_feature - seen.feature) @ weight / 4.0
        update = (seen.importance_ratio * (seen.reward + value)) @ seen.feature / 40
        weight = weight + 0.7 * update
    gap = float(torch.linalg.vector_norm(weight - lab.model.critic_weight))
    assert row_of(probe)["w_gap"] == pytest.approx(gap, rel=1e-9)
    assert (row_of(probe)["converged"], row_of(probe)["num_iters"]) == (False, 30)


def test_least_squares_find_the_teacher_where_nothing_is_bootstrapped(tmp_path: Path) -> None:
    """γ = 0, on-policy: the reward is w_R·φ/√D, so w♯ = w_R, and the iteration gets nowhere near it in 20 steps."""
    probe = FixedPointProbe(
        every_n_iterations=1, batch_size=512, num_chains=16, num_bootstrap_samples=None, max_iters=20, ridge=1e-12
    )
    lab = Lab(tmp_path, probe, gamma=0.0, **ON_POLICY).fit()
    gap = float(torch.linalg.vector_norm(lab.model.critic_weight - lab.model.teacher_weight))
    row = row_of(probe)
    assert row["lstd_gap"] == pytest.approx(gap, rel=1e-3)
    assert row["lstd_residual"] < 1e-6
    assert row["w_gap"] < 0.5 * gap


def test_common_random_numbers_take_the_noise_out_of_the_drift(tmp_path: Path) -> None:
    """With policies that stand still nothing drifts but w, around which both solve."""
    probe = FixedPointProbe(every_n_iterations=1, batch_size=64, num_chains=4, max_iters=50)
    Lab(tmp_path, probe, iterations=2, actor_learning_rate=0.0, learning_rate=1e-3).fit()
    row = row_of(probe)
    assert row["w_sharp_drift_defined"] == 1.0
    assert row["lstd_drift"] / row["lstd_gap"] < 0.01 < 0.1 < row["w_sharp_drift"] / row["w_gap"]


def test_two_batches_see_that_there_is_no_gap(tmp_path: Path) -> None:
    """At the fixed point of a large sample, each small one sees a gap that is its own error; their product does not."""
    probe = FixedPointProbe(every_n_iterations=1, batch_size=512, num_chains=16, max_iters=1)
    lab = Lab(tmp_path, probe, actor_learning_rate=0.0).fit()
    sample = lab.batch(99, 800, 32, 8)
    start = lab.model.critic_weight.double()
    fixed_point = solve_fixed_point(*sample, start, 1e-9).weight
    probe._solve(lab.trainer, lab.model, fixed_point)
    naive = [float((weight - fixed_point).square().sum()) for weight in probe._lstd_weights]
    assert abs(probe._solve(lab.trainer, lab.model, fixed_point)["lstd_gap_squared"]) < 0.3 * min(naive)


# Stability


def power_steps(seen: LinearTransitions, vector: Tensor, scale: float, steps: int) -> float:
    """By the formula of the published runs: a sum over the batch."""
    for _ in range(steps):
        vector = vector / vector.norm()
        along = (seen.discount * seen.bootstrap_feature - seen.feature) @ vector
        vector = vector + scale * (seen.importance_ratio * along) @ seen.feature
    return float(vector.norm())


def test_the_published_proxy_by_hand(tmp_path: Path) -> None:
    """α_w c = 0.7/10 for the sum of V1; α_w/(4 · 40) for the mean of V0, √D = 4."""
    of_v1, of_v0 = (
        StabilityProbe(
            every_n_iterations=1, batch_size=40, num_chains=4, num_batches=1, operator=operator, name=operator, seed=7
        )
        for operator in ("V1", "V0")
    )
    lab = Lab(tmp_path, of_v1, of_v0, learning_rate=0.7, **SEED_STDS).fit()
    seen = lab.batch(of_v1.seed_of(0), 4, 10, 8)
    start = torch.randn(16, dtype=torch.float64)
    assert row_of(of_v1)["stability_proxy"] == pytest.approx(power_steps(seen, start, 0.07, 20), rel=1e-12)
    assert row_of(of_v0)["stability_proxy"] == pytest.approx(power_steps(seen, start, 0.7 / 160.0, 20), rel=1e-12)
    assert row_of(of_v1)["stability_probe_step_scale"] == pytest.approx(0.07)


def test_batches_are_independent_chains(tmp_path: Path) -> None:
    probe = StabilityProbe(every_n_iterations=1, batch_size=40, num_chains=4, num_batches=3)
    Lab(tmp_path, probe, **SEED_STDS).fit()
    row = row_of(probe)
    assert row["stability_proxy"] == row["stability_proxy_mean"]
    assert 0.0 < row["stability_proxy_std"] < 0.1


def test_the_spectral_radius_crosses_one_at_the_critical_learning_rate(tmp_path: Path) -> None:
    def measured(learning_rate: float) -> dict[str, float]:
        probe = StabilityProbe(every_n_iterations=1, batch_size=512, num_batches=1, num_bootstrap_samples=None)
        # So wide that all events occur: a feature that is always 0 has the eigenvalue 0, and the radius is 1.
        events = {"eps_catch": 0.2, "eps_pick": 0.2}
        rates = {"learning_rate": learning_rate, "actor_learning_rate": 0.0}
        Lab(tmp_path, probe, environment=events, **(ON_POLICY | rates)).fit()
        return row_of(probe)

    first = measured(0.1)
    critical = first["critical_learning_rate"]
    assert 0.0 < critical < math.inf
    assert first["critical_step"] == pytest.approx(critical)  # c N T = 1
    assert first["dimensionless_step"] == pytest.approx(
        0.1 * math.hypot(first["leading_eigenvalue_real"], first["leading_eigenvalue_imag"])
    )
    assert first["spectral_radius"] < 1.0
    below, above = measured(0.99 * critical), measured(1.01 * critical)
    assert below["spectral_radius"] < 1.0 < above["spectral_radius"]
    assert below["critical_learning_rate"] == pytest.approx(critical)


def test_a_learning_rate_of_zero_changes_nothing(tmp_path: Path) -> None:
    probe = StabilityProbe(every_n_iterations=1, batch_size=64, num_batches=2)
    Lab(tmp_path, probe, learning_rate=0.0).fit()
    assert row_of(probe)["spectral_radius"] == row_of(probe)["stability_proxy"] == 1.0
    assert math.isnan(row_of(probe)["critical_learning_rate"])


# Distributions


def test_equal_policies_are_equal(tmp_path: Path) -> None:
    probe = DistributionProbe(every_n_iterations=1, num_samples=512, num_chains=32)
    Lab(tmp_path, probe, **ON_POLICY).fit()
    row = row_of(probe)
    assert row["dist_action_kl"] == row["dist_action_tv"] == row["dist_action_tv_exact"] == 0.0
    assert row["rho_mean"] == row["rho_second_moment"] == row["rho_max"] == row["effective_sample_size"] == 1.0
    assert row["mmd2_p_value"] > 0.1
    assert row["mmd2_unbiased"] < row["mmd2_null_q95"] < row["mmd2"]


def test_the_published_mismatch(tmp_path: Path) -> None:
    """σ = .25, .4 and means 0: KL .6199927415, TV .3336, and a mean ratio of .630 on the disc of .4."""
    probe = DistributionProbe(every_n_iterations=1, num_samples=2048, num_chains=16)
    environment = {"action_mode": "ball_clip"}
    Lab(tmp_path, probe, theta_init_scale=0.0, actor_learning_rate=0.0, environment=environment, **SEED_STDS).fit()
    row = row_of(probe)
    assert row["dist_action_kl"] == pytest.approx(0.6199927415, abs=1e-10)
    assert row["dist_action_tv_exact"] == pytest.approx(0.3336, abs=1e-4)
    assert row["dist_action_tv"] == pytest.approx(row["dist_action_tv_exact"], abs=0.003)
    assert row["rho_mean"] == pytest.approx(0.6304, abs=0.02)
    assert row["rho_second_moment"] == pytest.approx(0.4273, abs=0.02)
    assert row["effective_sample_size"] == pytest.approx(0.6304**2 / 0.4273, abs=0.02)


def test_policies_that_walk_elsewhere_are_told_apart(tmp_path: Path) -> None:
    """A large offset between the means, and few restarts: the states differ too."""
    probe = DistributionProbe(every_n_iterations=1, num_samples=1024, num_chains=16)
    Lab(
        tmp_path, probe, behaviour_offset_scale=20.0, theta_radius=0.0, environment={"p_mix": 0.0, "sigma_env": 0.0}
    ).fit()
    row = row_of(probe)
    assert row["mmd2_p_value"] == pytest.approx(1.0 / 201.0)
    assert row["mmd2_unbiased"] > row["mmd2_null_q95"]
    assert 0.9 < row["dist_action_tv_exact"] <= 1.0


def test_one_chain_has_no_permutations(tmp_path: Path) -> None:
    probe = DistributionProbe(every_n_iterations=1, num_samples=16, num_chains=1)
    Lab(tmp_path, probe).fit()
    row = row_of(probe)
    assert row["mmd2"] > 0.0
    assert all(math.isnan(row[name]) for name in ("mmd2_unbiased", "mmd2_p_value", "mmd2_null_q95"))


# The kernel of TD errors


def kernel_row(td_error: list[float], shape: tuple[int, int], num_trajectories: int = 8) -> dict[str, float]:
    errors = torch.tensor([td_error])
    empty: Any = torch.zeros(shape)
    batch = Rollout(empty, empty, empty, empty, empty, empty, empty, empty, env_steps=0, progress=0.0)
    outputs = {"td_error": errors, "td_loss": errors.square().mean()}
    probe = TDErrorKernelProbe(num_trajectories=num_trajectories)
    return probe.measure(Trainer(logger=False, accelerator="cpu"), LightningModule(), outputs, batch, 0)


def test_a_kernel_by_hand() -> None:
    """δ = [[1, 2], [3, 4]], time first: Q = [[2.5, 5.5], [5.5, 12.5]]; the rank is 15²/(6.25 + 2 · 30.25 + 156.25)."""
    row = kernel_row([1.0, 2.0, 3.0, 4.0], (2, 2))
    assert row["kernel_loss"] == 7.5
    assert row["kernel_loss_rel_diff"] == 0.0
    assert (row["td_loss_from_Q"], row["td_loss_from_Q_abs_diff"], row["td_loss_from_Q_rel_diff"]) == (3.75, 3.75, 0.5)
    assert row["effective_rank"] == pytest.approx(225.0 / 223.0)


def test_a_kernel_of_the_first_trajectories() -> None:
    """Of the first one alone: (1 + 9)/2 against 7.5."""
    row = kernel_row([1.0, 2.0, 3.0, 4.0], (2, 2), num_trajectories=1)
    assert (row["kernel_loss"], row["num_trajectories"]) == (5.0, 1)
    assert row["kernel_loss_rel_diff"] == pytest.approx(1.0 / 3.0)
    assert row["effective_rank"] == pytest.approx(1.0)


def test_errors_that_do_not_fit_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got td_error \[1, 3\] with a batch Rollout"):
        kernel_row([1.0, 2.0, 3.0], (2, 2))


# Bad input


@pytest.mark.parametrize(
    ("probe_class", "arguments", "message"),
    [
        (FixedPointProbe, {"name": "a/b"}, "name = 'a/b'"),
        (FixedPointProbe, {"every_n_iterations": 0}, "every_n_iterations = 0, expected at least 1"),
        (FixedPointProbe, {"plateau": "always"}, "plateau = 'always'"),
        (FixedPointProbe, {"plateau": "relative", "plateau_tolerance": 0.0}, "plateau_tolerance = 0.0"),
        (FixedPointProbe, {"batch_size": 100, "num_chains": 32}, "batch_size = 100 and num_chains = 32"),
        (FixedPointProbe, {"max_iters": 0}, "max_iters = 0"),
        (FixedPointProbe, {"ridge": 0.0}, "ridge = 0.0"),
        (StabilityProbe, {"num_batches": 0}, "num_batches = 0"),
        (StabilityProbe, {"power_iters": 0}, "power_iters = 0"),
        (StabilityProbe, {"operator": "V2"}, "operator = 'V2'"),
        (StabilityProbe, {"num_chains": 0}, "num_chains = 0"),
        (DistributionProbe, {"num_samples": 65}, "num_samples = 65 and num_chains = 64"),
        (DistributionProbe, {"action_samples": 0}, "action_samples = 0"),
        (DistributionProbe, {"permutations": 0}, "permutations = 0"),
        (TDErrorKernelProbe, {"num_trajectories": 0}, "num_trajectories = 0"),
    ],
)
def test_bad_arguments_are_refused(probe_class: type[Probe], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probe_class(**arguments)


@pytest.mark.parametrize(
    "probe",
    [
        FixedPointProbe(batch_size=2**40),
        StabilityProbe(batch_size=2**40),
        DistributionProbe(num_samples=2**40),
    ],
)
def test_what_does_not_fit_into_memory_is_refused(tmp_path: Path, probe: Probe) -> None:
    with pytest.raises(ValueError, match=r"= 1099511627776, which would take [\d,.]+ GiB, .*type \w+=\d+$") as error:
        Lab(tmp_path, probe).fit()
    proposed = int(str(error.value).rpartition("=")[2])
    assert 1024 < proposed < 2**40


def test_one_name_belongs_to_one_probe(tmp_path: Path) -> None:
    twins = (StabilityProbe(name="twin"), FixedPointProbe(name="twin"))
    with pytest.raises(ValueError, match="several probes with the name 'twin'"):
        Lab(tmp_path, *twins).fit()


@pytest.mark.parametrize("probe", [FixedPointProbe(), StabilityProbe(), DistributionProbe()])
def test_another_module_is_refused(tmp_path: Path, probe: Probe) -> None:
    with pytest.raises(TypeError, match=r"got the data module ReplayDataModule, expected one with probe_rollout"):
        fit_small(tmp_path, probe)


class Regression(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        return {"loss": self.weight.square().sum()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_missing_signals_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"TDErrorKernelProbe needs the signals \['td_error', 'td_loss'\]"):
        fit_stranger(tmp_path, Regression(), [torch.zeros(1)], TDErrorKernelProbe(every_n_iterations=1))

    class Silent(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
            return {"other": torch.zeros(())}

    probe = TDErrorKernelProbe(every_n_iterations=100, plateau="relative")
    with pytest.raises(MissingInputError, match=r"needs the signal td_loss or loss to see a plateau"):
        fit_stranger(tmp_path, Silent(), [torch.zeros(1)], probe)
