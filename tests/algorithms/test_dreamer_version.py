"""What the versions of DreamerV3 choose, one choice after the other, against the table of their differences."""

import math
from typing import Any

import pytest
import torch
from dreamers import BOX, GAMMA, OBSERVATIONS, TWO_CHOICES, env_spec, make_dreamer, make_sequences
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from rlmods.algorithms.dreamer_settings import check_model_memory, check_value_bins
from rlmods.algorithms.dreamer_v3 import DreamerV3
from rlmods.algorithms.dreamer_version import VERSIONS, describe_version
from rlmods.algorithms.laprop import LaProp
from rlmods.data import SequenceDataModule
from rlmods.networks.layer_norm_gru import LayerNormGRU
from rlmods.networks.normed import NormedLinear
from rlmods.networks.rssm import RSSM, LatentState
from rlmods.types import ActionSpec, EpisodeBatch

CPU = torch.device("cpu")

NAMES = list(VERSIONS)


def make_v1(**settings: Any) -> DreamerV3:
    model = make_dreamer(**({"version": "v1_2023"} | settings))
    model.gamma = GAMMA
    return model


def make_backpropagating(**settings: Any) -> DreamerV3:
    """With heads that say something of h alone, and no end in sight."""
    model = make_v1(spec=env_spec(action=BOX), **settings)
    for head in (model.critic, model.world_model.reward):
        nn.init.normal_(head.layers.output.weight, std=0.1)
        first = head.layers.hidden[0]
        assert isinstance(first, NormedLinear)
        first.linear.weight.data[:, model.world_model.rssm.deter :] = 0.0
    model.world_model.continuation.output.bias.data.fill_(5.0)
    return model


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, materialize_grads=True))


def moves(loss: Tensor, module: nn.Module) -> bool:
    return any(bool(gradient.any()) for gradient in gradients(loss, module))


# The table, and what is in effect.


def test_the_table_of_differences() -> None:
    """Rows that two versions share have the same entry; each row that differs is in the table."""
    v1, v2, v3 = (VERSIONS[name]._asdict() for name in NAMES)
    assert {row for row in v2 if v2[row] != v3[row]} == {"image_encoder", "first_state"}
    assert {row for row in v1 if v1[row] == v2[row]} == {"first_state"}
    assert (v1["beta_dyn"], v2["beta_dyn"]) == (0.5, 1.0)
    assert (v1["learning_rate"], v1["behaviour_learning_rate"], v3["learning_rate"]) == (1e-4, 3e-5, 4e-5)


def test_what_is_given_takes_the_place_of_the_versions_choice_and_is_marked() -> None:
    model = make_dreamer(version="v2_2024", beta_dyn=0.7, learning_rate=4e-5)
    assert model.loss_scales["dynamics"] == 0.7
    assert model.hparams["replay_value_coef"] == 0.3
    said = describe_version("v2_2024", model.choices)
    assert "\n" not in said
    assert all(f"{row} " in said for row in model.choices._asdict())
    assert said.count("(not ") == 1
    assert "beta_dyn 0.7 (not 1)" in said


def test_adaptive_clipping_is_refused_where_norms_are_bounded() -> None:
    with pytest.raises(ValueError, match=r"agc_clip = 0.3 with version = v1_2023, .* 1000 \(world_model\), 100 "):
        make_dreamer(version="v1_2023", agc_clip=0.3)


@pytest.mark.parametrize(("name", "value"), [("version", "v1"), ("size", "2M")])
def test_names_that_do_not_exist(name: str, value: str) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=rf"got {name} = '{value}', expected one of \['.*'\]: type --model"):
        make_dreamer(**settings)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kind", "action"), [("vector", TWO_CHOICES), ("both", BOX)])
def test_each_version_has_finite_losses_with_a_scale_each(name: str, kind: str, action: ActionSpec) -> None:
    spec = env_spec(OBSERVATIONS[kind], action)
    model = make_dreamer(spec, version=name)
    losses = model.losses(make_sequences(spec))
    assert losses.keys() == model.loss_scales.keys()
    assert ("replay_critic" in losses) == (name != "v1_2023")
    torch.autograd.backward(model.total(losses))
    for module in model.groups.values():
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())


# The model of 2023.


