"""What is run: faults, each with the causes that count as right, and healthy dreamers, ugly ones among them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlmods.algorithms import DreamerV3
from rlmods.data import SequenceDataModule

from . import case
from . import dreamer_mutations as broken
from .case import Bench, causes
from .dreamer_mutations import Dreamer

MODEL: Mapping[str, Any] = {
    "size": "cpu",
    "learning_rate": 1e-3,
    "learning_rate_warmup": 50,
    "imagination_horizon": 5,
}
# An update for each environment step, 4 an iteration.
DATA: Mapping[str, Any] = {
    "env_id": "CartPole-v1",
    "total_env_steps": 520,
    "num_envs": 4,
    "batch_size": 8,
    "batch_length": 8,
    "train_ratio": 64.0,
    "steps_per_iteration": 4,
    "learning_starts": 100,
    "buffer_size": 5_000,
    "eval_episodes": 4,
    "eval_every": 260,
}


@dataclass(frozen=True, kw_only=True)
class Case(case.Case):
    """With the real classes, where no other is named."""

    algorithm: type[DreamerV3] = Dreamer
    data_module: type[SequenceDataModule] = SequenceDataModule


def seen_by_doctor(trap: str) -> str:
    """Why no safeguard finds it."""
    return f"a trap of the doctor finds it before the run: {trap}"


DREAMS = causes("value_exceeds_return dreams_go_on_promising")
MODEL_IS_BLIND = causes("prior_does_not_foresee posterior_collapse")
OTHER_PRIOR = MODEL_IS_BLIND | causes("dreams_of_another_prior")
# In games of so many steps nobody falls before the end.
SHORT: Mapping[str, Any] = {"env_kwargs": {"max_episode_steps": 6}}

FAULTS = [
    # Of the published run.
    Case(id="support-147", what="11 bins from -147 to 147", causes=causes("support_too_small value_at_support_end"),
         model={"num_bins": 11, "log_bound": 5.0}),
    Case(id="kl-averaged", what="the KL is the mean over the latents", causes=OTHER_PRIOR,
         algorithm=broken.KLAveraged),
    Case(id="straight-through-free-nats", what="the free nats have a gradient", causes=MODEL_IS_BLIND,
         algorithm=broken.StraightThroughFreeNats, unseen=seen_by_doctor("free_nats")),
    Case(id="prior-sees-posterior", what="the prior is made after the posterior's draw", causes=OTHER_PRIOR,
         algorithm=broken.PriorSeesPosterior),
    Case(id="beta-rep-without-unimix", what="beta_rep 0.99 and no share of the uniform distribution",
         causes=MODEL_IS_BLIND, model={"beta_rep": 0.99, "unimix": 0.0},
         unseen="the doctor warns of the settings before the run: kl"),
    Case(id="no-continuation-weight", what="states after the end of a dream count", causes=DREAMS,
         algorithm=broken.NoContinuationWeight, unseen=seen_by_doctor("dreams_end")),
    Case(id="recurrence-detached", what="no gradient crosses a step", causes=MODEL_IS_BLIND,
         algorithm=broken.RecurrenceDetached, unseen=seen_by_doctor("remembers")),
    Case(id="posterior-ignores-h", what="the posterior sees the observation alone",
         causes=MODEL_IS_BLIND | causes("no_gradient"), algorithm=broken.PosteriorIgnoresH),
    Case(id="running-maximum", what="LaProp divides by the largest gradient there ever was", causes=MODEL_IS_BLIND,
         algorithm=broken.RunningMaximum, unseen=seen_by_doctor("forgets_spikes")),
    # Of other reimplementations.
    Case(id="lambda-return-shifted", what="a return is continued by its own state's value", causes=DREAMS,
         algorithm=broken.LambdaReturnShifted, unseen=seen_by_doctor("lambda_return")),
    Case(id="continuation-unused", what="dreams never end", causes=DREAMS, algorithm=broken.ContinuationUnused,
         unseen=seen_by_doctor("dreams_end")),
    Case(id="truncation-as-termination", what="a time limit is learned as death",
         causes=causes("truncation_as_termination"), algorithm=broken.TruncationAsTermination, data=SHORT),
    Case(id="action-not-reset", what="the last action of an episode goes on into the next", causes=MODEL_IS_BLIND,
         algorithm=broken.ActionNotReset, unseen=seen_by_doctor("beginnings")),
    Case(id="resets-late", what="the state is reset a step too late", causes=MODEL_IS_BLIND,
         algorithm=broken.ResetsLate, unseen=seen_by_doctor("beginnings")),
    Case(id="policy-is-blind", what="acts on an observation of zeros", causes=DREAMS, algorithm=broken.PolicyIsBlind,
         unseen=seen_by_doctor("sees_observations")),
    Case(id="slow-critic-frozen", what="nobody moves the slow critic", causes=causes("target_never_moves"),
         algorithm=broken.SlowCriticFrozen),
    # What is replayed. Whole episodes do not fit into sequences of 8 steps.
    Case(id="ends-lost", what="ends by a time limit are not marked", causes=causes("episode_ends_lost"),
         data_module=broken.EndsLost, data=SHORT),
    Case(id="terminals-lost", what="every end is stored as that of a time limit",
         causes=causes("terminals_stored_as_truncations"), data_module=broken.TerminalsLost,
         data={"batch_size": 2, "batch_length": 32}),
]  # fmt: skip

HEALTHY = [
    Case(id="cartpole", what="as all others but for what they say"),
    Case(id="time-limit", what="every episode is cut", data=SHORT),
    Case(id="acrobot", what="costs, and episodes that hardly end", data={"env_id": "Acrobot-v1"}),
    Case(id="pendulum", what="continuous actions, costs, no terminal state", data={"env_id": "Pendulum-v1"}),
    Case(
        id="no-reward",
        what="no reward in games of six steps",
        data={"env_kwargs": {"max_episode_steps": 6, "sutton_barto_reward": True}},
    ),
    Case(
        id="late-ends",
        what="the first end is that of four games of 100 steps at once",
        data={"env_id": "Pendulum-v1", "env_kwargs": {"max_episode_steps": 100}},
    ),
    Case(
        id="pixels",
        what="images of 48 x 48",
        data={"env_id": "rlmods/DotTracking-v0", "env_kwargs": {"image_size": 48}},
    ),
    Case(id="small-buffer", what="200 rows", data={"buffer_size": 200}),
    Case(id="last-states", what="dreams from the last two states alone", model={"imagination_last": 2}),
    Case(id="quick", what="learning rate 0.003", model={"learning_rate": 3e-3}),
    Case(
        id="authors-rate",
        what="their learning rate and warm-up, with which nothing moves yet",
        model={"learning_rate": 4e-5, "learning_rate_warmup": 1_000},
    ),
    # Actor and critic in the authors' proportion to the model, whose learning rate is ten times theirs here.
    Case(
        id="version-2023",
        what="as the authors published it first",
        model={"version": "v1_2023", "behaviour_learning_rate": 3e-4},
    ),
]

BENCH = Bench(
    name="DreamerV3",
    preset=str(Path(__file__).with_name("world_model_quick.yaml")),
    model=MODEL,
    data=DATA,
    faults=FAULTS,
    healthy=HEALTHY,
    seeds=range(1),
    smoke=("support-147", "truncation-as-termination", "ends-lost", "cartpole"),
    smoke_env_steps=160,
)
