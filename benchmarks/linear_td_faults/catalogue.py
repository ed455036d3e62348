"""What is run: faults, each with the causes that count as right, and healthy configurations, ugly ones among them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlmods.algorithms import LinearTD
from rlmods.data import RolloutDataModule

from .mutations import (
    BehaviourBootstrap,
    BehaviourStdForBoth,
    ClippedAsUnclipped,
    ClipUnused,
    ConstantObservation,
    CriticForgotten,
    InvertedRatio,
    NaNReward,
    NextStateMeans,
    NoActorGradient,
    NoNormalisingConstant,
    SameRollout,
    StreamNotSaved,
    StreamRestarted,
    TruncationEnds,
    TwoSteps,
    VarianceForStd,
    WrongSign,
)

# Off-policy, learning, within every bound.
MODEL: Mapping[str, Any] = {
    "learning_rate": 15.0,
    "actor_learning_rate": 10.0,
    "behaviour_std": 0.4,
    "target_std": 0.35,
    "behaviour_offset_scale": 0.1,
}
DATA: Mapping[str, Any] = {"num_envs": 8, "n_steps": 50, "gamma": 0.9, "eval_episodes": 2, "eval_every": 10**9}
ENV: Mapping[str, Any] = {"feature_dim": 32, "actor_feature_dim": 16, "max_episode_steps": 75}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run, healthy where no cause is right.

    Attributes:
        id: short, unique.
        what: is broken, or ugly, in words.
        causes: that count as the right one.
        unseen: why no safeguard of the preset can find it; empty where one should.
        onset: iterations before which nothing is broken.
        resume_at: iterations after which the run stops and a new process goes on; None runs through.
        algorithm: LinearTD, or a mutation.
        data_module: the real one, or a mutation.
        model: arguments over `MODEL`.
        data: arguments over `DATA`.
        env: arguments over `ENV`.
    """

    id: str
    what: str
    causes: frozenset[str] = frozenset()
    unseen: str = ""
    onset: int = 0
    resume_at: int | None = None
    algorithm: type[LinearTD] = LinearTD
    data_module: type[RolloutDataModule] = RolloutDataModule
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)


def causes(words: str) -> frozenset[str]:
    return frozenset(words.split())


RATIO = causes("ratio_identity")
INERT = causes("inert_update inert_learning")
DIVERGES = causes("violent_update exploding_gradient non_finite_gradient")
STREAM = causes("repeated_stream repeated_start")
NUMPY: Mapping[str, Any] = {"random_stream": "numpy"}
FIXED: Mapping[str, Any] = {**NUMPY, "actor_learning_rate": 0.0, "beta": 0.0}

STEEP: Mapping[str, Any] = {"theta_init_scale": 0.5, "theta_radius": 0.0, "actor_learning_rate": 0.1}

FAULTS = [
    # The published runs take both densities at the action after its projection; LinearTD does the same there.
    Case(
        id="ball-clip", what="densities at the action after its projection on the disc", causes=RATIO,
        model={"behaviour_std": 0.3, "target_std": 0.4}, env={"action_mode": "ball_clip"},
    ),
    Case(
        id="box-clip", what="densities at the action after its clip to the square", causes=RATIO,
        model={"behaviour_std": 0.3, "target_std": 0.4}, env={"action_mode": "box_clip"},
    ),
    Case(
        id="infinite-variance", what="σ_π² = 2.25 σ_μ²", causes=causes("ratio_variance_infinite"),
        model={"target_std": 0.6},
    ),
    Case(id="inverted-ratio", what="μ/π", causes=RATIO, algorithm=InvertedRatio),
    Case(id="variance-for-std", what="ratio of densities with σ² in the place of σ", causes=RATIO,
         algorithm=VarianceForStd),
    Case(
        id="std-of-behaviour", what="ratio with σ_μ for both", causes=RATIO, algorithm=BehaviourStdForBoth,
        unseen="it is the density ratio of another target policy: its mean is 1",
    ),
    Case(id="no-constant", what="ratio without its normalising constant", causes=RATIO,
         algorithm=NoNormalisingConstant),
    Case(id="clipped-as-unclipped", what="ratio published after its clip", causes=RATIO, algorithm=ClippedAsUnclipped,
         model={"ratio_clip": 1.0}),
    Case(
        id="next-state-means", what="behaviour means of the next state, policies that depend on it", causes=RATIO,
        algorithm=NextStateMeans, model=STEEP, env={"p_mix": 0.3},
    ),
    Case(
        id="next-state-means-flat", what="the same, policies that hardly depend on the state", causes=RATIO,
        algorithm=NextStateMeans,
        unseen="means of 0.02 against σ = 0.4: the ratio is off by less than the mean of a run resolves",
    ),
    # Randomness and data.
    Case(id="stream-each-iteration", what="generators seeded in each iteration, the policy stands still",
         causes=STREAM, algorithm=StreamRestarted, model=FIXED),
    Case(id="stream-each-iteration-moving", what="the same, the policy learns", causes=STREAM,
         algorithm=StreamRestarted, model=NUMPY),
    Case(id="stream-resumed", what="generators seeded at a resume, the policy stands still", causes=STREAM,
         onset=20, resume_at=20, algorithm=StreamNotSaved, model=FIXED),
    Case(id="stream-resumed-moving", what="the same, the policy learns", causes=STREAM, onset=20, resume_at=20,
         algorithm=StreamNotSaved, model=NUMPY),
    Case(id="same-rollout", what="the first rollout is handed out again and again", causes=STREAM,
         data_module=SameRollout),
    Case(id="constant-observation", what="the environment repeats its first observation",
         causes=causes("repeated_start"), data_module=ConstantObservation),
    Case(id="nan-reward", what="a reward is NaN", causes=causes("non_finite_reward"), onset=20, data_module=NaNReward),
    Case(
        id="truncation-ends", what="no bootstrap at the time limit", causes=causes("discount_mismatch"),
        data_module=TruncationEnds, unseen="1 step in 75, and the batch itself says that nothing follows",
    ),
    # The update.
    Case(id="inert-step", what="effective step of 2.5e-7, as published", causes=INERT,
         model={"learning_rate": 2.5e-7, "actor_learning_rate": 2.5e-7}),
    Case(id="critic-forgotten", what="the critic is in no parameter group", causes=causes("parameter_not_optimised"),
         algorithm=CriticForgotten),
    Case(id="no-actor-gradient", what="the actor's gradient is 0, its learning rate is not",
         causes=causes("no_gradient inert_update"), algorithm=NoActorGradient),
    Case(id="two-steps", what="each update is made twice", causes=causes("violent_update"), algorithm=TwoSteps,
         unseen="it is a learning rate of twice the size, and stable"),
    Case(id="above-critical", what="learning rate twice the critical one", causes=DIVERGES,
         model={"dimensionless_step": 4.0}),
    Case(id="wrong-sign", what="δ = value − target", causes=DIVERGES, algorithm=WrongSign),
    Case(id="behaviour-bootstrap", what="bootstraps with μ", causes=causes("discount_mismatch"),
         algorithm=BehaviourBootstrap, unseen="a consistent evaluation of another policy: no identity is broken"),
    Case(id="clip-unused", what="max_grad_norm is configured and nobody clips",
         causes=causes("clip_never_applied clip_limit_exceeded"), algorithm=ClipUnused,
         model={"max_grad_norm": 1e-4}),
]  # fmt: skip

