import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from rlmods.algorithms import TD3
from rlmods.algorithms.base import Algorithm
from rlmods.data import ReplayDataModule
from rlmods.networks.continuous import Encoded
from rlmods.networks.ensemble import EnsembleLinear
from rlmods.networks.pixel_encoders import ObservationEncoder
from rlmods.types import EnvSpec, EpisodeBatch, Minibatch, Observation, ReplayBatch, Transition

# Actions from -2 to 4: half a range of 3 around 1.
SPEC: EnvSpec = {
    "env_id": "Toy-v0",
    "observation": {"shape": [1], "dtype": "float32"},
    "action": {"kind": "continuous", "n": 0, "shape": [1], "low": [-2.0], "high": [4.0]},
}
PIXELS: EnvSpec = {
    "env_id": "Dots-v0",
    "observation": {
        "image": {"shape": [2, 36, 36], "dtype": "uint8"},
        "vector": {"shape": [3], "dtype": "float32"},
    },
    "action": {"kind": "continuous", "n": 0, "shape": [2], "low": [-1.0, 0.0], "high": [1.0, 2.0]},
}


@torch.no_grad()
def make_td3(**arguments: Any) -> TD3:
    """π(s) = tanh(s) in the cube; Q1 = s + u, Q2 = 2s - u of an action u there; the target critics are 10 more."""
    defaults: dict[str, Any] = {"hidden_sizes": (), "target_policy_noise": 0.0}
    model = TD3(spec=SPEC, **(defaults | arguments))
    for actor in (model.actor, model.target_actor):
        (layer,) = actor.layers
        assert isinstance(layer, torch.nn.Linear)
        layer.weight.fill_(1.0)
        layer.bias.zero_()
    for critic, bias in ((model.critic, 0.0), (model.target_critic, 10.0)):
        (ensemble,) = critic.q_functions.layers
        assert isinstance(ensemble, EnsembleLinear)
        ensemble.weight.copy_(torch.tensor([[[1.0], [1.0]], [[2.0], [-1.0]]])[: ensemble.weight.shape[0]])
        ensemble.bias.fill_(bias)
    return model


def make_transition() -> Transition:
    """Actions at both bounds and in the middle; the second is terminated, the third truncated."""
    return Transition(
        observation=torch.tensor([[1.0], [2.0], [0.0]]),
        action=torch.tensor([[4.0], [-2.0], [1.0]]),
        reward=torch.tensor([1.0, 2.0, 3.0]),
        discount=torch.tensor([0.5, 0.0, 0.5]),
        next_observation=torch.tensor([[0.0], [5.0], [-1.0]]),
        terminated=torch.tensor([False, True, False]),
        truncated=torch.tensor([False, False, True]),
    )


def make_minibatch() -> Minibatch:
    return Minibatch(make_transition(), torch.ones(3))


def pixel_batch(num: int = 4) -> Minibatch:
    generator = torch.Generator().manual_seed(0)

    def observation() -> Observation:
        image = torch.randint(0, 256, (num, 2, 36, 36), dtype=torch.uint8, generator=generator)
        return {"image": image, "vector": torch.randn(num, 3, generator=generator)}

    transition = Transition(
        observation(),
        torch.rand(num, 2, generator=generator),
        torch.randn(num, generator=generator),
        torch.full((num,), 0.9),
        observation(),
        torch.zeros(num, dtype=torch.bool),
        torch.zeros(num, dtype=torch.bool),
    )
    return Minibatch(transition, torch.ones(num))


def trainer(folder: Any, **arguments: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **arguments,
    )


def pendulum(**arguments: Any) -> ReplayDataModule:
    defaults = {"total_env_steps": 60, "learning_starts": 20, "batch_size": 8, "eval_episodes": 1}
    sizes = {"steps_per_iteration": 10, "updates_per_iteration": 5, "buffer_size": 100, "eval_every": 1000}
    return ReplayDataModule("Pendulum-v1", **(defaults | sizes | arguments))


