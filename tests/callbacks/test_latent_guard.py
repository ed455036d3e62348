import math
from pathlib import Path

import pytest
import torch
from dreaming import Sayer, Signals, fit_sayer, sequences
from guarding import as_lists, causes, events, fit_stranger
from torch import Tensor

from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.latent_detector import LatentDetector, LatentWindow
from rlmods.callbacks.latent_guard import LatentGuard
from rlmods.callbacks.safeguard import MissingInputError
from rlmods.functional.open_loop import OpenLoopCheck
from rlmods.types import OpenLoopModel, SequenceBatch, Sequences

INFO = Severity.INFO
FORESEES = LatentWindow(
    updates=100.0,
    kl=1.2,
    pinned=0.4,
    free_nats=1.0,
    prior_entropy=6.0,
    posterior_entropy=5.0,
    reconstruction=0.05,
    open_loop=0.2,
    kl_of_losses=1.1,
    kl_of_dreams=1.3,
)


def said(windows: list[LatentWindow], severity: Severity = Severity.WARN) -> list[list[str]]:
    detector = LatentDetector(learning_updates=0)
    return [causes(detector.update(window), severity) for window in windows]


# The pure detector


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"kl": 0.9},  # under the free nats, and dreams are good
        {"open_loop": 2.0},  # dreams are bad, and the KL says so
        {"kl": 0.9, "open_loop": 0.49},
        {"kl": 0.9, "open_loop": math.nan, "reconstruction": math.nan},
        {"kl_of_dreams": 2.2},
        {"kl_of_dreams": 0.01},
        {"kl_of_losses": 0.001, "kl_of_dreams": 0.099},
        {"kl_of_losses": math.nan, "kl_of_dreams": math.nan},
    ],
)
def test_these_are_silent(change: dict[str, float]) -> None:
    assert not any(said([FORESEES._replace(**change)] * 9, INFO))


def test_a_prior_that_knows_the_answer_and_dreams_badly_is_told() -> None:
    assert said([FORESEES._replace(kl=0.9, open_loop=0.51)] * 3) == [[], [], ["prior_does_not_foresee"]]


def test_latents_that_carry_nothing_are_told() -> None:
    """Neither reconstructs nor dreams: the prior is not to blame."""
    window = FORESEES._replace(kl=0.001, reconstruction=0.9, open_loop=1.1)
    assert said([window] * 3) == [[], [], ["posterior_collapse"]]
    assert not any(said([window._replace(kl=0.11)] * 9))


def test_a_kl_of_nothing_alone_is_for_information() -> None:
    window = FORESEES._replace(kl=0.05)
    assert said([window] * 3, INFO) == [[], [], ["kl_far_under_free_nats"]]
    assert not any(said([window] * 3))


def test_a_prior_of_the_losses_that_does_not_dream_is_told() -> None:
    """From the first update on, and also next to what else is told."""
    window = FORESEES._replace(kl_of_losses=1.1, kl_of_dreams=2.3)
    detector = LatentDetector(learning_updates=10_000)
    assert [causes(detector.update(window)) for _ in range(3)] == [[], [], ["dreams_of_another_prior"]]
    assert said([FORESEES._replace(kl_of_losses=0.001, kl_of_dreams=0.101)] * 3)[-1] == ["dreams_of_another_prior"]
    blind = window._replace(kl=0.9, open_loop=0.8)
    assert said([blind] * 3)[-1] == ["dreams_of_another_prior", "prior_does_not_foresee"]


def test_a_model_that_still_learns_is_left_alone() -> None:
    window = FORESEES._replace(kl=0.001, reconstruction=0.9, open_loop=1.1)
    detector = LatentDetector(learning_updates=1_000)
    found = [causes(detector.update(window)) for _ in range(12)]
    assert found == [[]] * 11 + [["posterior_collapse"]]


def test_a_saved_detector_goes_on() -> None:
    window = FORESEES._replace(kl=0.001, reconstruction=0.9)
    detector, other = (LatentDetector(learning_updates=0) for _ in range(2))
    for _ in range(2):
        detector.update(window)
    other.load_state_dict(detector.state_dict())
    assert causes(other.update(window)) == ["posterior_collapse"]


# The hook


