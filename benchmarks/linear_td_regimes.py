"""Where linear off-policy TD is stable, and the three regimes of the shipped configurations.

`python benchmarks/linear_td_regimes.py [frozen] [fresh] [triad] [configs]` (all of them without a word) writes JSON
lines and a picture into `benchmarks/results/linear_td`:

    frozen   One rollout, the same in every iteration, through LinearTD's own training step: the growth rate of ‖w − w♯‖
             beside log max|1 + s λ| over the eigenvalues λ of A/√D. They agree to 1e-6, and change their sign together.
    fresh    A new rollout in every iteration. Two critics see the same data: their difference knows no reward, and
             grows by the products of random matrices I + s A_n. Its rate lies near the line, not on it.
    triad    A batch whose matrix has an eigenvalue on the right: TD diverges for every step, however small. Beside it
             the other methods. (Of the expectation no such matrix was found; few ratios decide about this batch.)
    configs  linear_td_converge, _plateau and _diverge, seeds 0, 1, 2.
"""

import argparse
import json
import logging
import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor

from rlmods.algorithms import LinearTD
from rlmods.data import RolloutDataModule
from rlmods.data.rollout_collector import RolloutCollector
from rlmods.envs.make import make_envs
from rlmods.functional.linear_dynamics import critical_step, spectral_radius_of_update, td_matrix, td_vector
from rlmods.functional.off_policy import effective_sample_size
from rlmods.types import Rollout

ENV_ID = "rlmods/TorusGobletGhost-v0"
RESULTS = Path("benchmarks/results/linear_td")
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.01, 1.1, 1.25, 1.5)  # of the critical step
POLICIES = {
    "on-policy": {"behaviour_std": 0.3, "target_std": 0.3},
    "off-policy": {"behaviour_std": 0.3, "target_std": 0.35, "behaviour_offset_scale": 1.0},
}


class Laboratory(NamedTuple):
    """A data module and a module whose policies stand still."""

    data: RolloutDataModule
    model: LinearTD


class Spectrum(NamedTuple):
    """Of A/√D, and the fixed point."""

    eigenvalues: Tensor  # [D] complex
    matrix: Tensor  # [D, D], A/√D
    fixed_point: Tensor  # [D]

    @property
    def critical(self) -> float:
        """The dimensionless step s·|λ|_max at which some |1 + s λ| reaches 1."""
        return critical_step(self.eigenvalues) * self.largest

    @property
    def largest(self) -> float:
        """|λ|_max."""
        return float(self.eigenvalues.abs().max())


class SameRollout:
    """A sized loader that gives one rollout again and again."""

    def __init__(self, rollout: Rollout, num_iterations: int) -> None:
        self.rollout, self.num_iterations = rollout, num_iterations

    def __len__(self) -> int:
        return self.num_iterations

    def __iter__(self) -> Iterator[Rollout]:
        for _ in range(self.num_iterations):
            yield self.rollout


class Weights(Callback):
    """w after every iteration with an update."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep a copy."""
        if outputs and isinstance(pl_module, LinearTD):
            self.weights.append(pl_module.critic_weight.double().clone())


def make_laboratory(
    num_iterations: int, *, seed: int, num_envs: int, n_steps: int, gamma: float, env: dict[str, Any], **model: Any
) -> Laboratory:
    """Fixed policies, raw actions, float64."""
    env_kwargs = {"max_episode_steps": n_steps, "actor_feature_dim": 8, "precision": "float64", **env}
    seed_everything(seed, verbose=False)
    data = RolloutDataModule(
        ENV_ID,
        num_envs * n_steps * num_iterations,
        num_envs=num_envs,
        n_steps=n_steps,
        gamma=gamma,
        eval_every=10**9,
        env_kwargs=env_kwargs,
    )
    fixed = {"actor_learning_rate": 0.0, "beta": 0.0, "theta_radius": 0.0, "w_init_scale": 1.0}
    return Laboratory(data, LinearTD(data.spec, **fixed | model))


def one_rollout(laboratory: Laboratory, seed: int) -> Rollout:
    """What the behaviour policy does in an iteration."""
    data = laboratory.data
    environments = make_envs(ENV_ID, data.num_envs, env_kwargs=data.env_kwargs, reward_dtype=np.float64)
    collector = RolloutCollector(environments, gamma=data.gamma, seed=seed)
    rollout = collector.collect(laboratory.model, data.n_steps, num_processes=1, device=torch.device("cpu"))
    collector.close()
    return rollout


