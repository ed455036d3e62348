"""What DreamerV3 minimises, in numbers that can be redone by hand: the world model, then actor and critic."""

import math

import pytest
import torch
from dreamers import BOX, GAMMA, OBSERVATIONS, TWO_CHOICES, env_spec, make_dreamer, make_sequences
from torch import Tensor, nn

from rlmods.algorithms.dreamer_v3 import Dream, DreamerV3
from rlmods.networks.rssm import LatentState
from rlmods.types import ActionSpec

LN_255 = math.log(255.0)
TWO_AND_THREE_CHOICES: ActionSpec = {
    "kind": "multi_discrete",
    "n": 0,
    "nvec": [2, 3],
    "shape": [2],
    "low": [],
    "high": [],
}
# Of a posterior (1/2, 1/6, 1/6, 1/6) and a uniform prior: ln 4 − (ln 2 + ln 6)/2 = ln(4/3)/2 for each of 32 latents.
SUMMED_KL = 16.0 * math.log(4.0 / 3.0)


@torch.no_grad()
def set_outputs(layer: nn.Linear, bias: Tensor | float) -> None:
    """The same outputs whatever the state."""
    layer.weight.zero_()
    layer.bias.copy_(torch.as_tensor(bias))


def set_latents(model: DreamerV3, chosen: float) -> None:
    """A uniform prior, and a posterior with this logit of each latent's first class, 0 of the others."""
    rssm = model.world_model.rssm
    logits = torch.zeros(rssm.num_classes, rssm.num_latents)
    logits[0] = chosen
    set_outputs(rssm.prior.output, 0.0)
    set_outputs(rssm.posterior_output, logits.flatten())


def half_of_it(unimix: float) -> float:
    """The logit with which the first of four classes has 1/2 after the mixture with the uniform distribution."""
    softmax = (0.5 - unimix / 4.0) / (1.0 - unimix)
    return math.log(3.0 * softmax / (1.0 - softmax))


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True, retain_graph=True))


def any_gradient(loss: Tensor, module: nn.Module) -> bool:
    return any(bool(gradient.any()) for gradient in gradients(loss, module))


# The world model.


@pytest.mark.parametrize("action", [TWO_CHOICES, BOX])
@pytest.mark.parametrize("kind", ["vector", "image", "both"])
def test_every_kind_of_observation_has_its_own_losses(kind: str, action: ActionSpec) -> None:
    """And no mean over nothing: what is not seen is not there, and all others are finite."""
    spec = env_spec(OBSERVATIONS[kind], action)
    model, batch = make_dreamer(spec), make_sequences(spec)
    losses = model.losses(batch)
    seen = {"vector": {"vectors"}, "image": {"images"}, "both": {"vectors", "images"}}[kind]
    assert losses.keys() - {"reward", "continuation", "dynamics", "representation"} == seen | {
        "actor",
        "critic",
        "replay_critic",
    }
    assert all(loss.shape == batch.reward.shape for loss in losses.values())
    assert all(bool(loss.isfinite().all()) for loss in losses.values())
    assert bool(model.total(losses).isfinite())


@pytest.mark.parametrize("unimix", [0.01, 0.1])
def test_golden_divergences_are_summed_over_the_latents_and_mixed(unimix: float) -> None:
    """4.603 nats; their mean over the latents would be 0.144, and each of them held at 1 nat would make 32."""
    model = make_dreamer(unimix=unimix)
    set_latents(model, half_of_it(unimix))
    losses, signals, _, _ = model.world_model_losses(make_sequences())
    for values in (losses["dynamics"], losses["representation"], signals["kl_dynamics"]):
        assert values.flatten().tolist() == pytest.approx([SUMMED_KL] * 8, rel=1e-4)
    assert signals["prior_entropy"].item() == pytest.approx(32.0 * math.log(4.0))
    assert signals["posterior_entropy"].item() == pytest.approx(32.0 * math.log(4.0) - SUMMED_KL, rel=1e-4)


