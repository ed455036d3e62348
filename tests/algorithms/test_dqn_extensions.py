"""What DQN has beyond its core: distributions, noise, accumulated gradients, two targets, imitation, care."""

from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import fit_small, small_data, warnings_of
from lightning.pytorch import LightningModule, Trainer
from test_dqn import SPEC, make_dqn, make_transition, stack_transitions
from test_skeleton import Witness
from torch import Tensor

from rlmods.algorithms import DQN
from rlmods.callbacks import GradientClipVerifier, GradientPathProbe, LivenessGuard, NonFiniteGuard, ValueBoundGuard
from rlmods.data import ReplayDataModule
from rlmods.networks.noisy import NoisyLinear
from rlmods.types import CarefulPolicy, EnvSpec, Minibatch, ReplayBatch, Transition

C51 = {"num_atoms": 51, "v_min": 0.0, "v_max": 100.0}


def batch_of(transition: Transition, *, num_updates: int = 4, size: int = 8, **fields: Any) -> ReplayBatch:
    """K · B random rows of a transition's fields, with weights of their own."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(2, (num_updates, size), generator=generator)
    fields_of_rows: list[Any] = list(transition)
    columns = [column[rows] for column in fields_of_rows]
    columns[0] = columns[0] + torch.randn(columns[0].shape, generator=generator)
    weight = torch.rand(num_updates, size, generator=generator) + 0.5
    clock = {"env_steps": 0, "progress": 0.5} | fields
    return ReplayBatch(Transition(*columns), torch.zeros_like(rows), weight, **clock)


# Distributions


def test_golden_signals_of_a_distribution() -> None:
    """All logits 0 make the mean of 0, 5 and 10: 1 + 0.5·5 = 3.5 against 5. Row 1 is terminated: 1 against 5."""
    model = DQN(spec=SPEC, hidden_sizes=(), num_atoms=3, v_min=0.0, v_max=10.0)
    for network in (model.q_network, model.target_network):
        for parameter in network.parameters():
            torch.nn.init.zeros_(parameter)
    signals = model.signals(Minibatch(make_transition(), torch.ones(2)))
    torch.testing.assert_close(signals["q_value"], torch.tensor([5.0, 5.0]))
    torch.testing.assert_close(signals["td_target"], torch.tensor([3.5, 1.0]))
    torch.testing.assert_close(signals["td_error"], torch.tensor([-1.5, -4.0]))
    # All mass of a projection meets log 1/3.
    assert signals["loss"].item() == pytest.approx(torch.tensor(3.0).log().item())


def test_a_transform_of_targets_moves_the_distribution() -> None:
    model = DQN(spec=SPEC, num_atoms=51, v_min=0.0, v_max=10.0)
    minibatch = Minibatch(make_transition(), torch.ones(2))
    before = model.signals(minibatch)["loss"]
    model.target_transforms.append(lambda target: target + 5.0)
    assert not torch.isclose(model.signals(minibatch)["loss"], before)


@pytest.mark.parametrize("double_q", [True, False])
def test_targets_are_an_identity_of_the_bootstrap(double_q: bool) -> None:
    """y = R + D·E Z⁻, and the distribution that is learned has this mean."""
    torch.manual_seed(0)
    model = DQN(spec=SPEC, dueling=True, double_q=double_q, num_atoms=51, v_min=-20.0, v_max=20.0)
    transition = make_transition()
    value = model.head.values(model.bootstrap(transition))
    torch.testing.assert_close(model.td_target(transition), transition.reward + transition.discount * value)


class Listener(ReplayDataModule):
    """Remembers what is fed back."""

    heard: Tensor

    def feedback(self, index: Tensor, *, td_error: Tensor) -> None:
        self.heard = td_error.clone()
        super().feedback(index, td_error=td_error)


def test_priorities_are_the_divergence(tmp_path: Path) -> None:
    witness = Witness()
    trainer = fit_small(
        tmp_path,
        witness,
        data_class=Listener,
        arguments=C51,
        prioritized_replay=True,
        total_env_steps=160,
        logger=False,
    )
    source: Any = trainer.datamodule  # type: ignore[attr-defined]
    assert torch.equal(source.heard, witness.outputs[-1]["td_kl"])
    assert bool((source.heard >= 0.0).all())


@pytest.mark.parametrize(
    "arguments",
    [
        {**C51, "dueling": True},
        {"noisy": True, "exploration_initial_eps": 0.0, "exploration_final_eps": 0.0},
        {"accumulate_grad_batches": 2, "max_grad_norm": 0.5},
        {"tau": 0.1, "target_update_interval": 1, "target_hard_update_interval": 50, "learning_rate_warmup": 0.2},
    ],
)
def test_no_safeguard_takes_an_extension_for_a_fault(tmp_path: Path, arguments: dict[str, Any]) -> None:
    guards = (
        GradientClipVerifier(every_n_updates=3, every_n_iterations=2),
        LivenessGuard(every_n_iterations=2),
        NonFiniteGuard(),
        ValueBoundGuard(every_n_iterations=2),
        GradientPathProbe(),
    )
    fit_small(tmp_path, *guards, arguments=arguments, n_steps=3, prioritized_replay=True, total_env_steps=320)
    assert {type(guard).__name__: warnings_of(guard) for guard in guards if warnings_of(guard)} == {}


# The support, before training


def fit_bounded(folder: Path, bounds: list[float] | None, **arguments: Any) -> None:
    data = small_data(gamma=0.9, total_env_steps=96, eval_episodes=1)
    spec: EnvSpec = {**data.spec, "settings": {} if bounds is None else {"reward_bounds": bounds}}
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    trainer.fit(DQN(spec=spec, num_atoms=11, **arguments), datamodule=data)


@pytest.mark.parametrize(("v_min", "v_max"), [(-9.0, 20.0), (-10.0, 19.0)])
def test_a_support_narrower_than_the_values_is_refused_with_the_one_to_type(
    tmp_path: Path, v_min: float, v_max: float
) -> None:
    """Rewards from −1 to 2 with γ = 0.9 reach from −10 to 20."""
    with pytest.raises(
        ValueError, match=r"values reach from -10 to 20, .* type --model\S+v_min -10 --model\S+v_max 20"
    ):
        fit_bounded(tmp_path, [-1.0, 2.0], v_min=v_min, v_max=v_max)


def test_a_support_that_holds_the_values_is_silent(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    fit_bounded(tmp_path, [-1.0, 2.0], v_min=-10.0, v_max=20.0)
    assert not [warning for warning in recwarn if "support" in str(warning.message)]


def test_a_support_that_cannot_be_checked_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"0 to 10, could not be checked.*reward_bounds '\[LOW, HIGH\]'"):
        fit_bounded(tmp_path, None, v_min=0.0, v_max=10.0)


# Noise


def make_noisy(**arguments: Any) -> DQN:
    torch.manual_seed(0)
    quiet = {"exploration_initial_eps": 0.0, "exploration_final_eps": 0.0}
    return DQN(spec=SPEC, noisy=True, **(quiet | arguments))


def test_noise_explores_and_evaluation_has_none() -> None:
    model, same = make_noisy(noisy_std=5.0), torch.ones(64, 2)
    assert set(model.act(same, env_steps=0).tolist()) == {0, 1}
    assert len(set(model.act(same, env_steps=0, deterministic=True).tolist())) == 1
    values = model.action_values(same)
    assert torch.equal(values, model.eval().q_network(same))
    assert all(layer.mode == "drawn" for layer in model.modules() if isinstance(layer, NoisyLinear))


def test_noise_is_drawn_anew_for_each_update_of_both_networks(tmp_path: Path) -> None:
    noise: list[Tensor] = []

    class Watched(DQN):
        def signals(self, minibatch: Minibatch) -> dict[str, Tensor]:
            layers = [layer for layer in self.modules() if isinstance(layer, NoisyLinear)]
            noise.append(torch.cat([layer.noise_out for layer in layers]))
            return super().signals(minibatch)

    quiet = {"exploration_initial_eps": 0.0, "exploration_final_eps": 0.0}
    arguments = {"noisy": True, "accumulate_grad_batches": 2, **quiet}
    fit_small(tmp_path, model_class=Watched, arguments=arguments, total_env_steps=96, logger=False)
    drawn = torch.stack(noise)
    assert len(drawn) == 12
    assert torch.equal(drawn[::2], drawn[1::2])  # the two halves of one update
    assert (drawn[::2] != drawn[::2].roll(1, 0)).all()
    online, target = drawn.chunk(2, -1)
    assert (online != target).all()


def test_two_explorations_are_said() -> None:
    with pytest.warns(UserWarning, match=r"ε from 1.0 to 0.05 does too: where ε draws an action, it wins"):
        DQN(spec=SPEC, noisy=True)


# Accumulated gradients


class Still(DQN):
    """Keeps the gradients of its updates, and does not move."""

    def train_once(self, batch: ReplayBatch) -> list[Tensor]:
        """The gradient of each update."""
        gradients: list[Tensor] = []
        optimizer: Any = torch.optim.SGD(self.q_network.parameters(), lr=0.0)
        optimizer.register_step_pre_hook(
            lambda *_: gradients.append(
                torch.cat([p.grad.flatten() for p in self.q_network.parameters() if p.grad is not None])
            )
        )
        optimizer.optimizer = optimizer
        minibatches = batch.minibatches()
        k = self.accumulate_grad_batches
        for first in range(0, len(minibatches), k):
            self.update(optimizer, minibatches[first : first + k], counts=False)
        return gradients

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        torch.autograd.backward(loss)


@pytest.mark.parametrize("arguments", [{}, {"num_atoms": 11, "v_min": -20.0, "v_max": 20.0}])
@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
def test_accumulated_gradients_are_those_of_the_large_batch(
    arguments: dict[str, Any], max_grad_norm: float | None
) -> None:
    """K = 4 mini-batches of 8 with weights of their own, as two updates of 2, and the same transitions as 2 of 16."""
    small = batch_of(make_transition())

    def joined(column: Tensor) -> Tensor:
        return column.reshape(2, 16, *column.shape[2:])

    columns: list[Any] = [joined(column) for column in small.transition if isinstance(column, Tensor)]
    large = small._replace(
        transition=Transition(*columns), index=joined(small.index), importance_weight=joined(small.importance_weight)
    )
    gradients = []
    for k, batch in ((2, small), (1, large)):
        torch.manual_seed(0)
        model = Still(spec=SPEC, accumulate_grad_batches=k, max_grad_norm=max_grad_norm, **arguments)
        gradients.append(model.train_once(batch))
        assert model.update_steps == 2
    assert len(gradients[0]) == 2
    for accumulated, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(accumulated, whole)


def test_signals_of_transitions_keep_the_shape_of_the_batch(tmp_path: Path) -> None:
    witness = Witness()
    trainer = fit_small(tmp_path, witness, arguments={"accumulate_grad_batches": 2}, total_env_steps=96, logger=False)
    outputs = witness.outputs[-1]
    assert outputs["q_value"].shape == outputs["td_error"].shape == (4, 16)
    assert outputs["loss"].shape == (4,)
    assert outputs["grad_norm/q"].shape == (2,)
    assert int(outputs["update_steps"]) == 6
    assert witness.raw_and_wrapped_steps == 3 + 6  # three iterations of warm-up, three of two updates
    assert trainer.global_step == 6


def test_mini_batches_that_are_left_over_are_refused(tmp_path: Path) -> None:
    expected = (
        r"accumulate_grad_batches = 3 with updates_per_iteration = 4 .* type --data.init_args.updates_per_iteration 6"
    )
    with pytest.raises(ValueError, match=expected):
        fit_small(tmp_path, arguments={"accumulate_grad_batches": 3}, logger=False)


# The learning rate


class Rates(Witness):
    """The rate that the optimiser used, next to the one that is published."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[float, float]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if outputs:
            self.pairs.append((float(outputs["learning_rate"]), trainer.optimizers[0].param_groups[0]["lr"]))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [0.1, 0.1]),
        ({"final_learning_rate": 0.0}, [0.05, 0.0]),
        ({"final_learning_rate": 0.02, "learning_rate_schedule": "cosine"}, [0.06, 0.02]),
        ({"learning_rate_warmup": 0.6}, [0.1 * 0.5 / 0.6, 0.1]),
    ],
)
def test_the_published_learning_rate_is_the_applied_one(
    tmp_path: Path, arguments: dict[str, Any], expected: list[float]
) -> None:
    """At half of the budget, when learning begins, and at its end."""
    rates = Rates()
    arguments = {"learning_rate": 0.1, **arguments}
    fit_small(tmp_path, rates, arguments=arguments, learning_starts=80, total_env_steps=160, logger=False)
    assert [rates.pairs[0][0], rates.pairs[-1][0]] == pytest.approx(expected)
    assert [published for published, _ in rates.pairs] == pytest.approx([applied for _, applied in rates.pairs])