def test_golden_signals() -> None:
    """Row 0: s = 1, u = 1, Q = (2, 1); s' = 0, u' = 0: least of (10, 10). y = 1 + 0.5·10 = 6.

    Row 1 is terminated: y = 2 against Q1 = 2 - 1 = 1 and Q2 = 5. Row 2: u = 0, Q = (0, 0); s' = -1, u' = tanh(-1) =
    -0.7616: Q1 = 8.2384, Q2 = 8.7616; y = 3 + 4.1192 = 7.1192.
    """
    signals = make_td3().critic_signals(make_minibatch())
    target = [6.0, 2.0, 3.0 + 0.5 * (9.0 + math.tanh(-1.0))]
    torch.testing.assert_close(signals["q_value"], torch.tensor([2.0, 1.0, 0.0]))
    torch.testing.assert_close(signals["td_target"], torch.tensor(target))
    torch.testing.assert_close(signals["td_error"], torch.tensor([4.0, 1.0, target[2]]))
    torch.testing.assert_close(signals["twin_gap"], torch.tensor([1.0, 4.0, 0.0]))
    # The mean of 16, 1, y² and that of 25, 9, y², added.
    torch.testing.assert_close(signals["loss"], torch.tensor((17.0 + 34.0 + 2.0 * target[2] ** 2) / 3.0))
    assert not signals["td_target"].requires_grad


def test_golden_actor_loss() -> None:
    """-mean of Q1(s, π(s)) = -(s + tanh s); its gradient by the weight is -mean of (1 - tanh²s)·s, nothing from s."""
    model = make_td3()
    signals = model.actor_signals(make_transition().observation)
    expected = [s + math.tanh(s) for s in (1.0, 2.0, 0.0)]
    torch.testing.assert_close(signals["q_policy"], torch.tensor(expected))
    torch.testing.assert_close(signals["actor_loss"], torch.tensor(-sum(expected) / 3.0))
    signals["actor_loss"].backward()  # type: ignore[no-untyped-call]
    (layer,) = model.actor.layers
    assert isinstance(layer, torch.nn.Linear)
    assert layer.weight.grad is not None
    slopes = [(1.0 - math.tanh(s) ** 2) * s for s in (1.0, 2.0, 0.0)]
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[-sum(slopes) / 3.0]]))
    assert all(parameter.grad is None for parameter in model.critic.parameters())


def test_importance_weights_enter_before_the_mean() -> None:
    minibatch = Minibatch(make_transition(), torch.tensor([0.5, 1.0, 0.0]))
    loss = make_td3().critic_signals(minibatch)["loss"]
    torch.testing.assert_close(loss, torch.tensor((0.5 * (16.0 + 25.0) + 1.0 + 9.0) / 3.0))


@pytest.mark.parametrize("noise", [0.0, 0.2, 100.0])
def test_target_actions_stay_within_the_bounds_and_near_the_policy(noise: float) -> None:
    """Q1 at the target is 10 + u': it says which action was taken."""
    model = make_td3(n_critics=1, target_policy_noise=noise, target_noise_clip=0.5)
    transition = make_transition()
    ones = torch.full((3,), 1.0 - 1e-7)
    assert isinstance(transition.next_observation, torch.Tensor)
    state = transition.next_observation.squeeze(-1)
    torch.manual_seed(0)
    for _ in range(50):
        action = model.td_target(transition._replace(discount=ones, reward=torch.zeros(3))) - 10.0
        action -= state
        assert (action.abs() <= 1.0 + 1e-5).all()
        assert ((action - state.tanh()).abs() <= min(0.5, noise * 10) + 1e-5).all()


def test_one_critic_without_noise_is_ddpg() -> None:
    model = make_td3(n_critics=1, policy_delay=1)
    signals = model.critic_signals(make_minibatch())
    assert "twin_gap" not in signals
    torch.testing.assert_close(signals["td_target"][0], torch.tensor(6.0))


def test_actions_fill_the_box_and_no_more() -> None:
    model = make_td3(exploration_noise=5.0)
    observation = torch.zeros(1000, 1)
    torch.manual_seed(0)
    for steps in (0, 10_000):
        model.learning_starts = 100
        action = model.act(observation, env_steps=steps)
        assert action.shape == (1000, 1)
        assert action.min() >= -2.0
        assert action.max() <= 4.0
        assert action.min() < -1.9
        assert action.max() > 3.9
    assert model.act(torch.tensor([[0.0]]), env_steps=0, deterministic=True).item() == 1.0


