"""PPO: what it makes of a rollout, and what it refuses."""

import math
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor

from rlmods.algorithms import PPO
from rlmods.algorithms.ppo_settings import check_batch
from rlmods.algorithms.segments import Segments, cut_segments, take_segments
from rlmods.data import ReplayDataModule, RolloutDataModule
from rlmods.types import EnvSpec, Rollout

SMALL: dict[str, Any] = {"hidden_sizes": [8], "batch_size": 16, "n_epochs": 2}


class Recorder(PPO):
    """Keeps the rollouts and the signals of each iteration."""

    def __init__(self, spec: EnvSpec, **settings: Any) -> None:
        super().__init__(spec, **settings)
        self.rollouts: list[Rollout] = []
        self.signals: list[dict[str, Tensor]] = []

    def training_step(self, batch: Rollout, batch_idx: int) -> dict[str, Tensor]:
        self.rollouts.append(batch)
        self.signals.append(super().training_step(batch, batch_idx))
        return self.signals[-1]


def fit(env_id: str, steps: int, settings: dict[str, Any], *, seed: int = 0, **data: Any) -> Recorder:
    seed_everything(seed, verbose=False)
    module = RolloutDataModule(env_id, steps, eval_every=10**9, eval_episodes=1, **data)
    model = Recorder(module.spec, **SMALL | settings)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=module)
    return model


