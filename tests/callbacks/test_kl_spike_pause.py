import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from rlmods.algorithms import DQN
from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.kl_spike_pause import KLSpikeDetector, KLSpikePause
from rlmods.callbacks.ledger import DutyCycle, Ledger
from rlmods.data import ReplayDataModule


def calm(length: int, seed: int = 0) -> list[float]:
    generator = random.Random(seed)
    return [0.01 * math.exp(generator.gauss(0.0, 0.2)) for _ in range(length)]


def spiking(length: int, *spikes: int) -> list[float]:
    """Calm but for two iterations in a row at each of `spikes`."""
    script = calm(length)
    for spike in spikes:
        script[spike : spike + 2] = [1.0, 1.0]
    return script


class ActorCritic(LightningModule):
    """Three named groups; publishes a KL from a script and keeps what each iteration left of the optimiser's state."""

    def __init__(self, script: list[float], *, automatic: bool = False, optimizers: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = automatic
        self.script = script
        self.num_optimizers = optimizers
        self.networks = nn.ModuleDict({name: nn.Linear(2, 1) for name in ("actor", "critic", "world")})
        self.returns: Callable[[int], float] = float
        self.states: dict[str, list[Tensor]] = {name: [] for name in self.networks}

    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        loss = torch.stack([network(batch).square().mean() for network in self.networks.values()]).sum()
        kl = torch.tensor(self.script[batch_idx])
        if self.automatic_optimization:
            return {"loss": loss, "approx_kl": kl}
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        optimizers[0].step()
        for optimizer in optimizers[1:]:
            optimizer.optimizer.step()
        return {"approx_kl": kl.expand(3)}

    def on_train_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        for name, network in self.networks.items():
            weight = network.get_parameter("weight")
            (state,) = (optimizer.state[weight] for optimizer in self.trainer.optimizers if weight in optimizer.state)
            moments = [state[key].flatten() for key in ("exp_avg", "exp_avg_sq", "step")]
            self.states[name].append(torch.cat([weight.detach().flatten(), *moments]))

    def still(self, name: str) -> list[int]:
        """Iterations that left weights and moments bit-identical."""
        states = self.states[name]
        return [i for i in range(1, len(states)) if torch.equal(states[i], states[i - 1])]

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("eval/mean_reward", self.returns(self.trainer.global_step), batch_size=1)

    def configure_optimizers(self) -> Any:
        groups = [{"params": list(network.parameters()), "name": name} for name, network in self.networks.items()]
        share = len(groups) // self.num_optimizers
        return [
            torch.optim.AdamW(groups[first : first + share], lr=0.01, weight_decay=0.1)
            for first in range(0, len(groups), share)
        ]


def fit(folder: Path, model: LightningModule, guard: KLSpikePause, *, resume: Any = None, **arguments: Any) -> Trainer:
    trainer = Trainer(
        **{
            "default_root_dir": folder,
            "max_epochs": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "callbacks": [guard],
            **arguments,
        }
    )
    data = make_loader(len(model.script)) if isinstance(model, ActorCritic) else None
    trainer.fit(model, data, data and make_loader(1), ckpt_path=resume)
    return trainer


def make_loader(length: int) -> torch.utils.data.DataLoader[Tensor]:
    return torch.utils.data.DataLoader(torch.ones(length, 2), batch_size=None)  # type: ignore[arg-type]


def events(folder: Path) -> list[dict[str, Any]]:
    path = folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(("automatic", "optimizers"), [(False, 1), (False, 3), (True, 1)])
def test_a_spike_pauses_the_groups_for_exactly_k_updates(tmp_path: Path, automatic: bool, optimizers: int) -> None:
    model = ActorCritic(spiking(60, 40), automatic=automatic, optimizers=optimizers)
    guard = KLSpikePause(["actor", "critic"], pause_updates=5)
    fit(tmp_path, model, guard)
    # Confirmed by the second window of the spike, 41.
    assert model.still("actor") == model.still("critic") == [42, 43, 44, 45, 46]
    assert model.still("world") == []
    assert guard.raised == [("kl_spike", Severity.WARN)]
    alarm, action = events(tmp_path)
    assert alarm["evidence"]["signal"] == pytest.approx(1.0)
    assert alarm["evidence"]["median"] == pytest.approx(0.01, rel=0.3)
    assert "paused the groups ['actor', 'critic'] for 5 updates" in action["message"]


def test_a_single_outlier_is_no_spike(tmp_path: Path) -> None:
    script = calm(60)
    script[40] = 1.0
    model = ActorCritic(script)
    fit(tmp_path, model, KLSpikePause(["actor"]))
    assert model.still("actor") == []
    assert events(tmp_path) == []


def test_observe_only_raises_the_alarm(tmp_path: Path) -> None:
    model = ActorCritic(spiking(60, 40))
    guard = KLSpikePause(["actor"], mode="observe")
    fit(tmp_path, model, guard)
    assert model.still("actor") == []
    assert guard.raised == [("kl_spike", Severity.WARN)]


def test_the_pause_goes_on_while_the_signal_stays_high_up_to_the_duty_cycle(tmp_path: Path) -> None:
    script = calm(50) + [1.0] * 19 + calm(31)
    model = ActorCritic(script)
    guard = KLSpikePause(["actor"], pause_updates=3, max_duty=0.1)
    fit(tmp_path, model, guard)
    paused = model.still("actor")
    # From 52 on, until one more of n + 1 updates would pass a tenth: 5 of 57, for 6 would need 60.
    assert paused == list(range(52, 57))


def test_after_a_pause_comes_the_cooldown(tmp_path: Path) -> None:
    model = ActorCritic(spiking(100, 50, 56, 80))
    fit(tmp_path, model, KLSpikePause(["actor"], pause_updates=3, cooldown_windows=10))
    assert model.still("actor") == [52, 53, 54, 82, 83, 84]


def test_the_budget_is_spent(tmp_path: Path) -> None:
    model = ActorCritic(spiking(160, 40, 80, 120))
    guard = KLSpikePause(["actor"], pause_updates=3, max_pauses=1)
    fit(tmp_path, model, guard)
    assert model.still("actor") == [42, 43, 44]
    assert [cause for cause, _ in guard.raised] == ["kl_spike", "kl_spike", "pause_budget_spent", "kl_spike"]
    assert not guard.is_armed


def test_pauses_that_do_not_help_disarm_it(tmp_path: Path) -> None:
    model = ActorCritic(spiking(400, *range(40, 400, 40)))
    model.returns = lambda step: 1000.0 - step
    guard = KLSpikePause(["actor"], pause_updates=3)
    fit(tmp_path, model, guard, val_check_interval=20)
    assert guard.pauses == 6
    assert not guard.is_armed
    assert guard.ledger.improved == 0
    (alarm,) = [event for event in events(tmp_path) if event["evidence"].get("cause") == "guard_does_not_help"]
    assert "returns rose after 0 actions and fell after 6" in alarm["message"]
    words = [event["message"] for event in events(tmp_path) if "before a pause" in event["message"]]
    # Evaluated at 20, 40, 60, 80; paused at 42.
    assert words[0].startswith("the return was 970 before a pause and 930 after it; returns rose after 0")


def test_pauses_that_help_leave_it_armed(tmp_path: Path) -> None:
    model = ActorCritic(spiking(400, *range(40, 400, 40)))
    guard = KLSpikePause(["actor"], pause_updates=3)
    fit(tmp_path, model, guard, val_check_interval=20)
    assert guard.is_armed
    assert guard.pauses == 9
    assert guard.ledger.improved == 9


def test_a_run_resumed_in_the_middle_of_a_pause_goes_on_like_one_that_never_stopped(tmp_path: Path) -> None:
    def run(**arguments: Any) -> tuple[ActorCritic, KLSpikePause, int]:
        torch.manual_seed(0)
        model, guard = ActorCritic(spiking(80, 44, 46)), KLSpikePause(["actor"], pause_updates=8, every_n_iterations=2)
        save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=53, save_top_k=-1)
        trainer = fit(tmp_path, model, guard, enable_checkpointing=True, callbacks=[guard, save], **arguments)
        return model, guard, trainer.global_step

    whole, whole_guard, _ = run()
    middle = tmp_path / "step=53.ckpt"
    state = torch.load(middle, weights_only=True)["callbacks"][whole_guard.state_key]
    assert state["clocks"]["0"]["held"] == 5
    resumed, resumed_guard, steps = run(resume=middle)
    assert steps == 80
    assert len(resumed.states["actor"]) == 27
    assert whole.still("actor") == list(range(48, 56))
    assert torch.equal(whole.states["actor"][-1], resumed.states["actor"][-1])
    assert whole_guard.state_dict() == resumed_guard.state_dict()


