"""How far a run gets on its budget: iterations, updates, warm-up, evaluations. Thresholds stand here."""

from math import ceil
from typing import NamedTuple

from scipy import stats

from rlmods.doctor.line import Line, fail, line_of, of_data, warn

_LONG_WARM_UP = 0.5
_FEWEST_EPISODES = 5  # as for the next run: fewer are no evidence of anything
_COSTLY_EVALUATION = 10.0  # frames of evaluation for each frame of training


class Budget(NamedTuple):
    """The length of a run, all environment steps over all processes.

    Attributes:
        total_env_steps: as configured.
        steps_per_iteration: that one iteration collects.
        num_iterations: that are made.
        updates_per_iteration: of the optimiser on average, once there are any.
        first_update: environment step of the first iteration with updates.
        start: environment steps that a parent, or the run before its stop, has made.
    """

    total_env_steps: int
    steps_per_iteration: int
    num_iterations: int
    updates_per_iteration: float
    first_update: int
    start: int = 0

    @property
    def end(self) -> int:
        """The environment step after the last iteration."""
        return min(self.num_iterations * self.steps_per_iteration, self.total_env_steps)

    @property
    def num_updates(self) -> int:
        """From `start` on."""
        first = max(ceil(self.first_update / self.steps_per_iteration), self.start // self.steps_per_iteration + 1)
        return int(max(self.num_iterations - first + 1, 0) * self.updates_per_iteration)

    @property
    def frames_per_update(self) -> float:
        """Environment steps between two updates."""
        return self.steps_per_iteration / self.updates_per_iteration

    def progress(self, env_steps: float) -> float:
        """The part of the budget that is spent then, 0 to 1."""
        return min(max(env_steps / self.total_env_steps, 0.0), 1.0)


def updates(budget: Budget) -> Line:
    """How many gradient updates the run makes."""
    arithmetic = (
        f"{budget.num_iterations:,} iterations of {budget.steps_per_iteration:,} environment steps, the first updates "
        f"at {budget.first_update:,}, {budget.updates_per_iteration:,.4g} an iteration: {budget.num_updates:,} updates"
    )
    reached = budget.num_iterations * budget.steps_per_iteration
    return line_of(
        "updates",
        arithmetic,
        fail(
            budget.num_updates == 0,
            "Nothing is ever learned",
            of_data("total_env_steps", 10 * max(budget.first_update, budget.steps_per_iteration)),
        ),
        warn(
            reached < budget.total_env_steps,
            f"The trainer's limits end the run at {reached:,} of {budget.total_env_steps:,} environment steps: "
            "schedules run on the budget, and do not come to their end",
            of_data("total_env_steps", reached),
        ),
    )


def warm_up(budget: Budget, learning_starts: int, random_actions: bool) -> Line:
    """The part of the budget from which nothing is learned while it is collected."""
    share = budget.first_update / budget.total_env_steps
    return line_of(
        "warm_up",
        f"learning_starts {learning_starts:,} in whole iterations: the first update at {budget.first_update:,}, "
        f"{share:.1%} of the budget" + (", actions at random until then" if random_actions else ""),
        warn(
            share > _LONG_WARM_UP,
            "More than half of the budget passes before anything is learned",
            of_data("learning_starts", max(int(0.1 * budget.total_env_steps), 1)),
        ),
    )


def evaluations(
    budget: Budget, eval_every: int, episodes: int, max_episode_steps: int | None, *, allowed: bool = True
) -> Line:
    """How often the policy is evaluated, and at most at which cost.

    Args:
        budget: of the run.
        eval_every: environment steps between two, as configured.
        episodes: of one evaluation.
        max_episode_steps: None where there is no limit.
        allowed: whether the trainer lets any happen.
    """
    if not allowed:
        without = "Without an evaluation a run has no score, and no best checkpoint"
        return line_of("evaluations", "none", warn(True, without, "leave --trainer.limit_val_batches out"))
    interval = max(1, eval_every // budget.steps_per_iteration)
    every = interval * budget.steps_per_iteration
    count = ceil((budget.num_iterations - budget.start // budget.steps_per_iteration) / interval)
    arithmetic = f"every {every:,} environment steps, {count:,} evaluations of {episodes:,} episodes"
    cost = 0.0
    if max_episode_steps is not None:
        frames = count * episodes * max_episode_steps
        cost = frames / (budget.end - budget.start) if budget.end > budget.start else 0.0
        arithmetic += f": at most {frames:,} frames, {cost:.2g} for each frame of training"
    rarer = of_data("eval_every", round(every * cost))
    return line_of(
        "evaluations",
        arithmetic,
        warn(
            eval_every > budget.total_env_steps,
            f"eval_every {eval_every:,} is longer than the budget: there is no evaluation but the last, so no curve "
            "and no best checkpoint",
            of_data("eval_every", max(budget.total_env_steps // 10, 1)),
        ),
        warn(cost > _COSTLY_EVALUATION, "The run evaluates more than it trains, if episodes reach their limit", rarer),
        note="" if every == eval_every else f"eval_every {eval_every:,} is rounded to whole iterations",
    )


def evaluation_episodes(episodes: int) -> Line:
    """How well an evaluation knows its mean: Student's 95 % interval in units of the spread of the returns."""
    if episodes < 2:
        arithmetic = "1 episode: the spread of the returns is not known"
    else:
        half = float(stats.t.ppf(0.975, episodes - 1)) / episodes**0.5
        arithmetic = f"{episodes:,} episodes: the mean is known to ± {half:.2g} standard deviations of a return (95 %)"
    return line_of(
        "evaluation_episodes",
        arithmetic,
        warn(
            episodes < _FEWEST_EPISODES,
            "Too few to tell two policies apart, or to rank checkpoints",
            of_data("eval_episodes", 10),
        ),
    )


def logging(log_every_n_steps: int, num_iterations: int) -> Line:
    """How many points a curve of the training has."""
    points = num_iterations // log_every_n_steps
    return line_of(
        "logging",
        f"log_every_n_steps {log_every_n_steps:,} of {num_iterations:,} iterations: {points:,} points a curve",
        warn(
            log_every_n_steps > num_iterations,
            "No curve of the training gets a point",
            f"type --trainer.log_every_n_steps {max(num_iterations // 100, 1)}",
        ),
    )
