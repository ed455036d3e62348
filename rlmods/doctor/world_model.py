"""The settings of DreamerV3 against what the authors use and what the task needs. Thresholds stand here."""

from rlmods.algorithms.dreamer_v3 import DreamerV3
from rlmods.data.experience import ExperienceDataModule
from rlmods.data.sequences import SequenceDataModule
from rlmods.doctor.budget import Budget
from rlmods.doctor.line import Line, fail, line_of, of_data, of_model, size, warn
from rlmods.doctor.values import Interval
from rlmods.doctor.world_model_traps import traps

# Of the authors' own tasks: steps replayed for each environment step.
_LEAST_RATIO, _MOST_RATIO = 32.0, 1_024.0
_LARGE_BETA_REP = 0.5
_SLOW_WARM_UP = 0.25  # of all updates
_FEWEST_BINS = 41


def examine_world_model(
    model: DreamerV3, data: ExperienceDataModule, budget: Budget, bound: Interval | None
) -> list[Line]:
    """What the settings say; then the traps, tried on a small copy of the module.

    Args:
        model: as the run would train it.
        data: that it would learn from.
        budget: of the run.
        bound: of the task's values; None where the rewards are not known.
    """
    settings = model.hparams
    lines = [
        kl(model.choices.beta_dyn, settings["beta_rep"], model.free_nats, settings["unimix"]),
        value_support(model.critic.bound, settings["num_bins"], settings["log_bound"], bound),
        warm_up(model.choices.learning_rate_warmup, budget.num_updates),
    ]
    if isinstance(data, SequenceDataModule):
        rows = data.batch_size * data.batch_length
        lines.append(train_ratio(data.train_ratio, data.batch_size, data.batch_length))
        lines.append(memory(model, rows))
    return [*lines, *traps(model)]


def train_ratio(ratio: float, batch_size: int, batch_length: int) -> Line:
    """Updates for each environment step, next to those of the authors."""
    per_step = ratio / (batch_size * batch_length)
    return line_of(
        "train_ratio",
        f"train_ratio {ratio:g} / ({batch_size} sequences x {batch_length} steps) = {per_step:.4g} updates for each "
        f"environment step; the authors replay {_LEAST_RATIO:g} (Atari) to {_MOST_RATIO:g} (control from vectors) "
        "steps for each",
        warn(
            ratio < _LEAST_RATIO,
            "That is less than any of theirs: the model learns long after the data have come",
            of_data("train_ratio", 256),
        ),
        warn(
            ratio > _MOST_RATIO,
            "That is more than any of theirs: the model learns what it has by heart",
            of_data("train_ratio", 512),
        ),
    )


def kl(beta_dyn: float, beta_rep: float, free_nats: float, unimix: float) -> Line:
    """The balance between prior and posterior."""
    return line_of(
        "kl",
        f"beta_dyn {beta_dyn:g}, beta_rep {beta_rep:g}, free_nats {free_nats:g}, unimix {unimix:g}; the authors use 1, "
        "0.1, 1, 0.01",
        fail(beta_dyn == 0.0, "Nothing moves the prior: dreams are not of this world", of_model("beta_dyn", 1.0)),
        warn(
            unimix == 0.0,
            "Without a share of the uniform distribution a KL may be infinite, and latents that are certain stay so",
            of_model("unimix", 0.01),
        ),
        warn(
            beta_rep > _LARGE_BETA_REP * max(beta_dyn, 1e-9),
            "The posterior is pulled to the prior nearly as hard as the prior to it: it forgets what it sees",
            of_model("beta_rep", 0.1),
        ),
        warn(
            free_nats == 0.0,
            "No nat is free: the posterior gives up details of the observation to be foreseen",
            of_model("free_nats", 1.0),
        ),
    )


def value_support(last_bin: float, num_bins: int, log_bound: float, bound: Interval | None) -> Line:
    """The bins of the value against the values of the task."""
    arithmetic = f"{num_bins} bins to symexp({log_bound:g}) = {last_bin:.4g}"
    if bound is None:
        return line_of(
            "value_support",
            arithmetic + "; the task's values are not known",
            warn(
                last_bin < 1e4,
                "Whether it holds them nobody knows, and a value at its end looks like one that has settled",
                of_model("log_bound", 20.0) + ", or --data.init_args.reward_bounds [LOW,HIGH] of one step",
            ),
        )
    return line_of(
        "value_support",
        f"{arithmetic}; values lie in {bound.text}",
        fail(
            not Interval(-last_bin, last_bin).holds(bound),
            "A policy that is good enough has a value that the critic cannot say: all advantages are positive there",
            of_model("log_bound", 20.0),
        ),
        warn(
            num_bins < _FEWEST_BINS,
            "Neighbouring bins are far apart: a value is the mean of two numbers of different size",
            of_model("num_bins", 255),
        ),
    )


def warm_up(updates: int, num_updates: int) -> Line:
    """The rise of the learning rate, within all updates of the run."""
    share = updates / max(num_updates, 1)
    return line_of(
        "learning_rate_warmup",
        f"{updates:,} updates of {num_updates:,}: {share:.0%} of the run",
        warn(
            share > _SLOW_WARM_UP,
            "The learning rate rises for more than a quarter of the run",
            of_model("learning_rate_warmup", max(num_updates // 20, 1)),
        ),
    )


def memory(model: DreamerV3, rows: int) -> Line:
    """Of the networks, and of what an update keeps for its gradients: about twelve vectors as wide as a state."""
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    width = model.world_model.rssm.num_features
    dreamt = rows * (model.imagination_horizon + 1)
    kept = 4 * width * (12 * rows + 2 * dreamt)
    return Line(
        "PASS",
        "size",
        f"size {model.hparams['size']}: {parameters:,} parameters, {size(16 * parameters)} with gradients and two "
        f"moments; states of {width:,} numbers, {rows:,} of them and {dreamt:,} dreamt ones in an update: about "
        f"{size(kept)}",
    )
