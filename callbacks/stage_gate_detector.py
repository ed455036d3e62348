"""The gates of a run's stages: which checks each makes, what it said, and whether training may go on. Pure."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rlmods.callbacks.detectors import Severity, Verdict
from rlmods.callbacks.stage_checks import (
    StageCheck,
    StageEvidence,
    above_random,
    alarms,
    critic_error,
    environments_untouched,
    gradients,
    improving,
    no_decline,
    q_policy_gap,
    q_range,
    saturation,
    score,
    terminal_share,
)

_EACH = (alarms, q_range, environments_untouched)
CHECKS: Mapping[str, tuple[Callable[[StageEvidence], StageCheck], ...]] = {
    "G0": (gradients, alarms),
    "G1": (*_EACH, q_policy_gap, saturation),
    "G2": (*_EACH, above_random, no_decline, critic_error),
    "G3": (*_EACH, above_random, improving, terminal_share),
    "G4": (*_EACH, above_random, score),
}


class GateVerdict(NamedTuple):
    """What a gate said; `to_dict` is what checkpoints, events and reports hold."""

    gate: str
    planned: int  # environment steps; of G0, updates
    env_steps: int  # when it was decided
    checks: list[StageCheck]
    forced: bool = False  # whether somebody let the run go on all the same

    @property
    def failed(self) -> list[StageCheck]:
        """The checks that did not pass."""
        return [check for check in self.checks if check.passed is False]

    @property
    def passed(self) -> bool | None:
        """None where nothing could be checked."""
        answers = [check.passed for check in self.checks if check.passed is not None]
        return all(answers) if answers else None

    def verdicts(self) -> list[Verdict]:
        """One for each check that failed."""
        return [
            Verdict(
                f"{self.gate.lower()}_{check.name}",
                check.severity,
                f"stage gate {self.gate} at {self.env_steps} environment steps: {check.reason}: {check.advice}",
                {"gate": self.gate, "check": check.name, **check.observed},
            )
            for check in self.failed
        ]

    def describe(self) -> str:
        """In one line."""
        words = {None: "not checked", True: "passed", False: "failed"}
        counts = [f"{sum(check.passed is answer for check in self.checks)} {words[answer]}" for answer in words]
        return f"stage gate {self.gate} {words[self.passed]} ({', '.join(reversed(counts))})"

    def to_dict(self) -> dict[str, Any]:
        """Plain."""
        checks = {
            check.name: {
                "passed": check.passed,
                "severity": check.severity.name.lower(),
                "reason": check.reason,
                "observed": dict(check.observed),
                "advice": check.advice,
            }
            for check in self.checks
        }
        return {
            "gate": self.gate,
            "planned": self.planned,
            "env_steps": self.env_steps,
            "passed": self.passed,
            "forced": self.forced,
            "checks": checks,
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "GateVerdict":
        """The inverse."""
        checks = [
            StageCheck(name, **(fields | {"severity": Severity[fields["severity"].upper()]}))
            for name, fields in saved["checks"].items()
        ]
        return cls(saved["gate"], saved["planned"], saved["env_steps"], checks, saved["forced"])


def decide(gate: str, planned: int, env_steps: int, evidence: StageEvidence) -> GateVerdict:
    """The answers of all checks of a gate."""
    return GateVerdict(gate, planned, env_steps, [check(evidence) for check in CHECKS[gate]])


def refusal(stages: Mapping[str, Any]) -> str | None:
    """Why training does not go on from a checkpoint with these `stages`; None where it does.

    A gate blocks where a check failed, nobody has forced it yet, and the mode was not `observe`.
    """
    failures = [
        f"{gate['gate']} at {gate['env_steps']} environment steps, {name}: {check['reason']}"
        for stage in stages.values()
        if stage["enforced"]
        for gate in stage["gates"]
        if not gate["forced"]
        for name, check in gate["checks"].items()
        if check["passed"] is False
    ]
    if not failures:
        return None
    return (
        f"got a checkpoint of a run that failed a stage gate ({'; '.join(failures)}), expected one whose gates passed: "
        "mend the cause and start a new run, type --ckpt_path with a checkpoint from before the gate, or, to go on all "
        "the same, --force_gates true (in code StageGates(force=True))"
    )
