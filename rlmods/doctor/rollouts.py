"""How a rollout is divided and used. Thresholds stand here."""

from rlmods.doctor.line import Line, fail, line_of, of_data, of_model, warn

_FEW_STEPS = 16  # of a mini-batch whose advantages are standardised: their spread is known to 18 %
_MANY_EPOCHS = 40  # twice what the RL Zoo has for any environment
_FEW_ROLLOUTS = 20


def rollout_batch(
    num_envs: int, n_steps: int, processes: int, batch_size: int, n_epochs: int, *, normalizes: bool
) -> Line:
    """Steps, mini-batches and updates of a rollout, and how often each step is used."""
    rollout = num_envs * n_steps
    number = rollout // batch_size
    return line_of(
        "effective_batch",
        f"{num_envs:,} environments x {n_steps:,} steps = {rollout:,} = {number:,} mini-batches of {batch_size:,}"
        f"{f' on each of {processes} processes' * (processes > 1)}; {n_epochs:,} epochs make {n_epochs * number:,} "
        f"updates, and use each step {n_epochs:,} times",
        warn(
            normalizes and batch_size < _FEW_STEPS,
            f"Advantages are standardised over {batch_size:,} steps: their mean and spread are noise",
            of_model("batch_size", 64),
        ),
        warn(
            n_epochs > _MANY_EPOCHS,
            "The policy leaves the one that collected long before the last epoch; ratios are clipped, and say nothing",
            of_model("n_epochs", 10),
        ),
    )


def advantage_horizon(gamma: float, gae_lambda: float, n_steps: int) -> Line:
    """How far advantages look, against the length of a segment without a break."""
    horizon = 1.0 / (1.0 - gamma * gae_lambda) if gamma * gae_lambda < 1.0 else float("inf")
    return line_of(
        "advantage_horizon",
        f"1/(1 - gamma lambda) = {horizon:,.4g} steps, a rollout has {n_steps:,} of each environment: "
        f"{(gamma * gae_lambda) ** n_steps:.2g} of the weights lies beyond it",
        warn(
            horizon > n_steps,
            "Advantages end at the rollout's end, in the value function, sooner than lambda means them to",
            of_data("n_steps", int(horizon) + 1),
        ),
    )


def policy_step(clip_range: float, target_kl: float | None) -> Line:
    """How far a policy may go in a rollout: where ratios are clipped, and where the epochs end.

    For a small change KL = E (ρ − 1)² / 2: with all ratios at the clip it is ε²/2.
    """
    kl = 0.5 * clip_range**2
    arithmetic = f"ratios are clipped at 1 ± {clip_range:g}, with all of them there the KL is about {kl:.2g}"
    if target_kl is None:
        return Line("PASS", "policy_step", f"{arithmetic}; no target_kl ends the epochs")
    return line_of(
        "policy_step",
        f"{arithmetic}; epochs end at a KL of 1.5 x {target_kl:g} = {1.5 * target_kl:.2g}",
        warn(
            1.5 * target_kl < 0.05 * kl,
            "The limit ends the epochs long before any ratio is clipped: most updates are not made",
            of_model("target_kl", 0.02),
        ),
        note="The limit is beyond the clip, and hardly ends anything" * (1.5 * target_kl > 10.0 * kl),
    )


def schedule_length(num_iterations: int, *, anneals: bool) -> Line:
    """In how many steps schedules go down."""
    return line_of(
        "rollouts",
        f"{num_iterations:,} rollouts in the run" + ", each with its own step of the schedules" * anneals,
        fail(num_iterations < 1, "There is not one rollout", of_data("total_env_steps", "N with a larger N")),
        warn(
            num_iterations < _FEW_ROLLOUTS,
            "A policy is improved once a rollout: that few are no training",
            of_data("n_steps", "N with a smaller N") + ", or a larger total_env_steps",
        ),
    )