class Corridor(gym.Env[Any, Any]):
    """The time since the episode began is observed; a termination after 3 steps, or a truncation after 5, in turn."""

    observation_space = gym.spaces.Box(0.0, 10.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None:
        self.episode, self.time = 0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        terminated, truncated = self.episode % 2 == 0 and self.time == 3, self.episode % 2 == 1 and self.time == 5
        return np.full(1, self.time, np.float32), 1.0, terminated, truncated, {}


gym.register("Corridor-v0", entry_point=lambda: Corridor())  # type: ignore[arg-type, unused-ignore]


@pytest.mark.parametrize(
    "num_envs", [2, 6]
)  # from 5 on CartPole resets in a step of its own, which is not learned from
@pytest.mark.parametrize(
    "settings", [{}, {"lstm_hidden_size": 4, "batch_size": 32}, {"lstm_hidden_size": 4, "bptt_horizon": 8}]
)
def test_ratios_before_the_first_update_are_1(num_envs: int, settings: dict[str, Any]) -> None:
    model = fit("CartPole-v1", 64 * num_envs, settings, num_envs=num_envs, n_steps=32)
    assert any((~rollout.valid).any() for rollout in model.rollouts) == (num_envs == 6)
    for signals in model.signals:
        torch.testing.assert_close(signals["importance_ratio"][0], torch.ones_like(signals["importance_ratio"][0]))
        assert float(signals["approx_kl"][0]) == pytest.approx(0.0, abs=1e-6)
        assert float((signals["importance_ratio"][-1] - 1.0).abs().amax()) > 1e-4


@pytest.mark.parametrize("settings", [{}, {"lstm_hidden_size": 4, "batch_size": 32}])
def test_continuous_ratios_before_the_first_update_are_1(settings: dict[str, Any]) -> None:
    model = fit("Pendulum-v1", 128, settings, num_envs=2, n_steps=32)
    for signals in model.signals:
        torch.testing.assert_close(signals["importance_ratio"][0], torch.ones_like(signals["importance_ratio"][0]))


@pytest.mark.parametrize("lstm_hidden_size", [None, 4])
def test_an_end_is_continued_by_the_value_of_its_true_last_observation(lstm_hidden_size: int | None) -> None:
    model = fit("Corridor-v0", 22, {"lstm_hidden_size": lstm_hidden_size, "batch_size": 11}, num_envs=1, n_steps=11)
    rollout = model.rollouts[-1]
    value = torch.arange(11.0).unsqueeze(1)
    assert rollout.decisions is not None
    with torch.no_grad():
        next_value = model.next_value(rollout, rollout.decisions, value)
    is_last = rollout.truncated | rollout.terminated
    assert rollout.truncated.any()
    for t in range(10):
        if not is_last[t]:
            assert next_value[t] == value[t + 1]
    for t in [*is_last.flatten().nonzero().flatten().tolist(), 10]:
        features, _ = model.networks.step(rollout.next_observation[t], rollout.decisions.next_state[t])
        assert float(next_value[t]) == pytest.approx(float(model.networks.value(features).detach()), abs=1e-6)
    truncated = int(rollout.truncated.flatten().nonzero()[0])
    assert float(rollout.next_observation[truncated]) == 5.0  # type: ignore[index]
    assert (rollout.discount[rollout.terminated] == 0.0).all()
    assert (rollout.discount[rollout.truncated] > 0.0).all()


def test_the_state_of_the_memory_is_zero_at_the_beginning_of_an_episode_alone() -> None:
    model = fit("Corridor-v0", 22, {"lstm_hidden_size": 4, "batch_size": 11}, num_envs=1, n_steps=11)
    for number, rollout in enumerate(model.rollouts):
        assert rollout.decisions is not None
        zero = (rollout.decisions.state[:, 0] == 0.0).all(-1)
        ended = (rollout.terminated | rollout.truncated)[:, 0]
        assert zero[1:].tolist() == ended[:-1].tolist()
        assert bool(zero[0]) == (number == 0)


def columns(num_steps: int, num_envs: int) -> Segments:
    """Numbers that say where they come from: 10 t + n."""
    number = 10.0 * torch.arange(float(num_steps)).unsqueeze(1) + torch.arange(float(num_envs))
    return Segments(number, number, number, number > 1e9, number, number, number, None, number.unsqueeze(-1))


def test_segments_are_pieces_of_time() -> None:
    begins = torch.zeros(4, 2, dtype=torch.bool)
    begins[2, 0] = begins[3, 1] = True
    segments = cut_segments(columns(4, 2)._replace(begins=begins), 2, None)
    assert segments.advantage.tolist() == [[0.0, 1.0, 20.0, 21.0], [10.0, 11.0, 30.0, 31.0]]
    assert segments.state.flatten().tolist() == [0.0, 1.0, 20.0, 21.0]
    # A segment that begins with an episode has its state at zero already.
    assert segments.begins.tolist() == [[False] * 4, [False, False, False, True]]
    taken = take_segments(segments, torch.tensor([3, 0]))
    assert taken.advantage.tolist() == [[21.0, 0.0], [31.0, 10.0]]
    assert taken.state.flatten().tolist() == [21.0, 0.0]


def test_single_steps_that_are_not_valid_are_left_out() -> None:
    valid = torch.tensor([[True, False], [True, True]])
    segments = cut_segments(columns(2, 2)._replace(weight=valid.float()), 1, valid)
    assert segments.advantage.tolist() == [[0.0, 10.0, 11.0]]
    assert segments.weight is None


def test_steps_without_weight_change_nothing() -> None:
    """The same segments, with a step more that does not count."""
    model = fit("Pendulum-v1", 64, {"lstm_hidden_size": 4, "batch_size": 64}, num_envs=2, n_steps=32)
    segments, _ = model.segments(model.rollouts[-1])
    weight = torch.ones_like(segments.advantage)
    weight[-1] = 0.0
    broken = segments._replace(weight=weight, advantage=torch.where(weight > 0.0, segments.advantage, 1e6))
    whole = segments._replace(weight=weight)
    first, second = (model.loss_signals(next(model.minibatches(m, 1, 0.0)), 0.2) for m in (broken, whole))
    torch.testing.assert_close(first["policy_loss"], second["policy_loss"])
    torch.testing.assert_close(first["value_loss"], second["value_loss"])


def test_each_segment_is_drawn_once_an_epoch() -> None:
    model = fit("Pendulum-v1", 64, {"batch_size": 16}, num_envs=2, n_steps=32)
    segments, _ = model.segments(model.rollouts[-1])
    drawn = torch.cat([minibatch.value_target for minibatch in model.minibatches(segments, 4, 0.0)], 1)
    assert drawn.flatten().sort().values.tolist() == segments.value_target.flatten().sort().values.tolist()


def test_priorities_of_0_weigh_all_alike() -> None:
    model = fit("Pendulum-v1", 64, {"batch_size": 16, "prio_alpha": 1e-9, "prio_beta0": 1.0}, num_envs=2, n_steps=32)
    segments, _ = model.segments(model.rollouts[-1])
    for minibatch in model.minibatches(segments, 4, 0.0):
        assert minibatch.weight is not None
        torch.testing.assert_close(minibatch.weight, torch.ones_like(minibatch.weight))


def test_the_kl_ends_the_epochs() -> None:
    free = fit("Pendulum-v1", 128, {"learning_rate": 1e-2, "n_epochs": 5}, num_envs=2, n_steps=32)
    bound = fit("Pendulum-v1", 128, {"learning_rate": 1e-2, "n_epochs": 5, "target_kl": 1e-3}, num_envs=2, n_steps=32)
    assert [len(signals["loss"]) for signals in free.signals] == [20, 20]
    assert all(len(signals["loss"]) < 20 for signals in bound.signals)
    assert all(float(signals["approx_kl"].amax()) <= 1.5e-3 for signals in bound.signals)
    assert bound.update_steps == sum(len(signals["loss"]) for signals in bound.signals)


def test_schedules_begin_whole_and_end_above_zero() -> None:
    settings = {"learning_rate": 0.1, "learning_rate_schedule": "linear", "clip_range_schedule": "cosine"}
    model = fit("Pendulum-v1", 256, settings, num_envs=2, n_steps=32)
    rates = [float(signals["learning_rate"]) for signals in model.signals]
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])
    clips = [float(signals["clip_range"]) for signals in model.signals]
    assert clips == pytest.approx([0.1 * (1.0 + math.cos(math.pi * progress)) for progress in (0.0, 0.25, 0.5, 0.75)])


