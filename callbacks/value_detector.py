"""What values must satisfy: the pure detector behind `ValueBoundGuard`."""

import math
from typing import Any, NamedTuple

from rlmods.callbacks.detectors import Confirmation, Severity, Verdict, verdict_fields, verdict_of

# Float32 targets are sums of a few products: their rounding stays far below this share of their size.
ROUNDING = 1e-3
# Share of a window's values that must lie outside for a warning: in runs that end well single ones pass by 40 %.
OUTSIDE = 0.1
# By how much of the interval's size they must pass it to be told in the first window, and not in the third.
FAR = 1.0

# Updates that a critic is given before it must explain anything.
LEARNING = 2_000


class ValueWindow(NamedTuple):
    """What one window measured; NaN where a batch or a module does not give it."""

    low: float  # of the interval that the transitions allow, or that was given
    high: float
    size: float  # high − low; of soft values, which have no low, high − the low of the rewards alone
    reward_low: float  # of the rewards (n-step sums) of all transitions so far
    reward_high: float
    q_low: float
    q_high: float
    q_outside: float  # share that lies beyond the interval by more than the slack
    target_low: float
    target_mean: float
    target_high: float
    target_outside: float
    start_low: float  # of the values and the targets of the first update, by the initial network
    start_mean: float  # of the targets alone
    start_high: float
    explained_variance: float
    error: float  # standard deviation of target − value
    updates: float  # so far
    discount: float  # the highest
    terminal_discount: float  # the highest of a terminated transition
    terminal_error: float  # max |target − reward| over terminated transitions
    identity_error: float  # max |td_error − (td_target − q_value)|
    terminated: float  # share of the transitions
    truncated: float
    unchanged: float  # share of the transitions whose next observation equals the observation
    transitions: float  # measured in this window
    requires_grad: float  # 1 where a target carried a graph
    episode_length: float  # mean of the training episodes; NaN before the first has ended
    terminations_lost: float  # episodes that terminated, less the terminated transitions that were stored of them
    discount_ignored: float  # by how much targets made with half the discount miss half of the bootstrap
    bootstrap_outside: float  # by how much the bootstrap lies outside the discounted values of the target networks
    entropy: float  # of soft values: the policy's, in nats, in the cube
    largest_entropy: float  # that any density in the cube has


class Gap(NamedTuple):
    """Q at the start states against the discounted return that the evaluation got."""

    mean: float  # over the episodes
    sem: float  # standard error of the mean
    discounted_return: float


