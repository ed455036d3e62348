"""DreamerV3 as a whole, and the table of what goes wrong in reimplementations.

| Trap | Test |
| --- | --- |
| the prior sees the current latent | test_rssm: `the_prior_of_a_step_has_not_seen_the_step` |
| divergence averaged, or clamped for each latent | losses: `divergences_are_summed_over_the_latents_and_mixed` |
| divergence without the uniform share | the same; test_rssm: `no_class_is_impossible` |
| straight-through free nats | losses: `below_the_free_nats_there_is_no_gradient_at_all` |
| λ-returns shifted | test_returns: `one_step_takes_the_value_of_the_next_state`, `lambda_one_is_monte_carlo` |
| continue head trained and not used | losses: `an_end_in_a_dream_cuts_the_return` |
| truncation treated as termination | losses: `a_time_limit_is_no_end_for_the_continuation`, `a_replayed_end…` |
| reset: action not zeroed, mask one step early | test_rssm: `nothing_before_a_first_step_counts`, `…is_not_blank` |
| the real policy ignores the observation | `actions_depend_on_the_observation_and_on_the_state` |
| reconstruction averaged | test_dreamer_observations: `errors_of_vectors_are_summed_not_averaged`, `…of_images…` |
| path gradient in REINFORCE | losses: `an_actor_without_advantage_and_entropy_does_not_move`, `…score_function_alone` |
| return normalisation off | losses: `advantages_are_in_units_of_the_spread_of_returns` |
| initial scale of block-linear layers | test_rssm: `initial_weights_of_blocks_are_of_the_whole_input` |
| norm with a shift | `the_published_number_of_parameters` |
| two-hot in the wrong space | test_two_hot: `masses_are_linear_in_the_value_itself` |
| a first value that is not zero | `the_first_predictions_are_zero_and_cost_ln_255` |
| range of the bins too small | test_dreamer_heads: `mass_of_the_ends`; the safeguard has tests of its own |
| truncated normal whose limits are not of its σ | test_normed: `initial_weights_are_cut_at_two_of_their_own_sigma` |
| images not centred, or prepared in two ways | test_dreamer_observations; `acting_and_learning_live_through…` |
| numbers that are not finite | losses: `every_kind_of_observation…`, `without_a_uniform_share_nothing_is_infinite` |
| counters inside the loop over steps | `every_network_takes_every_step` |
| resume: return scale or clock lost | `a_resumed_training_is_the_one_that_was_never_stopped` |
| a loss over nothing | losses: `every_kind_of_observation_has_its_own_losses` |
| actors with old weights | `actions_come_from_the_present_weights` |

Traps of replay, ratio and environments are tested there. "losses" is test_dreamer_v3_losses.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from dreamers import BOX, OBSERVATIONS, env_spec, make_certain, make_dreamer, make_sequences
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch import Tensor, nn

from rlmods.algorithms.dreamer_v3 import DreamerV3
from rlmods.callbacks import GlobalRNG
from rlmods.data import SequenceDataModule
from rlmods.signals import SIGNALS
from rlmods.types import EnvSpec, SequenceBatch, Sequences

K = 2


def number_of_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_golden_the_published_number_of_parameters() -> None:
    """DMC Walker: 24 observations, 6 continuous actions; with shifts in the norms it would be 646,819."""
    spec = env_spec({"shape": [24], "dtype": "float32"}, BOX | {"shape": [6], "low": [-1.0] * 6, "high": [1.0] * 6})
    model = make_dreamer(spec)
    assert number_of_parameters(model) == 640_867
    slow = sum(parameter.numel() for parameter in model.slow_critic.parameters())
    assert slow == number_of_parameters(model.critic) > 0


@pytest.mark.parametrize(
    ("size", "of_cart_pole", "of_images"),
    [
        ("1M", 637_381, 686_456),
        ("12M", 9_724_165, 10_492_616),
        ("25M", 21_762_181, 23_487_016),
        ("50M", 38_584_325, 41_646_984),
        ("100M", 86_580_997, 93_463_624),
        ("200M", 153_714_181, 165_942_536),
        ("400M", 345_390_085, 372_887_176),
    ],
)
def test_golden_numbers_of_parameters_of_all_sizes(size: str, of_cart_pole: int, of_images: int) -> None:
    """Without memory for their weights. Images are of 64 times 64 pixels in three colours, with 6 actions."""
    images: EnvSpec = env_spec({"shape": [3, 64, 64], "dtype": "uint8"})
    images["action"] = {"kind": "discrete", "n": 6, "shape": [], "low": [], "high": []}
    with torch.device("meta"):
        assert number_of_parameters(make_dreamer(size=size)) == of_cart_pole
        assert number_of_parameters(make_dreamer(images, size=size)) == of_images


def test_the_first_predictions_are_zero_and_cost_ln_255() -> None:
    """Reward and value exactly 0; ln 255 = 5.541 for each target; all actions as good as equally likely."""
    model, batch = make_dreamer(), make_sequences()
    losses, signals, _ = model._losses(batch)
    ln_255 = math.log(255.0)
    assert losses["reward"].flatten().tolist() == pytest.approx([ln_255] * 8)
    assert losses["replay_critic"].flatten().tolist() == pytest.approx([2.0 * ln_255] * 6 + [0.0] * 2)
    assert not signals["value"].any()
    assert signals["imagined_reward"].item() == 0.0
    assert signals["entropy"].item() == pytest.approx(math.log(2.0), abs=1e-3)
    features = torch.randn(9, model.world_model.rssm.num_features)
    for head in (model.critic, model.slow_critic, model.world_model.reward):
        assert torch.equal(head.mean(head(features)), torch.zeros(9))


def test_the_first_entropy_of_continuous_actions() -> None:
    """Two of σ = 0.1 + 0.9·sigmoid 2 = 0.8927: ln σ + 1.4189 each."""
    spec = env_spec(action=BOX)
    _, signals, _ = make_dreamer(spec)._losses(make_sequences(spec))
    expected = 2.0 * (math.log(0.89272) + 0.5 * math.log(2.0 * math.pi * math.e))
    assert signals["entropy"].item() == pytest.approx(expected, abs=2e-3)


# Acting.


@torch.no_grad()
def test_actions_depend_on_the_observation_and_on_the_state() -> None:
    model = make_dreamer(unimix=0.0)
    make_certain(model)
    observation, state = torch.randn(1, 4), model.initial_state(1)
    first = model.decide(observation, state, deterministic=True)
    assert torch.equal(model.decide(observation, state, deterministic=True).log_prob, first.log_prob)
    assert not torch.equal(model.decide(observation + 1.0, state, deterministic=True).log_prob, first.log_prob)
    assert not torch.equal(model.decide(observation, first.state, deterministic=True).log_prob, first.log_prob)


@torch.no_grad()
def test_actions_come_from_the_present_weights() -> None:
    model = make_dreamer()
    observation, state = torch.randn(64, 4), model.initial_state(64)
    assert model.decide(observation, state).action.float().mean().item() == pytest.approx(0.5, abs=0.25)
    model.actor.output.bias.copy_(torch.tensor([0.0, 50.0]))
    assert int(model.decide(observation, state, deterministic=True).action.sum()) == 64
    model.actor.output.bias.copy_(torch.tensor([50.0, 0.0]))
    assert int(model.act(observation, env_steps=0, deterministic=True).sum()) == 0


@torch.no_grad()
@pytest.mark.parametrize(("eval_mode", "draws"), [("argmax", False), ("both", False), ("sample", True)])
def test_evaluations_take_the_most_probable_action_or_draw_it(eval_mode: str, draws: bool) -> None:
    """Of probabilities 1/3 and 2/3. Training draws in any case."""
    model = make_dreamer(eval_mode=eval_mode)
    model.actor.output.weight.zero_()
    model.actor.output.bias.copy_(torch.tensor([0.0, math.log(2.0)]))
    observation, state = torch.randn(300, 4), model.initial_state(300)
    assert (model.decide(observation, state, deterministic=True).action == 0).any().item() == draws
    assert model.decide(observation, state).action.float().mean().item() == pytest.approx(2.0 / 3.0, abs=0.1)


@pytest.mark.parametrize("eval_mode", ["both", "argmax"])
def test_a_validation_logs_the_draws_apart(tmp_path: Path, eval_mode: str) -> None:
    """With 0.51 to push left the most probable actions fall at once; draws balance longer."""
    data = SequenceDataModule(
        "CartPole-v1", total_env_steps=100, buffer_size=100, num_envs=1, batch_size=1, batch_length=2, eval_episodes=20
    )
    model = make_dreamer(env_spec(), eval_mode=eval_mode)
    with torch.no_grad():
        model.actor.output.weight.zero_()
        model.actor.output.bias.copy_(torch.tensor([0.04, 0.0]))
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False)
    seed_everything(0)
    (metrics,) = trainer.validate(model, datamodule=data, verbose=False)
    assert metrics["eval/mean_reward"] < 11.0
    assert metrics.get("eval_sample/mean_reward", 0.0) > 15.0 or eval_mode == "argmax"
    assert ("eval_sample/mean_reward" in metrics) == (eval_mode == "both")
    assert not model.evaluates_draws


@torch.no_grad()
def test_a_decision_says_how_probable_it_was() -> None:
    """Also after the 1 % of the uniform distribution: 0.99 + 0.005 of an action that the network is sure of."""
    model = make_dreamer()
    model.actor.output.bias.copy_(torch.tensor([0.0, 100.0]))
    decision = model.decide(torch.randn(1, 4), model.initial_state(1), deterministic=True)
    assert decision.log_prob.exp().item() == pytest.approx(0.995)


def play(model: DreamerV3, spec: EnvSpec, steps: int, reset: int) -> tuple[Sequences, Tensor]:
    """Act on given observations, the second row from anew at one step; what a replay holds of it, and all states."""
    batch = make_sequences(spec, steps=steps)
    observations: list[Any] = [
        {key: column[step] for key, column in batch.observation.items()}
        if isinstance(batch.observation, dict)
        else batch.observation[step]
        for step in range(steps)
    ]
    state, actions, states = model.initial_state(2), [], []
    for step, observation in enumerate(observations):
        if step == reset:
            state = torch.stack([state[0], model.initial_state(1)[0]])
        decision = model.decide(observation, state)
        state = decision.state
        actions.append(decision.action)
        states.append(state)
    is_first = torch.zeros(steps, 2, dtype=torch.bool)
    is_first[0] = True
    is_first[reset, 1] = True
    return batch._replace(action=torch.stack(actions), is_first=is_first), torch.stack(states)


@torch.no_grad()
@pytest.mark.parametrize(
    "spec", [env_spec(), env_spec(action=BOX), env_spec(OBSERVATIONS["both"])], ids=["vector", "box", "both"]
)
def test_acting_and_learning_live_through_the_same_states(spec: EnvSpec) -> None:
    """The same observations, actions and beginnings; the state before the first row counts for nothing."""
    model = make_dreamer(spec, unimix=0.0)
    make_certain(model)
    batch, states = play(model, spec, steps=5, reset=3)
    batch = batch._replace(state=torch.ones_like(batch.state))
    _, _, _, lived = model.world_model_losses(batch)
    torch.testing.assert_close(lived, states, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_window_goes_on_from_the_state_before_it() -> None:
    """Rows 2 to 4 with the state after row 1: h, z and the action that led to row 2."""
    model = make_dreamer(unimix=0.0)
    make_certain(model)
    batch, states = play(model, env_spec(), steps=5, reset=4)
    fields: list[Any] = list(batch)
    window = Sequences(*(field[2:] for field in fields))._replace(state=states[1])
    _, _, _, lived = model.world_model_losses(window)
    torch.testing.assert_close(lived, states[2:], rtol=1e-4, atol=1e-4)


# Training.


class Loader:
    """Without torch's own, which draws from the global generator."""

    def __init__(self, batches: tuple[SequenceBatch, ...]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[SequenceBatch]:
        return iter(self.batches)


class GivenBatches(LightningDataModule):
    """Some batches, given again in every epoch; remembers the states that come back."""

    def __init__(self, *batches: SequenceBatch) -> None:
        super().__init__()
        self.batches = batches
        self.written: list[tuple[Tensor, Tensor]] = []

    def train_dataloader(self) -> Any:
        return Loader(self.batches)

    def write_states(self, index: Tensor, state: Tensor) -> None:
        self.written.append((index, state))


def make_batch(updates: int = K) -> SequenceBatch:
    drawn = [make_sequences(seed=1 + update) for update in range(max(updates, 1))]
    columns: list[Any] = [torch.stack(column)[:updates] for column in zip(*drawn, strict=True)]
    columns += [10, 0.1]  # environment steps, and their share of the budget
    return SequenceBatch(*columns)


def fit(
    folder: Path, model: DreamerV3, data: GivenBatches, *, epochs: int = 1, ckpt_path: Path | None = None
) -> Trainer:
    seed_everything(0, verbose=False)
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[GlobalRNG()],
    )
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_every_network_takes_every_step(tmp_path: Path) -> None:
    """K updates of an iteration: one optimiser, K steps of each parameter of its three groups, one of the clock."""
    model, data = make_dreamer(), GivenBatches(make_batch())
    trainer = fit(tmp_path, model, data)
    (optimizer,) = trainer.optimizers
    assert trainer.global_step == 1
    assert model.update_steps == K
    assert [group["name"] for group in optimizer.param_groups] == ["world_model", "actor", "critic"]
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(trained) == sum(parameter.requires_grad for parameter in model.parameters())
    assert {int(optimizer.state[parameter]["step"]) for parameter in trained} == {K}
    ((index, state),) = data.written
    assert torch.equal(index, make_batch().index)
    assert tuple(state.shape) == (K, 4, 2, model.initial_state(1).shape[1])
    assert not state.requires_grad


