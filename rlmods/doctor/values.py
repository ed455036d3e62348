"""What values can be under the configured rewards and discount, and what looks at them. Thresholds stand here."""

from collections.abc import Sequence
from typing import NamedTuple

from rlmods.doctor.line import Line, fail, line_of, of_data, of_model, warn

_LONG_HORIZON = 10.0  # times the longest episode
_SHORT_HORIZON = 0.01
_WIDE = 10.0  # times the bound
_FEWEST_ATOMS = 10  # within the bound


class Interval(NamedTuple):
    """In which a value lies."""

    low: float
    high: float

    @property
    def text(self) -> str:
        """In words."""
        return f"[{self.low:.4g}, {self.high:.4g}]"

    @property
    def size(self) -> float:
        """From end to end."""
        return self.high - self.low

    def holds(self, other: "Interval") -> bool:
        """Whether another lies in it, up to rounding."""
        slack = 1e-6 * max(abs(other.low), abs(other.high))
        return self.low <= other.low + slack and self.high >= other.high - slack


def discounting(gamma: float, n_steps: int, max_episode_steps: int | None, *, bootstraps_after: bool) -> Line:
    """The effective horizon and what an n-step target leaves to the bootstrap.

    Args:
        gamma: of one step, in [0, 1).
        n_steps: of a target, or of a rollout.
        max_episode_steps: None where there is no limit.
        bootstraps_after: whether every target is an n-step return; of rollouts λ decides.
    """
    horizon = 1.0 / (1.0 - gamma)
    arithmetic = f"gamma {gamma:g}: horizon 1/(1 - gamma) = {horizon:,.4g} steps"
    if bootstraps_after:
        arithmetic += f"; gamma^n = {gamma:g}^{n_steps} = {gamma**n_steps:.4g} of a target is the bootstrap value"
    longest = max_episode_steps or 0
    if longest:
        arithmetic += f"; episodes end after {longest:,}, where a reward is worth {gamma**longest:.2g} at the start"
    return line_of(
        "discounting",
        arithmetic,
        warn(
            bool(longest) and horizon > _LONG_HORIZON * longest,
            "The horizon is more than ten times the longest episode: most of a value lies beyond the time limit, where "
            "no data are",
            of_data("gamma", f"{1.0 - 1.0 / longest:.4g}" if longest else ""),
        ),
        warn(
            bool(longest) and horizon < _SHORT_HORIZON * longest,
            "The horizon is less than a hundredth of the longest episode: what comes later counts for nothing",
            of_data("gamma", f"{1.0 - 5.0 / max(longest, 10):.4g}"),
        ),
        warn(
            bootstraps_after and n_steps > horizon,
            "A target reaches beyond the horizon: it is nearly the return of old policies, uncorrected",
            of_data("n_steps", max(int(horizon / 10.0), 1)),
        ),
    )


def value_bound(bound: Interval | None, rewards: Sequence[float] | None, gamma: float) -> Line:
    """The interval in which every policy's value lies."""
    if bound is None or rewards is None:
        return Line(
            "PASS",
            "value_bound",
            "not known: neither the environment nor reward_bounds says how large a reward can be",
            "With it, clamps and supports are checked before the run; safeguards find the interval from the data",
        )
    return Line(
        "PASS",
        "value_bound",
        f"rewards in [{rewards[0]:g}, {rewards[1]:g}] and gamma {gamma:g}: every policy's values lie in {bound.text}",
        "A value outside is no value, whatever the loss says",
    )


def clamp(name: str, given: tuple[float | None, float | None], bound: Interval | None, *, cuts: bool) -> Line:
    """An interval that a safeguard was given, against what values can be.

    Args:
        name: of the safeguard.
        given: its `low` and `high`; None is found from the data.
        bound: of the values; None where it is not known.
        cuts: whether it changes the targets outside, and not only speaks of them.
    """
    low, high = given
    if low is None and high is None:
        return Line("PASS", name, "the interval is found from the rewards and discounts that are seen")
    if bound is None:
        return Line("PASS", name, f"[{low}, {high}] as given; the value bound is not known")
    own = Interval(bound.low if low is None else low, bound.high if high is None else high)
    options = f"give {name} low {bound.low:.6g} and high {bound.high:.6g}, or neither"
    does = "cuts off values that are possible" if cuts else "speaks of values that are possible"
    return line_of(
        name,
        f"{own.text} as given, values lie in {bound.text}",
        fail(not own.holds(bound), f"It {does}", options),
        warn(
            own.size > _WIDE * bound.size,
            "It is more than ten times as wide as the values can be: a divergence shows late",
            options,
        ),
    )


def support(num_atoms: int, given: Interval, bound: Interval | None) -> Line:
    """The atoms of a distribution of returns against what values can be."""
    spacing = given.size / (num_atoms - 1)
    arithmetic = f"{num_atoms} atoms on {given.text}, {spacing:.4g} apart"
    if bound is None:
        return line_of(
            "support",
            arithmetic,
            warn(
                True,
                "Whether it holds all values is not known",
                "type --data.init_args.reward_bounds [LOW,HIGH] of one step",
            ),
        )
    within = bound.size / spacing
    return line_of(
        "support",
        f"{arithmetic}; values lie in {bound.text}, {within:,.3g} atoms of it",
        fail(
            not given.holds(bound),
            "Values that are possible lie outside, and are projected to its ends",
            f"type --model.init_args.v_min {bound.low:.6g} --model.init_args.v_max {bound.high:.6g}",
        ),
        warn(
            within < _FEWEST_ATOMS,
            "Nearly all atoms lie where no value can be",
            f"type --model.init_args.v_min {bound.low:.6g} --model.init_args.v_max {bound.high:.6g}",
        ),
    )


def value_clip(clip_range_vf: float, bound: Interval, num_iterations: int) -> Line:
    """How many rollouts a clipped value needs to cross what values can be."""
    rollouts = max(abs(bound.low), abs(bound.high)) / clip_range_vf
    return line_of(
        "clip_range_vf",
        f"a value is pulled at most {clip_range_vf:g} from the old one in a rollout: {rollouts:,.4g} rollouts from 0 "
        f"to the end of {bound.text}, the run has {num_iterations:,}",
        warn(
            rollouts > 0.5 * num_iterations,
            "The values hardly get to where they have to be",
            of_model("clip_range_vf", "null"),
        ),
    )