class ValueDetector:
    """Identities and bounds of values and targets; see `ValueBoundGuard` for what they mean.

    Args:
        slack: share of the interval's size by which a value may pass it.
        gap: share of the discounted return by which Q may exceed it.
    """

    def __init__(self, *, slack: float, gap: float) -> None:
        if slack < 0.0:
            raise ValueError(f"ValueBoundGuard got slack = {slack}, expected a share of the interval, at least 0")
        if gap <= 0.0:
            raise ValueError(f"ValueBoundGuard got gap = {gap}, expected a share of the return, above 0")
        self.slack = slack
        self.gap = gap
        self.reset()

    def reset(self) -> None:
        """Start anew: at the beginning, and after the weights have jumped."""
        self.excess: list[float] = []  # of the last windows, in shares of the interval's size
        self.diverges = False
        self.discount_ignored = math.nan  # of the last probe, as a share of the targets' size
        self.bootstrap_outside = math.nan
        self.carries_graph = False
        self.outside = {name: Confirmation(3, 3) for name in ("q_value", "td_target")}
        self.beyond = Confirmation(3, 3)
        self.passed: list[Any] = []  # of the values that went farthest beyond, too few for a warning
        self.unexplained = Confirmation(4, 4)
        self.unchanged = Confirmation(3, 3)
        self.overestimated = Confirmation(3, 3)
        self.too_random = Confirmation(3, 3)
        self.first_gap = math.nan
        self.reward: list[float] = []  # low and high of the window before
        self.reward_windows = 0
        self.reward_alarm: list[Any] = []
        self.ends_expected = 0.0
        self.ends_seen = 0.0
        self.terminated_seen = 0.0
        self.transitions_seen = 0.0
        self.gap_verdicts: list[Verdict] = []

    def update(self, window: ValueWindow) -> list[Verdict]:
        """Take in a window."""
        verdicts = [
            *self._identities(window),
            *self._probed(window),
            *self._unchanged(window),
            *self._bounds(window),
            *self._episode_ends(window),
            *self._reward_range(window),
            *self._explained(window),
            *self._entropy(window),
        ]
        return [*verdicts, *self.gap_verdicts]

    # Identities: they hold exactly, in every run

    def _identities(self, window: ValueWindow) -> list[Verdict]:
        size = max(abs(window.target_low), abs(window.target_high), 1e-6)
        verdicts = []
        if window.discount >= 1.0:
            verdicts.append(
                Verdict(
                    "discount_not_below_one",
                    Severity.ACT,
                    f"a transition has the discount {window.discount:.6g}, expected below 1: with it values have no "
                    "bound and the Bellman operator is no contraction; set gamma below 1",
                    {"discount": window.discount},
                )
            )
        if window.terminal_discount > 0.0:
            verdicts.append(
                Verdict(
                    "bootstraps_through_termination",
                    Severity.ACT,
                    f"a terminated transition has the discount {window.terminal_discount:.4g}, expected 0: the target "
                    "adds a value after the end; store discount = γ^horizon · (1 − terminated)",
                    {"terminal_discount": window.terminal_discount},
                )
            )
        elif window.terminal_error > ROUNDING * size:
            verdicts.append(
                Verdict(
                    "bootstraps_through_termination",
                    Severity.ACT,
                    f"the target of a terminated transition differs from its reward by {window.terminal_error:.4g}, "
                    "expected 0: the target adds a value after the end; multiply the bootstrap value by the batch's "
                    "discount, which is 0 there",
                    {"terminal_error": window.terminal_error, "tolerance": ROUNDING * size},
                )
            )
        if window.identity_error > ROUNDING * size:
            verdicts.append(
                Verdict(
                    "td_error_mismatch",
                    Severity.ACT,
                    f"td_error differs from td_target − q_value by {window.identity_error:.4g}: what is logged and fed "
                    "back as priority is not the error that was learned from",
                    {"identity_error": window.identity_error, "tolerance": ROUNDING * size},
                )
            )
        if not math.isnan(window.requires_grad):
            self.carries_graph = window.requires_grad > 0.0
        if self.carries_graph:
            verdicts.append(
                Verdict(
                    "no_stop_gradient",
                    Severity.WARN,
                    "the bootstrap target carries a graph: unless the loss detaches it, the gradient also flows "
                    "through the target, which moves towards the prediction; compute it under torch.no_grad()",
                    {},
                )
            )
        return verdicts

    def _probed(self, window: ValueWindow) -> list[Verdict]:
        """What the last probe said, until the next."""
        size = max(abs(window.target_low), abs(window.target_high), 1e-6)
        if not math.isnan(window.discount_ignored):
            self.discount_ignored = window.discount_ignored / size
        if not math.isnan(window.bootstrap_outside):
            self.bootstrap_outside = window.bootstrap_outside / size
        if self.discount_ignored > ROUNDING:
            return [
                Verdict(
                    "discount_ignored",
                    Severity.ACT,
                    "with half the discount the module's td_target does not add half the bootstrap value (it misses it "
                    f"by {self.discount_ignored:.2g} of the targets' size): it uses another discount than the batch's, "
                    "which knows about termination and the horizon; write reward + discount · value",
                    {"relative_error": self.discount_ignored, "tolerance": ROUNDING},
                )
            ]
        if self.bootstrap_outside > ROUNDING:
            return [
                Verdict(
                    "discount_mismatch",
                    Severity.WARN,
                    "what td_target adds to the reward lies outside the batch's discount times what the target network "
                    f"says of the next state, by {self.bootstrap_outside:.2g} of the targets' size: another factor "
                    "comes in (a second γ, a scale), or another value than the target network's",
                    {"relative_error": self.bootstrap_outside, "tolerance": ROUNDING},
                )
            ]
        return []

    def _unchanged(self, window: ValueWindow) -> list[Verdict]:
        if self.unchanged.update(window.unchanged > 0.95):
            return [
                Verdict(
                    "next_observation_equals_observation",
                    Severity.WARN,
                    f"in {window.unchanged:.0%} of the transitions the next observation equals the observation: a step "
                    "seems to store the same frame twice (an array that the environment reuses needs a copy)",
                    {"share": window.unchanged, "threshold": 0.95},
                )
            ]
        return []

    # Bounds: no policy has a value outside

    def _bounds(self, window: ValueWindow) -> list[Verdict]:
        ends = [abs(end) for end in (window.low, window.high) if not math.isinf(end)]
        size = max(window.size, *ends)
        if not (math.isfinite(size) and size > 0.0):
            return []
        # Values that begin outside, because rewards are small against the initial network, stay or come closer; a
        # divergence goes away.
        start_over = _over(window.start_low, window.start_high, window) / size
        start_excess = _over(window.start_mean, window.start_mean, window) / size
        verdicts = []
        for name, lowest, highest, outside in (
            ("q_value", window.q_low, window.q_high, window.q_outside),
            ("td_target", window.target_low, window.target_high, window.target_outside),
        ):
            over = _over(lowest, highest, window) / size
            passes = outside > 0.0 and over > max(self.slack, 2.0 * start_over)
            if passes and (not self.passed or over > self.passed[-1]):
                self.passed = [name, lowest, highest, outside, over]
            confirmation = self.outside[name]
            confirmation.update(passes and outside > OUTSIDE)
            confirmation.is_on |= confirmation.recent[-1] and over > FAR
            if confirmation.is_on:
                verdicts.append(self._outside(name, lowest, highest, over, Severity.WARN, window))
        # The mean, because single values pass the bound in runs that end well.
        excess = _over(window.target_mean, window.target_mean, window) / size
        self.excess = [*self.excess, excess][-6:]
        grows = len(self.excess) == 6 and min(self.excess[3:]) > max(self.excess[:3])
        is_beyond = self.beyond.update(excess > max(0.25, 5.0 * self.slack, 2.0 * start_excess))
        self.diverges = is_beyond and (self.diverges or grows or excess > 10.0)
        if self.diverges:
            verdicts = [
                self._outside(
                    "target_mean", window.target_mean, window.target_mean, self.excess[-1], Severity.ACT, window
                )
            ]
        return [*verdicts, *([self._passed(window)] if self.passed and not verdicts else [])]

    def _passed(self, window: ValueWindow) -> Verdict:
        """Too few for a warning. Once seen it stays on record: a maximum comes and goes."""
        name, lowest, highest, share, over = self.passed
        message = (
            f"{name} has reached from {lowest:.4g} to {highest:.4g}: {share:.2%} of a window's values lay outside "
            f"[{window.low:.4g}, {window.high:.4g}], beyond which no policy has a value. Single values pass it in runs "
            f"that end well too; from {OUTSIDE:.0%} on it is a warning"
        )
        evidence = {
            "lowest": lowest,
            "highest": highest,
            "interval": [window.low, window.high],
            "over": over,
            "slack": self.slack,
            "share": share,
            "threshold": OUTSIDE,
        }
        return Verdict("values_pass_bound", Severity.INFO, message, evidence)

    def _outside(
        self, name: str, lowest: float, highest: float, over: float, severity: Severity, window: ValueWindow
    ) -> Verdict:
        cause = "value_out_of_bounds" if name == "q_value" else "target_out_of_bounds"
        message = (
            f"{name} reaches from {lowest:.4g} to {highest:.4g}, but with the rewards and discounts that were seen no "
            f"policy has a value outside [{window.low:.4g}, {window.high:.4g}]: {over:.0%} of the interval's size "
            "beyond it. Q diverges; look at the target network, the discount, the learning rate, in this order"
        )
        evidence = {
            "lowest": lowest,
            "highest": highest,
            "interval": [window.low, window.high],
            "over": over,
            "slack": self.slack,
            "share": window.q_outside if name == "q_value" else window.target_outside,
            "threshold": OUTSIDE,
            "windows": 1 if over > FAR else 3,
        }
        return Verdict(cause, severity, message, evidence)

    def _entropy(self, window: ValueWindow) -> list[Verdict]:
        # A quarter above, because a mini-batch's mean scatters.
        if not self.too_random.update(window.entropy > 1.25 * window.largest_entropy):
            return []
        message = (
            f"the policy's entropy is {window.entropy:.3g} nats, but no density on [-1, 1]^A has more than "
            f"{window.largest_entropy:.3g}: log π is another density's (without the slope of the tanh, or in other "
            "units), and so are the soft values and the temperature made with it"
        )
        evidence = {"entropy": window.entropy, "largest": window.largest_entropy, "threshold": 1.25, "windows": 3}
        return [Verdict("entropy_above_cube", Severity.WARN, message, evidence)]

    # The ends of episodes

    def _episode_ends(self, window: ValueWindow) -> list[Verdict]:
        if window.terminations_lost > 0.0:
            message = (
                f"{window.terminations_lost:.0f} more episodes have terminated than terminated transitions were "
                "stored, expected at least one of each episode: targets bootstrap beyond terminal states; store the "
                "flag, and discount = γ^horizon · (1 − terminated)"
            )
            evidence = {"terminations_lost": window.terminations_lost}
            return [Verdict("episode_ends_not_stored", Severity.ACT, message, evidence)]
        episode_length = window.episode_length
        if math.isnan(episode_length + window.transitions + window.terminated):
            return []
        self.transitions_seen += window.transitions
        self.ends_expected += window.transitions / max(episode_length, 1.0)
        self.ends_seen += window.transitions * (window.terminated + window.truncated)
        self.terminated_seen += window.transitions * window.terminated
        evidence = {
            "episode_length": episode_length,
            "transitions": self.transitions_seen,
            "ends_expected": self.ends_expected,
            "ends_seen": self.ends_seen,
            "terminated": self.terminated_seen,
        }
        # With 25 expected and independent draws, none has the probability e⁻²⁵; replay repeats itself, hence 100.
        if self.ends_expected > 100.0 and self.ends_seen == 0.0:
            message = (
                f"episodes end after {episode_length:.0f} steps, but of {self.transitions_seen:.0f} transitions drawn "
                "none is terminated or truncated: the ends are not stored, and targets bootstrap across them into the "
                "next episode or beyond a terminal state; store both flags"
            )
            return [Verdict("episode_ends_not_stored", Severity.ACT, message, evidence)]
        if self.ends_expected > 100.0 and self.terminated_seen == 0.0:
            message = (
                f"of {self.ends_seen:.0f} episode ends drawn none is terminated, all are truncated: right where only a "
                "time limit ends episodes, else targets bootstrap beyond terminal states"
            )
            return [Verdict("no_termination_seen", Severity.INFO, message, evidence)]
        return []

    # The scale of the rewards

    def _reward_range(self, window: ValueWindow) -> list[Verdict]:
        low, high = window.reward_low, window.reward_high
        if not (math.isfinite(low) and math.isfinite(high)):
            return []
        before, self.reward = self.reward, [low, high]
        if before and before != self.reward:
            size = max(map(abs, before))
            flips = (before[0] > 0.0 > low) or (before[1] < 0.0 < high)
            grows = max(abs(low), abs(high)) > 3.0 * size > 0.0
            if self.reward_windows >= 6 and (flips or grows):
                self.reward_alarm = [*before, low, high]
            self.reward_windows = 0
        self.reward_windows += 1
        if not self.reward_alarm:
            return []
        old_low, old_high, new_low, new_high = self.reward_alarm
        message = (
            f"rewards, which had stayed in [{old_low:.4g}, {old_high:.4g}] for a long time, now reach "
            f"[{new_low:.4g}, {new_high:.4g}]: the reward function, its scale or its sign changed during the run, and "
            "replay holds both"
        )
        evidence = {"before": [old_low, old_high], "now": [new_low, new_high], "windows": 6}
        return [Verdict("reward_range_changed", Severity.WARN, message, evidence)]

    # What the critic explains

    def _explained(self, window: ValueWindow) -> list[Verdict]:
        value = window.explained_variance
        # Targets that hardly vary, as those of a solved task, are followed well enough without being explained.
        size = max(abs(window.target_low), abs(window.target_high))
        if math.isnan(value) or window.updates < LEARNING:
            return []
        if not self.unexplained.update(value < 0.0 and window.error > 0.05 * size):
            return []
        message = (
            f"the critic explains {value:.2f} of the variance of its targets, less than a constant would (0), in 4 "
            "windows: it does not follow them. Look whether its gradients arrive and whether it is updated, then at "
            "the scale of the rewards against the gradient clip"
        )
        evidence = {"explained_variance": value, "threshold": 0.0, "error": window.error, "windows": 4}
        return [Verdict("critic_does_not_explain", Severity.WARN, message, evidence)]

    # Q against what really came

    def update_gap(self, gap: Gap, low: float, high: float) -> None:
        """Take in an evaluation; its verdict comes with the next window."""
        size = max(abs(gap.discounted_return), 0.25 * (high - low) if math.isfinite(high - low) else 0.0, 1e-6)
        share = gap.mean / size
        if math.isnan(self.first_gap):
            self.first_gap = gap.mean
        # A network that begins at 0 overestimates a task of costs, and comes closer.
        significant = gap.mean > max(3.0 * gap.sem, 1.5 * self.first_gap)
        self.gap_verdicts = []
        if self.overestimated.update(significant and share > self.gap):
            message = (
                f"Q at the start states exceeds the discounted return that the evaluation got by {gap.mean:.4g} "
                f"(± {gap.sem:.2g}, {share:.0%} of the return {gap.discounted_return:.4g}), in 3 evaluations in a row: "
                "Q is overestimated. Look for a target that bootstraps too much (terminal states, discount), a target "
                "network that does not lag, or a learning rate too high"
            )
            evidence = {**gap._asdict(), "share": share, "threshold": self.gap, "evaluations": 3}
            self.gap_verdicts = [Verdict("value_gap", Severity.WARN, message, evidence)]

    def state_dict(self) -> dict[str, Any]:
        """Everything that it remembers."""
        confirmations = {name: confirmation.state_dict() for name, confirmation in self._confirmations().items()}
        numbers = {name: getattr(self, name) for name in _REMEMBERED}
        gaps = [verdict_fields(verdict) for verdict in self.gap_verdicts]
        return {"confirmations": confirmations, "numbers": numbers, "gaps": gaps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        for name, confirmation in self._confirmations().items():
            confirmation.load_state_dict(state_dict["confirmations"][name])
        for name in _REMEMBERED:
            setattr(self, name, state_dict["numbers"][name])
        self.gap_verdicts = [verdict_of(fields) for fields in state_dict["gaps"]]

    def _confirmations(self) -> dict[str, Confirmation]:
        named = ("beyond", "unexplained", "unchanged", "overestimated", "too_random")
        return {**self.outside, **{name: getattr(self, name) for name in named}}


def _over(lowest: float, highest: float, window: ValueWindow) -> float:
    """By how much values pass the interval; negative inside."""
    return max(highest - window.high, window.low - lowest)


_REMEMBERED = (
    "excess",
    "passed",
    "diverges",
    "first_gap",
    "discount_ignored",
    "bootstrap_outside",
    "carries_graph",
    "reward",
    "reward_windows",
    "reward_alarm",
    "ends_expected",
    "ends_seen",
    "terminated_seen",
    "transitions_seen",
)