def test_a_step_clips_then_normalises_then_averages(tmp_path: Path) -> None:
    """The mean square of the first step holds gradients of at most 0.3·‖w‖; its momentum holds ±(1 − β₁) of them all.

    Weights that are 0 count as of norm 0.001, a bound that the gradients of the zero heads reach.
    """
    model = make_dreamer(learning_rate=1e-6)
    before = {name: parameter.detach().norm().item() for name, parameter in model.named_parameters()}
    (optimizer,) = fit(tmp_path, model, GivenBatches(make_batch(1))).optimizers
    at_the_bound = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        state = optimizer.state[parameter]
        norm = (state["square"].sum() / (1.0 - 0.999)).sqrt().item()
        bound = 0.3 * max(1e-3, before[name])
        assert norm <= bound * 1.001, name
        at_the_bound += norm > 0.999 * bound
        moved = state["square"] > 1e-30
        torch.testing.assert_close(
            state["momentum"][moved].abs(), torch.full_like(state["momentum"][moved], 0.1), rtol=1e-3, atol=1e-4
        )
    assert at_the_bound > 0


def test_the_slow_critic_follows_each_update(tmp_path: Path) -> None:
    """Equal at the start; after one update 2 % of the way."""
    model = make_dreamer(learning_rate=1e-2, learning_rate_warmup=0)
    start = copies(model.slow_critic)
    assert all(torch.equal(value, start[name]) for name, value in model.critic.state_dict().items())
    fit(tmp_path, model, GivenBatches(make_batch(1)))
    for name, value in model.slow_critic.state_dict().items():
        torch.testing.assert_close(value, 0.98 * start[name] + 0.02 * model.critic.state_dict()[name])
    assert any(not torch.equal(value, start[name]) for name, value in model.slow_critic.state_dict().items())