@pytest.mark.parametrize("free_nats", [4.0, 5.0])
def test_below_the_free_nats_there_is_no_gradient_at_all(free_nats: float) -> None:
    """Of 4.603 nats: with 5 of them free the loss is 5 and its gradient exactly 0."""
    model = make_dreamer(free_nats=free_nats)
    set_latents(model, half_of_it(0.01))
    losses, signals, _, _ = model.world_model_losses(make_sequences())
    for name in ("dynamics", "representation"):
        assert losses[name].flatten().tolist() == pytest.approx([max(free_nats, SUMMED_KL)] * 8, rel=1e-4)
        assert any_gradient(losses[name].sum(), model.world_model) == (free_nats < SUMMED_KL)
    assert signals["kl_dynamics"].flatten().tolist() == pytest.approx([SUMMED_KL] * 8, rel=1e-4)


def test_each_row_of_each_step_has_free_nats_of_its_own() -> None:
    """Some lie below the middle of all, some above it; the mean of them all does not decide."""
    batch = make_sequences()
    divergence = make_dreamer().world_model_losses(batch)[1]["kl_dynamics"]
    middle = float(divergence.detach().median())
    losses, signals, _, _ = make_dreamer(free_nats=middle).world_model_losses(batch)
    assert torch.equal(losses["dynamics"], signals["kl_dynamics"].clamp(min=middle))
    assert 0 < int((losses["dynamics"] > middle).sum()) < 8


def test_the_dynamics_move_the_prior_and_the_representation_the_posterior() -> None:
    """Of a single step; later the prior's h remembers what the posterior drew."""
    model = make_dreamer(free_nats=0.0)
    losses, _, _, _ = model.world_model_losses(make_sequences(steps=1))
    rssm = model.world_model.rssm
    assert any_gradient(losses["dynamics"].sum(), rssm.prior)
    assert not any_gradient(losses["dynamics"].sum(), rssm.posterior_output)
    assert not any_gradient(losses["dynamics"].sum(), model.world_model.encoder)
    assert any_gradient(losses["representation"].sum(), rssm.posterior_output)
    assert any_gradient(losses["representation"].sum(), model.world_model.encoder)
    assert not any_gradient(losses["representation"].sum(), rssm.prior)


def test_golden_a_time_limit_is_no_end_for_the_continuation() -> None:
    """Where it predicts γ = 1 − 1/333: the entropy of γ, and ln 333 where the episode ends for good."""
    model, batch = make_dreamer(), make_sequences(steps=3, rows=1)
    set_outputs(model.world_model.continuation.output, math.log(332.0))
    is_last, is_terminal = torch.tensor([[False], [True], [True]]), torch.tensor([[False], [False], [True]])
    batch = batch._replace(is_last=is_last, is_terminal=is_terminal, discount=GAMMA * (~is_terminal).float())
    losses, signals, _, _ = model.world_model_losses(batch)
    entropy = math.log(333.0) - GAMMA * math.log(332.0)
    expected = [entropy, entropy, math.log(333.0)]
    assert losses["continuation"].flatten().tolist() == pytest.approx(expected, rel=1e-4)
    assert signals["continuation"].flatten().tolist() == pytest.approx([GAMMA] * 3)


def test_the_reward_is_that_of_the_same_row_and_moves_the_world_model() -> None:
    """A head that is sure of (0, 0, 5) in this order: only where the rewards are these is the loss next to nothing."""
    model, batch = make_dreamer(num_bins=3, log_bound=math.log(6.0)), make_sequences(steps=2, rows=1)
    head = model.world_model.reward
    assert head.bins.tolist() == pytest.approx([-5.0, 0.0, 5.0])
    set_outputs(head.layers.output, torch.tensor([0.0, 0.0, 3.0]))
    losses, _, _, _ = model.world_model_losses(batch._replace(reward=torch.tensor([[5.0], [-5.0]])))
    normaliser = math.log(2.0 + math.exp(3.0))
    assert losses["reward"].flatten().tolist() == pytest.approx([normaliser - 3.0, normaliser])
    with torch.no_grad():
        head.layers.output.weight.normal_()
    losses, _, _, _ = model.world_model_losses(batch)
    assert any_gradient(losses["reward"].sum(), model.world_model.encoder)
    assert any_gradient(losses["continuation"].sum(), model.world_model.encoder)