def test_rearm_ends_the_pause_and_forgets_the_baseline(tmp_path: Path) -> None:
    guard = KLSpikePause(["actor"], pause_updates=20, max_duty=0.9)
    fit(tmp_path, ActorCritic(spiking(45, 40)), guard)
    assert guard.is_paused
    guard.rearm()
    assert not guard.is_paused
    assert guard.detector.baseline.values == []
    assert guard.pauses == 1


def test_the_healthy_dqn_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = ReplayDataModule(
        "CartPole-v1", 2000, learning_starts=256, steps_per_iteration=16, updates_per_iteration=2, num_envs=4
    )
    guard = KLSpikePause(["q"], signal="grad_norm/q")
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[guard],
    )
    trainer.fit(DQN(data.spec), datamodule=data)
    assert guard.pauses == 0
    assert guard.detector.score is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": []}, r"groups = \[\], expected a list of names"),
        ({"groups": "actor"}, "groups = 'actor', expected a list of names"),
        ({"pause_updates": 0}, "pause_updates = 0, expected a value at least 1"),
        ({"threshold": 0.0}, "threshold = 0.0"),
        ({"warmup_windows": 2}, "warmup_windows = 2"),
        ({"cooldown_windows": -1}, "cooldown_windows = -1"),
        ({"max_duty": 1.0}, "max_duty = 1.0"),
        ({"max_pauses": 0}, "max_pauses = 0"),
        ({"every_n_iterations": 0}, "every_n_iterations = 0"),
        ({"mode": "on"}, "mode = 'on'"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KLSpikePause(**({"groups": ["actor"]} | arguments))


def test_a_group_that_no_optimiser_has_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"groups \['policy'\], but the optimisers have \['actor', 'critic', 'world'\]"
    ):
        fit(tmp_path, ActorCritic(calm(5)), KLSpikePause(["actor", "policy"]))