def test_golden_one_step_of_the_gru() -> None:
    """Against the same in plain words: h′ = u·tanh(r·c) + (1 − u)·h with one layer norm over all three gates."""
    core = make_v1().world_model.rssm.core
    assert isinstance(core, LayerNormGRU)
    torch.manual_seed(0)
    deter, stoch, action = torch.randn(3, 512), torch.randn(3, 128), torch.randn(3, 2)
    joined = torch.cat([core.of_stoch.weight, core.action_input.weight], 1)
    inputs = F.silu(F.layer_norm(torch.cat([stoch, action], -1) @ joined.T, (64,), eps=1e-3))
    gates = F.layer_norm(torch.cat([deter, inputs], -1) @ core.gates.weight.T, (3 * 512,), eps=1e-3)
    reset, candidate, update = gates.chunk(3, -1)
    u = torch.sigmoid(update - 1.0)
    expected = u * torch.tanh(torch.sigmoid(reset) * candidate) + (1.0 - u) * deter
    assert torch.allclose(core(deter, stoch, core.of_actions(action)), expected, atol=1e-5)


def small_rssm(*, core: Any = "gru", learns_initial_state: bool = True) -> RSSM:
    torch.manual_seed(0)
    return RSSM(
        5,
        2,
        deter=16,
        hidden=8,
        num_latents=3,
        num_classes=4,
        num_blocks=4,
        unimix=0.01,
        core=core,
        learns_initial_state=learns_initial_state,
    )


@pytest.mark.parametrize("core", ["gru", "block_gru"])
def test_an_episode_begins_with_the_learned_state_wherever_it_begins(core: Any) -> None:
    """At the start of a sequence, in its middle, and for who acts."""
    rssm = small_rssm(core=core)
    nn.init.normal_(rssm.initial_deter)  # type: ignore[arg-type]
    tokens, action = torch.randn(3, 2, 5), torch.zeros(3, 2, 2)
    is_first = torch.tensor([[True, True], [False, False], [True, False]])
    life = rssm.observe(tokens, action, is_first, LatentState(torch.randn(2, 16), torch.rand(2, 12)))
    begun = rssm.step(tokens[2], action[2], rssm.initial_state(2))
    assert torch.allclose(life.state.deter[2, 0], begun.deter[0], atol=1e-6)
    assert not torch.allclose(life.state.deter[2, 1], begun.deter[1], atol=1e-3)
    assert rssm.initial_deter is not None
    initial = rssm.initial_deter.tanh().unsqueeze(0)
    likeliest = rssm.prior_of(initial).argmax(-2)
    stoch = F.one_hot(likeliest, 4).transpose(1, 2).flatten(1).float()
    expected = rssm.core(initial, stoch, rssm.core.of_actions(action[0, :1]))
    assert torch.allclose(life.state.deter[0, 0], expected[0], atol=1e-6)


def test_the_initial_state_is_learned() -> None:
    rssm = small_rssm()
    life = rssm.observe(
        torch.randn(2, 1, 5), torch.zeros(2, 1, 2), torch.ones(2, 1, dtype=torch.bool), rssm.initial_state(1)
    )
    torch.autograd.backward(life.state.deter.sum())
    assert rssm.initial_deter is not None
    assert rssm.initial_deter.grad is not None
    assert bool(rssm.initial_deter.grad.any())