def test_without_a_uniform_share_nothing_is_infinite() -> None:
    """Latents that are sure of their classes, and an expectation that is sure of others."""
    model = make_dreamer(unimix=0.0)
    rssm = model.world_model.rssm
    logits = torch.zeros(rssm.num_classes, rssm.num_latents)
    logits[0] = 200.0
    set_outputs(rssm.posterior_output, logits.flatten())
    set_outputs(rssm.prior.output, logits.flip(0).flatten())
    losses, signals, _, _ = model.world_model_losses(make_sequences())
    assert all(bool(loss.isfinite().all()) for loss in losses.values())
    assert bool(signals["posterior_entropy"].isfinite())
    assert all(bool(gradient.isfinite().all()) for gradient in gradients(losses["dynamics"].sum(), rssm.prior))


# Behaviour.


def make_dream(model: DreamerV3, reward: list[float], discount: list[float], sample: Tensor | None = None) -> Dream:
    """One dream of one state more than steps."""
    torch.manual_seed(3)
    steps = len(reward) - 1
    return Dream(
        features=torch.randn(steps + 1, 1, model.world_model.rssm.num_features),
        sample=torch.zeros(steps, 1, dtype=torch.int64) if sample is None else sample,
        reward=torch.tensor(reward).unsqueeze(1),
        discount=torch.tensor(discount).unsqueeze(1),
    )


def test_golden_losses_of_a_dream() -> None:
    """λ = 1/2, values 0, rewards (9,) 1, 2 and discounts 1/2, 1/2, 1/4: R₁ = 2, R₀ = 1 + 1/2·1/2·2 = 3/2.

    Weights 1/2 and 1/4: the first state may itself be an end. Two actions are equally likely: ln π = −ln 2, and their
    entropy is ln 2, η = 0.1. The critic knows nothing: ln 255 of the return, and again of the slow critic's value.
    """
    model = make_dreamer(gae_lambda=0.5, ent_coef=0.1)
    set_outputs(model.actor.output, 0.0)
    losses, signals, returns = model.behaviour_losses(make_dream(model, [9.0, 1.0, 2.0], [0.5, 0.5, 0.25]))
    assert returns.flatten().tolist() == pytest.approx([1.5, 2.0])
    ln_2 = math.log(2.0)
    assert losses["actor"].flatten().tolist() == pytest.approx([0.5 * (1.5 - 0.1) * ln_2, 0.25 * (2.0 - 0.1) * ln_2])
    assert losses["critic"].flatten().tolist() == pytest.approx([0.5 * 2.0 * LN_255, 0.25 * 2.0 * LN_255])
    assert signals["return_scale"].item() == 1.0
    assert signals["entropy"].item() == pytest.approx(ln_2)
    assert signals["advantage"].item() == pytest.approx(1.75)


def test_golden_advantages_are_in_units_of_the_spread_of_returns() -> None:
    """Returns 0 and 100, of which the percentiles lie 90 apart: advantages 0 and 100/90."""
    model = make_dreamer(gae_lambda=0.0, ent_coef=0.0, return_scale_rate=1.0)
    set_outputs(model.actor.output, 0.0)
    losses, signals, _ = model.behaviour_losses(make_dream(model, [0.0, 0.0, 100.0], [1.0, 1.0, 1.0]))
    assert signals["return_scale"].item() == pytest.approx(90.0)
    assert model.return_scale.scale.item() == pytest.approx(90.0)
    assert losses["actor"].flatten().tolist() == pytest.approx([0.0, math.log(2.0) / 0.9], abs=1e-6)


