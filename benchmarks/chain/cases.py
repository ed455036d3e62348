"""The runs of the bench, each with the next step that is right, written down before the rules saw any of them.

A label is what was done to the run: the setting that was broken goes back (or towards where it works), a run in which
nothing was broken is kept, one that was stopped goes on, and one that was not measured is measured.
"""

from typing import Literal, NamedTuple

M, D = "--model.init_args.", "--data.init_args."

CARTPOLE = """\
trainer: {accelerator: cpu, log_every_n_steps: 1, enable_progress_bar: false, enable_model_summary: false}
model:
  class_path: rlmods.algorithms.PPO
  init_args: {learning_rate: 1.0e-3, n_epochs: 10, batch_size: 256}
data:
  class_path: rlmods.data.RolloutDataModule
  init_args:
    {env_id: CartPole-v1, total_env_steps: 16384, num_envs: 8, n_steps: 128, gamma: 0.98, eval_every: 2048,
     eval_episodes: 20}
"""
POINT = """\
trainer: {accelerator: cpu, log_every_n_steps: 1, enable_progress_bar: false, enable_model_summary: false}
model:
  class_path: rlmods.algorithms.PPO
  init_args: {learning_rate: 1.0e-3, n_epochs: 10, batch_size: 160}
data:
  class_path: rlmods.data.RolloutDataModule
  init_args:
    {env_id: rlmods-chain/PointMass-v0, total_env_steps: 16000, num_envs: 8, n_steps: 80, gamma: 0.95,
     eval_every: 2000, eval_episodes: 20}
"""
CONFIGS = {"cartpole": CARTPOLE, "point": POINT}
# A Gaussian that may leave the box, and Muon on log σ: what makes a raised entropy bonus fatal.
DRIFTING = (M + "action_distribution=unbounded", M + "optimizer=muon", M + "muon_parameters=all_matrices")

Direction = Literal["down", "up", "keep", "continue", "probe"]


class Case(NamedTuple):
    """A run to make, and its label.

    Attributes:
        options: of the command line, over the configuration of the task or the parent's.
        knob: that was broken.
        direction: in which it must go; keep, continue or probe where none was.
        parent: name of the case that it continues.
        start: where the next run must begin: best, of the whole chain, or anywhere.
    """

    name: str
    task: Literal["cartpole", "point"]
    options: tuple[str, ...]
    knob: str
    direction: Direction
    parent: str = ""
    start: Literal["best", "any"] = "any"
    weights_only: bool = True


FIRST = (
    # Nothing is wrong.
    Case("cartpole_seed_0", "cartpole", (), "", "keep"),
    Case("cartpole_seed_1", "cartpole", ("--seed_everything=1",), "", "keep"),
    Case(
        "cartpole_annealed",
        "cartpole",
        (M + "learning_rate_schedule=cosine", M + "clip_range_schedule=linear"),
        "",
        "keep",
    ),
    Case("cartpole_short", "cartpole", (D + "total_env_steps=8192",), "", "keep"),
    Case("point_seed_0", "point", (), "", "keep"),
    Case("point_unbounded", "point", (M + "action_distribution=unbounded", M + "log_std_init=0"), "", "keep"),
    Case("point_drifting", "point", DRIFTING, "", "keep"),
    Case("point_counter", "point", (D + "env_kwargs.counts=true",), "", "keep"),
    Case("warm_same", "cartpole", ("--seed_everything=2",), "", "keep", "cartpole_seed_0"),
    Case("warm_longer", "cartpole", (D + "total_env_steps=24576",), "", "keep", "cartpole_seed_0", weights_only=False),
    # Broken from the start.
    Case("rate_tiny", "cartpole", (M + "learning_rate=1e-7",), "learning_rate", "up"),
    Case("rate_huge", "cartpole", (M + "learning_rate=0.3",), "learning_rate", "down"),
    Case("rate_infinite", "point", (M + "learning_rate=1e30",), "learning_rate", "down"),
    Case("bonus_huge", "cartpole", (M + "ent_coef=10",), "ent_coef", "down"),
    Case("target_kl_tiny", "cartpole", (M + "target_kl=1e-7",), "target_kl", "up"),
    Case("clip_tiny", "cartpole", (M + "clip_range=1e-4",), "clip_range", "up"),
    Case("value_ignored", "cartpole", (M + "vf_coef=0",), "vf_coef", "up"),
    Case("point_rate_tiny", "point", (M + "learning_rate=1e-7",), "learning_rate", "up"),
    # Not measured, or stopped.
    Case("one_episode", "cartpole", (D + "eval_episodes=1",), "", "probe"),
    Case(
        "terminated",
        "cartpole",
        ("--trainer.callbacks+=benchmarks.chain.run.Terminate", "--trainer.callbacks.iteration=8"),
        "",
        "continue",
    ),
    # Broken on a warm start.
    Case("warm_rate_huge", "cartpole", (M + "learning_rate=0.1",), "learning_rate", "down", "cartpole_seed_0", "best"),
    Case("warm_rate_tiny", "cartpole", (M + "learning_rate=1e-8",), "learning_rate", "up", "cartpole_short"),
    Case("warm_bonus_huge", "cartpole", (M + "ent_coef=5",), "ent_coef", "down", "cartpole_seed_0", "best"),
    Case("warm_epochs", "cartpole", (M + "n_epochs=200",), "n_epochs", "down", "cartpole_seed_0", "best"),
    Case("warm_discount", "cartpole", (D + "gamma=0",), "gamma", "up", "cartpole_seed_0", "best"),
    Case("warm_drift", "point", (M + "ent_coef=1",), "ent_coef", "down", "point_drifting", "best"),
    Case(
        "warm_three",
        "point",
        (M + "ent_coef=1", M + "learning_rate=1.2e-3", M + "n_epochs=8"),
        "ent_coef",
        "down",
        "point_drifting",
        "best",
    ),
    Case("latest_of_broken", "point", (M + "ent_coef=0.8",), "ent_coef", "down", "warm_drift", "best"),
)

