import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from rlmods.algorithms import SAC
from rlmods.algorithms.base import Algorithm
from rlmods.data import ReplayDataModule
from rlmods.networks.ensemble import EnsembleLinear
from rlmods.types import EnvSpec, EpisodeBatch, Minibatch, Transition

# Actions from -2 to 4: half a range of 3 around 1.
SPEC: EnvSpec = {
    "env_id": "Toy-v0",
    "observation": {"shape": [1], "dtype": "float32"},
    "action": {"kind": "continuous", "n": 0, "shape": [1], "low": [-2.0], "high": [4.0]},
}
LOG_STD = -20.0  # of no draw that could be seen


@torch.no_grad()
def make_sac(log_std: float = LOG_STD, **arguments: Any) -> SAC:
    """Mean s before the tanh; Q1 = s + u, Q2 = 2s - u of the action u in the cube; the target critics are 10 more."""
    defaults: dict[str, Any] = {"hidden_sizes": ()}
    model = SAC(spec=SPEC, **(defaults | arguments))
    (layer,) = model.actor.layers
    assert isinstance(layer, torch.nn.Linear)
    layer.weight.copy_(torch.tensor([[1.0], [0.0]]))
    layer.bias.copy_(torch.tensor([0.0, log_std]))
    for critic, bias in ((model.critic, 0.0), (model.target_critic, 10.0)):
        (ensemble,) = critic.q_functions.layers
        assert isinstance(ensemble, EnsembleLinear)
        ensemble.weight.copy_(torch.tensor([[[1.0], [1.0]], [[2.0], [-1.0]]]))
        ensemble.bias.fill_(bias)
    return model


def make_transition() -> Transition:
    """Actions at both bounds; the second is terminated."""
    return Transition(
        observation=torch.tensor([[1.0], [2.0]]),
        action=torch.tensor([[4.0], [-2.0]]),
        reward=torch.tensor([1.0, 2.0]),
        discount=torch.tensor([0.5, 0.0]),
        next_observation=torch.tensor([[0.0], [5.0]]),
        terminated=torch.tensor([False, True]),
        truncated=torch.tensor([False, False]),
    )


def log_density(mean: float, noise: float, log_std: float) -> float:
    """By hand: the normal density of the draw, less the log of the tanh's slope."""
    draw = mean + math.exp(log_std) * noise
    normal = -0.5 * noise**2 - log_std - 0.5 * math.log(2.0 * math.pi)
    return normal - math.log(1.0 - math.tanh(draw) ** 2)


def test_golden_soft_target() -> None:
    """Row 0: u' = tanh 0 = 0, least of (10, 10); y = 1 + 0.5·(10 - α log π). Row 1 is terminated: y = 2."""
    model = make_sac(ent_coef=0.1)
    torch.manual_seed(0)
    noise = torch.randn(2, 1)
    torch.manual_seed(0)
    target = model.td_target(make_transition())
    expected = 1.0 + 0.5 * (10.0 - 0.1 * log_density(0.0, noise[0].item(), LOG_STD))
    torch.testing.assert_close(target, torch.tensor([expected, 2.0]))


def test_golden_actor_loss() -> None:
    """α log π - min(s + u, 2s - u)."""
    model = make_sac(log_std=-1.0, ent_coef=0.5)
    torch.manual_seed(1)
    noise = torch.randn(2, 1).flatten().tolist()
    torch.manual_seed(1)
    signals = model.actor_signals(make_transition().observation)
    expected = []
    for s, epsilon in zip((1.0, 2.0), noise, strict=True):
        u = math.tanh(s + math.exp(-1.0) * epsilon)
        expected.append(0.5 * log_density(s, epsilon, -1.0) - min(s + u, 2.0 * s - u))
    torch.testing.assert_close(signals["actor_loss"], torch.tensor(sum(expected) / 2.0))
    signals["actor_loss"].backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in model.critic.parameters())
    assert model.log_ent_coef.grad is None


@pytest.mark.parametrize(("entropy", "sign"), [(-3.0, 1.0), (2.0, -1.0)])
def test_the_temperature_rises_below_the_target_entropy_and_falls_above_it(entropy: float, sign: float) -> None:
    model = make_sac()
    assert model.target_entropy == -1.0
    model.ent_coef_loss(torch.tensor(entropy)).backward()  # type: ignore[no-untyped-call]
    assert model.log_ent_coef.grad is not None
    assert model.log_ent_coef.grad.item() == pytest.approx(entropy + 1.0)
    assert -math.copysign(1.0, model.log_ent_coef.grad.item()) == sign


