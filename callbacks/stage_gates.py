"""Staged validation: a short run must pass a gate before it may become a long one."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.evaluations import Evaluation
from rlmods.callbacks.events import append_event
from rlmods.callbacks.ownership import all_parameters
from rlmods.callbacks.safeguard import Mode, Safeguard, StepSafeguard, clock, makes_update
from rlmods.callbacks.seen_values import SeenValues, entropy_bonus
from rlmods.callbacks.stage_checks import Baseline, StageEvidence, baseline_of
from rlmods.callbacks.stage_gate_detector import CHECKS, GateVerdict, decide, refusal
from rlmods.types import TrainingEnvironments

GATES = tuple(CHECKS)
_FIRST_UPDATES = 100
_MERGE_EVERY = 8  # iterations
_EVALUATION = ("eval/mean_reward", "eval/std_reward", "eval/episodes")
_LOWEST, _HIGHEST = ("q_low",), ("q_high", "value_size")


class StageGates(StepSafeguard):
    """Decides at set times whether a run deserves more steps, and keeps a failed one from being resumed.

    G0 is decided after the first 100 updates, each other gate at the first evaluation at or after its environment
    steps (where the trainer does not evaluate: in the first iteration):

    | gate | checks |
    | --- | --- |
    | G0 | every trainable parameter in an optimiser got a gradient; no alarm of severity act |
    | each other | no such alarm; absolute Q at most 1.5 M; evaluations left the training environments untouched |
    | G1 | also: Q at the policy's actions is near Q at the data's; less than half of the actions are saturated |
    | G2 | also: better than an untrained policy by 2 standard errors; no decline; the critic explains its targets |
    | G3 | also: better than untrained; no worse in the later half of the evaluations; under 30 % terminal transitions |
    | G4 | also: better than untrained; the score, with its confidence interval |

    M is the size of the interval of values that the rewards and discounts so far allow. A check whose signal
    (`q_value`,
    `td_target`, `q_policy`, `pre_tanh`), evaluation or fingerprint is missing is "not checked", never passed. The
    untrained policy is that of the episodes that ended before the first update.

    Every gate is an event of kind `gate`, a curve `stability/<name>/<gate>` (1 passed, 0 failed), an entry of
    `checkpoint["stages"]` and a row of the report.

    Args:
        env_steps: of G1, G2, …: up to four, rising. A small task is gated earlier.
        baseline: mean return of an untrained policy; None takes the episodes before the first update.
        force: go on from a checkpoint with a failed gate; the gate is then marked as forced.
        name: of the instance, in curves and events.
        mode: after a failed gate `observe` only raises an alarm, `act` also refuses to resume from its checkpoints,
            `stop` also ends the run.

    Raises:
        ValueError: where an argument is outside its range; at a resume, where a gate had failed and `force` is False.
    """

    def __init__(
        self,
        *,
        env_steps: Sequence[int] = (5_000, 50_000, 100_000, 1_000_000),
        baseline: float | None = None,
        force: bool = False,
        name: str = "stage_gates",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        steps = list(env_steps)
        if not 1 <= len(steps) < len(GATES) or steps[0] < 1 or steps != sorted(set(steps)):
            raise ValueError(
                f"StageGates got env_steps = {steps}, expected one to four rising numbers of environment steps from 1 "
                "on: type for example [500, 5000]"
            )
        self.planned = dict(zip(GATES, [_FIRST_UPDATES, *steps], strict=False))
        self.force = force
        self.baseline = None if baseline is None else Baseline(baseline, 0.0, 0)
        self.gates: dict[str, GateVerdict] = {}
        self.evaluations: list[Evaluation] = []
        self._awaits_baseline = False  # the run was seen from its start, and has made no update yet
        self._untouched: bool | None = None
        self._fingerprint: str | None = None  # before the evaluation under way
        self._names: dict[int, str] = {}  # of the parameters, by id
        self._updates: dict[str, int] = {}  # by optimiser, under the name of its first parameter
        self._reached: dict[str, Tensor | None] = {}  # by parameter: whether it got a gradient; None: not yet
        self._latest: dict[str, Tensor] = {}  # signals
        self._restored: dict[str, float] = {}  # what they said before a resume
        self._unseen: list[tuple[Tensor, Tensor]] = []  # rewards and discounts
        self._seen = SeenValues()

    # What is collected

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn the parameters' names; put on record what was forced."""
        super().on_train_start(trainer, pl_module)
        self._names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
        if trainer.global_step == 0 and self.baseline is None:
            self._awaits_baseline = True
        for gate in [gate for gate in self.gates.values() if gate.failed and not gate.forced and self.force]:
            self.gates[gate.gate] = gate._replace(forced=True)
            message = f"StageGates: {gate.describe()}; the run goes on all the same, because it was forced"
            append_event(trainer, "gate", message, {"safeguard": self.name, **self.gates[gate.gate].to_dict()})

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before the first update ask what the untrained policy got; keep what this batch says of the values."""
        if not self._is_open():
            return
        if self._awaits_baseline and getattr(batch, "num_updates", True):
            self._awaits_baseline = False
            source = trainer.datamodule  # type: ignore[attr-defined]
            returns = source.episode_returns() if isinstance(source, TrainingEnvironments) else []
            self.baseline = baseline_of(trainer.strategy.broadcast(returns))
        transition = getattr(batch, "transition", batch)
        if not all(hasattr(transition, field) for field in ("reward", "discount")) or not transition.reward.numel():
            return
        # Copies: a view would keep the whole batch.
        self._unseen.append((transition.reward.flatten().clone(), transition.discount.flatten().clone()))
        if len(self._unseen) >= _MERGE_EVERY:
            self._see()
        self._seen.see_entropy(entropy_bonus(pl_module, None, transition))
        if hasattr(transition, "terminated"):
            self._latest["terminated"] = transition.terminated.clone()

    def _see(self) -> None:
        """Widen the interval of values by the batches that came since."""
        if self._unseen:
            reward, discount = (torch.cat(column) for column in zip(*self._unseen, strict=True))
            self._unseen = []
            self._seen.see(reward, discount)

    def before_step(self, optimizer: Optimizer) -> None:
        """In the first 100 updates, see which parameters get a gradient."""
        if "G0" in self.gates or not makes_update(optimizer):
            return
        parameters = [parameter for parameter in all_parameters(optimizer) if parameter.requires_grad]
        names = [self._names.get(id(parameter), "a parameter of others") for parameter in parameters]
        key = names[0] if names else ""
        self._updates[key] = self._updates.get(key, 0) + 1
        with torch.no_grad():
            for name, parameter in zip(names, parameters, strict=True):
                before = self._reached.setdefault(name, None)
                if parameter.grad is not None:
                    norm = torch.linalg.vector_norm(parameter.grad)
                    reached = norm.isfinite() & (norm > 0.0)
                    self._reached[name] = reached if before is None else reached | before.to(reached.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the signals; decide G0, and where nothing is evaluated the others."""
        if not self._is_open():
            return
        if isinstance(outputs, Mapping):
            names = ("q_value", "td_target", "q_policy", "pre_tanh")
            self._latest |= {name: outputs[name].detach() for name in names if name in outputs}
        if "G0" not in self.gates and max(self._updates.values(), default=0) >= _FIRST_UPDATES:
            self._decide(trainer, ["G0"])
        if not trainer.enable_validation:
            self._decide(trainer, self._due(trainer))

    # Evaluations

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the fingerprint of the training environments."""
        self._fingerprint = _fingerprint(trainer) if self._is_open() and _is_of_fit(trainer) else None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the fingerprint, take in the evaluation, and decide the gates that are due."""
        if not self._is_open() or not _is_of_fit(trainer):
            return
        self._compare_fingerprints(trainer)
        metrics = [trainer.callback_metrics.get(name) for name in _EVALUATION]
        if all(metric is not None for metric in metrics):
            mean, std, episodes = (float(metric) for metric in metrics if metric is not None)
            self.evaluations.append(Evaluation(mean, std, int(episodes), env_steps=clock(trainer)))
        self._decide(trainer, self._due(trainer))

    def _compare_fingerprints(self, trainer: Trainer) -> None:
        now = _fingerprint(trainer)
        known = now is not None and self._fingerprint is not None
        word = torch.tensor([float(known), float(now == self._fingerprint)], device=trainer.strategy.root_device)
        all_known, all_equal = trainer.strategy.all_gather(word).reshape(-1, 2).amin(0).tolist()
        if all_known:
            self._untouched = self._untouched is not False and bool(all_equal)

    # Decisions

    def _is_open(self) -> bool:
        """Whether a gate is still to be decided."""
        return len(self.gates) < len(self.planned)

    def _due(self, trainer: Trainer) -> list[str]:
        now = clock(trainer)
        return [gate for gate in GATES[1 : len(self.planned)] if gate not in self.gates and self.planned[gate] <= now]

    def _decide(self, trainer: Trainer, due: Sequence[str]) -> None:
        if not due:
            return
        evidence = self._evidence(trainer)
        decided = [decide(gate, self.planned[gate], clock(trainer), evidence) for gate in due]
        self.gates |= {gate.gate: gate for gate in decided}
        self.report(trainer, [verdict for gate in decided for verdict in gate.verdicts()])
        for gate in decided:
            rank_zero_info(f"StageGates: {gate.describe()}")
            append_event(trainer, "gate", gate.describe(), {"safeguard": self.name, **gate.to_dict()})
            self._draw_gate(trainer, gate)
        failed = [gate for gate in decided if gate.failed]
        if failed and self.mode == "stop" and self.stopped is None:
            self.stop(trainer, failed[0].describe())

    def _draw_gate(self, trainer: Trainer, gate: GateVerdict) -> None:
        curves = {f"{check.name}/{name}": value for check in gate.checks for name, value in check.observed.items()}
        if gate.passed is not None:
            curves[gate.gate] = float(gate.passed)
        self._drawn = (-2, 0)  # every gate is a point, however soon it comes after the last
        self.draw(trainer, curves)

    def _evidence(self, trainer: Trainer) -> StageEvidence:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        others = [other for other in callbacks if isinstance(other, Safeguard) and other is not self]
        alarms = [f"{o.name} {cause}" for o in others for cause, level in o.active.items() if level >= Severity.ACT]
        return StageEvidence(
            measured=self._measured_on_all(trainer),
            evaluations=self.evaluations,
            baseline=self.baseline,
            untouched=self._untouched,
            unreached=self._unreached() if self._updates else None,
            alarms=alarms if others else None,
        )

    def _unreached(self) -> list[str]:
        return [name for name, reached in self._reached.items() if reached is None or not bool(reached)]

    def _measured_on_all(self, trainer: Trainer) -> dict[str, float]:
        """Once a gate: here the host waits for the device."""
        measured = self._measured()
        names = sorted(measured)
        if not names:
            return {}
        row = torch.tensor([measured[name] for name in names], device=trainer.strategy.root_device)
        columns = trainer.strategy.all_gather(row).reshape(-1, len(names)).T.tolist()
        return {name: _reduce(name, column) for name, column in zip(names, columns, strict=True)}

    def _measured(self) -> dict[str, float]:
        with torch.no_grad():
            self._see()
            measured = _statistics(self._latest)
        if self._seen.size is not None:
            measured["value_size"] = self._seen.size
        return self._restored | {name: float(value) for name, value in measured.items()}

    # State

    def rearm(self) -> None:
        """Forget the signals; what a gate said stays."""
        super().rearm()
        self._latest.clear()
        self._restored.clear()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write `checkpoint["stages"]`: by name, whether failed gates are `enforced`, and the `gates` so far."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        gates = [gate.to_dict() for gate in self.gates.values()]
        checkpoint.setdefault("stages", {})[self.name] = {"enforced": self.mode != "observe", "gates": gates}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on after a failed gate.

        Raises:
            ValueError: unless `force` is set.
        """
        reason = None if self.force else refusal(checkpoint.get("stages", {}))
        if reason is not None and trainer.state.fn == TrainerFn.FITTING:
            raise ValueError(reason)

    def state_dict(self) -> dict[str, Any]:
        """The gates, and what the next ones will be decided by."""
        return {
            **super().state_dict(),
            "gates": [gate.to_dict() for gate in self.gates.values()],
            "baseline": None if self.baseline is None else list(self.baseline),
            "awaits_baseline": self._awaits_baseline,
            "evaluations": [[e.mean, e.std, e.episodes, e.env_steps] for e in self.evaluations],
            "untouched": self._untouched,
            "updates": dict(self._updates),
            "reached": {name: reached is not None and bool(reached) for name, reached in self._reached.items()},
            "measured": self._measured(),
            "seen": self._seen.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.gates = {saved["gate"]: GateVerdict.from_dict(saved) for saved in state_dict["gates"]}
        saved_baseline = state_dict["baseline"]
        if self.baseline is None and saved_baseline is not None:
            self.baseline = Baseline(*saved_baseline)
        self._awaits_baseline = state_dict["awaits_baseline"] and self.baseline is None
        self.evaluations = [
            Evaluation(mean, std, episodes, env_steps=env_steps)
            for mean, std, episodes, env_steps in state_dict["evaluations"]
        ]
        self._untouched = state_dict["untouched"]
        self._updates = dict(state_dict["updates"])
        self._reached = {name: torch.tensor(reached) for name, reached in state_dict["reached"].items()}
        self._restored = dict(state_dict["measured"])
        self._seen.load_state_dict(state_dict["seen"])


def _statistics(latest: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the signals that are there, scalars."""
    found: dict[str, Tensor] = {}
    if "q_value" in latest:
        q_value = latest["q_value"].float()
        low, high = q_value.aminmax()
        found |= {"q_low": low, "q_high": high, "q_mean": q_value.mean(), "q_std": q_value.std(correction=0)}
        target = latest.get("td_target")
        if target is not None and target.shape == q_value.shape:
            found["squared_error"] = (target.float() - q_value).square().mean()
            found["target_variance"] = target.float().var(correction=0)
    if "q_policy" in latest:
        found["q_policy_mean"] = latest["q_policy"].float().mean()
    if "pre_tanh" in latest:
        found["saturated"] = (latest["pre_tanh"].float().tanh().abs() > 0.99).float().mean()
    if "terminated" in latest:
        found["terminated"] = latest["terminated"].float().mean()
    return found


def _reduce(name: str, values: Sequence[float]) -> float:
    """Of all processes; NaN where one is."""
    if any(value != value for value in values):
        return float("nan")
    if name in _LOWEST:
        return min(values)
    return max(values) if name in _HIGHEST else sum(values) / len(values)


def _fingerprint(trainer: Trainer) -> str | None:
    source = trainer.datamodule  # type: ignore[attr-defined]
    return source.fingerprint() if isinstance(source, TrainingEnvironments) else None


def _is_of_fit(trainer: Trainer) -> bool:
    return not trainer.sanity_checking and trainer.state.fn == TrainerFn.FITTING