def test_random_actions_are_uniform_and_noise_has_its_spread() -> None:
    model = make_td3(exploration_noise=0.1)
    model.learning_starts = 10
    torch.manual_seed(0)
    uniform = model.act(torch.zeros(4000, 1), env_steps=9)
    assert uniform.mean().item() == pytest.approx(1.0, abs=0.1)
    assert uniform.std().item() == pytest.approx(6.0 / math.sqrt(12.0), rel=0.05)
    noisy = model.act(torch.zeros(4000, 1), env_steps=10)
    assert noisy.std().item() == pytest.approx(0.3, rel=0.05)  # a tenth of half the range


def test_exploration_falls_over_its_part_of_the_budget() -> None:
    model = make_td3(exploration_noise=1.0, final_exploration_noise=0.1, exploration_fraction=0.5)
    model.total_env_steps = 1000
    assert [model.exploration_std(steps) for steps in (0, 250, 500, 1000)] == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_acting_without_noise_draws_nothing() -> None:
    model = make_td3()
    state = torch.get_rng_state()
    model.act(torch.zeros(2, 1), env_steps=0, deterministic=True)
    assert torch.equal(state, torch.get_rng_state())


def test_the_actor_and_the_targets_move_with_every_second_update(tmp_path: Any) -> None:
    class Watched(TD3):
        moved: list[tuple[bool, bool]]

        def update(self, *arguments: Any, **options: Any) -> Any:
            parameters = {name: value.clone() for name, value in self.state_dict().items()}
            signals = super().update(*arguments, **options)
            changed = {name for name, value in self.state_dict().items() if not torch.equal(value, parameters[name])}
            parts = {name.split(".")[0] for name in changed}
            assert "critic" in parts
            self.moved.append(("actor" in parts, {"target_actor", "target_critic"} <= parts))
            assert ("actor_loss" in signals) == ("actor" in parts)
            return signals

    seed_everything(0)
    data = pendulum()
    model = Watched(data.spec, hidden_sizes=(4,))
    model.moved = []
    trainer(tmp_path).fit(model, datamodule=data)
    assert model.update_steps == len(model.moved) == 25  # 5 in each iteration from environment step 20 on
    assert model.moved == [(False, False), (True, True)] * 12 + [(False, False)]


def test_global_step_counts_iterations(tmp_path: Any) -> None:
    seed_everything(0)
    data = pendulum()
    model = TD3(data.spec, hidden_sizes=(4,))
    run = trainer(tmp_path)
    run.fit(model, datamodule=data)
    assert run.global_step == 6


def test_same_seed_same_weights(tmp_path: Any) -> None:
    states = []
    for _ in range(2):
        seed_everything(3)
        data = pendulum()
        model = TD3(data.spec, hidden_sizes=(4,))
        trainer(tmp_path).fit(model, datamodule=data)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_each_optimiser_is_clipped_at_its_own_limit(tmp_path: Any) -> None:
    norms: dict[str, list[float]] = {"critic": [], "actor": []}

    class Watched(TD3):
        def _step(self, optimizer: Any, *, counts: bool) -> None:
            (group,) = optimizer.param_groups
            gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
            if gradients:
                norms[group["name"]].append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
            super()._step(optimizer, counts=counts)

    seed_everything(0)
    data = pendulum()
    trainer(tmp_path).fit(Watched(data.spec, hidden_sizes=(4,), max_grad_norm={"critic": 0.5}), datamodule=data)
    assert max(norms["critic"]) <= 0.5 * 1.0001
    assert len(norms["critic"]) == 25
    assert len(norms["actor"]) == 12


