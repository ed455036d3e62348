"""The published run, of numpy's random numbers in its order: two iterations to twelve digits.

"Learning dynamics in temporal-difference RL with unfixed policy", configuration `instability`, seed 0.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from test_skeleton import make_trainer
from torch import Tensor

from rlmods.algorithms import LinearTD
from rlmods.algorithms.linear_td import Samples
from rlmods.data import RolloutDataModule
from rlmods.functional.gaussian_policy import (
    executed_action,
    expected_ratio_of_ball_clip,
    expected_squared_ratio_of_ball_clip,
)
from rlmods.types import Rollout

NUM_ENVS, NUM_STEPS = 16, 200

INITIAL = {
    "actor_weight": [0.3402812213349085, -0.21117649182638673, 0.1734664150116246],
    "actor_bias": [-0.10684410597422203, -0.05389843750912998, 0.1994334776002542],
    "critic_weight": [0.8050894723742356, -1.9120592174903859, -3.496649248417975],
    "teacher_weight": [0.04710495018888014, -0.034924626022908134, 0.07942528680107261],
    "events_of_the_teacher": [-1.0, 1.0, -1.0, -0.1],
    "theta": [0.2887381909396251, -0.17918919527714827, 0.1471911340354076],
    "weight": [-0.33000527703780913, -0.06385257505359562, -0.09569085032401416],
    "norms": [6.068914773466357, 9.163371681126398, 0.044552754529773406],
}
# The first three steps of the first two trajectories: ρ, reward, δ, ‖φ‖², ‖φ̄‖².
FIRST_STEPS = [
    [0.8638564089641746, -0.0003222535919914806, -0.001220095887463265, 1.047564015272929, 0.9238180173653959],
    [0.619854243335306, -0.0006711611066514892, -0.0017739833863192442, 1.0272493925175958, 0.9870407423319737],
    [0.8793200252282721, -0.0010134688174597175, -0.0010217233149825776, 1.0451730219970292, 0.9517028256816489],
    [0.617599215376993, 0.0010094470652081842, 0.0036736709323083507, 0.9806851983097999, 0.8954081915236525],
    [0.40201242999019837, 0.0007797335263086014, 0.001220429025964801, 0.9667559428170938, 0.8992845475144766],
    [0.5776784916412009, 0.00048740691886962477, 0.00298788245442384, 0.9873917392844451, 0.9120370055236106],
]
# Of the same steps: the executed action, and where adventurer and ghost are afterwards.
FIRST_MOVES = [
    [-0.19754243578737007, -0.3478174608371362, 0.24501147300857948, 0.9262355066939497, 0.20962843051922378, 0.6571061998333176],  # noqa: E501
    [0.28653789810416663, 0.08004726511380822, 0.26455792160862257, 0.9261044262622941, 0.21310867415501378, 0.6631492774165841],  # noqa: E501
    [0.36683174231131227, 0.15948188872987118, 0.27692326145544377, 0.9215770484540718, 0.21877898747807994, 0.6940454134233911],  # noqa: E501
    [-0.23279262699743836, 0.16778396391544323, 0.8397375903085588, 0.05008824931809448, 0.5893246235311139, 0.8568700790904477],  # noqa: E501
    [-0.054244491545223095, 0.01742322537266172, 0.8444281156002653, 0.039785924295006034, 0.5987509379175036, 0.8521309101748515],  # noqa: E501
    [-0.2543658029072601, -0.09418585082392968, 0.8215751099858979, 0.0333123431149571, 0.6169751490608191, 0.8652891230890574],  # noqa: E501
]  # fmt: skip
ROWS: list[dict[str, float]] = [
    {
        "td_loss": 2.500102025332649e-05,
        "critic_teacher_error": 0.044552625510051444,
        "tracking_gap": 1.585678590298169e-15,
        "mean_rho": 0.6282641040620544,
        "mean_rho2": 0.42447553895329554,
        "p95_rho2": 0.7700656883617376,
        "p99_rho2": 0.8104126163062042,
        "max_rho2": 0.8740212787334868,
        "delta_mean": -0.0007608151625850486,
        "delta_std": 0.004941880263797088,
        "delta_p95": 0.0034175382156823755,
        "delta_p99": 0.0072171685663145165,
        "delta_max": 0.02207853374898103,
        "w_norm": 9.163369275853684,
    },
    {
        "td_loss": 2.5317021197059575e-05,
        "critic_teacher_error": 0.04455248831713099,
        "tracking_gap": 4.881184443991506e-15,
        "mean_rho": 0.6297092696209585,
        "mean_rho2": 0.4263093474284747,
        "p95_rho2": 0.7687148923742665,
        "p99_rho2": 0.8165863854196378,
        "max_rho2": 0.9064863049876275,
        "delta_mean": -0.0007328797711055434,
        "delta_std": 0.00497794218911428,
        "delta_p95": 0.0035749325601644416,
        "delta_p99": 0.006888732176997277,
        "delta_max": 0.01626597973417573,
        "w_norm": 9.163366786167302,
    },
]


def make(
    random_stream: Any, *, num_iterations: int, num_envs: int = NUM_ENVS, num_steps: int = NUM_STEPS, **options: Any
) -> tuple[RolloutDataModule, LinearTD]:
    """The published configuration; of options the environment takes `action_mode`, the algorithm the others."""
    env_kwargs = {
        "max_episode_steps": 200,
        "p_mix": 0.01,
        "action_mode": options.pop("action_mode", "ball_clip"),
        "feature_dim": 2048,
        "actor_feature_dim": 512,
        "precision": "float64" if random_stream == "numpy" else "float32",
    }
    data = RolloutDataModule(
        "rlmods/TorusGobletGhost-v0",
        num_envs * num_steps * num_iterations,
        num_envs=num_envs,
        n_steps=num_steps,
        gamma=0.99,
        env_kwargs=env_kwargs,
        seed=0,
    )
    torch.manual_seed(0)
    model = LinearTD(
        data.spec,
        learning_rate=0.2,
        actor_learning_rate=0.12,
        beta=0.01,
        behaviour_std=0.25,
        target_std=0.4,
        num_bootstrap_samples=4,
        theta_radius=8.0,
        theta_init_scale=0.2,
        w_init_scale=0.2,
        random_stream=random_stream,
        **options,
    )
    return data, model


class FirstSteps(NamedTuple):
    values: Tensor  # [6, 5], as FIRST_STEPS
    action: Tensor  # [6, 2]
    next_observation: Tensor  # [6, 18]


class Record(Callback):
    """The rows of a run, and its first steps as the update sees them."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.first_steps: FirstSteps | None = None
        self.actions: list[Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.actions.append(batch.action)
        if batch_idx == 0 and isinstance(pl_module, LinearTD) and pl_module.stream is not None:
            self.first_steps = first_steps(pl_module, batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.rows.append({name: value.item() for name, value in outputs.items() if value.ndim == 0})


@torch.no_grad()
def first_steps(model: LinearTD, batch: Rollout) -> FirstSteps:
    """Those of the first two trajectories."""
    assert model.stream is not None
    assert isinstance(batch.observation, Tensor)
    assert isinstance(batch.next_observation, Tensor)

    num_steps, num_envs = batch.reward.shape

    def of(field: Tensor) -> Tensor:
        return field.view(num_steps, num_envs, *field.shape[1:])[:3, :2].transpose(0, 1).flatten(0, 1)

    samples: Samples = model.samples(batch)
    observation = of(batch.next_observation.flatten(0, 1))
    mean = model.policy_means(observation)[1].unsqueeze(1)
    noise = of(model.stream.bootstrap_noise(batch.reward.shape))
    next_actions = executed_action(mean + model.target_std * noise, model.action_mode, model.v_max)
    bootstrap_feature = model.critic_features.mean(observation, next_actions)
    squared = [matrix.square().sum(1) for matrix in (of(samples.feature), bootstrap_feature)]
    values = [of(samples.density_ratio), of(samples.reward), of(samples.td_error), *squared]
    action = executed_action(of(batch.action.flatten(0, 1)), model.action_mode, model.v_max)
    return FirstSteps(torch.stack(values, 1), action, observation)


class Golden(NamedTuple):
    model: LinearTD
    initial: dict[str, list[float]]
    record: Record


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """Two iterations of the published run."""
    data, model = make("numpy", num_iterations=2)
    theta, weight = model.actors.theta.detach(), model.critic_weight
    initial = {
        "actor_weight": model.actors.features.weight[:3, 0].tolist(),
        "actor_bias": model.actors.features.bias[:3].tolist(),
        "critic_weight": model.critic_features.input_weight[:3, 0].tolist(),
        "teacher_weight": model.teacher_weight[:3].tolist(),
        "events_of_the_teacher": model.teacher_weight[-4:].tolist(),
        "theta": theta.flatten()[:3].tolist(),
        "weight": weight[:3].tolist(),
        "norms": [float(theta.norm()), float(weight.norm()), float((weight - model.teacher_weight).square().mean())],
    }
    record = Record()
    folder = tmp_path_factory.mktemp("golden")
    trainer = make_trainer(folder, record, logger=False, enable_checkpointing=False, limit_val_batches=0)
    trainer.fit(model, datamodule=data)
    return Golden(model, initial, record)


def test_golden_initial_entries(golden: Golden) -> None:
    assert golden.initial.keys() == INITIAL.keys()
    for name, expected in INITIAL.items():
        np.testing.assert_allclose(golden.initial[name], expected, rtol=1e-14, err_msg=name)


def test_golden_first_steps(golden: Golden) -> None:
    steps = golden.record.first_steps
    assert steps is not None
    np.testing.assert_allclose(steps.values, FIRST_STEPS, rtol=1e-12)
    circle = steps.next_observation
    places = torch.atan2(circle[:, [0, 1, 4, 5]], circle[:, [2, 3, 6, 7]]) / (2.0 * math.pi) % 1.0
    np.testing.assert_allclose(torch.cat([steps.action, places], 1), FIRST_MOVES, rtol=1e-12)


@pytest.mark.parametrize("iteration", [0, 1])
def test_golden_rows(golden: Golden, iteration: int) -> None:
    row, expected = golden.record.rows[iteration], ROWS[iteration]
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-12, abs=0.0)


def test_the_step_of_the_published_run(golden: Golden) -> None:
    assert golden.model.train_step_scale == pytest.approx(6.25e-5, rel=1e-15)
    assert golden.model.mean_step == pytest.approx(0.2, rel=1e-15)
    assert golden.record.rows[0]["learning_rate"] == 0.2


def test_golden_start_of_the_run_that_executes_raw_actions(tmp_path: Path) -> None:
    """The later generation of the program, with the same random numbers: before the first clip nothing differs."""
    data, model = make("numpy", num_iterations=1, num_envs=1, num_steps=2, action_mode="raw", scale_mode="sqrtB_T")
    assert float(model.critic_weight.norm()) == pytest.approx(INITIAL["norms"][1], rel=1e-14)
    assert model.scale(torch.Size((NUM_STEPS, NUM_ENVS))) * model.learning_rate == pytest.approx(2.5e-4, rel=1e-15)
    record = Record()
    trainer = make_trainer(tmp_path, record, logger=False, enable_checkpointing=False, limit_val_batches=0)
    trainer.fit(model, datamodule=data)
    first = record.actions[0][0, 0]
    assert float(first.norm()) > 0.4
    clipped = executed_action(first, "ball_clip", 0.4)
    np.testing.assert_allclose(clipped, FIRST_MOVES[0][:2], rtol=1e-12)
    assert record.rows[0]["clip_fraction"] == 0.0


@pytest.mark.learning
def test_torchs_random_numbers_give_the_published_statistics(tmp_path: Path) -> None:
    """From the published parameters, because the TD error depends on the draw of the critic by a factor of 2."""
    data, model = make("torch", num_iterations=20)
    _, published = make("numpy", num_iterations=1)
    model.load_state_dict(published.state_dict())
    record = Record()
    trainer = make_trainer(tmp_path, record, logger=False, enable_checkpointing=False, limit_val_batches=0)
    trainer.fit(model, datamodule=data)
    mean = {name: float(np.mean([row[name] for row in record.rows])) for name in record.rows[0]}
    assert mean["mean_rho"] == pytest.approx(expected_ratio_of_ball_clip(0.25, 0.4, 0.4), abs=0.003)
    assert mean["mean_rho2"] == pytest.approx(expected_squared_ratio_of_ball_clip(0.25, 0.4, 0.4), abs=0.004)
    assert mean["clip_fraction"] == pytest.approx(math.exp(-0.5 * (0.4 / 0.25) ** 2), abs=0.01)
    assert mean["td_loss"] == pytest.approx(2.5e-5, rel=0.2)
    assert mean["critic_teacher_error"] == pytest.approx(0.0445, abs=0.002)


# The published check with a fixed target policy: another configuration, all five rows.
_FIXED_PI = (
    # td_loss, critic_teacher_error, tracking_gap, mean_rho2, w_norm
    (3.9874858102734524e-05, 0.02238589076269836, 1.7045843581273991e-34, 1.77998782662024, 1.5482714919684342),
    (0.0001023249789170584, 0.022384662169519145, 2.058643256595072e-34, 1.4294663970661148, 1.548266876507248),
    (8.443227936559631e-05, 0.022383803054759316, 2.058643256595072e-34, 1.7603768989607473, 1.5482623907820892),
    (5.6247136297430053e-05, 0.022382824489762886, 2.058643256595072e-34, 1.5848387996284423, 1.5482549088065858),
    (0.00015153027026911734, 0.022380879533493984, 2.058643256595072e-34, 1.480000678331054, 1.5482396714326339),
)


def test_golden_rows_of_a_fixed_target_policy(tmp_path: Path) -> None:
    environment = {"max_episode_steps": 50, "p_mix": 0.1, "action_mode": "ball_clip", "precision": "float64"}
    data = RolloutDataModule(
        "rlmods/TorusGobletGhost-v0",
        total_env_steps=500,
        num_envs=2,
        n_steps=50,
        gamma=0.95,
        env_kwargs={**environment, "feature_dim": 256, "actor_feature_dim": 64},
    )
    model = LinearTD(
        data.spec,
        learning_rate=0.1,
        actor_learning_rate=0.0,
        beta=0.2,
        behaviour_std=0.3,
        target_std=0.2,
        num_bootstrap_samples=2,
        theta_radius=5.0,
        random_stream="numpy",
    )
    rows = _Rows()
    make_trainer(tmp_path, rows, logger=False, enable_checkpointing=False, limit_val_batches=0).fit(
        model, datamodule=data
    )
    assert rows.values == [pytest.approx(row, rel=1e-12, abs=0.0) for row in _FIXED_PI]


class _Rows(Callback):
    def __init__(self) -> None:
        self.values: list[tuple[float, ...]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        names = ("td_loss", "critic_teacher_error", "tracking_gap", "mean_rho2", "w_norm")
        self.values.append(tuple(float(outputs[name]) for name in names))