# Written after the rules had seen the first ones and were mended by them; labelled before the rules saw these.
_EFFORT = (D + "env_kwargs.effort=0.5",)
SECOND = (
    Case("again_cartpole", "cartpole", ("--seed_everything=3",), "", "keep"),
    Case("again_slow", "cartpole", (M + "learning_rate=3e-4", M + "n_epochs=4"), "", "keep"),
    Case("again_effort", "point", (*_EFFORT, "--seed_everything=4"), "", "keep"),
    Case("again_drifting", "point", (*_EFFORT, *DRIFTING), "", "keep"),
    Case("again_longer", "point", (D + "total_env_steps=24000",), "", "keep", "again_effort", weights_only=False),
    Case("again_rate_small", "cartpole", (M + "learning_rate=1e-6",), "learning_rate", "up"),
    Case("again_rate_large", "point", (M + "learning_rate=1",), "learning_rate", "down"),
    Case("again_bonus", "point", (*_EFFORT, M + "ent_coef=3"), "ent_coef", "down"),
    Case("again_target_kl", "point", (M + "target_kl=1e-6",), "target_kl", "up"),
    Case("again_clip", "point", (M + "clip_range=1e-3",), "clip_range", "up"),
    Case("again_value", "cartpole", (M + "vf_coef=1e-5",), "vf_coef", "up"),
    Case("again_warm_rate", "cartpole", (M + "learning_rate=0.03",), "learning_rate", "down", "again_cartpole", "best"),
    Case("again_warm_point", "point", (M + "learning_rate=0.5",), "learning_rate", "down", "again_effort", "best"),
    Case("again_drift", "point", (M + "ent_coef=1",), "ent_coef", "down", "again_drifting", "best"),
    Case(
        "again_three",
        "point",
        (M + "ent_coef=1", M + "learning_rate=8e-4", M + "n_epochs=12"),
        "ent_coef",
        "down",
        "again_drifting",
        "best",
    ),
    Case("again_latest", "point", (M + "ent_coef=0.8",), "ent_coef", "down", "again_drift", "best"),
)
# Written after the rules had seen the second ones, and labelled before they saw these.
_DEARER = (D + "env_kwargs.effort=1", "--seed_everything=6")
THIRD = (
    Case("third_drifting", "point", (*_DEARER, *DRIFTING), "", "keep"),
    Case("third_warm", "point", ("--seed_everything=7",), "", "keep", "third_drifting"),
    Case("third_mild", "point", (M + "ent_coef=0.01",), "", "keep", "third_drifting"),
    Case("third_drift", "point", (M + "ent_coef=2",), "ent_coef", "down", "third_drifting", "best"),
    Case(
        "third_two",
        "point",
        (M + "ent_coef=0.7", M + "gae_lambda=0.9"),
        "ent_coef",
        "down",
        "third_drifting",
        "best",
    ),
    Case("third_fresh", "point", (*_DEARER, *DRIFTING, M + "ent_coef=2"), "ent_coef", "down"),
    Case("third_bounded", "point", (*_DEARER, M + "ent_coef=0.001"), "", "keep"),
)
CASES = (*FIRST, *SECOND, *THIRD)