def spectrum_of(model: LinearTD, rollouts: Sequence[Rollout]) -> Spectrum:
    """Of the mean matrix of some rollouts."""
    seen = [model.linear_transitions(rollout, None) for rollout in rollouts]
    matrices = [td_matrix(each.feature, each.bootstrap_feature, each.importance_ratio, each.discount) for each in seen]
    vectors = [td_vector(each.feature, each.importance_ratio, each.reward) for each in seen]
    matrix = model.value_scale * torch.stack(matrices).mean(0)
    return Spectrum(torch.linalg.eigvals(matrix), matrix, torch.linalg.solve(matrix, -torch.stack(vectors).mean(0)))


def train(model: LinearTD, data: Any, *callbacks: Callback) -> None:
    """Fit, with nothing around it."""
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=list(callbacks),
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if isinstance(data, RolloutDataModule):
        trainer.fit(model, datamodule=data)
    else:
        trainer.fit(model, train_dataloaders=data)


def frozen_growth(model: LinearTD, rollout: Rollout, spectrum: Spectrum, kappa: float, num_iterations: int) -> float:
    """Growth rate of ‖w − w♯‖ an iteration, over the second half of the iterations.

    The run begins where 2¹⁶ iterations of its own would have left the direction of the error, at a distance of 1: what
    the slow modes would take thousands of iterations to show, a matrix power shows at once. The iterations are real.

    Args:
        model: with fixed policies.
        rollout: of all iterations.
        spectrum: of this rollout.
        kappa: the dimensionless step.
        num_iterations: of the training.
    """
    update = torch.eye(spectrum.matrix.shape[0], dtype=torch.float64) + kappa / spectrum.largest * spectrum.matrix
    for _ in range(16):
        update = update @ update
        update = update / torch.linalg.matrix_norm(update)
    error = update @ (model.critic_weight - spectrum.fixed_point)
    with torch.no_grad():
        model.weight.copy_(spectrum.fixed_point + error / error.norm())
    samples = rollout.reward.numel()
    model.learning_rate = kappa / spectrum.largest / (model.scale(rollout.reward.shape) * samples)
    record = Weights()
    train(model, SameRollout(rollout, num_iterations), record)
    distances = [float((weight - spectrum.fixed_point).norm()) for weight in record.weights]
    half = num_iterations // 2
    return math.log(distances[-1] / distances[-1 - half]) / half


def predicted_growth(spectrum: Spectrum, kappa: float) -> float:
    """Log max|1 + s λ|."""
    return math.log(spectral_radius_of_update(spectrum.eigenvalues, kappa / spectrum.largest))


# Large radii: events happen often enough for their features to have a matrix.
_WIDE = {"eps_catch": 0.3, "eps_pick": 0.3}
_ENV = {"feature_dim": 16, **_WIDE}
_TRIAD_SEED = 846961  # of the features, the policies and the batch: among the worst of 1,400 tried
_TRIAD = {
    "feature_dim": 6,
    "feature_sigma": 0.3,
    "feature_seed": _TRIAD_SEED,
    "p_mix": 0.0,
    "dt": 3.0,
    "eps_catch": 0.35,
    "eps_pick": 0.35,
}
_FAR = {"behaviour_std": 0.3, "target_std": 0.15, "behaviour_offset_scale": 3.0}


def sweep_frozen() -> list[dict[str, Any]]:
    """The boundary, without noise."""
    rows = []
    for name, policies in POLICIES.items():
        for share in SHARES:
            laboratory = make_laboratory(1, seed=0, num_envs=16, n_steps=50, gamma=0.95, env=_ENV, **policies)
            rollout = one_rollout(laboratory, 0)
            spectrum = spectrum_of(laboratory.model, [rollout])
            kappa = share * spectrum.critical
            measured = frozen_growth(laboratory.model, rollout, spectrum, kappa, 60)
            predicted = predicted_growth(spectrum, kappa)
            rows.append(
                {
                    "policies": name,
                    "share_of_critical": share,
                    "dimensionless_step": kappa,
                    "measured": measured,
                    "predicted": predicted,
                    "difference": abs(measured - predicted),
                }
            )
    return rows


