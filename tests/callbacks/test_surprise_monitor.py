import math
import random
from pathlib import Path

import pytest
import torch
from dreaming import Signals, fit_sayer, sequences
from guarding import as_lists, causes, events

from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.safeguard import MissingInputError
from rlmods.callbacks.surprise_detector import LossSurprise, SurpriseDetector
from rlmods.callbacks.surprise_monitor import SurpriseMonitor
from rlmods.types import SequenceBatch

INFO = Severity.INFO


def noisy(num: int, seed: int = 0, level: float = 1.0) -> list[float]:
    """A loss with 5 % of noise from batch to batch."""
    generator = random.Random(seed)
    return [level * math.exp(generator.gauss(0.0, 0.05)) for _ in range(num)]


def watch() -> SurpriseDetector:
    return SurpriseDetector(["reward_loss"], threshold=4.0, minimum=20, max_duty=0.2)


# The pure detector


def test_golden_surprise() -> None:
    """The average is 2 before and 0.99 · 2 + 0.01 · 4 = 2.02 after; what is left of ln 2 decays with 0.9."""
    loss = LossSurprise(threshold=4.0, minimum=3)
    assert loss.update(2.0) is None
    jump = loss.update(4.0)
    assert jump is not None
    assert (jump.value, jump.smoothed, jump.score) == (math.log(2.0), math.log(2.0), None)
    assert loss.average == pytest.approx(2.02)
    after = loss.update(2.02)
    assert after is not None
    assert after.value == pytest.approx(0.0)
    assert after.smoothed == pytest.approx(0.9 * math.log(2.0))


@pytest.mark.parametrize("loss", [0.0, -1.0, math.nan, math.inf])
def test_what_has_no_logarithm_says_nothing(loss: float) -> None:
    of = LossSurprise(threshold=4.0, minimum=3)
    of.update(1.0)
    assert of.update(loss) is None
    assert of.average == 1.0


def test_noise_is_no_surprise() -> None:
    """Five runs of two hundred iterations."""
    for seed in range(5):
        detector = watch()
        assert not any(detector.update({"reward_loss": loss}) for loss in noisy(200, seed))


def test_a_jump_is_told_in_its_second_iteration_until_it_is_the_new_level() -> None:
    detector = watch()
    for loss in noisy(60):
        detector.update({"reward_loss": loss})
    said = [causes(detector.update({"reward_loss": loss}), INFO) for loss in noisy(100, 1, level=1.5)]
    assert said[:2] == [[], ["surprise"]]
    assert not any(said[50:])


def test_it_is_told_in_no_more_than_its_share_of_the_iterations() -> None:
    detector = SurpriseDetector(["loss"], threshold=4.0, minimum=3, max_duty=0.05)
    said = 0
    for iteration in range(200):
        # Each jump is twice as high as the last: every third iteration is a surprise.
        said += len(detector.update({"loss": 2.0 ** (iteration // 3)}))
        assert detector.told <= 0.05 * (iteration + 1) + 1
    assert said == detector.told


@pytest.mark.parametrize(("back_to", "expected"), [(0.5, 0), (2.0, 1)])
def test_a_loss_below_its_average_is_none(back_to: float, expected: int) -> None:
    """It fell to a hundredth, far below an average that follows slowly, and comes back to this much of the level."""
    detector = watch()
    for loss in [*noisy(60), *noisy(50, 1, level=0.01)]:
        detector.update({"reward_loss": loss})
    said = [verdict for _ in range(2) for verdict in detector.update({"reward_loss": back_to})]
    assert len(said) == expected
    assert all(math.exp(surprise) > 1.0 for verdict in said for surprise in verdict.evidence["surprises"].values())


def test_a_constant_loss_is_none() -> None:
    """As that of the free nats."""
    detector = watch()
    assert not any(detector.update({"reward_loss": 1.0}) for _ in range(100))


@pytest.mark.parametrize(
    ("argument", "value"), [("threshold", 0.0), ("max_duty", 1.0), ("warmup_iterations", 2), ("every_n_iterations", 0)]
)
def test_arguments_outside_their_range_are_refused(argument: str, value: float) -> None:
    arguments: dict[str, float] = {argument: value}
    with pytest.raises(ValueError, match=f"SurpriseMonitor got {argument} = {value}"):
        SurpriseMonitor(**arguments)  # type: ignore[arg-type]


# The hook


def says(losses: list[float]) -> tuple[list[SequenceBatch], "Say"]:
    return [sequences(torch.zeros(1, 2, 1))] * len(losses), Say(losses)


class Say:
    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def __call__(self, batch: SequenceBatch, batch_idx: int) -> Signals:
        of = torch.tensor([self.losses[batch_idx]])
        return {"reward_loss": of, "dynamics_loss": torch.ones(1), "other": of}


def test_a_jump_is_an_event_for_information(tmp_path: Path) -> None:
    monitor = SurpriseMonitor(every_n_iterations=4)
    batches, say = says([*noisy(60), *noisy(4, 1, level=2.0)])
    trainer = fit_sayer(tmp_path, say, batches, monitor)
    (event,) = events(trainer)
    assert event["evidence"]["severity"] == "info"
    assert list(event["evidence"]["scores"]) == ["reward_loss"]
    assert list(monitor.detector.of) == ["reward_loss", "dynamics_loss"]


def test_a_quiet_run_raises_nothing(tmp_path: Path) -> None:
    monitor = SurpriseMonitor(every_n_iterations=4)
    batches, say = says(noisy(80))
    fit_sayer(tmp_path, say, batches, monitor)
    assert monitor.raised == []
    assert monitor.detector.iterations == 80


def test_resumed_is_as_never_stopped(tmp_path: Path) -> None:
    losses = [*noisy(33), *noisy(4, 1, level=2.0)]
    whole, first, second = (SurpriseMonitor(every_n_iterations=5, warmup_iterations=10) for _ in range(3))
    batches, say = says(losses)
    fit_sayer(tmp_path / "whole", say, batches, whole)
    fit_sayer(tmp_path / "first", Say(losses[:20]), batches[:20], first)
    second.load_state_dict(first.state_dict())
    fit_sayer(tmp_path / "second", Say(losses[20:]), batches[20:], second)
    assert as_lists(second.state_dict())["detector"] == as_lists(whole.state_dict())["detector"]
    assert second.raised == whole.raised == [("surprise", INFO)]


def test_a_module_without_losses_is_told_which(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="vectors_loss"):
        fit_sayer(tmp_path, lambda b, i: {"loss": torch.ones(1)}, says([1.0])[0], SurpriseMonitor())
    with pytest.raises(MissingInputError, match=r"needs the signals \['decoder_loss'\]"):
        fit_sayer(tmp_path, lambda b, i: {"loss": torch.ones(1)}, says([1.0])[0], SurpriseMonitor(["decoder_loss"]))