def test_the_actors_gradient_is_that_of_the_score_function_alone() -> None:
    """−w·A·∇ ln π of what was drawn, for numbers as for choices; A has no gradient."""
    for action, sample in ((TWO_CHOICES, None), (BOX, torch.randn(2, 1, 2))):
        model = make_dreamer(env_spec(action=action), gae_lambda=0.5, ent_coef=0.0)
        dream = make_dream(model, [9.0, 1.0, 2.0], [0.5, 0.5, 0.25], sample)
        losses, _, _ = model.behaviour_losses(dream)
        outputs = model.actor(dream.features[:-1]).flatten(0, 1)
        score = model.head.log_prob(outputs, dream.sample.flatten(0, 1))
        expected = gradients(-(torch.tensor([0.5 * 1.5, 0.25 * 2.0]) * score).sum(), model.actor)
        for mine, other in zip(gradients(losses["actor"].sum(), model.actor), expected, strict=True):
            torch.testing.assert_close(mine, other)
        assert not any_gradient(losses["actor"].sum(), model.critic)


@pytest.mark.parametrize("action", [TWO_CHOICES, BOX])
def test_an_actor_without_advantage_and_entropy_does_not_move(action: ActionSpec) -> None:
    """All heads predict 0 at the start: no path through the dream is left. With the entropy it moves."""
    spec = env_spec(action=action)
    for ent_coef in (0.0, 0.1):
        model = make_dreamer(spec, ent_coef=ent_coef)
        assert any_gradient(model.losses(make_sequences(spec))["actor"].sum(), model.actor) == (ent_coef > 0.0)


def test_dreams_have_no_gradient_and_behaviour_leaves_the_world_model_alone() -> None:
    model = make_dreamer()
    set_outputs(model.world_model.reward.layers.output, torch.linspace(-1.0, 1.0, 255))
    state = LatentState(torch.randn(5, 512).requires_grad_(), torch.rand(5, 128).requires_grad_())
    dream = model.dream(state)
    assert not any(field.requires_grad for field in dream)
    losses, _, _ = model.behaviour_losses(dream)
    assert not any_gradient(losses["actor"].sum() + losses["critic"].sum(), model.world_model)
    losses = model.losses(make_sequences())
    assert not any_gradient(losses["actor"].sum() + losses["critic"].sum(), model.world_model)


def test_dreams_begin_at_the_state_and_take_rewards_and_discounts_of_all_states() -> None:
    """Three steps: four states, three actions; both heads are asked in the first state, too."""
    model = make_dreamer()
    bins = model.world_model.reward.bins
    set_outputs(model.world_model.reward.layers.output, torch.where(bins == bins[200], 1e3, 0.0))
    set_outputs(model.world_model.continuation.output, math.log(3.0))
    state = LatentState(torch.randn(5, 512), torch.rand(5, 128))
    dream = model.dream(state)
    assert dream.features.shape == (4, 5, 640)
    assert dream.sample.shape == (3, 5)
    assert torch.equal(dream.features[0], state.features)
    torch.testing.assert_close(dream.reward, bins[200].expand(4, 5))
    torch.testing.assert_close(dream.discount, torch.full((4, 5), 0.75))


@pytest.mark.parametrize("action", [TWO_CHOICES, TWO_AND_THREE_CHOICES, BOX])
def test_what_actions_add_to_a_dream_is_the_same_from_a_table(action: ActionSpec) -> None:
    model = make_dreamer(env_spec(action=action))
    outputs = torch.randn(7, model.head.num_outputs)
    sample, world_model = model.head.draw(outputs, deterministic=False), model.world_model
    expected = world_model.rssm.core.of_actions(world_model.action_vector.of_sample(sample))
    torch.testing.assert_close(world_model.action_effects()(sample), expected)


def test_dreams_are_steps_of_the_prior_with_the_actions_that_were_drawn() -> None:
    model = make_dreamer(env_spec(action=BOX))
    dream = model.dream(LatentState(torch.randn(5, 512), torch.zeros(5, 128)))
    for step in range(3):
        state = LatentState(dream.features[step, :, :512], dream.features[step, :, 512:])
        following = model.world_model.rssm.imagine(state, dream.sample[step].clamp(-1.0, 1.0))
        torch.testing.assert_close(dream.features[step + 1, :, :512], following.deter)


