"""What is run: faults, each with the causes that count as right, and healthy configurations, ugly ones among them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlmods.algorithms import PPO
from rlmods.data import RolloutDataModule

from . import case
from . import ppo_advantage_mutations as advantages
from . import ppo_mutations as broken
from .case import Bench, causes

MODEL: Mapping[str, Any] = {"learning_rate": 1e-3, "n_epochs": 10, "batch_size": 64, "gae_lambda": 0.9}
# 32 rollouts of 256 steps, 40 updates on each.
DATA: Mapping[str, Any] = {
    "env_id": "CartPole-v1",
    "total_env_steps": 8_192,
    "num_envs": 8,
    "n_steps": 32,
    "gamma": 0.98,
    "eval_episodes": 3,
    "eval_every": 2_048,
}


@dataclass(frozen=True, kw_only=True)
class Case(case.Case):
    """With the real classes, where no other is named."""

    algorithm: type[PPO] = PPO
    data_module: type[RolloutDataModule] = RolloutDataModule


# Time limits come every 50 steps: 16 rollouts of 512 steps, 80 updates on each.
PENDULUM: Mapping[str, Any] = {
    "env_id": "Pendulum-v1",
    "env_kwargs": {"max_episode_steps": 50},
    "num_envs": 4,
    "n_steps": 128,
    "gamma": 0.9,
}
LONG: Mapping[str, Any] = {"total_env_steps": 12_288}
UNBOUNDED: Mapping[str, Any] = {"action_distribution": "unbounded", "log_std_init": 0.0}
LSTM: Mapping[str, Any] = {"lstm_hidden_size": 16, "hidden_sizes": [32], "n_epochs": 4}
NOT_ONE = causes("first_ratio_not_one")
RECURSION = causes("advantage_recursion")
TOO_FAR = causes("policy_moves_too_far clip_saturation kl_spike violent_update")
STALL = causes("policy_stall no_gradient inert_update vanished_gradient")
CRITIC = causes("critic_does_not_explain no_gradient inert_update vanished_gradient")
SAME_UPDATE = "ratios, KL and losses are those of a hard task: only the returns tell"

FAULTS = [
    # Ratios.
    Case(id="ratio-of-squashed", what="the new log π is of tanh u, the old one of u", causes=NOT_ONE,
         algorithm=broken.RatioOfExecuted, data=PENDULUM),
    Case(id="ratio-of-clipped", what="the new log π is of the clipped action", causes=NOT_ONE,
         algorithm=broken.RatioOfExecuted, model=UNBOUNDED, data=PENDULUM),
    Case(id="both-of-clipped", what="both log π are of the clipped action", causes=NOT_ONE,
         algorithm=broken.BothOfExecuted, model=UNBOUNDED, data=PENDULUM,
         unseen="wrong alike: the ratio is 1 before the first update"),
    Case(id="log-prob-of-another", what="the old log π is of the next step", causes=NOT_ONE,
         algorithm=broken.LogProbOfAnother),
    Case(id="log-prob-of-mode", what="the old log π is of the most likely action", causes=NOT_ONE,
         algorithm=broken.LogProbOfMode),
    Case(id="stale-rollout", what="the rollout is one iteration old", causes=NOT_ONE,
         data_module=advantages.StaleRollout),
    Case(id="collector-dead", what="the same rollout for ever", onset=8,
         causes=NOT_ONE | causes("no_new_experience repeated_stream"), data_module=advantages.CollectorDead),
    Case(id="observation-late", what="observations are one step old", causes=NOT_ONE,
         algorithm=advantages.ObservationLate),
    Case(id="memory-not-reset", what="in training the LSTM goes on into the next episode", causes=NOT_ONE,
         algorithm=broken.MemoryNotReset, model=LSTM),
    Case(id="memory-forgotten", what="segments begin without the memory that they were played with", causes=NOT_ONE,
         algorithm=broken.MemoryForgotten, model={**LSTM, "bptt_horizon": 16}),
    Case(id="memory-always-reset", what="the LSTM is reset before each step, in acting too", causes=NOT_ONE,
         algorithm=broken.MemoryAlwaysReset, model=LSTM, unseen="consistent: a policy without memory"),
    # Advantages and targets.
    Case(id="no-bootstrap-truncation", what="a time limit is worth 0", causes=causes("no_bootstrap_at_truncation"),
         algorithm=advantages.NoBootstrapAtTruncation, data=PENDULUM),
    Case(id="no-bootstrap-end", what="the rollout's end is worth 0", causes=causes("no_bootstrap_at_rollout_end"),
         algorithm=advantages.NoBootstrapAtEnd),
    Case(id="bootstrap-of-reset", what="a time limit is continued by the next episode's first value",
         causes=causes("next_value_of_reset advantage_recursion"), algorithm=advantages.NextValueOfReset,
         data=PENDULUM, unseen="which value continues a truncated episode is not known"),
    Case(id="terminals-bootstrap", what="no mask of terminated steps", causes=causes("bootstraps_through_termination"),
         algorithm=advantages.TerminalsBootstrap),
    Case(id="traces-cross-ends", what="traces go on into the next episode",
         causes=causes("bootstraps_through_termination"), algorithm=advantages.TracesCrossEnds),
    Case(id="traces-ignore-truncation", what="traces go on after a time limit", causes=RECURSION,
         algorithm=advantages.TracesIgnoreTruncation, data=PENDULUM,
         unseen="which value continues a truncated episode is not known"),
    Case(id="traces-undiscounted", what="traces decay with λ instead of γλ", causes=RECURSION,
         algorithm=advantages.TracesUndiscounted,
         unseen="with one γ it is another λ, which is fitted; above 1 it would be seen"),
    Case(id="discount-twice", what="γ² in the place of γ", causes=RECURSION, algorithm=advantages.DiscountTwice),
    Case(id="reward-scaled", what="rewards count a tenth, inside of the algorithm", causes=RECURSION,
         algorithm=advantages.RewardScaled),
    Case(id="reward-clipped", what="rewards clipped to ±1, inside of the algorithm", causes=RECURSION,
         algorithm=advantages.RewardClipped, data=PENDULUM),
    Case(id="reward-late", what="rewards are one step old", causes=RECURSION, algorithm=advantages.RewardLate,
         data=PENDULUM),
    Case(id="advantage-flipped", what="V − target, in both losses", causes=RECURSION,
         algorithm=advantages.AdvantageFlipped),
    Case(id="advantage-is-return", what="the actor gets the return instead of the advantage",
         causes=causes("advantage_mismatch"), algorithm=advantages.AdvantageOnTarget),
    Case(id="surrogate-flipped", what="the surrogate is minimised", algorithm=broken.SignFlipped,
         causes=causes("return_collapse entropy_collapse policy_descends"), unseen=SAME_UPDATE),
    Case(id="advantage-of-another", what="advantages of other samples of the mini-batch",
         causes=causes("policy_stall advantage_of_another"), algorithm=broken.AdvantageOfAnother, unseen=SAME_UPDATE),
    Case(id="wrong-axis", what="advantages standardised over a segment of one step", causes=STALL,
         algorithm=broken.WrongAxis),
    Case(id="not-standardised", what="advantages as they are, and no clip of the gradient",
         causes=TOO_FAR | causes("exploding_gradient"), model={"normalize_advantage": False, "max_grad_norm": None},
         unseen="harmless here: Adam does not see the scale"),
    # Updates.
    Case(id="lr-0.1", what="learning rate 0.1", causes=TOO_FAR | causes("entropy_collapse exploding_gradient"),
         model={"learning_rate": 0.1}),
    Case(id="lr-jumps", what="learning rate times 50 from the seventeenth rollout on", onset=16,
         causes=TOO_FAR | causes("exploding_gradient"), algorithm=broken.LearningRateJumps),
    Case(id="lr-zero", what="a learning rate of 0 is written", algorithm=broken.NoLearning,
         causes=STALL | causes("learning_rate_exhausted")),
    Case(id="schedule-ends-early", what="annealed to 0 at a third of the budget", onset=10,
         causes=causes("learning_rate_exhausted schedule_exhausted"), algorithm=broken.ShortSchedule,
         model={"learning_rate_schedule": "linear"}),
    Case(id="epochs-x20", what="200 epochs on each rollout", causes=TOO_FAR,
         model={"n_epochs": 200, "batch_size": 256}, unseen="harmless here: the clip holds, the task is learned"),
    Case(id="clip-range-huge", what="the surrogate is not clipped, learning rate 0.005", causes=TOO_FAR,
         model={"clip_range": 1e6, "learning_rate": 5e-3}),
    Case(id="minibatches-dropped", what="the second half of each epoch is left out",
         causes=causes("minibatches_dropped"), algorithm=broken.HalfOfMinibatches),
    Case(id="actor-detached", what="the policy's loss has no graph", causes=STALL, algorithm=broken.ActorDetached),
    Case(id="actor-replaced", what="the actor is rebuilt, the optimiser keeps the old one",
         causes=causes("stale_parameters parameter_not_optimised"), algorithm=broken.ActorReplaced),
    Case(id="critic-detached", what="the value's loss is left out", causes=CRITIC, algorithm=broken.CriticDetached),
    Case(id="value-clipped-to-nothing", what="clip_range_vf = 1e-6", causes=CRITIC,
         model={"clip_range_vf": 1e-6},
         unseen="the first update on a rollout and the momentum behind it are not clipped: the critic learns slowly"),
    Case(id="accumulated", what="zero_grad is forgotten", causes=causes("accumulated_gradients"),
         algorithm=broken.ForgetsZeroGrad),
    # Entropy.
    Case(id="ent-coef-x12-muon", what="unbounded σ, Muon on all matrices, ent_coef 0.12",
         causes=causes("sigma_outruns_mean"), model=broken.SEED_RUN, data={**PENDULUM, **LONG},
         unseen="harmless here: σ leaves the box, |μ| keeps up, Pendulum is solved by extremes"),
    Case(id="ent-coef-5-muon", what="the same with ent_coef 5", causes=causes("sigma_outruns_mean"),
         model={**broken.SEED_RUN, "ent_coef": 5.0}, data={**PENDULUM, **LONG}),
    Case(id="sigma-pump", what="log σ grows by 0.2 a rollout", causes=causes("sigma_outruns_mean"),
         algorithm=broken.SigmaPump, model=UNBOUNDED, data={**PENDULUM, **LONG}),
    Case(id="entropy-punished", what="the bonus has the wrong sign", causes=causes("entropy_collapse"),
         algorithm=broken.EntropyPunished,
         unseen="the return still rises, from 10 to 40: sure too early looks like learned"),
    Case(id="entropy-in-bits", what="the entropy is 1.44 times what it is", causes=causes("entropy_above_bound"),
         algorithm=broken.EntropyInBits),
    Case(id="entropy-without-slope", what="the entropy of tanh u is that of u", causes=causes("entropy_above_bound"),
         algorithm=broken.EntropyWithoutSlope, data=PENDULUM,
         unseen="it is taken for that of a Gaussian which the environment clips"),
    # What is stored.
    Case(id="terminals-lost", what="nothing is stored as terminated", data_module=advantages.TerminalsLost,
         causes=causes("no_termination_seen episode_ends_not_stored value_out_of_bounds target_out_of_bounds")),
    Case(id="truncation-terminates", what="a time limit is stored as termination", data=PENDULUM,
         causes=causes("truncation_ends no_truncation_seen"), data_module=advantages.TruncationTerminates,
         unseen="the batch itself says that nothing follows"),
    Case(id="reward-nan", what="one reward is NaN", onset=8, data_module=advantages.RewardNaN,
         causes=causes("non_finite_reward non_finite_batch")),
]  # fmt: skip

HEALTHY = [
    Case(id="cartpole", what="as all others but for what they say"),
    Case(id="cartpole-zoo", what="20 epochs on whole rollouts, linear schedules",
         model={"n_epochs": 20, "batch_size": 256, "gae_lambda": 0.8, "learning_rate_schedule": "linear",
                "clip_range_schedule": "linear"}),
    Case(id="cosine", what="the learning rate falls to 0", model={"learning_rate_schedule": "cosine"}),
    Case(id="pendulum", what="bounded, time limits only", data=PENDULUM),
    Case(id="unbounded", what="a Gaussian that the environment clips", model=UNBOUNDED, data=PENDULUM),
    Case(id="unbounded-wide", what="σ = 7 at the start", model={**UNBOUNDED, "log_std_init": 2.0}, data=PENDULUM),
    Case(id="unbounded-entropy", what="with ent_coef 0.01", model={**UNBOUNDED, "ent_coef": 0.01}, data=PENDULUM),
    Case(id="lstm", what="with a memory", model=LSTM),
    Case(id="lstm-segments", what="with a memory, segments of 8 steps", model={**LSTM, "bptt_horizon": 8}),
    Case(id="prioritised", what="segments drawn by their advantages",
         model={"prio_alpha": 0.8, "bptt_horizon": 8}),
    Case(id="vtrace", what="advantages anew before each epoch",
         model={"vtrace_rho_bar": 1.0, "vtrace_c_bar": 1.0}),
    Case(id="vtrace-low", what="ρ̄ = 0.5", model={"vtrace_rho_bar": 0.5, "vtrace_c_bar": 1.0}),
    Case(id="target-kl", what="epochs end at a KL of 0.003", model={"target_kl": 0.002}),
    Case(id="value-clip", what="clip_range_vf = 10", model={"clip_range_vf": 10.0}),
    Case(id="muon", what="Muon on hidden matrices", model={"optimizer": "muon"}),
    Case(id="adamw", what="with weight decay", model={"optimizer": "adamw", "weight_decay": 0.01}),
    Case(id="one-epoch", what="a single update on a rollout", model={"n_epochs": 1, "batch_size": 256}),
    Case(id="slow", what="learning rate 1e-5", model={"learning_rate": 1e-5}),
    Case(id="fast", what="learning rate 0.004", model={"learning_rate": 4e-3}),
    Case(id="monte-carlo", what="λ = 1", model={"gae_lambda": 1.0}),
    Case(id="one-step", what="λ = 0", model={"gae_lambda": 0.0}),
    Case(id="near-sighted", what="γ = 0.5", data={"gamma": 0.5}),
    Case(id="raw-advantages", what="not standardised", model={"normalize_advantage": False}),
    Case(id="short-limit", what="time limit 20", data={"env_kwargs": {"max_episode_steps": 20}}),
    Case(id="short-rollouts", what="4 steps of 64 environments", data={"num_envs": 64, "n_steps": 4}),
    Case(id="mountain-car", what="no reward but a cost, hardly ever an end",
         data={**PENDULUM, "env_id": "MountainCarContinuous-v0", "env_kwargs": None, "eval_episodes": 1}),
    Case(id="acrobot", what="rewards of -1", data={"env_id": "Acrobot-v1", "eval_episodes": 1}),
]  # fmt: skip

BENCH = Bench(
    name="PPO",
    preset="safeguards/ppo",
    model=MODEL,
    data=DATA,
    faults=FAULTS,
    healthy=HEALTHY,
    seeds=(0, 1),
    smoke=(
        "ratio-of-squashed",
        "memory-not-reset",
        "no-bootstrap-truncation",
        "terminals-bootstrap",
        "discount-twice",
        "minibatches-dropped",
        "entropy-in-bits",
        "cartpole",
        "unbounded",
        "lstm-segments",
    ),
    smoke_env_steps=2048,
)