def sweep_fresh(num_iterations: int = 100) -> list[dict[str, Any]]:
    """The boundary, with the noise of 800 samples an iteration."""
    rows = []
    for name, policies in POLICIES.items():
        settings: dict[str, Any] = {"num_envs": 16, "n_steps": 50, "gamma": 0.95, "env": _ENV, **policies}
        reference = make_laboratory(1, seed=0, **settings)
        spectrum = spectrum_of(reference.model, [one_rollout(reference, seed) for seed in range(100)])
        for share in SHARES:
            kappa = share * spectrum.critical
            differences = _differences(num_iterations, kappa / spectrum.largest, settings)
            half = len(differences) // 2
            rows.append(
                {
                    "policies": name,
                    "share_of_critical": share,
                    "dimensionless_step": kappa,
                    "measured": math.log(differences[-1] / differences[-1 - half]) / half,
                    "predicted": predicted_growth(spectrum, kappa),
                }
            )
    return rows


def _differences(num_iterations: int, step: float, settings: dict[str, Any]) -> list[float]:
    """‖w − w′‖ of two critics on the same data, as long as it is more than rounding."""
    weights = []
    for scale in (1.0, -1.0):
        laboratory = make_laboratory(num_iterations, seed=0, **settings)
        model, shape = laboratory.model, torch.Size((settings["n_steps"], settings["num_envs"]))
        model.learning_rate = step / (model.scale(shape) * shape.numel())
        with torch.no_grad():
            model.weight.mul_(scale)
        record = Weights()
        train(model, laboratory.data, record)
        weights.append(record.weights)
    differences = [float((first - second).norm()) for first, second in zip(*weights, strict=True)]
    # What is left of a difference in the end is rounding, and stays.
    return [difference for difference in differences if difference > 1e-10 * differences[0]]


class CrossFitted(Callback):
    """‖w − w♯‖² and ‖w♯ − previous w♯‖² without the error of the estimate of w♯.

    Several fixed points, each of a probe batch of its own, err independently: the mean inner product of the errors of
    different ones has no bias, where the square of one has. The batches have the same seeds at every firing, so that
    what drifts is the fixed point. A value may be below 0 where the truth is 0.
    """

    def __init__(self, every_n_iterations: int, num_batches: int = 4, num_chains: int = 512) -> None:
        self.every_n_iterations = every_n_iterations
        self.num_batches, self.num_chains = num_batches, num_chains
        self.rows: list[dict[str, float]] = []
        self._losses: list[float] = []
        self._previous: Tensor | None = None  # [batches, D]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, where it is due."""
        if not outputs or not isinstance(pl_module, LinearTD):
            return
        self._losses.append(float(outputs["td_loss"]))
        if (batch_idx + 1) % self.every_n_iterations or not math.isfinite(self._losses[-1]):
            return
        weight = pl_module.critic_weight.double()
        fixed_points = torch.stack([self._solve(trainer, pl_module, seed) for seed in range(self.num_batches)])
        drift = math.nan if self._previous is None else _cross(fixed_points - self._previous)
        self._previous = fixed_points
        self.rows.append(
            {
                "iteration": batch_idx + 1,
                "td_loss": sum(self._losses) / len(self._losses),
                "gap2": _cross(weight - fixed_points),
                "drift2": drift,
                "w_norm": float(weight.norm()),
                "mean_rho2": float(outputs["mean_rho2"]),
            }
        )
        self._losses = []

    def _solve(self, trainer: Trainer, model: LinearTD, seed: int) -> Tensor:
        data = trainer.datamodule  # type: ignore[attr-defined]
        (rollout,) = data.probe_rollout(
            [model.behaviour_policy()], num_envs=self.num_chains, num_steps=data.n_steps, seed=seed
        )
        return spectrum_of(model, [rollout]).fixed_point


def _cross(vectors: Tensor) -> float:
    """The mean inner product of different rows."""
    count = vectors.shape[0]
    products = vectors @ vectors.T
    return float((products.sum() - products.trace()) / (count * (count - 1)))


def sweep_triad() -> list[dict[str, Any]]:
    """Growth of ‖w − w♯‖ an iteration, on one batch again and again, where an eigenvalue has a positive real part.

    Steps are in units of the largest eigenvalue of E φφᵀ/√D, which limits the auxiliary weights of gradient TD.
    """
    rows = []
    for method in ("td0", "gtd2", "tdc", "etd"):
        for share in (0.01, 0.1):
            laboratory = make_laboratory(
                1, seed=_TRIAD_SEED, num_envs=64, n_steps=40, gamma=0.99, env=_TRIAD, **_FAR, method=method
            )
            model, rollout = laboratory.model, one_rollout(laboratory, _TRIAD_SEED)
            spectrum, seen = spectrum_of(model, [rollout]), model.linear_transitions(rollout, None)
            covariance = model.value_scale * seen.feature.T @ seen.feature / seen.reward.numel()
            unit = 1.0 / float(torch.linalg.eigvalsh(covariance)[-1])
            to_rate = 1.0 / (model.scale(rollout.reward.shape) * rollout.reward.numel())
            model.learning_rate, model.auxiliary_learning_rate = share * unit * to_rate, unit * to_rate
            record = Weights()
            train(model, SameRollout(rollout, 600), record)
            distances = [float((weight - spectrum.fixed_point).norm()) for weight in record.weights]
            rows.append(
                {
                    "method": method,
                    "step": share,
                    "eigenvalue_on_the_right": float(spectrum.eigenvalues.real.max()),
                    "effective_samples": float(effective_sample_size(seen.importance_ratio)),
                    "predicted_of_td0": math.log(spectral_radius_of_update(spectrum.eigenvalues, share * unit)),
                    "measured": math.log(distances[-1] / distances[299]) / 300,
                }
            )
    return rows