def test_signals_are_words_of_the_vocabulary_within_their_bounds(tmp_path: Path) -> None:
    outputs: list[dict[str, Tensor]] = []

    class Listening(DreamerV3):
        def training_step(self, batch: SequenceBatch, batch_idx: int) -> dict[str, Tensor]:
            outputs.append(super().training_step(batch, batch_idx))
            return outputs[-1]

    torch.manual_seed(0)
    fit(tmp_path, Listening(env_spec(), size="1M", imagination_horizon=3), GivenBatches(make_batch(), make_batch(0)))
    signals, nothing = outputs
    assert nothing == {}
    for name, signal in signals.items():
        word = SIGNALS[name.partition("/")[0]]
        assert not signal.requires_grad
        assert word.low <= float(signal.min()) <= float(signal.max()) <= word.high, name
    assert {
        f"seconds/{phase}" for phase in ("world_model", "imagination", "behaviour", "backward", "optimizer")
    } <= set(signals)
    assert signals["value"].shape == signals["imagined_return"].shape == (K, 8)
    assert signals["kl_dynamics"].shape == (K, 4, 2)
    assert signals["loss"].shape == signals["grad_norm"].shape == (K,)
    assert signals["value_bin_bound"].item() == pytest.approx(math.exp(20.0), rel=1e-3)
    assert signals["update_steps"].item() == K


