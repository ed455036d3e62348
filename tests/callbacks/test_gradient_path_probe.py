from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from actor_critics import ActorCritic, Wiring, replay_batches
from guarding import ACT, Stranger, events, fit_small, fit_stranger, transitions, warnings_of
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from test_skeleton import weights
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from rlmods.algorithms import DQN, SAC, TD3
from rlmods.algorithms.base import Algorithm
from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.gradient_path_probe import GradientPathProbe
from rlmods.callbacks.path_defects import ParameterPaths, PathQuestion, path_defects, path_table
from rlmods.callbacks.safeguard import MissingInputError
from rlmods.networks.continuous import Encoded
from rlmods.types import EnvSpec, Minibatch, ReplayBatch, Transition

QUESTION = PathQuestion("actor", "actor_loss", "critic_loss", cut=["head"])


def path(name: str, group: str, critic: float | None, actor: float | None, **changes: Any) -> ParameterPaths:
    plain = ParameterPaths(
        name, (group,) if group else (), True, False, True, {"critic_loss": critic, "actor_loss": actor}
    )
    return plain._replace(**changes)


def sound() -> dict[str, ParameterPaths]:
    """An actor and a critic with an encoder each, and a target."""
    paths = [
        path("critic.weight", "critic", 3.0, 1.0, norm_without_action=1.0),
        path("encoder.weight", "actor", None, 2.0),
        path("head.weight", "actor", None, 4.0),
        path("target.weight", "", None, None, learns=False, is_target=True),
    ]
    return {parameter.name: parameter for parameter in paths}


def said(changes: dict[str, dict[str, Any]], question: PathQuestion = QUESTION) -> list[tuple[str, Severity]]:
    paths = {name: parameter._replace(**changes.get(name, {})) for name, parameter in sound().items()}
    return [(verdict.cause, verdict.severity) for verdict in path_defects(list(paths.values()), question)]


# The pure detector

THROUGH_STATE = {"encoder.weight": {"norm_without_action": 2.0}}
NO_LOSS = {"critic_loss": None, "actor_loss": None}


def test_sound_paths_are_silent() -> None:
    assert said({}) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (THROUGH_STATE, ("actor_loss_through_state", ACT)),
        ({"encoder.weight": {"norms": {"critic_loss": 1.0, "actor_loss": 2.0}}}, ("critic_loss_reaches_actor", ACT)),
        (
            {"target.weight": {"norms": {"critic_loss": 1.0, "actor_loss": None}}},
            ("loss_reaches_target", Severity.WARN),
        ),
        (
            {"target.weight": {"norms": {"critic_loss": 1.0, "actor_loss": None}, "groups": ("critic",)}},
            ("loss_reaches_target", ACT),
        ),
        ({"encoder.weight": {"norms": NO_LOSS}}, ("parameter_without_loss", Severity.WARN)),
        (
            {"encoder.weight": {"norm_without_action": 2.0, "groups": ("critic", "actor")}},
            ("actor_loss_through_state", Severity.WARN),
        ),
    ],
)
def test_each_defect(changes: dict[str, dict[str, Any]], expected: tuple[str, Severity]) -> None:
    assert said(changes) == [expected]


def test_a_loss_that_reaches_nothing() -> None:
    only_critic: dict[str, float | None] = {"critic_loss": 1.0, "actor_loss": None}
    paths = [parameter._replace(norms=only_critic) for parameter in sound().values() if parameter.groups == ("critic",)]
    assert [verdict.cause for verdict in path_defects(paths, QUESTION)] == ["loss_reaches_nothing"]


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder.weight": {"norm_without_action": 0.0}},  # a path without a gradient
        {"encoder.weight": {"norm_without_action": 2.0, "is_input_path": False}},  # a standard deviation of its own
        # A penalty on all weights of the actor also reaches the layer that was cut.
        {"encoder.weight": {"norm_without_action": 2.0}, "head.weight": {"norm_without_action": 0.1}},
        {"encoder.weight": {"norms": {"critic_loss": 1.0, "actor_loss": 2.0}, "groups": ("critic", "actor")}},
        {"target.weight": {"norms": NO_LOSS, "groups": ("critic",)}},  # frozen: that is told by others
    ],
)
def test_what_is_no_defect(changes: dict[str, dict[str, Any]]) -> None:
    assert said(changes) == []


