"""What is run: faults, each with the causes that count as right, and healthy curricula, ugly ones among them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlmods.algorithms import DQN
from rlmods.data import ExpertDataModule

from . import case
from . import expert_mutations as broken
from .case import Bench, causes

MODEL: Mapping[str, Any] = {
    "hidden_sizes": [32],
    "target_update_interval": 40,
    "exploration_final_eps": 0.05,
    "exploration_fraction": 0.3,
}
# 128 frames an iteration, 120 of them with 4 updates.
DATA: Mapping[str, Any] = {
    "env_id": "rlmods/LaneShooter-v0",
    "total_env_steps": 16_384,
    "num_envs": 16,
    "gamma": 0.95,
    "n_steps": 3,
    "buffer_size": 6_000,
    "batch_size": 32,
    "learning_starts": 1_024,
    "steps_per_iteration": 128,
    "updates_per_iteration": 4,
    "eval_episodes": 8,
    "eval_every": 4_096,
    "expert_share": 0.9,
    "expert_share_decay": 0.5,
    "expert_share_decay_steps": 2_048,
    "expert_share_floor": 0.2,
    "env_kwargs": {"max_episode_steps": 100},
}


@dataclass(frozen=True, kw_only=True)
class Case(case.Case):
    """With the real classes, where no other is named."""

    algorithm: type[DQN] = DQN
    data_module: type[ExpertDataModule] = ExpertDataModule


SHARE = causes("share_not_in_effect")
IMITATES: Mapping[str, Any] = {"bc_coef": 0.5, "bc_final_coef": 0.05}
STRATA: Mapping[str, Any] = {"replay_strata": {"recent": 0.5, "uniform": 0.5}}
# In the first hundred frames nobody dies.
DEADLY: Mapping[str, Any] = {"env_kwargs": {"max_episode_steps": 1_000}, "expert_share": 0.2}

FAULTS = [
    # The curriculum.
    Case(id="share-never-decays", what="the factor of the schedule is not read", causes=SHARE,
         data_module=broken.ShareNeverDecays),
    Case(id="floor-not-enforced", what="the floor is not read", causes=SHARE, data_module=broken.FloorNotEnforced),
    Case(id="override-not-logged", what="half way the share is 0.9, and nobody says so", causes=SHARE,
         data_module=broken.OverrideNotLogged),
    Case(id="care-not-scaled", what="where care is needed the expert acts no more often", causes=SHARE,
         data_module=broken.CareNotScaled, data={"expert_care_scale": 2.0},
         unseen="care is needed in one of a hundred frames: coins scatter more"),
    # What is stored and drawn.
    Case(id="flag-shifted", what="the flag of who acted is that of the next environment",
         causes=causes("flag_mismatch"), data_module=broken.FlagShifted, model=IMITATES,
         unseen="the numbers of flags are right; what they belong to nobody knows"),
    Case(id="recent-by-slot", what="recent transitions are those of the highest slots",
         causes=causes("strata_mismatch"), data_module=broken.RecentBySlot, data=STRATA),
    Case(id="limiter-ignored", what="the limit of the replay ratio is not read",
         causes=causes("setting_not_in_effect replay_overused"), data_module=broken.LimiterIgnored,
         data={"max_replay_ratio": 0.5}),
    Case(id="terminals-lost", what="nothing is stored as terminated", data_module=broken.TerminalsLost, data=DEADLY,
         causes=causes("no_termination_seen episode_ends_not_stored value_out_of_bounds target_out_of_bounds")),
    Case(id="rewards-tenfold", what="from the middle on rewards are stored ten times as large",
         causes=causes("reward_range_changed reward_changed clip_always_active"),
         data_module=broken.RewardsTenfold),
    # Learning.
    Case(id="horizon-ignored", what="γⁿ for every transition, however short its horizon",
         causes=causes("discount_ignored discount_mismatch"), algorithm=broken.HorizonIgnored,
         data={"n_step_through_expert": False}),
    Case(id="terminals-bootstrap", what="the target goes on beyond the end of an episode",
         causes=causes("bootstraps_through_termination"), algorithm=broken.TerminalsBootstrap, data=DEADLY),
    Case(id="clones-everybody", what="the network imitates its own actions as well",
         causes=causes("clones_itself"), algorithm=broken.ClonesEverybody, model=IMITATES),
    Case(id="hard-target-never-copied", what="full copies are configured, and nobody copies",
         causes=causes("target_never_moves"), algorithm=broken.HardTargetNeverCopied,
         model={"tau": 0.005, "target_update_interval": 1, "target_hard_update_interval": 40}),
    Case(id="rate-replaced", what="a schedule of its own writes the learning rate",
         causes=causes("setting_not_in_effect"), algorithm=broken.RateReplaced, model={"learning_rate": 3e-3}),
    Case(id="target-follows", what="tau 1 in each update, learning rate 0.03, no clip",
         causes=causes("value_out_of_bounds target_out_of_bounds violent_update target_never_lags exploding_gradient"),
         model={"target_update_interval": 1, "learning_rate": 3e-2, "max_grad_norm": None, "loss": "mse"}),
]  # fmt: skip

HEALTHY = [
    Case(id="curriculum", what="as all others but for what they say"),
    Case(id="quick", what="the expert is gone at a tenth of the run",
         data={"expert_share_decay": 0.1, "expert_share_decay_steps": 800, "expert_share_floor": 0.0}),
    Case(id="slow", what="the share falls in a hundred steps",
         data={"expert_share_decay": 0.985, "expert_share_decay_steps": 164}),
    Case(id="nobody", what="the expert never acts", data={"expert_share": 0.0, "expert_share_floor": 0.0}),
    Case(id="always", what="the expert always acts", data={"expert_share": 1.0, "expert_share_floor": 1.0}),
    Case(id="half", what="a constant share", data={"expert_share": 0.5, "expert_share_floor": 0.5}),
    Case(id="care", what="twice the share where care is needed", data={"expert_care_scale": 2.0},
         model={"exploration_care_scale": 0.2}),
    Case(id="imitates", what="with cross-entropy on the expert's actions", model=IMITATES),
    Case(id="ends-at-expert", what="n-step returns end where another acts", data={"n_step_through_expert": False}),
    Case(id="strata", what="half of each mini-batch is recent", data=STRATA),
    Case(id="prioritised", what="drawn by TD error", data={"prioritized_replay": True}),
    Case(id="limited", what="each transition is drawn half a time", data={"max_replay_ratio": 0.5}),
    Case(id="accumulates", what="an update from four mini-batches", model={"accumulate_grad_batches": 4}),
    Case(id="soft-and-hard", what="soft target with full copies besides",
         model={"tau": 0.005, "target_update_interval": 1, "target_hard_update_interval": 200}),
    Case(id="noisy", what="noisy layers, no ε", model={"noisy": True, "exploration_initial_eps": 0.0,
                                                       "exploration_final_eps": 0.0}),
    Case(id="atoms", what="51 atoms", model={"num_atoms": 51, "v_min": -100.0, "v_max": 400.0}),
    Case(id="cosine", what="the learning rate warms up and falls to 0",
         model={"learning_rate_schedule": "cosine", "final_learning_rate": 0.0, "learning_rate_warmup": 0.1}),
    Case(id="bonus", what="a reward that fades", data={"env_kwargs": {"max_episode_steps": 100, "bonus": 0.5}}),
]  # fmt: skip

BENCH = Bench(
    name="an expert's curriculum",
    preset="safeguards/curriculum",
    model=MODEL,
    data=DATA,
    faults=FAULTS,
    healthy=HEALTHY,
    seeds=(0,),
    smoke=(
        "share-never-decays",
        "limiter-ignored",
        "horizon-ignored",
        "hard-target-never-copied",
        "rate-replaced",
        "curriculum",
        "imitates",
    ),
    smoke_env_steps=4096,
)