def test_an_iteration_without_an_update_counts_and_moves_nothing(tmp_path: Path) -> None:
    model = make_dreamer()
    before = copies(model)
    trainer = fit(tmp_path, model, GivenBatches(make_batch(0)))
    assert trainer.global_step == 1
    assert model.update_steps == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("version", ["v1_2023", "2025"])
def test_a_resumed_training_is_the_one_that_was_never_stopped(tmp_path: Path, version: str) -> None:
    """Bit for bit: weights, slow critic, return scale, moments of the optimiser, clock."""
    whole = make_dreamer(return_scale_rate=0.5, version=version)
    optimizer = fit(tmp_path, whole, GivenBatches(make_batch()), epochs=2).optimizers[0]
    stopped = make_dreamer(return_scale_rate=0.5, version=version)
    fit(tmp_path, stopped, GivenBatches(make_batch())).save_checkpoint(tmp_path / "half.ckpt")
    resumed = make_dreamer(return_scale_rate=0.5, version=version)
    trainer = fit(tmp_path, resumed, GivenBatches(make_batch()), epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert resumed.update_steps == whole.update_steps == 2 * K
    assert bool(stopped.return_scale.percentiles.any())
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        for name, value in optimizer.state[one].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(trainer.optimizers[0].state[other][name]))