def test_a_signal_that_is_not_returned_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs the signals \['kl'\], but training_step returned \['approx_kl'\]"):
        fit(tmp_path, ActorCritic(calm(5)), KLSpikePause(["actor"], signal="kl"))


@pytest.mark.parametrize("phi", [0.0, 0.8, 0.95])
def test_wandering_and_drifting_signals_are_no_spikes(phi: float) -> None:
    generator = random.Random(1)
    detector = KLSpikeDetector(threshold=6.0, minimum=20)
    value, found = 0.0, 0
    for window in range(2000):
        value = phi * value + generator.gauss(0.0, 0.5) * math.sqrt(1.0 - phi**2)
        found += len(detector.update(0.001 * math.exp(value + window / 500.0), is_paused=False))
    assert found == 0


def test_a_signal_that_was_zero_for_long_and_then_begins_is_no_spike() -> None:
    detector = KLSpikeDetector(threshold=6.0, minimum=20)
    assert not any(detector.update(value, is_paused=False) for value in [0.0] * 100 + calm(100))


def test_a_new_level_is_a_spike_until_it_has_lasted_as_long_as_the_warmup() -> None:
    detector = KLSpikeDetector(threshold=6.0, minimum=20)
    found = [bool(detector.update(value, is_paused=False)) for value in calm(50) + [1.0] * 40]
    assert [index for index, verdicts in enumerate(found) if verdicts] == list(range(51, 72))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_numbers_that_are_not_finite_stay_out_of_the_baseline(broken: float) -> None:
    detector = KLSpikeDetector(threshold=6.0, minimum=20)
    for value in [*calm(30), broken, broken]:
        detector.update(value, is_paused=False)
    assert len(detector.baseline.values) == 30
    assert detector.is_spiking is math.isinf(broken)


def test_duty_cycle() -> None:
    """A pause of 2 in a fifth of the updates: 2 ≤ 0.2 · (8 + 2)."""
    clock = DutyCycle(hold=2, max_duty=0.2)
    for _ in range(7):
        clock.count(is_calm=True)
    assert not clock.may_begin()
    clock.count(is_calm=True)
    assert clock.may_begin()
    clock.begin()
    assert [clock.count(is_calm=True) for _ in range(4)] == [True, True, False, False]
    restored = DutyCycle(hold=2, max_duty=0.2)
    restored.load_state_dict(clock.state_dict())
    assert (restored.updates, restored.left_out, restored.held) == (12, 2, None)


def test_ledger() -> None:
    ledger = Ledger(evaluations=2)
    ledger.add_action()  # nothing to compare with
    ledger.add_evaluation(100.0)
    ledger.add_evaluation(120.0)
    ledger.add_action()
    ledger.add_action()  # the same two evaluations around it
    assert ledger.add_evaluation(90.0) == []
    restored = Ledger(evaluations=2)
    restored.load_state_dict(json.loads(json.dumps(ledger.state_dict())))
    assert restored.add_evaluation(math.nan) == []
    assert restored.add_evaluation(110.0) == [(110.0, 100.0)]
    assert (restored.improved, restored.worsened) == (0, 1)


def test_ledger_judges_by_a_coin() -> None:
    """Of 7 entries, 0 improvements come with 1/128 and 1 with 8/128 = 6 %; of 5, 0 come with 3 %, but 5 are too few."""

    def judged(*after: float) -> bool:
        ledger = Ledger(evaluations=1)
        for value in after:
            ledger.add_evaluation(10.0)
            ledger.add_action()
            ledger.add_evaluation(value)
        return ledger.is_worse_than_chance()

    assert not judged(*[9.0] * 5)
    assert judged(*[9.0] * 6)
    assert judged(*[9.0] * 7)
    assert not judged(*[9.0] * 6, 11.0)
    assert judged(*[9.0] * 6, *[10.0] * 5)  # ties say nothing