class Seer(Sayer):
    """A module that dreams as a test wants it, and draws random numbers for it."""

    def __init__(self, kl: float, error: list[float], kl_of_dreams: float | None = None) -> None:
        super().__init__(lambda batch, batch_idx: signals(kl))
        self.free_nats = 1.0
        self.error = error
        self.kl_of_dreams = kl if kl_of_dreams is None else kl_of_dreams
        self.shapes: list[tuple[int, ...]] = []
        self.drawn: list[float] = []

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> dict[str, Tensor]:
        self.drawn.append(float(torch.rand(())))
        return super().training_step(batch, batch_idx)

    def open_loop_check(self, sequences: Sequences) -> OpenLoopCheck:
        torch.rand(5)
        self.shapes.append(tuple(sequences.reward.shape))
        kl = torch.full(sequences.reward.shape, self.kl_of_dreams)
        kl[0] = math.nan
        return OpenLoopCheck(torch.tensor(self.error), kl)


def signals(kl: float) -> Signals:
    return {
        "kl_dynamics": torch.full((2, 3, 4), kl),
        "prior_entropy": torch.full((2,), 5.0),
        "posterior_entropy": torch.full((2,), 4.0),
    }


def batches(num: int) -> list[SequenceBatch]:
    return [sequences(torch.zeros(2, 3, 4))] * num


def fit(folder: Path, model: Sayer, num: int, *guards: LatentGuard) -> list[str]:
    torch.manual_seed(0)
    trainer = fit_stranger(folder, model, batches(num), *guards)
    return [event["evidence"]["cause"] for event in events(trainer)]


def test_dreams_that_are_worth_nothing_are_found_and_good_ones_are_not(tmp_path: Path) -> None:
    """Rows that no episode reaches are NaN and do not count."""
    for error, found in (([0.1, 0.8, math.nan], ["prior_does_not_foresee"]), ([0.1, 0.2, math.nan], [])):
        seer = Seer(0.5, error)
        assert isinstance(seer, OpenLoopModel)
        guard = LatentGuard(learning_updates=0, every_n_iterations=2)
        assert fit(tmp_path, seer, 6, guard) == found
        assert seer.shapes == [(3, 4)] * 3


def test_the_kl_of_the_dreams_is_held_against_that_of_the_same_rows_and_the_last_update(tmp_path: Path) -> None:
    """Four nats in all other updates and rows do not count."""

    def say(batch: SequenceBatch, batch_idx: int) -> Signals:
        kl = torch.full((2, 3, 4), 4.0)
        kl[1, 1:] = 0.5
        return {**signals(0.5), "kl_dynamics": kl}

    for kl_of_dreams, found in ((1.01, ["dreams_of_another_prior"]), (0.99, [])):
        seer = Seer(0.5, [0.1, 0.2], kl_of_dreams)
        seer.say = say
        assert fit(tmp_path, seer, 3, LatentGuard(every_n_iterations=1)) == found


def test_to_look_changes_nothing(tmp_path: Path) -> None:
    """The random numbers of the training stay as they are."""
    drawn = []
    for guards in ([LatentGuard(every_n_iterations=1)], []):
        seer = Seer(0.5, [0.1, 0.2])
        fit(tmp_path, seer, 4, *guards)
        drawn.append(seer.drawn)
    assert drawn[0] == drawn[1]


def test_the_state_goes_on(tmp_path: Path) -> None:
    guard, other = (LatentGuard(learning_updates=0, every_n_iterations=1) for _ in range(2))
    fit(tmp_path, Seer(0.5, [0.1, 0.8]), 2, guard)
    other.load_state_dict(guard.state_dict())
    assert as_lists(other.state_dict()) == as_lists(guard.state_dict())
    assert fit(tmp_path, Seer(0.5, [0.1, 0.8]), 1, other) == ["prior_does_not_foresee"]


def test_a_module_that_cannot_dream_is_told_so(tmp_path: Path) -> None:
    guard = LatentGuard()
    fit_sayer(tmp_path, lambda batch, i: signals(0.5), batches(2), guard)
    assert guard.raised == [("no_signals", Severity.WARN)]
    with pytest.raises(MissingInputError, match="kl_dynamics"):
        fit_sayer(tmp_path, lambda batch, i: {"loss": torch.zeros(1)}, batches(1), LatentGuard())