HEALTHY = [
    Case(id="full-triad", what="off-policy, bootstrap, moving target policy"),
    Case(id="on-policy", what="β = 1, equal stds: every ratio is 1",
         model={"beta": 1.0, "target_std": 0.4, "behaviour_offset_scale": 0.0}),
    Case(id="gamma-0", what="no bootstrap", data={"gamma": 0.0}),
    Case(id="fixed-policy", what="α_π = 0", model={"actor_learning_rate": 0.0}),
    Case(id="tanh", what="squashed actions, sampled bootstrap", env={"action_mode": "tanh"}),
    Case(id="ratio-clip", what="ratio clipped at 1, published before", model={"ratio_clip": 1.0}),
    Case(id="small-batch", what="2 environments", data={"num_envs": 2}),
    Case(id="large-step", what="dimensionless step of 1.5", model={"dimensionless_step": 1.5}),
    Case(id="tiny-rewards", what="rewards and weights of 1e-6",
         model={"w_init_scale": 1e-6, "actor_learning_rate": 1e6},
         env={"teacher_base_scale": 1e-6, "lambda_action_penalty": 1e-6}),
    Case(id="zero-rewards", what="nothing to learn, w = 0", model={"w_init_scale": 0.0},
         env={"use_teacher_reward": False}),
    Case(id="gtd2", what="gradient TD", model={"method": "gtd2"}),
    Case(id="tdc", what="gradient correction", model={"method": "tdc"}),
    Case(id="etd", what="emphatic TD, emphases of about 1/(1 − γ)", model={"method": "etd", "learning_rate": 1.5}),
    Case(id="vtrace", what="clipped traces", model={"vtrace_lambda": 0.9, "ratio_clip": 1.0, "learning_rate": 5.0}),
    Case(id="fast-actor", what="actor's learning rate 100 times as large", model={"actor_learning_rate": 1000.0}),
    Case(id="steep-policies", what="means that depend on the state", model=STEEP, env={"p_mix": 0.3}),
    Case(id="no-restarts", what="p_mix = 0", env={"p_mix": 0.0}),
    Case(id="sqrtB_T", what="sums divided by √N T", model={"scale_mode": "sqrtB_T"}),
    Case(id="plateau", what="the published plateau: slow, then flat",
         model={"behaviour_std": 0.35, "target_std": 0.3, "beta": 0.05, "learning_rate": 4.0}),
    Case(id="heavy-tail", what="σ_π = 1.35 σ_μ: variance finite, ratios up to hundreds", model={"target_std": 0.54}),
    Case(id="clipped-gradients", what="max_grad_norm below every norm", model={"max_grad_norm": 1e-4}),
    Case(id="numpy-resumed", what="numpy streams, stopped and resumed", model=NUMPY, resume_at=20),
]  # fmt: skip