def test_a_warmup_that_is_over_before_the_first_update_is_said(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match="learning_rate_warmup = 0.1 ends after 16 environment steps, before the first"
    ):
        fit_small(tmp_path, arguments={"learning_rate_warmup": 0.1}, total_env_steps=160, logger=False)


# Two targets


def advance(model: DQN, updates: int) -> list[tuple[int, int]]:
    """The two ages after each of some updates, in which every weight of the online network grows by 1."""
    ages = []
    for _ in range(updates):
        for parameter in model.q_network.parameters():
            parameter.data += 1.0
        model.update_steps += 1
        model._update_target()
        ages.append((model.update_steps - model.soft_update_step, model.update_steps - model.hard_update_step))
    return ages


def test_soft_and_hard_updates_have_ages_of_their_own() -> None:
    model = make_dqn(tau=0.5, target_update_interval=2, target_hard_update_interval=5)
    assert advance(model, 6) == [(1, 1), (0, 2), (1, 3), (0, 4), (1, 0), (0, 1)]


def test_a_hard_update_copies_whatever_tau() -> None:
    model = make_dqn(tau=0.001, target_update_interval=1, target_hard_update_interval=3)
    ages = advance(model, 3)
    assert ages[-1] == (0, 0)
    pairs = zip(model.q_network.parameters(), model.target_network.parameters(), strict=True)
    assert all(torch.equal(online, target) for online, target in pairs)


