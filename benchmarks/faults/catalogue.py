"""The faults, each with what it should look like, the causes that count as right, and who should find it.

The ids begin with those of the specification (X03) where it has one. A safeguard is right if it names any of `causes`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .environments import BadObservation, BadReward, ScaledObservation, ScaledReward, bench_id
from .modules import (
    AccumulatedGradients,
    AlwaysExplores,
    ClipAfterStep,
    ClipBeforeBackward,
    ClipPerTensor,
    DetachedTrunk,
    FaultyData,
    FaultyDQN,
    FrozenHead,
    HeadOutsideClip,
    LearningRateSpike,
    NoClip,
    NoStopGradient,
    NothingStored,
    OneStepDiscount,
    OnlineTarget,
    PinnedLoss,
    RepeatedUpdates,
    ScaledDiscount,
    ScaledLearningRate,
    ShuffledActions,
    StaleSuccessor,
    SuccessCount,
    SumOfNorms,
    TerminalsIgnoredInTarget,
    TerminalsLost,
    TruncationEndsInTarget,
    TruncationStoredAsTermination,
)
from .overlays import FaultyCallback, NaNParameter, RebuiltNetwork, ReinitialisedHead

Kind = Literal["identity", "bound", "liveness", "other"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One overlay over a healthy configuration.

    Attributes:
        id: of its folder.
        what: is broken, in words.
        kind: of the evidence that it leaves. An identity that is violated may be announced with severity ACT, also
            where it does no harm.
        signature: what is expected to be seen.
        causes: that count as the right one.
        guards: that are expected to find it.
        source: where such a fault was met.
        base: the healthy configuration that it is laid over.
        onset: part of the budget before which nothing is broken.
        magnitude: of the broken class, where it has one.
        algorithm: takes the place of DQN.
        data_module: takes the place of the data module.
        callback: added to the run.
        env: arguments of a broken environment around that of the base, with its `class`.
        model: arguments of DQN, laid over the base.
        information_is_enough: whether severity INFO counts as detected, where nothing is wrong with the training.
    """

    id: str
    what: str
    kind: Kind
    signature: str
    causes: frozenset[str]
    guards: tuple[str, ...]
    source: str
    base: str = "small"
    onset: float = 0.0
    magnitude: float = 0.0
    algorithm: type[FaultyDQN] | None = None
    data_module: type[FaultyData] | None = None
    callback: type[FaultyCallback] | None = None
    env: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    information_is_enough: bool = False

    def settings(self) -> dict[str, Any]:
        """What is laid over the base, as JSON."""
        classes = {"algorithm": self.algorithm, "data_module": self.data_module, "callback": self.callback}
        return {
            "id": self.id,
            "onset": self.onset,
            "magnitude": self.magnitude,
            "env": {name: str(value) for name, value in self.env.items()},
            "model": dict(self.model),
            **{name: None if kind is None else kind.__name__ for name, kind in classes.items()},
        }


def causes(words: str) -> frozenset[str]:
    return frozenset(words.split())


CLIP, BOUND, LIVE, FINITE = "GradientClipVerifier", "ValueBoundGuard", "LivenessGuard", "NonFiniteGuard"
RANGE, EVAL = "MetricRangeGuard", "EvalEarlyStopping"
TD3_CNN = "td3_cnn.md 4.5"
PILOT = "safeguards.md 5.4"