def test_the_block_gru_step_by_step_is_the_scan() -> None:
    """The plain loop is what the scan with its own backward pass computes, so a learned state changes nothing else."""
    rssm = small_rssm(core="block_gru", learns_initial_state=False)
    tokens, action = torch.randn(4, 2, 5), torch.randn(4, 2, 2)
    is_first = torch.tensor([[True, False], [False, False], [False, True], [False, False]])
    state = LatentState(torch.randn(2, 16), torch.rand(2, 12))
    torch.manual_seed(5)
    scanned = rssm.observe(tokens, action, is_first, state)
    torch.manual_seed(5)
    goes_on = (~is_first).unsqueeze(-1).float()
    stepped = rssm._observe_by_steps(
        rssm.core.of_actions(action * goes_on), rssm.posterior_of_tokens(tokens), goes_on, rssm._uniform(4, 2), state
    )
    for ours, theirs in zip([*scanned.state, *scanned[1:]], [*stepped.state, *stepped[1:]], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(("name", "is_stored"), [("v1_2023", False), ("v2_2024", True), ("2025", True)])
def test_a_sequence_begins_with_the_stored_state_or_with_none(name: str, is_stored: bool) -> None:
    model, batch = make_dreamer(version=name), make_sequences()
    deters = []
    for state in (batch.state, torch.rand_like(batch.state)):
        torch.manual_seed(0)
        deters.append(model.world_model_losses(batch._replace(state=state))[2].deter[0])
    assert torch.equal(*deters) != is_stored


@pytest.mark.parametrize(
    ("name", "kernels", "strides", "num_tokens"),
    [
        ("v1_2023", [4] * 4, [2] * 4, 3 * 3 * 32),
        ("v2_2024", [5] * 5, [1, 2, 2, 2, 2], 3 * 3 * 16),
        ("2025", [5] * 4, [1] * 4, 3 * 3 * 16),
    ],
)
def test_image_encoders(name: str, kernels: list[int], strides: list[int], num_tokens: int) -> None:
    """48 × 48 pixels become 3 × 3, with 8 or 4 times the depth of 4."""
    encoder = make_dreamer(env_spec(OBSERVATIONS["image"]), version=name).world_model.encoder
    layers = [layer for layer in encoder.of_images if isinstance(layer, nn.Conv2d)]
    assert [layer.kernel_size[0] for layer in layers] == kernels
    assert [layer.stride[0] for layer in layers] == strides
    images = torch.randint(256, (2, 3, 48, 48), dtype=torch.uint8)
    assert encoder(images).shape == (2, encoder.num_tokens) == (2, num_tokens)


# Ends.


def test_a_hard_continuation_learns_the_end_without_the_discount() -> None:
    model, batch = make_v1(), make_sequences()
    model.world_model.continuation.output.weight.data.zero_()
    model.world_model.continuation.output.bias.data.fill_(2.0)
    terminal = torch.zeros(4, 2, dtype=torch.bool)
    terminal[1, 0] = True
    batch = batch._replace(is_terminal=terminal, discount=GAMMA * (~terminal).float())
    losses, signals, _, _ = model.world_model_losses(batch)
    p = torch.tensor(2.0).sigmoid()
    expected = torch.where(terminal, -(1.0 - p).log(), -p.log())
    assert losses["continuation"].flatten().tolist() == pytest.approx(expected.flatten().tolist())
    assert signals["continuation"].flatten().tolist() == pytest.approx([GAMMA * p.item()] * 8)


@pytest.mark.parametrize(
    ("name", "first", "others"),
    [("v1_2023", [1.0, 0.0], GAMMA), ("v2_2024", [1.0, 0.0], 0.6), ("2025", [0.6, 0.6], 0.6)],
)
def test_golden_discounts_of_a_dream(name: str, first: list[float], others: float) -> None:
    """Of two states, of which the second is terminal; the head says 0.6 of all."""
    model = make_dreamer(version=name)
    model.gamma = GAMMA
    model.world_model.continuation.output.weight.data.zero_()
    model.world_model.continuation.output.bias.data.fill_(torch.tensor(0.6).logit().item())
    dream = model.dream(model.world_model.rssm.initial_state(2), torch.tensor([False, True]))
    assert dream.discount[0].tolist() == pytest.approx(first)
    assert dream.discount[1:].flatten().tolist() == pytest.approx([others] * 6)


# Actor.


def test_backpropagation_reaches_the_actor_alone_through_the_model() -> None:
    """What a dream is worth moves the actor by way of model and critic, which it leaves as they are."""
    model = make_backpropagating()
    losses, _, returns = model.behaviour_losses(model.dream(model.world_model.rssm.initial_state(3)))
    assert moves(losses["actor"].sum(), model.actor)
    losses, _, returns = model.behaviour_losses(model.dream(model.world_model.rssm.initial_state(3)))
    others = nn.ModuleList([model.world_model, model.critic])
    assert not moves(losses["actor"].sum(), others)
    assert not returns.requires_grad
    assert all(parameter.requires_grad for parameter in others.parameters())


def test_the_gradient_by_backpropagation_is_the_slope_of_the_return() -> None:
    """Finite differences with the same draws, one step ahead, where h alone says what a state is worth.

    What a draw of z changes is a jump, for which the straight-through gradient stands; so heads do not look at z.
    """
    model = make_backpropagating(ent_coef=0.0, imagination_horizon=1)
    start = model.world_model.rssm.initial_state(256)
    bias = model.actor.output.bias

    def loss(shift: Tensor | float) -> Tensor:
        torch.manual_seed(3)
        model.return_scale.percentiles.zero_()
        bias.data += shift
        try:
            return model.behaviour_losses(model.dream(start))[0]["actor"].mean()
        finally:
            bias.data -= shift

    (gradient,) = torch.autograd.grad(loss(0.0), bias)
    # Short: where an action is nearly 0, the norm of the layer that it goes through bends sharply.
    step = 0.002 * gradient / gradient.norm()
    slope = (loss(step) - loss(-step)) / 0.004
    assert slope.item() == pytest.approx(gradient.norm().item(), rel=0.02)


def test_discrete_actions_are_learned_by_reinforce_in_every_version() -> None:
    assert not make_v1().backpropagates
    assert [make_dreamer(env_spec(action=BOX), version=name).backpropagates for name in NAMES] == [True, False, False]


# Optimisers.


def test_three_optimisers_in_one() -> None:
    model = make_v1()
    optimizer = model.configure_optimizers()
    assert type(optimizer) is Adam
    assert [group["eps"] for group in optimizer.param_groups] == [1e-8, 1e-5, 1e-5]
    model.set_learning_rate(optimizer, model.learning_rate_at(0, 0.0))  # type: ignore[arg-type]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-4, 3e-5, 3e-5])
    later = make_dreamer(version="v2_2024")
    assert type(later.configure_optimizers()) is LaProp
    given = make_dreamer(learning_rate=1e-3, behaviour_learning_rate=1e-4)
    optimizer = given.configure_optimizers()
    given.set_learning_rate(optimizer, given.learning_rate_at(10_000, 0.0))  # type: ignore[arg-type]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-3, 1e-4, 1e-4])


def test_each_group_is_bounded_by_its_own_norm() -> None:
    model = make_v1()
    for module in model.groups.values():
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
    firsts = [next(module.parameters()) for module in model.groups.values()]
    for parameter, norm in zip(firsts, (600.0, 400.0, 50.0), strict=True):
        parameter.grad.view(-1)[0] = norm  # type: ignore[union-attr]
    total = model.clip_(list(model.parameters()), None)
    assert total.item() == pytest.approx((600.0**2 + 400.0**2 + 50.0**2) ** 0.5)
    after = [parameter.grad.norm().item() for parameter in firsts]  # type: ignore[union-attr]
    assert after == pytest.approx([600.0, 100.0, 50.0])


# What is refused before training.


def test_bins_that_do_not_hold_the_values() -> None:
    """The post-mortem: 11 bins to symexp 5 = 147.4, and a pole that never falls is worth 333."""
    bound = make_dreamer(num_bins=11, log_bound=5.0).critic.bound
    with pytest.raises(ValueError, match=r"last bin of 147.413, .* 0 to 1 .* from 0 to 333, .*log_bound 5.9"):
        check_value_bins(bound, [0.0, 1.0], GAMMA)
    with pytest.raises(ValueError, match=r"from -333 to 0"):
        check_value_bins(bound, [-1.0, 0.0], GAMMA)
    check_value_bins(make_dreamer(log_bound=5.9).critic.bound, [0.0, 1.0], GAMMA)
    check_value_bins(bound, None, GAMMA)


class Replay:
    def replay_bytes(self, state_size: int) -> int:
        return 2**20 * state_size


def test_a_size_that_does_not_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """637,381 parameters learn, 16 bytes each, and 45,951 of the slow critic follow: 4 bytes; 4 bytes are there."""
    from rlmods.algorithms import dreamer_settings

    model = make_dreamer()
    slow = sum(parameter.numel() for parameter in model.slow_critic.parameters())
    total, more = 16 * 637_381 + 4 * slow, 12 * 637_381 + 5 * 2**20
    monkeypatch.setattr(dreamer_settings, "available_memory", lambda: more)
    check_model_memory(model, "1M", Replay(), state_size=5, device=CPU)
    monkeypatch.setattr(dreamer_settings, "available_memory", lambda: more - 1)
    with pytest.raises(
        ValueError, match=rf"637,381 parameters .* take {total / 2**20:.1f} MiB, and the replay 5.0 MiB"
    ):
        check_model_memory(model, "1M", Replay(), state_size=5, device=CPU)
    check_model_memory(model, "1M", object(), state_size=5, device=CPU)
    monkeypatch.setattr(dreamer_settings, "available_memory", lambda: None)
    check_model_memory(model, "1M", Replay(), state_size=2**40, device=CPU)


def test_on_a_gpu_the_networks_and_the_replay_lie_in_two_memories(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parameters are still on the CPU when it is asked: all of the training is yet to be allocated there."""
    from rlmods.algorithms import dreamer_settings

    model, device = make_dreamer(), torch.device("cuda", 0)
    slow = sum(parameter.numel() for parameter in model.slow_critic.parameters())
    total = 16 * 637_381 + 4 * slow
    monkeypatch.setattr(dreamer_settings, "available_memory", lambda: 5 * 2**20)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (total, total))
    check_model_memory(model, "1M", Replay(), state_size=5, device=device)
    with pytest.raises(ValueError, match=r"and the replay 6.0 MiB: 6.0 MiB more than .* at most the 5.0 MiB"):
        check_model_memory(model, "1M", Replay(), state_size=6, device=device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (total - 1, total))
    with pytest.raises(ValueError, match=r"take 10.0 MiB of cuda:0, expected at most the 10.0 MiB that are free there"):
        check_model_memory(model, "1M", Replay(), state_size=5, device=device)


def test_a_checkpoint_of_another_version_is_refused() -> None:
    model = make_dreamer()
    checkpoint = {
        "algorithm": {"name": "DreamerV3"},
        DreamerV3.CHECKPOINT_HYPER_PARAMS_KEY: dict(make_v1().hparams),
    }
    with pytest.raises(ValueError, match=r"version = v1_2023, expected version = 2025"):
        model.check_checkpoint(checkpoint)


# Evaluation.


def test_the_value_at_a_beginning_leaves_the_generator_alone_and_knows_the_observation() -> None:
    model = make_dreamer()
    nn.init.normal_(model.critic.layers.output.weight)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    values = model.first_value(torch.tensor([[0.0] * 4, [3.0] * 4, [0.0] * 4]))
    assert torch.equal(torch.get_rng_state(), before)
    assert values.shape == (3,)
    assert values[0] != values[1]


def test_golden_what_was_expected_against_what_came() -> None:
    """A critic that always says 2: one episode brought 3 and was truncated after one step, the other ended with 1.

    The gaps are 2 − (3 + 0.5 · 2) = −2 and 2 − 1 = 1.
    """
    model = make_dreamer(num_bins=3, log_bound=math.log(5.0))
    model.critic.layers.output.weight.data.zero_()
    # Of the bins −4, 0 and 4.
    model.critic.layers.output.bias.data = torch.tensor([1e-30, 0.5, 0.5]).log()
    episodes = EpisodeBatch(
        returns=torch.tensor([3.0, 1.0], dtype=torch.float64),
        lengths=torch.tensor([1, 1]),
        discounted_returns=torch.tensor([3.0, 1.0], dtype=torch.float64),
        events={},
        start_observation=torch.randn(2, 4),
        final_observation=torch.randn(2, 4),
        final_discount=torch.tensor([0.5, 0.0]),
    )
    metrics = model.evaluation_metrics(episodes)
    assert metrics["q_start"].item() == pytest.approx(2.0)
    assert metrics["q_gap"].item() == pytest.approx(-0.5)
    assert metrics["q_gap_sem"].item() == pytest.approx(1.5)
    assert metrics["mean_reward"].item() == 2.0


def test_a_training_says_what_is_in_effect_and_refuses_narrow_bins(caplog: pytest.LogCaptureFixture) -> None:
    data = SequenceDataModule(
        "CartPole-v1", 64, reward_bounds=[0.0, 1.0], buffer_size=100, batch_size=2, batch_length=4
    )
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    model = make_dreamer(data.spec, size="cpu", version="v1_2023", num_bins=11, log_bound=5.0)
    with caplog.at_level("INFO"), pytest.raises(ValueError, match=r"last bin of 147\.413"):
        trainer.fit(model, datamodule=data)
    assert "DreamerV3 v1_2023: core gru, initial_state learned" in caplog.text
    assert model.gamma == GAMMA