def test_what_the_critic_expects_is_reported_with_the_evaluation() -> None:
    """Q1(s, π(s)) = s + tanh s; the first episode terminated, the second is continued by the critic's value."""
    episodes = EpisodeBatch(
        returns=torch.tensor([10.0, 20.0]).double(),
        lengths=torch.tensor([10, 20]),
        discounted_returns=torch.tensor([5.0, 7.0]).double(),
        events={},
        start_observation=torch.tensor([[0.0], [1.0]]),
        final_observation=torch.tensor([[3.0], [0.0]]),
        final_discount=torch.tensor([0.0, 0.5]),
    )
    metrics = make_td3().evaluation_metrics(episodes)
    q = [0.0, 1.0 + math.tanh(1.0)]
    assert metrics["q_start"].item() == pytest.approx(sum(q) / 2.0)
    assert metrics["q_gap"].item() == pytest.approx((q[0] - 5.0 + q[1] - 7.0) / 2.0)


def test_target_transforms_act_in_turn() -> None:
    model = make_td3()
    model.target_transforms += [lambda target: target.clamp(max=5.0), lambda target: target + 1.0]
    assert model.td_target(make_transition()).tolist()[:2] == [6.0, 3.0]


def test_losses_are_those_that_training_uses() -> None:
    model = make_td3()
    losses = model.losses(make_minibatch())
    torch.testing.assert_close(losses["critic_loss"], model.critic_signals(make_minibatch())["loss"])
    expected = model.actor_signals(make_transition().observation)["actor_loss"]
    torch.testing.assert_close(losses["actor_loss"], expected)
    fields: list[Any] = [field.unsqueeze(0) for field in make_transition()]  # type: ignore[union-attr]
    batch = ReplayBatch(Transition(*fields), torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3), 0, 0.0)
    torch.testing.assert_close(model.losses(batch)["critic_loss"], losses["critic_loss"])


# Encoders


@pytest.mark.parametrize("encoder", ["nature", "drq_v2"])
@pytest.mark.parametrize(
    ("ownership", "critic_trains", "actor_trains"),
    [
        ("shared_critic", {"critic.encoder"}, set()),
        ("separate", {"critic.encoder"}, {"actor.encoder"}),
        ("shared_both", {"critic.encoder"}, {"critic.encoder"}),
    ],
)
@pytest.mark.filterwarnings("ignore:encoder_ownership")
def test_which_loss_reaches_which_encoder(
    ownership: Any, critic_trains: set[str], actor_trains: set[str], encoder: Any
) -> None:
    torch.manual_seed(0)
    model = TD3(PIXELS, hidden_sizes=(8,), encoder=encoder, encoder_ownership=ownership)
    for loss_name, expected in (("critic_loss", critic_trains), ("actor_loss", actor_trains)):
        model.zero_grad()
        model.losses(pixel_batch())[loss_name].backward()  # type: ignore[no-untyped-call]
        reached = {
            ".".join(name.split(".")[:2])
            for name, parameter in model.named_parameters()
            if parameter.grad is not None and parameter.grad.abs().sum() > 0 and ".encoder." in name
        }
        # named_parameters gives a shared encoder under its first name alone, that of the actor.
        shared = {"critic.encoder"} if ownership == "separate" else {"actor.encoder"}
        assert reached == {name if ownership == "separate" else next(iter(shared)) for name in expected}


@pytest.mark.parametrize("tau", [None, 0.5])
def test_a_target_encoder_follows_with_its_own_tau(tau: float | None) -> None:
    torch.manual_seed(0)
    model = TD3(PIXELS, hidden_sizes=(8,), target_encoder_tau=tau)
    assert model.target_actor.encoder is model.target_critic.encoder
    assert (model.target_critic.encoder is model.critic.encoder) == (tau is None)
    before = [parameter.clone() for parameter in model.target_critic.encoder.parameters()]
    with torch.no_grad():
        for parameter in model.critic.encoder.parameters():
            parameter.add_(1.0)
    model.update_targets()
    after = list(model.target_critic.encoder.parameters())
    step = 1.0 if tau is None else 0.5
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new.detach(), old + step)
    assert all(parameter.requires_grad for parameter in model.critic.encoder.parameters())