@pytest.mark.parametrize(("logit", "goes_on"), [(-100.0, False), (100.0, True)])
def test_an_end_in_a_dream_cuts_the_return(logit: float, goes_on: bool) -> None:
    """Rewards of 0 and values of 147: with an end everywhere the returns are 0, without one they are 147."""
    model = make_dreamer(log_bound=5.0)
    set_outputs(model.world_model.continuation.output, logit)
    set_outputs(model.critic.layers.output, torch.where(torch.arange(255) == 254, 1e3, 0.0))
    _, _, returns = model.behaviour_losses(model.dream(LatentState(torch.randn(5, 512), torch.zeros(5, 128))))
    torch.testing.assert_close(returns, torch.full((3, 5), model.critic.bound if goes_on else 0.0))


def learned_values(loss: Tensor, model: DreamerV3) -> Tensor:
    """Of each loss the number that a critic which knows nothing is drawn to, all targets together.

    Its gradient to the output is Σ (p − t) over the targets, so that Σ of it times the bins is −Σ of their means.
    """
    bias = model.critic.layers.output.bias
    rows = [torch.autograd.grad(one, bias, retain_graph=True)[0] @ model.critic.bins for one in loss.flatten()]
    return -torch.stack(rows)


def test_the_critic_learns_the_returns_and_the_slow_critics_value() -> None:
    """Values of the fast critic continue the return, 0 here; the slow one, sure of 147, is a target of its own."""
    model = make_dreamer(gae_lambda=0.5, log_bound=5.0)
    set_outputs(model.slow_critic.layers.output, torch.where(torch.arange(255) == 254, 1e3, 0.0))
    losses, _, returns = model.behaviour_losses(make_dream(model, [9.0, 1.0, 2.0], [1.0, 1.0, 0.25]))
    assert returns.flatten().tolist() == pytest.approx([2.0, 2.0])
    expected = [2.0 + model.slow_critic.bound, 2.0 + model.slow_critic.bound]
    assert learned_values(losses["critic"], model).tolist() == pytest.approx(expected, rel=1e-3)
    assert not any_gradient(losses["critic"].sum(), model.actor)


def replayed(is_last: bool, is_terminal: bool) -> tuple[DreamerV3, Tensor]:
    """Rewards (9,) 1, 2, γ = 1/2, λ = 1/2, imagined returns (100,) 4, 8; the second row may be an end."""
    model = make_dreamer(gae_lambda=0.5, log_bound=5.0)
    batch = make_sequences(steps=3, rows=1)._replace(
        reward=torch.tensor([[9.0], [1.0], [2.0]]),
        is_last=torch.tensor([[False], [is_last], [False]]),
        is_terminal=torch.tensor([[False], [is_terminal], [False]]),
        discount=torch.tensor([[0.5], [0.0 if is_terminal else 0.5], [0.5]]),
    )
    features = torch.randn(3, 1, model.world_model.rssm.num_features)
    return model, model.replay_value_loss(batch, features, torch.tensor([[100.0], [4.0], [8.0]]))


def test_golden_replayed_returns_go_on_with_the_imagined_ones() -> None:
    """R₁ = 2 + 1/2·8 = 6, R₀ = 1 + 1/2·(1/2·4 + 1/2·6) = 7/2; the last row has none."""
    model, loss = replayed(is_last=False, is_terminal=False)
    assert loss.flatten().tolist() == pytest.approx([2.0 * LN_255, 2.0 * LN_255, 0.0])
    assert learned_values(loss[:2], model).tolist() == pytest.approx([3.5, 6.0], abs=1e-3)


@pytest.mark.parametrize(("is_terminal", "expected"), [(False, 3.0), (True, 1.0)])
def test_golden_a_replayed_end_cuts_the_trace_and_for_good_the_bootstrap(is_terminal: bool, expected: float) -> None:
    """A time limit: 1 + 1/2·4 = 3; an end: 1. The row of the end itself is followed by another episode: no loss."""
    model, loss = replayed(is_last=True, is_terminal=is_terminal)
    assert loss.flatten().tolist() == pytest.approx([2.0 * LN_255, 0.0, 0.0])
    assert learned_values(loss[:1], model).tolist() == pytest.approx([expected], abs=1e-3)


def test_replayed_values_move_the_world_model() -> None:
    model = make_dreamer()
    with torch.no_grad():
        model.critic.layers.output.weight.normal_()
    loss = model.losses(make_sequences())["replay_critic"].sum()
    assert any_gradient(loss, model.world_model.encoder)
    assert any_gradient(loss, model.critic)
    assert not any_gradient(loss, model.actor)