def test_without_a_cut_nothing_is_said_of_the_state_path() -> None:
    assert said(THROUGH_STATE, QUESTION._replace(cut=[])) == []


def test_golden_table() -> None:
    """Norms 3 and 4 of two parameters of one module are 5 together."""
    paths = [path("a.0.weight", "actor", None, 3.0), path("a.0.bias", "actor", None, 4.0, norm_without_action=2.0)]
    critic, actor = path_table(paths, QUESTION, depth=1)
    assert critic == {
        "loss": "critic_loss", "group": "actor", "module": "a", "parameters": 2, "reached": 0, "norm": 0.0
    }  # fmt: skip
    assert (actor["reached"], actor["norm"], actor["norm_without_action"]) == (2, 5.0, 2.0)


# On a stranger's actor and critic


def fit(folder: Path, model: LightningModule, *callbacks: Callback, iterations: int = 3) -> Trainer:
    return fit_stranger(folder, model, replay_batches(iterations), *callbacks)


def test_the_published_wiring_is_named_before_the_first_update(tmp_path: Path) -> None:
    seed_everything(0)
    probe = GradientPathProbe(mode="stop")
    trainer = fit(tmp_path, ActorCritic("through_state"), probe)
    assert warnings_of(probe) == ["actor_loss_through_state"]
    (event,) = events(trainer)
    assert event["iteration"] == 0
    assert sorted(event["evidence"]["norms"]) == [
        f"actor_encoder.{layer}.{kind}" for layer in (0, 2) for kind in ("bias", "weight")
    ]
    assert event["evidence"]["cut"] == ["head.2"]
    assert "Let the critic encode the observation itself" in event["message"]
    assert probe.stopped is not None
    (row,) = [r for r in probe.table if r["loss"] == "actor_loss" and r["module"] == "head.0"]
    assert row["norm"] > row["norm_without_action"] == 0.0


@pytest.mark.parametrize("wiring", ["separate", "shared"])
def test_right_wirings_are_clean(wiring: Wiring, tmp_path: Path) -> None:
    seed_everything(0)
    probe = GradientPathProbe()
    trainer = fit(tmp_path, ActorCritic(wiring), probe)
    assert probe.raised == []
    (event,) = events(trainer, "probe")
    assert event["evidence"]["table"] == probe.table


def test_the_output_may_be_named(tmp_path: Path) -> None:
    seed_everything(0)
    probe = GradientPathProbe(policy_output=["head"])
    fit(tmp_path, ActorCritic("through_state"), probe)
    assert warnings_of(probe) == ["actor_loss_through_state"]


def test_a_wrong_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"policy_output with \['tail'\].*'head.2'"):
        fit(tmp_path, ActorCritic(), GradientPathProbe(policy_output=["tail"]))


