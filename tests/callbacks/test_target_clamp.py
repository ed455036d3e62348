from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import ACT, Stranger, as_lists, events, fit_small, fit_stranger, transitions, warnings_of
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from test_skeleton import weights
from torch import Tensor, nn

from rlmods.algorithms import DQN
from rlmods.callbacks.safeguard import MissingInputError
from rlmods.callbacks.target_clamp import ClampDetector, TargetClamp

BUSY = ["clamp_always_active"]


class FarTarget(DQN):
    """The target network says 1,000, where nothing above 100 is possible, and is never updated."""

    def __init__(self, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        with torch.no_grad():
            list(self.target_network.parameters())[-1].fill_(1_000.0)  # the bias of the head


class Targets(Callback):
    """Keeps the published targets."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if outputs:
            self.seen.append(outputs["td_target"])


# The pure detector


def test_it_speaks_after_the_windows_in_a_row() -> None:
    detector = ClampDetector(max_fraction=0.01, windows=3)
    said = [bool(detector.update(fraction, 1.0, 100.0)) for fraction in (0.5, 0.5, 0.0, 0.5, 0.5, 0.5, 0.02)]
    assert said == [False, False, False, False, False, True, True]


def test_a_few_targets_outside_are_no_reason() -> None:
    detector = ClampDetector(max_fraction=0.01, windows=3)
    assert not any(detector.update(0.01, 1.0, 100.0) for _ in range(20))


def test_before_the_first_reward_it_is_silent() -> None:
    detector = ClampDetector(max_fraction=0.01, windows=3)
    assert not any(detector.update(1.0, 0.0, 0.0) for _ in range(20))


def test_an_interval_that_the_rewards_turn_upside_down_is_not_silent() -> None:
    """A given low above the highest value that the rewards allow."""
    detector = ClampDetector(max_fraction=0.01, windows=3)
    assert [bool(detector.update(1.0, 50.0, 2.0)) for _ in range(3)] == [False, False, True]


# On the real DQN


def test_where_nothing_lies_outside_the_weights_are_those_without_it(tmp_path: Path) -> None:
    clamp = TargetClamp(low=-1e6, high=1e6, every_n_iterations=2)
    plain, clamped = fit_small(tmp_path / "plain"), fit_small(tmp_path / "clamped", clamp)
    assert torch.equal(weights(plain.lightning_module), weights(clamped.lightning_module))
    assert clamp.raised == []


def test_observing_moves_nothing(tmp_path: Path) -> None:
    clamp = TargetClamp(mode="observe", windows=3, every_n_iterations=2)
    arguments = {"target_update_interval": 10_000}
    plain = fit_small(tmp_path / "plain", model_class=FarTarget, arguments=arguments)
    observed = fit_small(tmp_path / "observed", clamp, model_class=FarTarget, arguments=arguments)
    assert torch.equal(weights(plain.lightning_module), weights(observed.lightning_module))
    assert warnings_of(clamp) == BUSY


def test_impossible_targets_are_clamped_and_it_is_said(tmp_path: Path) -> None:
    clamp, targets = TargetClamp(windows=3, every_n_iterations=2), Targets()
    trainer = fit_small(tmp_path, clamp, targets, model_class=FarTarget, arguments={"target_update_interval": 10_000})
    seen = torch.cat([target.flatten() for target in targets.seen])
    assert 0.0 <= float(seen.min()) <= float(seen.max()) <= 100.01
    assert warnings_of(clamp) == BUSY
    (event,) = events(trainer)
    assert event["evidence"]["fraction"] > 0.5
    assert event["evidence"]["interval"] == pytest.approx([0.0, 100.0], rel=1e-4)
    assert clamp.raised[0][1] < ACT


def test_it_leaves_at_the_end_and_on_an_exception(tmp_path: Path) -> None:
    class Failure(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            raise RuntimeError("on purpose")

    model = fit_small(tmp_path, TargetClamp(), total_env_steps=96).lightning_module
    assert isinstance(model, DQN)
    assert model.target_transforms == []
    stranger = Stranger()
    with pytest.raises(RuntimeError, match="on purpose"):
        fit_stranger(tmp_path, stranger, [transitions()], TargetClamp(), Failure())
    assert not stranger.target_net._forward_hooks


def test_a_resumed_clamp_is_one_that_was_never_stopped(tmp_path: Path) -> None:
    def clamped_run(folder: str, **options: Any) -> TargetClamp:
        clamp = TargetClamp(windows=8, every_n_iterations=2)
        arguments = {"target_update_interval": 10_000}
        fit_small(tmp_path / folder, clamp, model_class=FarTarget, arguments=arguments, eval_every=240, **options)
        return clamp

    whole = clamped_run("whole")
    half = clamped_run("half", max_steps=15)
    assert whole.raised
    assert not half.raised
    (checkpoint,) = (tmp_path / "half").glob("lightning_logs/*/checkpoints/*.ckpt")
    resumed = clamped_run("resumed", ckpt_path=checkpoint)
    assert as_lists(whole.state_dict()) == as_lists(resumed.state_dict())


# On strangers


def far_stranger() -> Stranger:
    stranger = Stranger()
    with torch.no_grad():
        stranger.target_net.bias.fill_(100.0)
    return stranger


def test_a_strangers_target_network_is_clamped_by_a_hook(tmp_path: Path) -> None:
    """Rewards of 1 and a discount of 0.5 allow [1, 2]; a value of 2 gives the target 1 + 0.5 · 2."""
    stranger = far_stranger()
    clamp = TargetClamp(windows=2, every_n_iterations=1)
    fit_stranger(tmp_path, stranger, [transitions(1.0, 0.5)] * 4, clamp)
    assert all(torch.equal(target, torch.full((8,), 2.0)) for target in stranger.targets)
    assert warnings_of(clamp) == BUSY
    assert not stranger.target_net._forward_hooks


def test_given_bounds_need_no_transitions(tmp_path: Path) -> None:
    stranger = far_stranger()
    fit_stranger(tmp_path, stranger, [transitions(1.0, 0.5)], TargetClamp(low=-3.0, high=3.0))
    assert torch.equal(stranger.targets[0], torch.full((8,), 2.5))


def test_actors_are_left_alone(tmp_path: Path) -> None:
    stranger = far_stranger()
    stranger.target_actor = actor = nn.Linear(2, 1)
    seen: list[int] = []

    class Look(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            seen.extend([len(stranger.target_net._forward_hooks), len(actor._forward_hooks)])

    fit_stranger(tmp_path, stranger, [transitions()], TargetClamp(), Look())
    assert seen == [1, 0]


def test_nothing_to_clamp_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing to clamp in BoringModel.*target_transforms.*got \['layer'\]"):
        fit_stranger(tmp_path, BoringModel(), [torch.randn(2, 32)], TargetClamp())


def test_batches_without_transitions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"batch is a Tensor without \['reward', 'discount'\].*low=\.\.\. and"):
        fit_stranger(tmp_path, Stranger(), [torch.randn(2, 32)], TargetClamp())


def test_a_target_network_that_returns_no_tensor_is_refused(tmp_path: Path) -> None:
    class Pair(nn.Linear):
        def forward(self, features: Tensor) -> Any:
            return super().forward(features), None

    stranger = Stranger()
    stranger.target_net = Pair(2, 1)
    with pytest.raises(TypeError, match="got a tuple from Pair, expected one tensor of values"):
        fit_stranger(tmp_path, stranger, [transitions()], TargetClamp())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 1.0, "high": -1.0}, "expected low < high"),
        ({"low": 1.0, "high": 1.0}, "expected low < high"),
        ({"max_fraction": 1.0}, "expected a fraction"),
        ({"windows": 0}, "needed = 0"),
        ({"mode": "clamp"}, "expected 'observe', 'act' or 'stop'"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TargetClamp(**arguments)