def test_without_full_copies_the_hard_age_only_grows_and_a_full_soft_update_is_one() -> None:
    assert advance(make_dqn(tau=0.5, target_update_interval=1), 3) == [(0, 1), (0, 2), (0, 3)]
    assert advance(make_dqn(tau=1.0, target_update_interval=2), 3) == [(1, 1), (0, 0), (1, 1)]


# Imitation


def imitating(**arguments: Any) -> tuple[DQN, Minibatch]:
    """Q = ((1, 2), (3, 4)); the expert took action 0 in the first transition, somebody else action 1 in the second."""
    minibatch = Minibatch(make_transition(), torch.ones(2), torch.tensor([True, False]))
    return make_dqn(double_q=False, **arguments), minibatch


def test_golden_imitation() -> None:
    """−ln softmax(1, 2)[0] = ln(1 + e) = 1.313262, half of it as a mean over B = 2; twice that is added to the loss."""
    model, minibatch = imitating(bc_coef=2.0)
    signals = model.signals(minibatch)
    assert signals["bc_loss"].item() == pytest.approx(0.656631, abs=1e-6)
    assert signals["loss"].item() == pytest.approx(4.0 + 2.0 * 0.656631, abs=1e-6)
    assert signals["is_greedy"].tolist() == [False, True]
    assert model.losses(minibatch)["loss"].item() == pytest.approx(4.0 + 2.0 * 0.656631, abs=1e-6)