@pytest.mark.parametrize(("update_steps", "expected"), [(0, 4e-8), (499, 2e-5), (999, 4e-5), (10**6, 4e-5)])
def test_golden_the_learning_rate_rises_in_a_line(tmp_path: Path, update_steps: int, expected: float) -> None:
    """Over 1,000 updates to 4e-5: the first has a thousandth of it."""
    model = make_dreamer()
    model.update_steps = update_steps
    (optimizer,) = fit(tmp_path, model, GivenBatches(make_batch(1))).optimizers
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected] * 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("imagination_horizon", 0),
        ("gae_lambda", 1.5),
        ("unimix", 1.0),
        ("num_bins", 254),
        ("log_bound", 81.0),  # at 89 the last bin is infinite
        ("eval_mode", "mean"),
        ("learning_rate_schedule", "exponential"),
    ],
)
def test_settings_outside_their_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"got {name} = '?{value}'?, expected .*: type --model.init_args.{name}"):
        make_dreamer(**{name: value})


@pytest.mark.parametrize("version", ["v1_2023", "2025"])
def test_learning_the_same_rows_lowers_their_losses(tmp_path: Path, version: str) -> None:
    """Twelve updates: reward, continuation and vectors are fitted better than at the start."""
    model = make_dreamer(version=version, learning_rate=1e-2, learning_rate_warmup=0)
    batch = make_sequences()
    before = model.losses(batch)
    fit(tmp_path, model, GivenBatches(*[make_batch(1)] * 12))
    after = model.losses(batch)
    for name in ("reward", "continuation", "vectors"):
        assert float(after[name].detach().mean()) < 0.7 * float(before[name].detach().mean()), name