def test_vtrace_is_gae_as_long_as_the_policy_has_not_moved() -> None:
    model = fit("Pendulum-v1", 64, {"learning_rate": 1e-30}, num_envs=2, n_steps=32)
    plain, _ = model.segments(model.rollouts[-1])
    model.vtrace_rho_bar = model.vtrace_c_bar = 1.0
    clipped, _ = model.segments(model.rollouts[-1])
    torch.testing.assert_close(clipped.advantage, plain.advantage, rtol=1e-4, atol=1e-4)


def test_the_advantage_leaves_a_steps_own_ratio_to_the_surrogate() -> None:
    """Without clips v − V = ρ_t (δ_t + λ discount_t (v − V)_{t+1}), so ρ times the advantage is v − V."""
    settings = {"vtrace_rho_bar": 1e9, "vtrace_c_bar": 1e9, "learning_rate": 0.01}
    model = fit("Pendulum-v1", 64, settings, num_envs=2, n_steps=32)
    segments, _ = model.segments(model.rollouts[0])
    ratio = model.loss_signals(segments, 0.2)["log_ratio"].detach().exp()
    assert float(ratio.std()) > 0.05
    weighted = ratio * segments.advantage.flatten()
    torch.testing.assert_close(weighted, (segments.value_target - segments.value).flatten(), rtol=1e-3, atol=1e-3)


def test_a_replay_is_refused() -> None:
    data = ReplayDataModule("Pendulum-v1", 2_000)
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(TypeError, match=r"got ReplayDataModule for PPO, .*--data rlmods.data.RolloutDataModule"):
        trainer.fit(PPO(data.spec), datamodule=data)