def test_without_an_expert_or_a_weight_nothing_is_imitated() -> None:
    model, minibatch = imitating(bc_coef=2.0)
    assert model.signals(minibatch._replace(by_expert=None)).keys() == {"loss", "q_value", "td_target", "td_error"}
    model.bc_weight = 0.0
    signals = model.signals(minibatch)
    assert "bc_loss" not in signals
    assert signals["loss"].item() == 4.0


class WithExpert(ReplayDataModule):
    """Says that an expert chose every action 1."""

    def iterate(self, trainer: Trainer) -> ReplayBatch:
        batch = super().iterate(trainer)
        return batch._replace(by_expert=batch.transition.action == 1)


def test_the_weight_of_imitation_follows_its_schedule_and_imitation_works(tmp_path: Path) -> None:
    witness = Witness()
    arguments = {"bc_coef": 8.0, "bc_final_coef": 4.0, "bc_fraction": 0.5, "learning_rate": 1e-2}
    fit_small(tmp_path, witness, data_class=WithExpert, arguments=arguments, total_env_steps=320, logger=False)
    learned = [outputs for outputs in witness.outputs if outputs]
    # The first batch that is learned from comes at 80 of 320 steps.
    assert float(learned[0]["bc_coef"]) == pytest.approx(8.0 - 4.0 * (80 / 320) / 0.5, abs=0.5)
    assert [float(learned[position]["bc_coef"]) for position in (-2, -1)] == [4.0, 4.0]
    assert float(learned[-1]["expert_agreement"]) > 0.9
    assert float(learned[-1]["bc_loss"].mean()) < float(learned[0]["bc_loss"].mean())