def test_no_parameter_is_in_two_optimisers_unless_it_is_asked_for() -> None:
    for ownership, shared in (("shared_critic", False), ("separate", False), ("shared_both", True)):
        with pytest.warns(UserWarning, match="two losses") if shared else torch.no_grad():
            model = TD3(PIXELS, hidden_sizes=(8,), encoder_ownership=ownership)  # type: ignore[arg-type]
        critic, actor = (
            {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
            for optimizer in model.configure_optimizers()
        )
        assert bool(critic & actor) == shared
        trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        assert critic | actor == trained


def test_a_critic_refuses_the_features_of_another_encoder() -> None:
    model = TD3(PIXELS, hidden_sizes=(8,), encoder_ownership="separate")
    batch = pixel_batch()
    features = model.actor.encoded(batch.transition.observation)
    with pytest.raises(ValueError, match="another network's encoder"):
        model.critic(features, batch.transition.action)
    stranger = Encoded(features.features, ObservationEncoder(PIXELS, "drq_v2"))
    with pytest.raises(ValueError, match="pass the observation"):
        model.actor(stranger)


def test_images_are_shifted_in_training_and_not_in_acting() -> None:
    torch.manual_seed(0)
    model = TD3(PIXELS, hidden_sizes=(8,), random_shift=4)
    batch = pixel_batch()
    shifted = model.augment(batch.transition)
    assert isinstance(shifted.observation, dict)
    assert isinstance(batch.transition.observation, dict)
    assert not torch.equal(shifted.observation["image"], batch.transition.observation["image"])
    assert torch.equal(shifted.observation["vector"], batch.transition.observation["vector"])
    first, second = (model.act(batch.transition.observation, env_steps=0, deterministic=True) for _ in range(2))
    assert torch.equal(first, second)


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "discrete", "n": 2, "shape": [], "low": [], "high": []}, "expected continuous ones"),
        ({"low": [-math.inf]}, "without bounds"),
        ({"low": [4.0]}, "expected low < high"),
        ({"low": [-3.4e38], "high": [3.4e38]}, "range that float32 can hold"),
        ({"low": [1.0], "high": [1.0 + 2**-23]}, "range that float32 can hold"),
    ],
)
def test_actions_that_no_squashed_policy_can_fill_are_refused(change: dict[str, Any], message: str) -> None:
    spec: Any = SPEC | {"action": SPEC["action"] | change}
    with pytest.raises(ValueError, match=message):
        TD3(spec)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau": 0.0}, "got tau = 0.0"),
        ({"policy_delay": 0}, "policy_delay = 0"),
        ({"n_critics": 0}, "n_critics"),
        ({"learning_rate": -1.0}, "--model.init_args.learning_rate"),
        ({"random_shift": -1}, "random_shift"),
        ({"max_grad_norm": {"critc": 1.0}}, r"some of \['critic', 'actor'\]"),
        ({"max_grad_norm": {"critic": 0.0}}, "above 0"),
        ({"encoder": "Nature"}, "out of nature, drq_v2"),
        ({"encoder_ownership": "seperate"}, "out of shared_critic, separate, shared_both"),
    ],
)
def test_settings_outside_their_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TD3(SPEC, **arguments)


def test_an_observation_without_its_image_is_refused() -> None:
    model = TD3(PIXELS, hidden_sizes=(8,))
    with pytest.raises(ValueError, match=r"expected also \['image'\]"):
        model.act({"vector": torch.zeros(1, 3)}, env_steps=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": "nature"}, "encoder = nature"),
        # Without it the weights of the target encoder would become those of the critic's own.
        ({"target_encoder_tau": 0.1}, "target_encoder_tau = 0.1"),
    ],
)
def test_the_checkpoint_of_other_encoders_is_refused(arguments: dict[str, Any], message: str) -> None:
    saved: dict[str, Any] = {}
    other = TD3(PIXELS, hidden_sizes=(8,), **arguments)
    other.on_save_checkpoint(saved)
    saved[Algorithm.CHECKPOINT_HYPER_PARAMS_KEY] = dict(other.hparams)
    with pytest.raises(ValueError, match=message):
        TD3(PIXELS, hidden_sizes=(8,)).check_checkpoint(saved)


def test_sixteen_bit_precision_is_refused(tmp_path: Any) -> None:
    data = pendulum()
    run = trainer(tmp_path, precision="16-true")
    with pytest.raises(ValueError, match="expected 32-true or bf16-mixed"):
        run.fit(TD3(data.spec, hidden_sizes=(4,)), datamodule=data)