def run_configs(seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The shipped configurations, by name and seed."""
    rows = []
    for name in ("converge", "plateau", "diverge"):
        config = yaml.safe_load(Path(f"configs/linear_td_{name}.yaml").read_text())
        for seed in seeds:
            seed_everything(seed, verbose=False)
            data = RolloutDataModule(**config["data"]["init_args"])
            model = LinearTD(data.spec, **config["model"]["init_args"])
            # The first ten iterations learn nothing.
            num_iterations = data.total_env_steps // (data.num_envs * data.n_steps)
            record = CrossFitted(max(10, num_iterations // 16))
            train(model, data, record)
            rows += [{"config": name, "seed": seed, **row} for row in record.rows]
    return rows


def settled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each configuration and seed, means over the last quarter of its firings; the TD loss beside that before."""
    found = []
    for name, seed in dict.fromkeys((row["config"], row["seed"]) for row in rows):
        own = [row for row in rows if (row["config"], row["seed"]) == (name, seed)]
        quarter = len(own) // 4
        last, before = own[-quarter:], own[-2 * quarter : -quarter]
        found.append(
            {
                "config": name,
                "seed": seed,
                "gap2": _mean(last, "gap2"),
                "drift2": _mean(last, "drift2"),
                "td_loss": _mean(last, "td_loss"),
                "td_loss_change": _mean(last, "td_loss") / _mean(before, "td_loss") - 1.0,
                "w_norm": own[-1]["w_norm"],
                "mean_rho2": _mean(last, "mean_rho2"),
            }
        )
    return found


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    return statistics.fmean(row[name] for row in rows)


def draw(folder: Path) -> None:
    """The growth rates against the dimensionless step, from the files of the two sweeps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, name in zip(axes, POLICIES, strict=True):
        for part, marker in (("frozen", "o"), ("fresh", "x")):
            file = folder / f"{part}.jsonl"
            rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
            rows = [row for row in rows if row["policies"] == name]
            steps = [row["dimensionless_step"] for row in rows]
            label = "log max|1 + sλ|, " + ("one rollout" if part == "frozen" else "mean of 100 rollouts")
            (line,) = axis.plot(steps, [row["predicted"] for row in rows], label=label)
            measured = [row["measured"] for row in rows]
            axis.plot(steps, measured, marker, color=line.get_color(), label=f"measured, {part}")
        axis.axhline(0.0, color="black", linewidth=0.5)
        axis.set_title(name)
        axis.set_xlabel("dimensionless step s |λ|max")
    axes[0].set_ylabel("growth of the error an iteration (log)")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(folder / "boundary.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="frozen, fresh, triad, configs; all without a word")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the configurations")
    arguments = parser.parse_args()
    sweeps: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "frozen": sweep_frozen,
        "fresh": sweep_fresh,
        "triad": sweep_triad,
        "configs": lambda: run_configs(arguments.seeds),
    }
    unknown = [part for part in arguments.parts if part not in sweeps]
    if unknown:
        parser.error(f"got the parts {', '.join(unknown)}, expected some of {', '.join(sweeps)}")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts or sweeps:
        rows = sweeps[part]()
        (arguments.output / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        print_table(settled(rows) if part == "configs" else rows)
    draw(arguments.output)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Rows of one kind."""
    print("  ".join(f"{name:>12s}" for name in rows[0]))
    for row in rows:
        cells = [f"{value:.6g}" if isinstance(value, float) else str(value) for value in row.values()]
        print("  ".join(f"{cell:>{max(12, len(name))}s}" for name, cell in zip(row, cells, strict=True)), flush=True)


if __name__ == "__main__":
    main()