_ALL = [
    # The clip. The base clips at 0.5, so that most updates are clipped.
    Fault(
        id="X03-clip-before-backward", what="the clip runs before the backward pass", kind="identity",
        signature="norms at the step exceed the limit, the clip saw old gradients",
        causes=causes("clip_before_backward clip_limit_exceeded clip_never_applied"), guards=(CLIP,),
        source="seed 004; nano-world-model PR 22", base="clipped", algorithm=ClipBeforeBackward,
    ),
    Fault(
        id="C3-clip-after-step", what="the clip runs after the step", kind="identity",
        signature="norms at the step exceed the limit, those after it do not",
        causes=causes("clip_after_step clip_limit_exceeded clip_never_applied"), guards=(CLIP,), source=TD3_CNN,
        base="clipped", algorithm=ClipAfterStep,
    ),
    Fault(
        id="C16-clip-not-used", what="max_grad_norm is configured and nobody clips", kind="identity",
        signature="norms at the step exceed the limit",
        causes=causes("clip_never_applied clip_limit_exceeded"), guards=(CLIP,), source=TD3_CNN,
        base="clipped", onset=0.3, algorithm=NoClip,
    ),
    Fault(
        id="C1-head-outside-clip", what="the last layer is not among the clipped parameters", kind="identity",
        signature="the norm of all exceeds the limit, that of the trunk does not",
        causes=causes("parameter_outside_clip clip_limit_exceeded"), guards=(CLIP,), source=TD3_CNN,
        base="clipped", algorithm=HeadOutsideClip,
    ),
    Fault(
        id="C6-clip-per-tensor", what="each tensor is clipped at the limit of all", kind="identity",
        signature="the norm of all exceeds the limit, that of no tensor does",
        causes=causes("clip_per_group clip_limit_exceeded"), guards=(CLIP,), source=TD3_CNN,
        base="clipped", algorithm=ClipPerTensor,
    ),
    Fault(
        id="C5-accumulated", what="zero_grad is forgotten", kind="identity",
        signature="gradients are there before the backward pass",
        causes=causes("accumulated_gradients clip_always_active"), guards=(CLIP,), source=TD3_CNN, base="clipped",
        algorithm=AccumulatedGradients,
    ),
    Fault(
        id="X04-sum-of-norms", what="a metric of the user sums the norms of the tensors", kind="identity",
        signature="the metric exceeds the limit, the norm does not", causes=causes("sum_of_norms"), guards=(CLIP,),
        source="seed 004", base="clipped", algorithm=SumOfNorms, information_is_enough=True,
    ),
    # Targets.
    Fault(
        id="X05-no-target-network", what="no target network, learning rate 0.01", kind="bound",
        signature="values above the bound",
        causes=causes(
            "value_out_of_bounds target_out_of_bounds clamp_always_active target_never_lags value_gap violent_update"
        ),
        guards=(BOUND, LIVE), source=PILOT,
        model={"tau": 1.0, "target_update_interval": 1, "learning_rate": 1e-2, "double_q": False},
    ),
    Fault(
        id="target-is-online", what="the target network is the online network", kind="liveness",
        signature="the two never differ", causes=causes("target_never_lags shared_parameters"), guards=(LIVE,),
        source="taxonomy", algorithm=OnlineTarget,
    ),
    Fault(
        id="X06-frozen-target", what="the target network is never updated", kind="liveness",
        signature="the distance to the online network only grows", causes=causes("target_never_moves"), guards=(LIVE,),
        source=PILOT, model={"target_update_interval": 10**9},
    ),
    Fault(
        id="X07-terminals-in-target", what="the target bootstraps through termination", kind="identity",
        signature="terminated transitions with a target that is not their reward",
        causes=causes("bootstraps_through_termination discount_mismatch discount_ignored"), guards=(BOUND,),
        source="RLMutation",
        algorithm=TerminalsIgnoredInTarget,
    ),
    Fault(
        id="X07-terminals-lost", what="no transition is stored as terminated", kind="liveness",
        signature="episodes end and none terminates",
        causes=causes(
            "no_termination_seen episode_ends_not_stored value_gap critic_does_not_explain value_out_of_bounds "
            "target_out_of_bounds clamp_always_active"
        ),
        guards=(BOUND,), source="RLMutation", data_module=TerminalsLost,
    ),
    Fault(
        id="X08-truncation-in-target", what="the target does not bootstrap at the time limit", kind="identity",
        signature="truncated transitions with a target that is their reward",
        causes=causes("discount_mismatch discount_ignored truncation_ends"), guards=(BOUND,), source="cleanrl 198",
        base="short-limit", algorithm=TruncationEndsInTarget,
    ),
    Fault(
        id="X08-truncation-stored", what="a time limit is stored as termination", kind="other",
        signature="no truncation is ever seen, values too low",
        causes=causes("truncation_ends no_truncation_seen value_gap critic_does_not_explain"), guards=(BOUND,),
        source="cleanrl 198", base="short-limit", data_module=TruncationStoredAsTermination,
    ),
    Fault(
        id="X09-gamma-above-one", what="the target uses a discount of 1.01", kind="identity",
        signature="targets do not fit the discount of the transition",
        causes=causes("discount_not_below_one discount_mismatch discount_ignored"), guards=(BOUND,), source=PILOT,
        algorithm=ScaledDiscount, magnitude=1.01 / 0.99,
    ),
    Fault(
        id="wrong-gamma", what="the target uses a discount of 0.9 from 30 % on", kind="identity",
        signature="targets do not fit the discount of the transition",
        causes=causes("discount_mismatch discount_ignored"), guards=(BOUND,), source="taxonomy", onset=0.3,
        algorithm=ScaledDiscount, magnitude=0.9 / 0.99,
    ),
    Fault(
        id="n-step-exponent", what="the discount is that of one step, the horizon three", kind="identity",
        signature="targets do not fit the discount of the transition",
        causes=causes("discount_mismatch discount_ignored"),
        guards=(BOUND,), source="seed 003", algorithm=OneStepDiscount,
    ),
    Fault(
        id="X11-no-stop-gradient", what="the gradient flows through the target", kind="identity",
        signature="the target is the online network's and has a gradient",
        causes=causes("no_stop_gradient target_never_lags td_error_mismatch"), guards=(BOUND, LIVE),
        source="seed 001", algorithm=NoStopGradient,
    ),
    # Rewards and observations.
    Fault(
        id="X13-reward-x100", what="rewards times 100 from 30 % on", kind="bound",
        signature="another range of rewards, the clip always works",
        causes=causes("reward_range_changed clip_always_active value_gap critic_does_not_explain"),
        guards=(BOUND, CLIP), source=PILOT, onset=0.3, env={"class": ScaledReward, "factor": 100.0},
    ),
    Fault(
        id="X13-reward-x100-always", what="rewards times 100", kind="other", signature="the clip always works",
        causes=causes("clip_always_active value_gap critic_does_not_explain"), guards=(CLIP, BOUND), source=PILOT,
        env={"class": ScaledReward, "factor": 100.0},
    ),
    Fault(
        id="X14-reward-tiny", what="rewards times 0.0001", kind="other",
        signature="harmless with Adam; the first values lie above the bound",
        causes=causes("value_out_of_bounds value_gap critic_does_not_explain reward_range_changed"), guards=(BOUND,),
        source=PILOT, env={"class": ScaledReward, "factor": 1e-4},
    ),
    Fault(
        id="reward-sign-flip", what="rewards change their sign at 60 %", kind="bound",
        signature="rewards outside the range that was seen", causes=causes("reward_range_changed return_collapse"),
        guards=(BOUND, EVAL), source="RLMutation", onset=0.6, env={"class": ScaledReward, "factor": -1.0},
    ),
    Fault(
        id="X27-reward-nan", what="one reward in 1,000 is NaN from 30 % on", kind="identity", signature="NaN",
        causes=causes("non_finite_reward"), guards=(FINITE,), source=PILOT, onset=0.3,
        env={"class": BadReward, "value": math.nan, "probability": 1e-3},
    ),
    Fault(
        id="X27-reward-inf", what="one reward in 1,000 is infinite from 30 % on", kind="identity",
        signature="infinity", causes=causes("non_finite_reward"), guards=(FINITE,), source=PILOT, onset=0.3,
        env={"class": BadReward, "value": math.inf, "probability": 1e-3},
    ),
    Fault(
        id="reward-outlier", what="one reward in 1,000 is 10,000 from 30 % on", kind="bound",
        signature="another range of rewards", causes=causes("reward_range_changed value_gap critic_does_not_explain"),
        guards=(BOUND,), source="taxonomy", onset=0.3,
        env={"class": BadReward, "value": 1e4, "probability": 1e-3},
    ),
    Fault(
        id="observation-nan", what="one observation in 1,000 has a NaN from 30 % on", kind="identity",
        signature="NaN", causes=causes("non_finite_observation"), guards=(FINITE,), source="taxonomy", onset=0.3,
        env={"class": BadObservation, "probability": 1e-3},
    ),
    Fault(
        id="observation-x10", what="observations times 10 from 60 % on", kind="other",
        signature="returns fall",
        causes=causes("return_collapse observation_range_changed value_gap value_out_of_bounds"),
        guards=(EVAL, BOUND), source=PILOT, onset=0.6, env={"class": ScaledObservation, "factor": 10.0},
    ),
    # What is stored.
    Fault(
        id="stale-successor", what="the next observation is the observation", kind="identity",
        signature="the two are equal everywhere",
        causes=causes("next_observation_equals_observation"), guards=(BOUND,), source="taxonomy",
        data_module=StaleSuccessor,
    ),
    Fault(
        id="shuffled-actions", what="the stored actions are those of other environments", kind="other",
        signature="the values do not explain the returns", causes=causes("critic_does_not_explain value_gap"),
        guards=(BOUND,), source="taxonomy", data_module=ShuffledActions,
    ),
    Fault(
        id="X28-collector-dead", what="nothing new is stored after 30 %", kind="liveness",
        signature="updates without new transitions", causes=causes("no_new_experience replay_overused"), guards=(LIVE,),
        source="seed 001", onset=0.3, data_module=NothingStored,
    ),
    # Parameters and updates.
    Fault(
        id="X23-stale-optimizer", what="the network is rebuilt, the optimiser keeps the old one", kind="identity",
        signature="the optimiser's parameters are not the module's",
        causes=causes("parameter_not_optimised stale_parameters no_gradient inert_update"), guards=(LIVE,),
        source=PILOT, callback=RebuiltNetwork,
    ),
    Fault(
        id="X23-stale-optimizer-late", what="the same, at 60 %", kind="identity",
        signature="the optimiser's parameters are not the module's",
        causes=causes("parameter_not_optimised stale_parameters no_gradient inert_update"), guards=(LIVE,),
        source=PILOT, onset=0.6, callback=RebuiltNetwork,
    ),
    Fault(
        id="X24-averaged-twice", what="the learning rate is divided by the batch size, twice", kind="liveness",
        signature="updates of a millionth of the weights",
        causes=causes("inert_update learning_rate_exhausted"), guards=(LIVE,), source="seed 000",
        algorithm=ScaledLearningRate, magnitude=1.0 / 64**2,
    ),
    Fault(
        id="X25-lr-spike", what="learning rate times 100 for 20 iterations at 60 %", kind="liveness",
        signature="updates as large as the weights",
        causes=causes("violent_update value_out_of_bounds target_out_of_bounds return_collapse value_gap"),
        guards=(LIVE, BOUND), source=PILOT, onset=0.6, algorithm=LearningRateSpike, magnitude=100.0,
    ),
    Fault(
        id="X25-lr-high", what="learning rate 0.1", kind="liveness", signature="updates as large as the weights",
        causes=causes(
            "violent_update value_out_of_bounds target_out_of_bounds clamp_always_active value_gap "
            "critic_does_not_explain"
        ),
        guards=(LIVE, BOUND), source=PILOT, model={"learning_rate": 0.1},
    ),
    Fault(
        id="X26-detached-trunk", what="no gradient behind the head", kind="liveness",
        signature="modules without a gradient", causes=causes("no_gradient"), guards=(LIVE,), source=PILOT,
        algorithm=DetachedTrunk,
    ),
    Fault(
        id="frozen-head", what="the last layer is frozen at 30 %", kind="liveness",
        signature="a parameter of the optimiser without requires_grad",
        causes=causes("frozen_parameters no_gradient parameter_not_optimised"), guards=(LIVE,), source=TD3_CNN,
        onset=0.3, algorithm=FrozenHead,
    ),
    Fault(
        id="pinned-loss", what="the loss is kept above 1", kind="liveness",
        signature="the loss is 1 in most updates, the gradient 0", causes=causes("pinned_loss no_gradient"),
        guards=(LIVE,), source="seed 001", algorithm=PinnedLoss, magnitude=1.0,
    ),
    Fault(
        id="replay-overused", what="each mini-batch is learned from 4 times", kind="liveness",
        signature="more updates than were configured", causes=causes("replay_overused"), guards=(LIVE,),
        source="taxonomy", algorithm=RepeatedUpdates, magnitude=4.0,
    ),
    Fault(
        id="nan-parameter", what="one weight becomes NaN at 60 %", kind="identity", signature="NaN",
        causes=causes("non_finite_parameter non_finite_loss non_finite_gradient"), guards=(FINITE,), source="taxonomy",
        onset=0.6, callback=NaNParameter,
    ),
    Fault(
        id="head-overwritten", what="the last layer is drawn anew, large, at 60 %", kind="bound",
        signature="values above the bound at once",
        causes=causes("value_out_of_bounds target_out_of_bounds return_collapse value_gap violent_update"),
        guards=(BOUND, EVAL), source="seed 003", onset=0.6, callback=ReinitialisedHead,
    ),
    # Acting and measuring.
    Fault(
        id="epsilon-stuck", what="the exploration rate stays 1", kind="other",
        signature="training episodes stay those of a random agent",
        causes=causes("exploration_stuck exploration_never_falls"), guards=(RANGE,), source="taxonomy",
        algorithm=AlwaysExplores,
    ),
    Fault(
        id="X34-success-count", what="success_rate is a count from 30 % on", kind="bound",
        signature="a rate above 1", causes=causes("metric_out_of_range"), guards=(RANGE,), source="seed 002",
        onset=0.3, algorithm=SuccessCount, magnitude=20.0,
    ),
]  # fmt: skip
FAULTS = {fault.id: fault for fault in _ALL}


def broken_environment(fault: Fault, env_id: str) -> dict[str, Any]:
    """Arguments of the data module for the broken environment."""
    arguments = {name: value for name, value in fault.env.items() if name != "class"}
    return {
        "env_id": bench_id(fault.env["class"]),
        "env_kwargs": {"env_id": env_id, "onset": fault.onset, **arguments},
    }