def test_golden_agreement() -> None:
    """Of Q = s the greedy actions are 1, 1, of which the expert took one of two."""
    model, _ = imitating()
    transition = stack_transitions(make_transition(), make_transition())
    by_expert = torch.tensor([[True, True], [False, False]])
    index = torch.zeros(2, 2, dtype=torch.int64)
    batch = ReplayBatch(transition, index, torch.ones(2, 2), env_steps=0, progress=0.0, by_expert=by_expert)
    optimizer: Any = torch.optim.SGD(model.q_network.parameters(), lr=0.0)
    optimizer.optimizer = optimizer
    model.single_optimizer = lambda: optimizer  # type: ignore[method-assign]
    model.manual_backward = torch.autograd.backward  # type: ignore[method-assign, assignment]
    model.feed_back = lambda index, *, td_error: None  # type: ignore[method-assign]
    model._step = lambda optimizer, *, counts: None  # type: ignore[method-assign]
    assert float(model.training_step(batch, 0)["expert_agreement"]) == 0.5
    assert float(model.training_step(batch._replace(by_expert=~by_expert & False), 0)["expert_agreement"]) == 0.0


# Care


def test_where_care_is_needed_less_is_explored() -> None:
    torch.manual_seed(0)
    model = make_dqn(exploration_care_scale=0.25)
    assert isinstance(model, CarefulPolicy)
    observation, care = torch.tensor([[1.0, 0.0]]).repeat(40_000, 1), torch.arange(40_000) < 20_000
    explored = model.act_with_care(observation, care, env_steps=0).float()
    # A uniform action of two is the other one half of the time: 1/8 and 1/2.
    assert float(explored[:20_000].mean()) == pytest.approx(0.125, abs=5 * (0.125 * 0.875 / 20_000) ** 0.5)
    assert float(explored[20_000:].mean()) == pytest.approx(0.5, abs=5 * (0.25 / 20_000) ** 0.5)


def test_where_no_care_is_needed_the_actions_are_those_of_act() -> None:
    model, observation = make_dqn(exploration_care_scale=0.0), torch.randn(64, 2)
    torch.manual_seed(1)
    plain = model.act(observation, env_steps=0)
    torch.manual_seed(1)
    assert torch.equal(model.act_with_care(observation, torch.zeros(64, dtype=torch.bool), env_steps=0), plain)
    everywhere = model.act_with_care(observation, torch.ones(64, dtype=torch.bool), env_steps=0)
    assert torch.equal(everywhere, model.act(observation, env_steps=0, deterministic=True))


def test_an_override_takes_the_place_of_the_schedule() -> None:
    model = make_dqn()
    model.exploration_override = 0.0
    assert model.exploration_rate(0) == 0.0
    model.exploration_override = None
    assert model.exploration_rate(0) == 1.0


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_atoms": 51}, "num_atoms = 51 with v_min = None and v_max = None, expected a support"),
        ({"num_atoms": 51, "v_min": 1.0, "v_max": 1.0}, "expected a support, v_min < v_max"),
        ({"num_atoms": 0}, "num_atoms = 0, expected a value at least 1"),
        ({"v_max": 10.0}, "but one value has no support: type --model.init_args.num_atoms 51"),
        ({**C51, "loss": "mse"}, "loss = mse with num_atoms = 51, whose loss is the cross-entropy"),
        ({"noisy_std": 0.0}, "noisy_std = 0.0, expected a value above 0"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches = 0, expected a value at least 1"),
        ({"learning_rate_schedule": "step"}, "learning_rate_schedule = step, expected a value out of constant, linear"),
        (
            {"learning_rate_schedule": "constant", "final_learning_rate": 0.0},
            "final_learning_rate = 0.0 with learning_rate_schedule = constant, which never gets there",
        ),
        ({"learning_rate_schedule": "cosine"}, "cosine without a final_learning_rate, expected where it leads"),
        ({"learning_rate_warmup": 1.0}, r"learning_rate_warmup = 1.0, expected a value in \[0, 1\)"),
        ({"target_hard_update_interval": 0}, "target_hard_update_interval = 0, expected a value at least 1, or null"),
        ({"bc_coef": -1.0}, "bc_coef = -1.0, expected a value at least 0"),
        ({"bc_fraction": 2.0}, r"bc_fraction = 2.0, expected a value in \[0, 1\]"),
        ({"exploration_care_scale": 2.0}, r"exploration_care_scale = 2.0, expected a value in \[0, 1\]"),
    ],
)
def test_values_outside_their_range_or_without_a_use_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DQN(spec=SPEC, **arguments)
