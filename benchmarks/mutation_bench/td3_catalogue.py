"""What is run: faults, each with the causes that count as right, and healthy configurations, ugly ones among them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlmods.algorithms import SAC, TD3
from rlmods.algorithms.base import Algorithm
from rlmods.data import ReplayDataModule

from . import case
from . import td3_clip_mutations as clips
from . import td3_environments as td3_environments  # registers them
from . import td3_mutations as broken
from .case import Bench, causes

MODEL: Mapping[str, Any] = {"hidden_sizes": [64, 64], "learning_rate": 1e-3}
DATA: Mapping[str, Any] = {
    "env_id": "Pendulum-v1",
    "total_env_steps": 1_920,
    "gamma": 0.98,
    "buffer_size": 2_000,
    "batch_size": 64,
    "learning_starts": 320,
    "steps_per_iteration": 16,
    "updates_per_iteration": 8,
    "eval_episodes": 2,
    "eval_every": 640,
}


@dataclass(frozen=True, kw_only=True)
class Case(case.Case):
    """With the real classes, where no other is named."""

    algorithm: type[Algorithm] = TD3
    data_module: type[ReplayDataModule] = ReplayDataModule


LIMITS: Mapping[str, Any] = {"max_grad_norm": {"critic": 10.0, "actor": 1.0}}
TIGHT: Mapping[str, Any] = {"max_grad_norm": {"critic": 0.5, "actor": 0.01}}
LONG: Mapping[str, Any] = {"total_env_steps": 3_200, "buffer_size": 3_200}
LEDGE: Mapping[str, Any] = {"env_id": "rlmods-bench/Ledge-v0"}
PIXELS: Mapping[str, Any] = {
    "env_id": "rlmods/DotTracking-v0",
    "env_kwargs": {"image_size": 16},
    "total_env_steps": 960,
    "learning_starts": 160,
    "batch_size": 32,
    "eval_every": 480,
}
SMALL_PIXELS: Mapping[str, Any] = {"random_shift": 1}
# The wiring of the published runs: an encoder each, no bound on their features.
TWO_ENCODERS: Mapping[str, Any] = {**SMALL_PIXELS, "encoder_ownership": "separate", "features_dim": None}

OUT_OF_BOUNDS = causes("value_out_of_bounds target_out_of_bounds policy_value_out_of_bounds value_gap")
DIVERGES = causes("violent_update exploding_gradient value_out_of_bounds target_out_of_bounds")
TARGET_OF_ANOTHER_ACTION = "a consistent evaluation of another policy: no identity is broken"


def changed_reward(factor: float, onset: int) -> Mapping[str, Any]:
    return {"env_id": "rlmods-bench/ChangedReward-v0", "env_kwargs": {"factor": factor, "onset": onset}}


FAULTS = [
    # The actor.
    Case(id="actor-through-state", what="Q1 is asked about the actor's own features, with their gradient",
         causes=causes("actor_loss_through_state"), algorithm=broken.ActorThroughState, model=TWO_ENCODERS,
         data=PIXELS),
    Case(id="actor-in-critic", what="the critic's step also follows the actor's loss",
         causes=causes("dangling_gradients losses_differ_from_training"), algorithm=clips.CriticTakesActorGradient),
    Case(id="actor-descends", what="the actor's loss is +Q", algorithm=broken.ActorDescends,
         causes=causes("policy_value_gap policy_below_data"),
         unseen="Q of the policy's actions falls below that of the data, which a bad policy may do as well"),
    Case(id="actor-detached", what="no gradient from Q to the action", algorithm=broken.ActorDetached,
         causes=causes("no_gradient inert_update actor_is_dead loss_reaches_nothing")),
    Case(id="actor-never-steps", what="the actor's optimiser is never stepped",
         causes=causes("optimizer_never_steps"), algorithm=clips.ActorNeverSteps),
    Case(id="actor-replaced", what="the actor is rebuilt, the optimiser keeps the old one",
         causes=causes("stale_parameters parameter_not_optimised"), algorithm=clips.ReplacesActor),
    Case(id="actor-wild", what="learning rate of the actor 0.3",
         causes=causes("violent_update saturated_actions actor_is_dead exploding_gradient"),
         algorithm=broken.WildActor),
    Case(id="never-explores", what="deterministic actions from the first step on", algorithm=broken.NeverExplores,
         causes=causes("no_exploration"), unseen="nothing watches the exploration: a noise of 0 is a setting"),
    # The targets.
    Case(id="target-frozen", what="target networks never move", causes=causes("target_never_moves"),
         algorithm=broken.FrozenTargets),
    Case(id="target-online", what="target networks are the online networks", causes=causes("target_never_lags"),
         algorithm=broken.OnlineTargets),
    Case(id="target-action-unscaled", what="target actions in ±1, where the box is ±2",
         causes=causes("discount_mismatch value_gap"), algorithm=broken.UnscaledTargetAction,
         unseen=TARGET_OF_ANOTHER_ACTION),
    Case(id="twins-maximum", what="the larger twin bootstraps", causes=causes("discount_mismatch value_gap"),
         algorithm=broken.MaximumOfTwins, unseen="both twins are estimates of the same: no bound is passed"),
    Case(id="twins-mean", what="the mean of the twins bootstraps", causes=causes("discount_mismatch value_gap"),
         algorithm=broken.MeanOfTwins, unseen="harmless: the mean is what DDPG with an ensemble does"),
    Case(id="twins-equal", what="the twins are copies", causes=causes("twins_equal"), algorithm=broken.EqualTwins),
    Case(id="own-discount", what="γ of its own, no mask", data=LEDGE, algorithm=broken.OwnDiscount,
         causes=causes("discount_ignored bootstraps_through_termination")),
    Case(id="terminals-bootstrap", what="no mask of terminated transitions", data=LEDGE,
         causes=causes("bootstraps_through_termination discount_mismatch"), algorithm=broken.TerminalsBootstrap),
    Case(id="discount-above-one", what="γ = 1.009", algorithm=broken.DiscountAboveOne,
         causes=causes("discount_mismatch discount_not_below_one") | OUT_OF_BOUNDS),
    Case(id="no-stop-gradient", what="the gradient flows through the target",
         causes=causes("no_stop_gradient critic_loss_reaches_actor"), algorithm=broken.NoStopGradient),
    # What is stored.
    Case(id="truncation-terminates", what="a time limit is stored as termination",
         causes=causes("truncation_ends no_truncation_seen"), data_module=broken.TruncationTerminates,
         unseen="the batch itself says that nothing follows: 1 step in 200"),
    Case(id="terminals-lost", what="nothing is stored as terminated", data=LEDGE,
         causes=causes("no_termination_seen episode_ends_not_stored value_out_of_bounds"),
         data_module=broken.TerminalsLost,
         unseen="as in a task that only a time limit ends: `no_termination_seen` is said for information"),
    Case(id="stale-successor", what="the next observation is the observation",
         causes=causes("next_observation_equals_observation"), data_module=broken.StaleSuccessor),
    Case(id="actions-scaled", what="actions are stored in ±1, where the box is ±2", data_module=broken.ScaledActions,
         causes=causes("action_range_changed"), unseen="nothing compares stored with played actions"),
    Case(id="replay-lost", what="the replay is empty after a resume", onset=60, data_module=broken.ReplayLost,
         causes=causes("replay_overused no_new_experience critic_does_not_explain"),
         unseen="what is added is counted, not what is held"),
    Case(id="collector-dead", what="nothing new is stored", onset=60, data_module=broken.CollectorDead,
         causes=causes("no_new_experience")),
    Case(id="reward-nan", what="one reward is NaN", data=changed_reward(float("nan"), 960), onset=60,
         causes=causes("non_finite_reward non_finite_batch")),
    # A range of rewards is known when it has not changed for long.
    Case(id="reward-x100", what="rewards times 100", data={**LONG, **changed_reward(100.0, 2_240)}, onset=140,
         causes=causes("reward_range_changed exploding_gradient") | OUT_OF_BOUNDS),
    Case(id="reward-sign", what="rewards change their sign", data={**LONG, **changed_reward(-1.0, 2_240)}, onset=140,
         causes=causes("reward_range_changed return_collapse") | OUT_OF_BOUNDS),
    # The clip; C1 to C16 one by one: tests/callbacks/test_clip_mutations.py.
    Case(id="clip-not-used", what="max_grad_norm is configured and nobody clips",
         causes=causes("clip_never_applied"), algorithm=clips.broken(TD3, clips.NeverClips), model=TIGHT),
    Case(id="clip-before-backward", what="the clip sees the gradients of the last update",
         causes=causes("clip_before_backward"), algorithm=clips.broken(TD3, clips.ClipsBeforeBackward), model=TIGHT),
    Case(id="accumulated", what="zero_grad is forgotten", causes=causes("accumulated_gradients"),
         algorithm=clips.broken(TD3, clips.ForgetsZeroGrad)),
    Case(id="one-encoder-two-optimisers", what="encoder_ownership: shared_both",
         causes=causes("shared_parameters"), model={**SMALL_PIXELS, "encoder_ownership": "shared_both"}, data=PIXELS),
    # Rates.
    Case(id="lr-0.3", what="learning rate 0.3", causes=DIVERGES | causes("actor_is_dead"),
         model={"learning_rate": 0.3}),
    Case(id="updates-x8", what="each mini-batch is learned from eight times", causes=causes("replay_overused"),
         algorithm=clips.broken(TD3, broken.RepeatedUpdates), data={"total_env_steps": 960}),
    # SAC.
    Case(id="sac-entropy-sign", what="the entropy is punished", algorithm=broken.EntropySign,
         causes=OUT_OF_BOUNDS | causes("entropy_collapse actor_is_dead metric_out_of_range")),
    Case(id="sac-no-tanh", what="log π without the slope of tanh", algorithm=broken.NoTanhCorrection,
         causes=OUT_OF_BOUNDS | causes("entropy_above_cube policy_value_gap saturated_actions actor_is_dead")),
    Case(id="sac-temperature-forgotten", what="the optimiser of α never steps",
         causes=causes("optimizer_never_steps"), algorithm=broken.TemperatureForgotten),
    Case(id="sac-temperature-sign", what="α moves away from the target entropy", algorithm=broken.TemperatureSign,
         causes=OUT_OF_BOUNDS | causes("temperature_diverges"),
         unseen="in so short a run α changes by a factor of two, as in healthy ones"),
]  # fmt: skip

HEALTHY = [
    Case(id="td3", what="on Pendulum"),
    Case(id="td3-clip", what="clip on", model=LIMITS),
    Case(id="td3-tight-clip", what="a clip that always works", model=TIGHT),
    Case(id="ddpg", what="one critic, no delay, no smoothing",
         model={"n_critics": 1, "policy_delay": 1, "target_policy_noise": 0.0}),
    Case(id="small-buffer", what="replay forgets after 300 transitions", data={"buffer_size": 300}),
    Case(id="fast-target", what="τ = 0.5", model={"tau": 0.5}),
    Case(id="lr-high", what="learning rate 0.005", model={"learning_rate": 5e-3}),
    Case(id="delay-8", what="the actor every eighth update", model={"policy_delay": 8}),
    Case(id="ledge", what="a box that is neither ±1 nor centred, terminations", data=LEDGE),
    Case(id="sparse", what="a reward of 0 but in the middle", data={**LEDGE, "env_kwargs": {"is_sparse": True}}),
    Case(id="mountain-car", what="bang-bang optimum, no reward but a cost",
         data={"env_id": "MountainCarContinuous-v0", "eval_episodes": 1, "eval_every": 1_920}),
    Case(id="n-step", what="three-step, prioritised", data={"n_steps": 3, "prioritized_replay": True}),
    Case(id="small-rewards", what="rewards times 0.001", data=changed_reward(1e-3, 0)),
    Case(id="pixels", what="images and a vector, one encoder", model=SMALL_PIXELS, data=PIXELS),
    Case(id="two-encoders", what="an encoder each, features without a bound", model=TWO_ENCODERS, data=PIXELS),
    Case(id="sac", what="on Pendulum", algorithm=SAC),
    Case(id="sac-fixed", what="α = 0.2", algorithm=SAC, model={"ent_coef": 0.2}),
    Case(id="sac-clip", what="clip on", algorithm=SAC, model=LIMITS),
    Case(id="sac-ledge", what="a box that is neither ±1 nor centred, terminations", algorithm=SAC, data=LEDGE),
]  # fmt: skip

BENCH = Bench(
    name="TD3 and SAC",
    preset="safeguards/actor_critic",
    model=MODEL,
    data=DATA,
    faults=FAULTS,
    healthy=HEALTHY,
    seeds=(0, 1),
    smoke=(
        "actor-through-state",
        "actor-in-critic",
        "actor-replaced",
        "terminals-bootstrap",
        "clip-not-used",
        "no-stop-gradient",
        "td3-clip",
        "sac",
        "ledge",
    ),
    smoke_env_steps=640,
)
