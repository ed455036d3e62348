"""Each defect of a clip, C1 to C16, in the real TD3, SAC or DQN; and the same algorithms whole."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.plugins import MixedPrecision

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from mutation_bench import td3_clip_mutations as mutations
from mutation_bench.td3_clip_mutations import broken

from rlmods.algorithms import DQN, SAC, TD3
from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.gradient_clip_verifier import GradientClipVerifier
from rlmods.data import ReplayDataModule

ACT, WARN, INFO = Severity.ACT, Severity.WARN, Severity.INFO
TIGHT = {"critic": 0.5, "actor": 1e-3}
ENVIRONMENTS = {DQN: "CartPole-v1", TD3: "Pendulum-v1", SAC: "Pendulum-v1"}
PIXELS: dict[str, Any] = {"encoder": "nature", "features_dim": 8, "random_shift": 0}


def run(
    folder: Path,
    algorithm: type[Any],
    *,
    env_steps: int = 96,
    guard: dict[str, Any] | None = None,
    plugins: Any = None,
    **options: Any,
) -> GradientClipVerifier:
    """16 updates an iteration, a window every second one."""
    seed_everything(0, verbose=False)
    default = next(env_id for base, env_id in ENVIRONMENTS.items() if issubclass(algorithm, base))
    data = ReplayDataModule(
        options.pop("env_id", default),
        env_steps,
        learning_starts=32,
        steps_per_iteration=16,
        updates_per_iteration=options.pop("updates_per_iteration", 16),
        batch_size=8,
        buffer_size=1_000,
        eval_episodes=1,
        eval_every=10**9,
    )
    verifier = GradientClipVerifier(every_n_iterations=2, **(guard or {}))
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[verifier],
        plugins=plugins,
    )
    limits: Any = 0.05 if issubclass(algorithm, DQN) else TIGHT
    model = algorithm(data.spec, **{"hidden_sizes": [16, 16], "max_grad_norm": limits, **options})
    trainer.fit(model, datamodule=data)
    return verifier


def causes(guard: GradientClipVerifier) -> dict[str, Severity]:
    """The worst of each cause."""
    return {cause: max(s for c, s in guard.raised if c == cause) for cause, _ in guard.raised}


@pytest.mark.parametrize(
    ("algorithm", "mutation", "cause"),
    [
        pytest.param(TD3, mutations.LeavesFirstLayerOut, "parameter_outside_clip", id="C1"),
        pytest.param(TD3, mutations.ClipsBeforeBackward, "clip_before_backward", id="C2"),
        pytest.param(SAC, mutations.ClipsBeforeBackward, "clip_before_backward", id="C2-sac"),
        pytest.param(TD3, mutations.ClipsAfterStep, "clip_after_step", id="C3"),
        pytest.param(SAC, mutations.ClipsAfterStep, "clip_after_step", id="C3-sac"),
        pytest.param(TD3, mutations.ForgetsZeroGrad, "accumulated_gradients", id="C5"),
        pytest.param(DQN, mutations.ClipsPerTensor, "clip_per_group", id="C6"),
        pytest.param(TD3, mutations.ClipsPerTensor, "clip_per_group", id="C6-td3"),
        pytest.param(TD3, mutations.ClipsByValue, "clip_by_value", id="C7-by-value"),
        pytest.param(TD3, mutations.ClipsToTwice, "clip_limit_exceeded", id="C7-twice"),
        pytest.param(TD3, mutations.NaNLoss, "non_finite_gradient", id="C8"),
        pytest.param(SAC, mutations.NeverClips, "clip_never_applied", id="C16"),
    ],
)
def test_a_broken_line_of_an_update(algorithm: type[Any], mutation: type[Any], cause: str, tmp_path: Path) -> None:
    """DQN under the others: `test_gradient_clip_verifier.py`."""
    assert causes(run(tmp_path, broken(algorithm, mutation))) == {cause: ACT}


@pytest.mark.parametrize(
    ("algorithm", "expected", "options"),
    [
        pytest.param(mutations.ActorHoldsCritic, {"shared_parameters": WARN}, {}, id="C4"),
        pytest.param(
            TD3,
            {"shared_parameters": WARN},
            {
                "encoder_ownership": "shared_both",
                "env_id": "rlmods/DotTracking-v0",
                "updates_per_iteration": 4,
                **PIXELS,
            },
            id="C4-one-encoder",
            marks=pytest.mark.filterwarnings("ignore:encoder_ownership"),
        ),
        pytest.param(mutations.CriticTakesActorGradient, {"dangling_gradients": WARN}, {}, id="C5-dangling"),
        pytest.param(mutations.CriticNotFrozen, {}, {}, id="C5-dangling-zeroed-in-time"),
        pytest.param(mutations.ActorHasUnusedLayer, {"no_gradient": WARN}, {"env_steps": 256}, id="C9"),
        pytest.param(
            mutations.ActorNeverSteps,
            {"optimizer_never_steps": WARN},
            {"env_steps": 576, "max_grad_norm": None},
            id="C9-never",
        ),
        pytest.param(
            mutations.ReplacesActor, {"stale_parameters": ACT, "parameter_not_optimised": ACT}, {}, id="C10-stale"
        ),
        pytest.param(mutations.ActorNotOptimised, {"parameter_not_optimised": WARN}, {}, id="C10-forgotten"),
        pytest.param(
            TD3, {"clip_always_active": WARN}, {"env_steps": 576, "max_grad_norm": {"critic": 1e-3}}, id="C11"
        ),
        pytest.param(
            mutations.DominatedCritic, {"module_dominates": INFO}, {"env_steps": 160, "guard": {"depth": 4}}, id="C12"
        ),
        pytest.param(
            mutations.HiddenOptimizer, {"unobserved_optimizer": WARN, "limit_without_optimizer": WARN}, {}, id="C15"
        ),
    ],
)
def test_a_broken_owner(
    algorithm: type[Any], expected: dict[str, Severity], options: dict[str, Any], tmp_path: Path
) -> None:
    assert causes(run(tmp_path, algorithm, **options)) == expected


def test_a_delayed_actor_is_counted_by_its_own_steps(tmp_path: Path) -> None:
    """100 of the critic's steps are 50 of the actor's: too few to say that a layer never had a gradient."""
    guard = run(tmp_path, mutations.ActorHasUnusedLayer, env_steps=160)
    assert guard.detector.samples["critic"] > 100
    assert guard.raised == []


def test_a_sum_of_norms_of_eight_tensors_is_no_norm(tmp_path: Path) -> None:
    """C13, as published: a limit of 1, and 2.4 in the log."""
    guard = run(tmp_path, broken(TD3, mutations.LogsSumOfNorms), max_grad_norm={"critic": 1.0}, hidden_sizes=[16] * 3)
    assert causes(guard) == {"sum_of_norms": INFO}
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    (event,) = [event for event in events if event["kind"] == "alarm"]
    assert "clip OK, the metric is a sum" in event["message"]
    assert "of 8 tensors of critic" in event["message"]
    evidence = event["evidence"]
    assert evidence["norm_after"] <= 1.0 + 1e-5
    assert 1.0 < evidence["value"] <= math.sqrt(8.0)


def test_half_precision_is_refused_or_flagged(tmp_path: Path) -> None:
    """C14: the base class refuses; without its check the verifier says what is wrong."""

    def plugin() -> MixedPrecision:
        return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=16.0))

    with pytest.raises(ValueError, match="16-mixed"):
        run(tmp_path, TD3, plugins=[plugin()])
    guard = run(tmp_path, broken(TD3, mutations.LosesScale), plugins=[plugin()])
    assert causes(guard)["scaled_gradients_clipped"] is WARN


BOTH = {"critic": 10.0, "actor": 1.0}
DDPG: dict[str, Any] = {"n_critics": 1, "policy_delay": 1, "target_policy_noise": 0.0}


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        (TD3, {}),  # both limits work nearly always
        (TD3, {"max_grad_norm": BOTH}),
        (TD3, {"max_grad_norm": None}),
        (TD3, {"max_grad_norm": {"critic": 0.5}}),
        (TD3, {"policy_delay": 5}),
        (TD3, {"max_grad_norm": BOTH, **DDPG}),
        (SAC, {"max_grad_norm": BOTH}),
        (SAC, {"ent_coef": 0.2}),
        (SAC, {"max_grad_norm": {"ent_coef": 0.01}}),
        (DQN, {}),
        (broken(TD3, mutations.ClipOrder), {}),
    ],
)
def test_whole_algorithms_are_silent(algorithm: type[Any], options: dict[str, Any], tmp_path: Path) -> None:
    guard = run(tmp_path, algorithm, env_steps=128, **options)
    assert guard.raised == []
    assert min(guard.detector.samples.values()) > 15


@pytest.mark.parametrize("encoder_ownership", ["shared_critic", "separate"])
def test_pixels_are_silent(encoder_ownership: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"env_id": "rlmods/DotTracking-v0", "updates_per_iteration": 4, **PIXELS}
    assert run(tmp_path, TD3, encoder_ownership=encoder_ownership, **options).raised == []


def test_limits_are_those_of_the_module_by_name(tmp_path: Path) -> None:
    """Whom the module does not name has no limit, however large its gradients are."""
    assert causes(run(tmp_path, broken(TD3, mutations.NeverClips), max_grad_norm={"actor": 1e-3})) == {
        "clip_never_applied": ACT
    }
    guard = run(tmp_path, broken(TD3, mutations.NeverClips), max_grad_norm={"actor": 1e9})
    assert guard.raised == []
    guard = run(tmp_path, broken(TD3, mutations.NeverClips), max_grad_norm=None, guard={"max_norm": {"critic": 0.1}})
    assert causes(guard) == {"clip_never_applied": ACT}