class Dropped(ActorCritic):
    """With random numbers and a buffer in the losses."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.critic_encoder = nn.Sequential(self.critic_encoder, nn.Dropout(0.1), nn.BatchNorm1d(32))


def test_the_training_is_bit_for_bit_the_one_without_it(tmp_path: Path) -> None:
    results = []
    for probes in ([], [GradientPathProbe()]):
        seed_everything(0)
        model = Dropped("through_state")
        fit(tmp_path, model, *probes, iterations=5)
        results.append((weights(model), [buffer.clone() for buffer in model.buffers()], torch.rand(1)))
    (plain, buffers, number), (probed, other_buffers, other_number) = results
    assert torch.equal(plain, probed)
    assert torch.equal(number, other_number)
    assert all(map(torch.equal, buffers, other_buffers))


def test_gradients_are_untouched(tmp_path: Path) -> None:
    class Look(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            assert probe.table
            assert all(torch.equal(p.grad, torch.ones_like(p)) for p in pl_module.parameters() if p.grad is not None)

    seed_everything(0)
    model, probe = ActorCritic(), GradientPathProbe()
    for parameter in model.head.parameters():
        parameter.grad = torch.ones_like(parameter)
    fit(tmp_path, model, probe, Look(), iterations=1)
    assert not any(module._forward_hooks for module in model.modules())


def critic_through_actor(self: ActorCritic, transition: Transition) -> dict[str, Tensor]:
    q_value = self.value(self.features(transition.observation), transition.action)
    return {
        **ActorCritic.critic_signals(self, transition),
        "critic_loss": (q_value - transition.reward).square().mean(),
    }


def target_with_graph(self: ActorCritic, transition: Transition) -> dict[str, Tensor]:
    signals = ActorCritic.critic_signals(self, transition)
    self.target_critic.requires_grad_(True)
    following: Any = transition.next_observation
    value = self.target_critic(torch.cat([self.critic_encoder(following), transition.action], -1)).squeeze(-1)
    return {**signals, "critic_loss": (signals["q_value"] - transition.reward - 0.9 * value).square().mean()}


def detached(self: ActorCritic, transition: Transition) -> dict[str, Tensor]:
    signals = ActorCritic.critic_signals(self, transition)
    return {**signals, "critic_loss": signals["critic_loss"].detach()}


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (critic_through_actor, ["critic_loss_reaches_actor"]),
        (target_with_graph, ["loss_reaches_target"]),
        (detached, ["loss_reaches_nothing"]),
    ],
)
def test_a_broken_line_of_the_critic(broken: Callable[..., Any], expected: list[str], tmp_path: Path) -> None:
    class Broken(ActorCritic):
        def losses(self, batch: Minibatch) -> dict[str, Tensor]:
            losses = super().losses(batch)
            return {**losses, "critic_loss": broken(self, batch.transition)["critic_loss"]}

    seed_everything(0)
    probe = GradientPathProbe()
    fit(tmp_path, Broken(), probe, iterations=1)
    assert warnings_of(probe)[: len(expected)] == expected


class Forgetful(ActorCritic):
    """Its `losses` are not what it trains."""

    def losses(self, batch: Minibatch) -> dict[str, Tensor]:
        losses = super().losses(batch)
        features = self.critic_encoder(batch.transition.observation).detach()
        return {**losses, "critic_loss": self.value(features, batch.transition.action).square().mean()}


def test_losses_that_are_not_those_of_the_training(tmp_path: Path) -> None:
    seed_everything(0)
    probe = GradientPathProbe()
    trainer = fit(tmp_path, Forgetful(), probe)
    assert warnings_of(probe) == ["parameter_without_loss", "losses_differ_from_training"]
    assert events(trainer)[-1]["evidence"]["parameters"][0].startswith("critic_encoder")


# On the real algorithms

PIXELS: EnvSpec = {
    "env_id": "Pixels-v0",
    "observation": {"shape": [3, 36, 36], "dtype": "uint8"},
    "action": {"kind": "continuous", "n": 0, "shape": [2], "low": [-2.0, -2.0], "high": [2.0, 2.0]},
}


def pixel_batch() -> ReplayBatch:
    """Two mini-batches of four transitions."""
    (batch,) = replay_batches(1, updates=2, size=4)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (2, 2, 4, 3, 36, 36), generator=generator, dtype=torch.uint8)
    return batch._replace(transition=batch.transition._replace(observation=frames[0], next_observation=frames[1]))


def probe_of(folder: Path, algorithm: Algorithm) -> GradientPathProbe:
    probe = GradientPathProbe()
    fit_stranger(folder, algorithm, [pixel_batch()], probe)
    return probe


@pytest.mark.filterwarnings("ignore:encoder_ownership = 'shared_both'")
@pytest.mark.parametrize("ownership", ["shared_critic", "separate", "shared_both"])
@pytest.mark.parametrize("algorithm", [TD3, SAC])
def test_actor_critics_from_pixels_are_clean(algorithm: Any, ownership: str, tmp_path: Path) -> None:
    seed_everything(0)
    probe = probe_of(tmp_path, algorithm(PIXELS, hidden_sizes=[16], encoder_ownership=ownership))
    assert probe.raised == []
    reached = {row["module"] for row in probe.table if row["loss"] == "actor_loss" and row["reached"]}
    assert ("actor.encoder" in reached) == (ownership != "shared_critic")
    cut = {row["norm_without_action"] for row in probe.table if row["loss"] == "actor_loss"}
    assert cut == {0.0}


class ThroughState(TD3):
    """Its critic is asked about features of the actor's encoder, with their gradient."""

    def actor_signals(self, observation: Any) -> dict[str, Tensor]:
        features = Encoded(self.actor.encoder(observation), self.critic.encoder)
        pre_tanh = self.actor(Encoded(features.features, self.actor.encoder))
        q_policy = self.critic.first(features, self.actions.from_cube(pre_tanh.tanh()))
        return {"actor_loss": -q_policy.mean(), "q_policy": q_policy, "pre_tanh": pre_tanh}