def test_without_temperature_and_spread_it_is_the_deterministic_target() -> None:
    model = make_sac(ent_coef=1e-30)
    assert model.td_target(make_transition()).tolist() == pytest.approx([6.0, 2.0])


def test_a_fixed_temperature_is_in_no_optimiser() -> None:
    model = make_sac(ent_coef=0.2)
    assert len(model.configure_optimizers()) == 2
    assert not model.log_ent_coef.requires_grad
    assert model.entropy_coefficient.item() == pytest.approx(0.2)


def test_the_automatic_temperature_begins_at_one() -> None:
    model = make_sac()
    assert model.entropy_coefficient.item() == 1.0
    assert [group["name"] for optimizer in model.configure_optimizers() for group in optimizer.param_groups] == [
        "critic",
        "actor",
        "ent_coef",
    ]


def test_actions() -> None:
    model = make_sac(log_std=2.0)
    model.learning_starts = 10
    torch.manual_seed(0)
    for env_steps in (0, 10):
        action = model.act(torch.zeros(1000, 1), env_steps=env_steps)
        assert action.min() >= -2.0
        assert action.max() <= 4.0
        assert action.std() > 1.0
    assert model.act(torch.tensor([[0.0]]), env_steps=0, deterministic=True).item() == 1.0


def test_the_spread_is_bounded() -> None:
    for log_std, expected in ((100.0, 2.0), (-100.0, -20.0)):
        _, bounded = make_sac(log_std=log_std).distribution(torch.zeros(1, 1))
        assert bounded.item() == expected


def test_an_evaluation_has_no_gap_of_soft_values() -> None:
    episodes = EpisodeBatch(
        returns=torch.tensor([10.0]).double(),
        lengths=torch.tensor([10]),
        discounted_returns=torch.tensor([5.0]).double(),
        events={},
        start_observation=torch.tensor([[1.0]]),
        final_observation=torch.tensor([[3.0]]),
        final_discount=torch.tensor([0.0]),
    )
    metrics = make_sac().evaluation_metrics(episodes)
    assert metrics["q_start"].item() == pytest.approx(1.0 + math.tanh(1.0))
    assert "q_gap" not in metrics


def test_losses_by_name() -> None:
    model = make_sac()
    torch.manual_seed(0)
    losses = model.losses(Minibatch(make_transition(), torch.ones(2)))
    assert sorted(losses) == ["actor_loss", "critic_loss", "ent_coef_loss"]
    torch.manual_seed(0)
    again = model.critic_signals(Minibatch(make_transition(), torch.ones(2)))
    torch.testing.assert_close(losses["critic_loss"], again["loss"])


def test_a_temperature_is_not_exchanged_for_that_of_a_checkpoint() -> None:
    saved: dict[str, Any] = {}
    learned = make_sac()
    learned.on_save_checkpoint(saved)
    saved[Algorithm.CHECKPOINT_HYPER_PARAMS_KEY] = dict(learned.hparams)
    learned.check_checkpoint(saved)
    with pytest.raises(ValueError, match=r"ent_coef = auto, expected ent_coef = 0\.2"):
        make_sac(ent_coef=0.2).check_checkpoint(saved)


@pytest.mark.parametrize("setting", ["ent_coef", "target_entropy"])
def test_words_other_than_auto_are_refused(setting: str) -> None:
    arguments: dict[str, Any] = {setting: "automatic"}
    with pytest.raises(ValueError, match=f"got {setting} = automatic.*or auto"):
        SAC(SPEC, **arguments)


@pytest.mark.parametrize("ent_coef", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(ent_coef: float) -> None:
    with pytest.raises(ValueError, match=r"above 0, or auto"):
        SAC(SPEC, ent_coef=ent_coef)


def test_a_run(tmp_path: Any) -> None:
    states = []
    for _ in range(2):
        seed_everything(0)
        data = ReplayDataModule(
            "Pendulum-v1",
            60,
            learning_starts=20,
            batch_size=8,
            steps_per_iteration=10,
            updates_per_iteration=5,
            buffer_size=100,
            eval_every=1000,
            eval_episodes=1,
        )
        model = SAC(data.spec, hidden_sizes=(4,))
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(model, datamodule=data)
        assert trainer.global_step == 6
        assert model.update_steps == 25
        assert model.entropy_coefficient.item() != 1.0
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