@pytest.mark.parametrize(
    "settings",
    [
        {"vtrace_rho_bar": 1.0, "vtrace_c_bar": 1.0, "bptt_horizon": 4, "prio_alpha": 0.8, "clip_range_vf": 0.2},
        {"optimizer": "muon", "ent_coef": 0.01},
        {"optimizer": "adamw", "weight_decay": 0.01, "lstm_hidden_size": 4, "bptt_horizon": 8},
    ],
)
def test_the_same_seed_gives_the_same_weights(settings: dict[str, Any]) -> None:
    first, second, other = (
        fit("Pendulum-v1", 128, settings, num_envs=2, n_steps=32, seed=seed).state_dict() for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_muon_gets_the_hidden_matrices_and_adam_the_rest() -> None:
    data = RolloutDataModule("Pendulum-v1", 64, num_envs=2, n_steps=32)
    muon, adam = PPO(data.spec, optimizer="muon").configure_optimizers()
    assert {group["name"]: len(group["params"]) for group in muon.param_groups} == {"actor": 2, "critic": 2}
    assert {group["name"]: len(group["params"]) for group in adam.param_groups} == {
        "actor": 4,
        "critic": 4,
        "log_std": 1,
    }
    everything, biases = PPO(data.spec, optimizer="muon", muon_parameters="all_matrices").configure_optimizers()
    assert [group["name"] for group in everything.param_groups] == ["actor", "critic", "log_std"]
    assert all(parameter.ndim == 1 for group in biases.param_groups for parameter in group["params"])


def test_muon_on_log_sigma_drifts_at_a_speed_that_no_gradient_sets() -> None:
    """A 1×A matrix of any gradient gets a step of the same norm: the sign alone matters."""
    steps = []
    for scale in (1e-6, 1.0):
        log_std = torch.nn.Parameter(torch.zeros(1, 4))
        muon = torch.optim.Muon([log_std], lr=0.01, weight_decay=0.0)
        log_std.grad = torch.full((1, 4), -scale)
        muon.step()  # type: ignore[no-untyped-call]
        steps.append(log_std.detach().clone())
    torch.testing.assert_close(steps[0], steps[1], rtol=0.02, atol=0.0)
    norm = 1.0
    for _ in range(5):
        norm = 3.4445 * norm - 4.7750 * norm**3 + 2.0315 * norm**5
    assert norm == pytest.approx(0.6964, abs=1e-4)
    assert float(torch.linalg.vector_norm(steps[1])) / 0.01 == pytest.approx(norm, rel=0.02)  # torch works in bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (8, 32, 512, 1),
            r"batch_size = 512 with num_envs 8 x n_steps 32 = 256.*type --model.init_args.batch_size 256",
        ),
        ((8, 32, 100, 1), r"batch_size = 100.*expected whole segments that divide the rollout.*batch_size 128"),
        ((8, 32, 100, 16), r"batch_size = 100 .*batch_size 128"),
        ((8, 30, 60, 16), r"bptt_horizon = 16 with n_steps = 30.*n_steps 32"),
        ((8, 32, 40, 16), r"batch_size = 40 with .* in segments of bptt_horizon = 16.*batch_size 32"),
    ],
)
def test_a_rollout_that_does_not_divide_is_refused(arguments: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_batch(*arguments)


def test_the_derived_batch_of_the_specification() -> None:
    """56 × 4 × 8 agents, 16 steps, all in one mini-batch."""
    assert check_batch(56 * 4 * 8, 16, 28_672, 16) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "lion"}, r"optimizer = lion.*out of adam, adamw, muon"),
        ({"learning_rate_schedule": "step"}, "learning_rate_schedule = step"),
        ({"gae_lambda": 1.5}, r"gae_lambda = 1.5.*in \[0, 1\]"),
        ({"clip_range": 0.0}, "clip_range = 0.0"),
        ({"vtrace_rho_bar": 1.0}, "expected both, or neither"),
        ({"vtrace_rho_bar": 1.0, "vtrace_c_bar": 2.0}, r"vtrace_c_bar = 2.0 above .*vtrace_c_bar 1.0"),
        ({"vtrace_rho_bar": 0.5, "vtrace_c_bar": 0.5}, r"vtrace_rho_bar = 0.5.*at least 1"),
        ({"action_distribution": "beta"}, "out of bounded, unbounded"),
        ({"learning_rate": math.inf}, r"learning_rate = inf.*above 0 and finite"),
        ({"hidden_sizes": [64, 0]}, r"hidden_sizes = \[64, 0\].*widths of at least 1"),
        ({"weight_decay": 0.1}, r"weight_decay = 0.1 with optimizer adam.*optimizer adamw"),
        ({"muon_parameters": "all_matrices"}, r"all_matrices with optimizer adam.*optimizer muon"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, Any], message: str) -> None:
    data = RolloutDataModule("Pendulum-v1", 64, num_envs=2, n_steps=32)
    with pytest.raises(ValueError, match=message):
        PPO(data.spec, **settings)


def test_priorities_that_do_nothing_are_said() -> None:
    with pytest.warns(UserWarning, match=r"prio_alpha = 0.8 has no effect: the mini-batch is the whole rollout"):
        fit("Pendulum-v1", 64, {"prio_alpha": 0.8, "batch_size": 64}, num_envs=2, n_steps=32)


def test_an_unbounded_policy_is_warned_about_and_a_bounded_one_is_not() -> None:
    data = RolloutDataModule("Pendulum-v1", 64, num_envs=2, n_steps=32)
    with pytest.warns(UserWarning, match="nothing keeps σ within the action box"):
        PPO(data.spec, action_distribution="unbounded")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PPO(data.spec)


def test_a_rollout_of_somebody_else_is_refused(tmp_path: Path) -> None:
    model = fit("Pendulum-v1", 64, {}, num_envs=2, n_steps=32)
    with pytest.raises(TypeError, match="without the decisions of the policy"):
        model.segments(model.rollouts[0]._replace(decisions=None))


def test_a_policy_that_remembers_evaluates_with_its_memory() -> None:
    """An episode step by step from the evaluator's state, not each step from zero."""
    model = fit("Corridor-v0", 22, {"lstm_hidden_size": 4, "batch_size": 11}, num_envs=1, n_steps=11)
    observation = torch.tensor([[1.0]])
    first = model.decide(observation, model.initial_state(1), deterministic=True)
    second = model.decide(observation, first.state, deterministic=True)
    assert not torch.equal(first.state, second.state)
    assert torch.equal(model.act(observation, env_steps=0, deterministic=True), first.action)