def test_dreams_from_the_last_states_alone() -> None:
    """Of four rows the last three; more than there are is all."""
    batch = make_sequences()
    model = make_dreamer(imagination_last=3)
    losses = model.losses(batch)
    shapes = {name: tuple(loss.shape) for name, loss in losses.items()}
    of_behaviour = {"actor", "critic", "replay_critic"}
    assert all(shape == ((3, 2) if name in of_behaviour else (4, 2)) for name, shape in shapes.items())
    assert bool(model.total(losses).isfinite())
    assert make_dreamer(imagination_last=9).losses(batch)["actor"].shape == (4, 2)


def test_dreams_from_the_very_last_state() -> None:
    """No replayed reward follows it: its replayed loss is 0."""
    model = make_dreamer(imagination_last=1)
    losses = model.losses(make_sequences())
    assert losses["actor"].shape == (1, 2)
    assert losses["replay_critic"].tolist() == [[0.0, 0.0]]
    model.total(losses).backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in model.critic.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


def test_mixed_precision_has_single_precision_losses() -> None:
    model, batch = make_dreamer(env_spec(OBSERVATIONS["both"])), make_sequences(env_spec(OBSERVATIONS["both"]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.losses(batch)
        assert {loss.dtype for loss in losses.values()} == {torch.float32}
        assert all(bool(loss.isfinite().all()) for loss in losses.values())
        model.total(losses).backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.dtype == torch.float32 and bool(gradient.isfinite().all()) for gradient in gradients)


def test_asking_for_losses_moves_nothing() -> None:
    model, batch = make_dreamer(return_scale_rate=1.0), make_sequences()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.losses(batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bootstrap_targets_go_through_the_transforms() -> None:
    model = make_dreamer()
    model.target_transforms.append(lambda returns: returns.clamp(max=-1.0))
    _, _, returns = model.behaviour_losses(make_dream(model, [9.0, 1.0, 2.0], [0.5, 0.5, 0.25]))
    assert returns.flatten().tolist() == [-1.0, -1.0]


def test_replayed_targets_too() -> None:
    """Bootstrap values and rewards of 50 and targets of no more than 0: the loss is that of a value of 0."""
    model, batch = make_dreamer(), make_sequences()
    steps, rows = batch.reward.shape
    features = torch.zeros(steps, rows, model.world_model.rssm.num_features)
    with torch.no_grad():
        model.critic.layers.output.bias.copy_(torch.linspace(-1.0, 1.0, 255))
    losses = []
    for reward, transforms in ((50.0, [lambda returns: returns.clamp(max=0.0)]), (0.0, []), (50.0, [])):
        model.target_transforms[:] = transforms
        given = batch._replace(reward=torch.full_like(batch.reward, reward))
        losses.append(model.replay_value_loss(given, features, torch.full((steps, rows), reward)))
    torch.testing.assert_close(losses[0], losses[1])
    assert not torch.allclose(losses[0], losses[2])


# Their sum.


def test_golden_total() -> None:
    """Each loss is 2 in its mean: (vectors 1 + reward 1 + continuation 1 + 1 + 0.1 + actor 1 + critic 1 + 0.3) · 2."""
    model = make_dreamer()
    losses = {name: torch.tensor([[1.0, 3.0]]) for name in model.loss_scales}
    assert model.total(losses).item() == pytest.approx(12.8)


def test_losses_without_a_scale_and_scales_without_a_loss_are_refused() -> None:
    model = make_dreamer()
    losses = {name: torch.ones(4, 2) for name in model.loss_scales}
    for wrong in (
        losses | {"new": torch.ones(4, 2)},
        {name: loss for name, loss in losses.items() if name != "reward"},
        losses | {"reward": torch.ones(4)},
        losses | {"critic": torch.ones(3, 2)},
        dict.fromkeys(losses, torch.ones(())),
    ):
        with pytest.raises(ValueError, match=r"got losses .*expected one"):
            model.total(wrong)
