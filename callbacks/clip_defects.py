"""Whether the clip does what it is declared to do: the pure detector behind `GradientClipVerifier`."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rlmods.callbacks.clip_measurement import ClipMeasurement, as_sum_of_norms, how_changed
from rlmods.callbacks.detectors import Confirmation, Severity, Verdict

# Windows for which a verdict stays: a limit that is exceeded now and then is one alarm, and not one a time.
_STAYS = 8
# Updates before the use of the clip is judged: at the start of training gradients may be large.
_ARMED = 500
_HISTORY = 10


class ClipDetector:
    """See `GradientClipVerifier` for what each cause means.

    Args:
        depth: components of a parameter's name that make a module.
    """

    def __init__(self, *, depth: int) -> None:
        self.depth = depth
        self.reset()

    def reset(self) -> None:
        """Start anew: at the beginning, and after the weights have jumped."""
        self.staying: dict[str, list[Any]] = {}  # by cause and group: windows left, severity, message, evidence
        self.changes: dict[str, dict[str, Any]] = {}  # by group: how the gradients above the limit were changed
        self.use: dict[str, list[list[float]]] = {}  # by group, of the last windows: clipped, samples, median ratio
        self.largest: dict[str, dict[str, float]] = {}  # by group, by tensor: −1 where there was never a gradient
        self.samples: dict[str, int] = {}
        self.history: dict[str, list[float]] = {}  # by module: norms of the last windows
        self.peaks: dict[str, float] = {}  # by module: the highest norm before those
        self.confirmations: dict[str, Confirmation] = {}

    def update(
        self,
        measurements: Sequence[ClipMeasurement],
        metrics: Mapping[str, float],
        reported: Sequence[ClipMeasurement],
        error_ratio: float = 1.0,
    ) -> list[Verdict]:
        """Take in a window.

        Args:
            measurements: the updates that were measured.
            metrics: scalars of the user whose names say "norm".
            reported: those of the measurements that the metrics are about.
            error_ratio: the squared error that is learned from, as a share of the largest so far.
        """
        groups: dict[str, list[ClipMeasurement]] = {}
        for measurement in measurements:
            groups.setdefault(measurement.group, []).append(measurement)
        found: list[tuple[str, Verdict]] = []
        modules: dict[str, float] = {}
        for group, of_group in groups.items():
            finite = [m for m in of_group if all(map(math.isfinite, [*m.after, *(m.before or ())]))]
            verdicts = [*_non_finite(of_group), *_leftover(finite), *self._dangling(group, finite)]
            verdicts += [*self._limit(group, finite), *self._no_gradient(group, finite), *self._use(group, finite)]
            found += [(group, verdict) for verdict in verdicts]
            modules |= {f"{group}/{module}": norm for module, norm in self.module_norms(finite).items()}
        found += [("", verdict) for verdict in [*self._band(modules, error_ratio), *self._explain(metrics, reported)]]
        self._stay(found, any(groups))
        return self.present()

    def module_norms(self, measurements: Sequence[ClipMeasurement]) -> dict[str, float]:
        """The median over measurements of one group, by module."""
        norms: dict[str, list[float]] = {}
        for measurement in measurements:
            for module, norm in measurement.modules(self.depth).items():
                norms.setdefault(module, []).append(norm)
        return {module: statistics.median(of_module) for module, of_module in norms.items()}

    def _stay(self, found: list[tuple[str, Verdict]], has_updates: bool) -> None:
        """Add what was found in the last windows that had updates."""
        if has_updates:
            for state in self.staying.values():
                state[0] -= 1
            self.staying = {key: state for key, state in self.staying.items() if state[0] > 0}
        for group, (cause, severity, message, evidence) in found:
            self.staying[f"{cause} {group}"] = [_STAYS, int(severity), message, dict(evidence)]
        troubled = {key.partition(" ")[2] for key in self.staying}
        self.changes = {group: change for group, change in self.changes.items() if group in troubled}

    def present(self) -> list[Verdict]:
        """What was found in this window and the last ones."""
        return [
            Verdict(key.partition(" ")[0], Severity(severity), message, evidence)
            for key, (_, severity, message, evidence) in self.staying.items()
        ]

    def _confirmed(self, key: str, positive: bool, needed: int) -> bool:
        return self.confirmations.setdefault(key, Confirmation(needed, needed)).update(positive)

    def _limit(self, group: str, measurements: list[ClipMeasurement]) -> list[Verdict]:
        """C1, C2, C3, C6, C7, C16: a step used more than the limit; how its gradients were changed says why."""
        exceeded = [measurement for measurement in measurements if measurement.is_exceeded]
        if not exceeded:
            return []
        changes = self.changes.setdefault(group, {"kinds": {}, "outside": None, "is_outside": False})
        for measurement in exceeded:
            _count_change(changes, measurement)
        worst = max(exceeded, key=lambda measurement: measurement.limited)
        cause, why = _diagnose(changes, worst)
        kind = "largest value" if worst.is_by_value else "L2 norm"
        message = (
            f"the gradients that the optimiser {group} used had the {kind} {worst.limited:.4g} at its update "
            f"{worst.update}, but must not exceed {worst.limit:.4g}: {why}"
        )
        evidence = {
            "group": group,
            "limit": worst.limit,
            "measured": worst.limited,
            "norm_before": worst.norm_before,
            "tolerance": worst.tolerance,
            "update": worst.update,
            "exceeded": len(exceeded),
            "measured_updates": len(measurements),
            "changes": dict(changes["kinds"]),
            "outside": changes["outside"] or [],
        }
        if worst.is_certain:
            return [Verdict(cause, Severity.ACT, message, evidence)]
        message += (
            "; there are several optimisers, and the limit may not be meant for this one: say so with "
            "GradientClipVerifier(max_norm={name: limit})"
        )
        return [Verdict(cause, Severity.WARN, message, evidence)]

    def _dangling(self, group: str, measurements: list[ClipMeasurement]) -> list[Verdict]:
        """C5: gradients of another optimiser's loss that are in a step; those that are zeroed in time harm nobody."""
        bad = [m for m in measurements if m.dangling > m.tolerance * m.norm_after]
        if not measurements or not self._confirmed(f"dangling {group}", bool(bad), 2) or not bad:
            return []
        last = bad[-1]
        message = (
            f"the loss of another optimiser left gradients of norm {last.dangling:.3g} on parameters of {group}, and "
            f"the backward pass of its update {last.update} added to them: its step followed both. Call zero_grad "
            "directly before the backward pass, or freeze these parameters in the other loss (toggle_optimizer)"
        )
        evidence = {"group": group, "dangling": last.dangling, "update": last.update, "updates": len(bad), "windows": 2}
        return [Verdict("dangling_gradients", Severity.WARN, message, evidence)]

    def _no_gradient(self, group: str, measurements: list[ClipMeasurement]) -> list[Verdict]:
        """C9: tensors that never had a gradient."""
        largest = self.largest.setdefault(group, {})
        for measurement in measurements:
            self.samples[group] = self.samples.get(group, 0) + 1
            for tensor, norm in zip(measurement.tensors, measurement.before or measurement.after, strict=True):
                largest[tensor] = max(largest.get(tensor, -1.0), norm)
        if self.samples.get(group, 0) < 20 or not measurements or measurements[-1].update < 99:
            return []
        absent = [tensor for tensor, norm in largest.items() if norm < 0.0]
        zero = [tensor for tensor, norm in largest.items() if norm == 0.0]
        if not absent + zero or max(largest.values()) <= 0.0:
            return []
        parts = [f"{_some(absent)}: None, not in the graph of the loss"] if absent else []
        parts += [f"{_some(zero)}: exactly 0, saturated or dead units, or multiplied by 0"] if zero else []
        message = (
            f"parameters of the optimiser {group} had no gradient in any of {self.samples[group]} measured updates "
            f"({'; '.join(parts)}): they are not trained; take them out of the optimiser, or find what cuts them off"
        )
        evidence = {"group": group, "none": absent, "zero": zero, "measured_updates": self.samples[group]}
        return [Verdict("no_gradient", Severity.WARN, message, evidence)]

    def _use(self, group: str, measurements: list[ClipMeasurement]) -> list[Verdict]:
        """C11, C12: how often the clip works, and for whom."""
        known = [m for m in measurements if m.limit is not None and m.norm_before]
        if not known:
            return []
        ratios = [m.norm_after / (m.norm_before or 1.0) for m in known]
        clipped = [m for m in known if m.is_clipped]
        windows = [*self.use.get(group, []), [len(clipped), len(known), statistics.median(ratios)]][-_HISTORY:]
        self.use[group] = windows
        verdicts = []
        share = sum(row[0] for row in windows) / sum(row[1] for row in windows)
        ratio = statistics.median(row[2] for row in windows)
        if len(windows) == _HISTORY and known[-1].update >= _ARMED and (share > 0.95 or ratio < 1e-3):
            message = (
                f"the clip of {group} at {known[-1].limit:.4g} worked in {share:.0%} of the measured updates "
                f"in {_HISTORY} windows, and left {ratio:.2g} of the gradient: it is no safety net, it normalises "
                "every gradient. Look at the scale of the rewards, or raise the limit; under Adam it is mostly harmless"
            )
            evidence = {"group": group, "clipped_fraction": share, "median_ratio": ratio, "windows": _HISTORY}
            # A gradient many times the limit says that the scale is wrong; a little more is what a small limit is for.
            severity = Severity.WARN if ratio < 0.05 else Severity.INFO
            verdicts.append(Verdict("clip_always_active", severity, message, evidence))
        shares = [_shares(m.modules(self.depth)) for m in clipped]
        dominated = sum(max(s.values()) > 0.999 and 0.0 < min(s.values()) < 1e-6 for s in shares if s)
        if clipped and self._confirmed(f"dominates {group}", 2 * dominated > len(clipped), 3):
            last = shares[-1]
            top = max(last, key=last.__getitem__)
            starved = [module for module, part in last.items() if part < 1e-6]
            message = (
                f"{top} has {last[top]:.2%} of the squared gradient norm of {group}, so the clip scales all modules by "
                f"what that one needs, and {_some(starved)} get next to nothing: clip them apart, or find why it is so "
                "large"
            )
            evidence = {"group": group, "share": last, "windows": 3}
            verdicts.append(Verdict("module_dominates", Severity.INFO, message, evidence))
        return verdicts

    def _band(self, norms: Mapping[str, float], error_ratio: float) -> list[Verdict]:
        """Modules that have left the band of their own past, downwards while others have not, or upwards.

        A gradient that falls with the error is the end of learning, not of the gradient.
        """
        relative: dict[str, float] = {}
        for module, norm in norms.items():
            past = self.history.setdefault(module, [])
            highest = max([self.peaks.get(module, 0.0), *past])
            relative[module] = norm / highest if highest > 0.0 else math.nan
        vanished, exploded = [], []
        for module, norm in norms.items():
            others = [part for other, part in relative.items() if other != module]
            is_low = relative[module] < min(1e-4, error_ratio) and any(part > 1e-2 for part in others)
            peak, past = self.peaks.get(module, 0.0), self.history[module]
            is_high = 0.0 < 100.0 * peak < norm
            if self._confirmed(f"vanished {module}", is_low, 3):
                vanished.append(module)
            if self._confirmed(f"exploded {module}", is_high, 2):
                exploded.append(module)
            past.append(norm)
            if len(past) > _HISTORY:
                self.peaks[module] = max(peak, past.pop(0))
        verdicts = []
        if vanished:
            message = (
                f"the gradient of {_some(vanished)} has fallen below 1e-4 of its own earlier maximum in 3 windows, and "
                "that of other modules has not: they no longer learn; look for saturated or dead units, a clip that "
                "another module dominates, a loss that is cut off"
            )
            evidence = {"modules": {m: [norms[m], relative[m]] for m in vanished}, "threshold": 1e-4, "windows": 3}
            verdicts.append(Verdict("vanished_gradient", Severity.WARN, message, evidence))
        if exploded:
            message = (
                f"the gradient of {_some(exploded)} is more than 100 times the highest that it had until "
                f"{_HISTORY} windows ago, in 2 windows: look at targets, reward scale and learning rate"
            )
            evidence = {"modules": {m: [norms[m], self.peaks[m]] for m in exploded}, "factor": 100.0, "windows": 2}
            verdicts.append(Verdict("exploding_gradient", Severity.WARN, message, evidence))
        return verdicts

    def _explain(self, metrics: Mapping[str, float], reported: Sequence[ClipMeasurement]) -> list[Verdict]:
        """C13: metrics that are sums of norms."""
        verdicts = []
        for name, value in metrics.items():
            sums = [found for measurement in reported if (found := as_sum_of_norms(value, measurement, self.depth))]
            if not self._confirmed(f"sum {name}", bool(sums), 2) or not sums:
                continue
            what, count, true, measurement = sums[0]
            verdict = ""
            if measurement.limit is not None:
                verdict = "the clip is NOT OK. " if measurement.is_exceeded else "clip OK, the metric is a sum. "
            message = (
                f"{name} = {value:.4g} is the sum of the L2 norms of {count} tensors of {what}, but their L2 norm is "
                f"{true:.4g}: {verdict}A sum is at most √{count} = {math.sqrt(count):.3g} times larger, and says "
                "nothing of a limit. Log torch.nn.utils.get_total_norm or rlmods.functional.norms.global_norm"
            )
            evidence = {
                "metric": name,
                "value": value,
                "l2_norm": true,
                "tensors": count,
                "largest_possible_ratio": math.sqrt(count),
                "limit": measurement.limit,
                "norm_after": measurement.norm_after,
            }
            verdicts.append(Verdict("sum_of_norms", Severity.INFO, message, evidence))
        return verdicts

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far."""
        plain = {name: value for name, value in vars(self).items() if name not in ("depth", "confirmations")}
        confirmations = {
            key: {"needed": confirmation.needed, **confirmation.state_dict()}
            for key, confirmation in self.confirmations.items()
        }
        return {**plain, "confirmations": confirmations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        for name, value in state_dict.items():
            if name != "confirmations":
                setattr(self, name, value)
        self.confirmations = {}
        for key, state in state_dict["confirmations"].items():
            self.confirmations[key] = Confirmation(state["needed"], state["needed"])
            self.confirmations[key].load_state_dict(state)


def _count_change(changes: dict[str, Any], measurement: ClipMeasurement) -> None:
    kind, unchanged = how_changed(measurement)
    kinds = changes["kinds"]
    kinds[kind] = kinds.get(kind, 0) + 1
    shrunk = measurement.norm_after * (1.0 - measurement.tolerance)
    if 0.0 < measurement.at_end < shrunk:
        kinds["at_end"] = kinds.get("at_end", 0) + 1
    elif 0.0 < measurement.at_next < shrunk:
        kinds["at_next"] = kinds.get("at_next", 0) + 1
    if kind == "partly":
        norms = dict(zip(measurement.tensors, measurement.after, strict=True))
        limit = (measurement.limit or 0.0) * (1.0 + measurement.tolerance)
        # A clip tensor by tensor would not leave one above the limit alone.
        changes["is_outside"] = changes["is_outside"] or any(norms[tensor] > limit for tensor in unchanged)
        earlier = changes["outside"]
        changes["outside"] = unchanged if earlier is None else [tensor for tensor in unchanged if tensor in earlier]


def _diagnose(changes: Mapping[str, Any], worst: ClipMeasurement) -> tuple[str, str]:
    """Cause and explanation, from what tells most to what tells least."""
    kinds, outside = changes["kinds"], changes["outside"]
    if "at_end" in kinds:
        return "clip_after_step", "they became smaller after the step had used them; clip between backward and step"
    if "at_next" in kinds:
        return "clip_before_backward", (
            "they became smaller after the iteration, before the next backward pass replaced them, so the clip works "
            "on gradients of the past; clip between backward and step"
        )
    if "reshaped" in kinds and not worst.is_by_value:
        return "clip_by_value", (
            "single values were clipped, not the norm, which also turns the direction; use clip_grad_norm_"
        )
    if "apart" in kinds:
        return "clip_per_group", (
            "parts of it were scaled by different factors, each has the whole limit for itself, and k parts together "
            "√k times the limit; clip all parameters in one call, or declare the limit of each group"
        )
    if "partly" in kinds and outside and (changes["is_outside"] or kinds["partly"] >= 20):
        return "parameter_outside_clip", f"{_some(outside)} were not clipped, the others were; clip all in one call"
    if "scaled" in kinds:
        return "clip_limit_exceeded", f"they were clipped, to another limit than {worst.limit:.4g} that is declared"
    if "unchanged" in kinds and "partly" not in kinds:
        return "clip_never_applied", "nothing was clipped; the declared limit reaches no clip, or one on no parameters"
    return "clip_limit_exceeded", (
        "look whether the clip covers all parameters of the optimiser, in one call, between the last backward and the "
        "step"
    )


def _non_finite(measurements: list[ClipMeasurement]) -> list[Verdict]:
    """C8: NaN or infinity in what a step used."""
    bad = [m for m in measurements if not all(map(math.isfinite, m.after))]
    if not bad:
        return []
    first = bad[0]
    # A clip spreads one NaN over all tensors: before it one sees where it comes from.
    norms = first.before if first.before and not all(map(math.isfinite, first.before)) else first.after
    tensors = [tensor for tensor, norm in zip(first.tensors, norms, strict=True) if not math.isfinite(norm)]
    message = (
        f"the gradients of {_some(tensors)} that the optimiser {first.group} used at its update {first.update} were "
        "not finite; a clip makes no such gradient good, it spreads it over all parameters: skip the update"
    )
    evidence = {"group": first.group, "tensors": tensors, "update": first.update, "updates": len(bad)}
    return [Verdict("non_finite_gradient", Severity.ACT, message, evidence)]


def _leftover(measurements: list[ClipMeasurement]) -> list[Verdict]:
    """C5: gradients of a step that are still there when those of the next are added."""
    seen = [m for m in measurements if m.leftover >= 0.0]
    bad = [m for m in seen if m.leftover > 0.0]
    # Who leaves a first few updates out of zero_grad on purpose, or by a warm-up, has no defect.
    if not bad or 2 * len(bad) < len(seen):
        return []
    last = bad[-1]
    message = (
        f"the backward pass of update {last.update} of {last.group} added to gradients of norm {last.leftover:.3g} "
        "that the step before had used already: they accumulate; call zero_grad between step and backward"
    )
    evidence = {"group": last.group, "leftover": last.leftover, "update": last.update, "updates": len(bad)}
    return [Verdict("accumulated_gradients", Severity.ACT, message, evidence)]


def _shares(norms: Mapping[str, float]) -> dict[str, float]:
    total = sum(norm * norm for norm in norms.values())
    return {module: norm * norm / total for module, norm in norms.items()} if total > 0.0 else {}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