def test_a_td3_with_the_published_wiring_is_named(tmp_path: Path) -> None:
    seed_everything(0)
    probe = probe_of(tmp_path, ThroughState(PIXELS, hidden_sizes=[16], encoder_ownership="separate"))
    assert warnings_of(probe) == ["actor_loss_through_state"]
    (row,) = [
        r for r in probe.table if r["loss"] == "actor_loss" and r["norm_without_action"] and r["group"] == "actor"
    ]
    assert row["module"] == "actor.encoder"


# Others


def test_a_dqn_is_clean_and_asked_after_its_warm_up(tmp_path: Path) -> None:
    probe = GradientPathProbe()
    trainer = fit_small(tmp_path, probe, total_env_steps=128)
    assert probe.raised == []
    assert {row["loss"] for row in probe.table if row["reached"]} == {"loss"}
    (event,) = events(trainer, "probe")
    assert event["env_steps"] >= 64


def test_a_module_without_losses_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"needs Stranger.losses\(batch\).*'critic_loss'"):
        fit_stranger(tmp_path, Stranger(), [transitions()], GradientPathProbe())


def test_automatic_optimisation(tmp_path: Path) -> None:
    class Regression(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.unused = nn.Linear(2, 1), nn.Linear(2, 1)

        def losses(self, batch: Tensor) -> dict[str, Tensor]:
            return {"loss": self.layer(batch).square().mean()}

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.losses(batch)["loss"]

        def configure_optimizers(self) -> Optimizer:
            return SGD(self.parameters(), lr=0.1)

    probe = GradientPathProbe()
    fit_stranger(tmp_path, Regression(), [torch.ones(4, 2)] * 3, probe)
    assert warnings_of(probe) == ["parameter_without_loss"]


def test_a_resumed_run_does_not_ask_again(tmp_path: Path) -> None:
    first, again = GradientPathProbe(), GradientPathProbe()
    fit_small(tmp_path / "half", first, max_steps=15, eval_every=240)
    (checkpoint,) = (tmp_path / "half").glob("lightning_logs/*/checkpoints/*.ckpt")
    trainer = fit_small(tmp_path / "resumed", again, ckpt_path=checkpoint, eval_every=240)
    assert again.table == first.table
    assert events(trainer, "probe") == []
    assert isinstance(trainer.lightning_module, DQN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, "depth = 0, expected at least 1"),
        ({"policy_output": "head"}, "policy_output = 'head', expected a list"),
        ({"policy_output": []}, "expected a list of names"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientPathProbe(**arguments)
