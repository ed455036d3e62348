import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from guarding import ACT, WARN, fit_small, transitions
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rlmods.callbacks.repeated_stream import (
    RepeatedStreamDetector,
    RepeatedStretch,
    fingerprint,
    repeated_stretches,
)
from rlmods.callbacks.repeated_stream_guard import RepeatedStreamGuard
from rlmods.types import Rollout


def noise(rows: int, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [0.4276 + 0.0038 * draw.gauss(0.0, 1.0) for _ in range(rows)]


def resumed(*segments: int, seed: int = 0) -> list[float]:
    """Each segment begins with the first rows of the stream again, which a slow drift moves by 1e-8 a row."""
    stream = noise(max(segments), seed)
    rows = [value for length in segments for value in stream[:length]]
    return [value + 1e-8 * row for row, value in enumerate(rows)]


# Logged curves


def test_mean_rho2_of_a_resumed_run() -> None:
    """Five rows, killed, and the same three times more; to seven digits, as a run on real data logged them."""
    first = [0.4244755, 0.4263093, 0.4301286, 0.4289015, 0.4218724, 0.4352271, 0.4277843, 0.4259902]
    again = [value + 1e-7 for value in first[:5]]
    assert repeated_stretches([*first, *again, *first[:6]]) == [
        RepeatedStretch(8, 12, 8),
        RepeatedStretch(13, 18, 13),
    ]


def test_every_segment_is_traced_to_its_earliest_origin() -> None:
    """The lengths of the seed run: rows 110 to 149 repeat 70 to 109 as well, and those 0 to 39."""
    assert repeated_stretches(resumed(70, 40, 40, 40, 10)) == [
        RepeatedStretch(70, 109, 70),
        RepeatedStretch(110, 149, 110),
        RepeatedStretch(150, 189, 150),
        RepeatedStretch(190, 199, 190),
    ]


@given(first=st.integers(12, 40), second=st.integers(5, 12), seed=st.integers(0, 1000))
def test_a_single_repetition_is_found_exactly(first: int, second: int, seed: int) -> None:
    curve = [*resumed(first, second, seed=seed), *noise(10, seed + 5000)]
    assert repeated_stretches(curve) == [RepeatedStretch(first, first + second - 1, first)]


@given(st.integers(0, 10_000))
@settings(max_examples=25)
def test_fresh_noise_repeats_nothing(seed: int) -> None:
    assert repeated_stretches(noise(150, seed)) == []


@pytest.mark.parametrize(
    "curve",
    [
        [1.0] * 100,
        [1.0 + 1e-12 * row for row in range(100)],
        [float(row) for row in range(100)],
        [0.999**row for row in range(100)],
        [float(torch.sin(torch.tensor(0.1 * row))) for row in range(200)],
        [float(row % 25) for row in range(100)],  # a schedule that starts again
        noise(20) * 5,  # a loader over the same 20 batches
        [float(random.Random(row).randint(1, 6)) for row in range(150)],
        [float("nan")] * 20,
        [1.0, 2.0],
        [],
    ],
)
def test_curves_that_are_no_random_stream_repeat_nothing(curve: list[float]) -> None:
    assert repeated_stretches(curve) == []


def test_rows_without_a_value_repeat_nothing() -> None:
    curve = noise(20)
    curve[3:6] = [float("nan")] * 3
    assert repeated_stretches([*curve, *curve[:10]]) == []
    assert repeated_stretches([*curve, *curve[6:14]]) == [RepeatedStretch(20, 27, 14)]


def test_a_stretch_that_is_too_short_is_chance() -> None:
    curve = resumed(20, 6)
    assert repeated_stretches(curve, min_length=7) == []
    assert repeated_stretches([*curve[:24], *noise(5, 1)], min_length=5) == []


@pytest.mark.parametrize("arguments", [{"tolerance": -1.0}, {"min_length": 1}])
def test_bad_arguments_of_a_curve_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"got tolerance = .* and min_length = "):
        repeated_stretches([1.0], **arguments)


# Fingerprints


def test_a_fingerprint_is_that_of_the_bytes() -> None:
    data = torch.arange(16.0)
    changed = data.clone()
    changed[7] = torch.nextafter(changed[7], torch.tensor(100.0))
    assert fingerprint(data) == fingerprint(data.clone())
    assert fingerprint(data) != fingerprint(changed)
    assert 0 <= (fingerprint(data) or -1) < 2**63


def test_data_of_few_numbers_have_none() -> None:
    assert fingerprint(torch.arange(15.0).repeat(100)) is None
    assert fingerprint(torch.zeros(0)) is None


def found_by(prints: list[int | None], *, period: int | None = None, needed: int = 3) -> list[dict[str, Any]]:
    detector = RepeatedStreamDetector(needed=needed, capacity=100)
    return [dict(verdict.evidence) for one in prints for verdict in detector.update([one], period)]


def test_three_iterations_in_a_row_with_one_lag_are_a_repetition() -> None:
    assert found_by([1, 2, 3, 4, 5, 1, 2, 3, 6]) == [{"first_iteration": 5, "lag": 5, "length": 3}]
    assert found_by([1, 2, 3, 4, 5, 1, 2, 6, 3]) == []
    assert found_by([1, 2, 3, 4, 5, 3, 2, 1]) == []  # other lags
    assert [found["length"] for found in found_by([7] * 6)] == [3, 4, 5]


def test_iterations_that_say_nothing_are_passed_over() -> None:
    assert found_by([None] * 10) == []
    assert found_by([1, None, 2, 3, 1, None, 2, 3]) == [{"first_iteration": 4, "lag": 4, "length": 3}]


def test_epochs_over_the_same_data_are_excused() -> None:
    assert found_by([1, 2, 3, 4] * 3, period=4) == []
    assert len(found_by([1, 2, 3, 4] * 3, period=5)) == 6


def test_a_repetition_within_a_window_is_found_at_its_end() -> None:
    detector = RepeatedStreamDetector(needed=3, capacity=100)
    (verdict,) = detector.update([1, 2, 3, 1, 2, 3, 4, 5])
    assert (verdict.cause, verdict.severity, verdict.evidence["length"]) == ("repeated_stream", ACT, 3)
    assert detector.update([6, 7]) == []


def test_the_oldest_are_forgotten() -> None:
    detector = RepeatedStreamDetector(needed=1, capacity=3)
    assert detector.update([1, 2, 3, 4, 1]) == []
    assert len(detector.update([4])) == 1
    assert len(detector.state_dict()["fingerprints"]) == 3


@given(prints=st.lists(st.integers(0, 5), max_size=30), cut=st.integers(0, 30))
def test_a_reloaded_detector_goes_on(prints: list[int], cut: int) -> None:
    whole, half, again = (RepeatedStreamDetector(needed=2, capacity=4) for _ in range(3))
    for current in prints[:cut]:
        whole.update([current])
        half.update([current])
    again.load_state_dict(half.state_dict())
    assert [whole.update([one]) for one in prints[cut:]] == [again.update([one]) for one in prints[cut:]]


# The hook


class Stream(Dataset[Tensor]):
    """Random batches in order, whichever is asked for: the stream begins when it is made."""

    def __init__(self, seed: int, iterations: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.iterations = iterations

    def __len__(self) -> int:
        return self.iterations

    def __getitem__(self, index: int) -> Tensor:
        return torch.randn(4, 32, generator=self.generator)


def fit(
    folder: Path,
    data: Any,
    *callbacks: Callback,
    model: LightningModule | None = None,
    ckpt_path: Path | None = None,
    **options: Any,
) -> Trainer:
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        callbacks=[*callbacks, ModelCheckpoint(folder, "{step}", every_n_train_steps=8)],
        **({"max_epochs": 1} | options),
    )
    trainer.fit(model or BoringModel(), DataLoader(data, batch_size=None), ckpt_path=ckpt_path, weights_only=True)
    return trainer


class Manual(BoringModel):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        return None


def test_a_run_that_is_seeded_anew_at_its_resume_is_told(tmp_path: Path) -> None:
    """Eight iterations and a checkpoint in the middle of a window; the resumed one draws the first data again."""
    fresh, again, going_on = (RepeatedStreamGuard(every_n_iterations=3) for _ in range(3))
    fit(tmp_path, Stream(0, 15), fresh)
    assert fresh.raised == []
    fit(tmp_path / "again", Stream(0, 15), again, ckpt_path=tmp_path / "step=8.ckpt")
    assert again.raised == [("repeated_stream", ACT)]
    assert again.detector.state_dict()["run"] == [8, 8, 7]
    fit(tmp_path / "going_on", Stream(1, 15), going_on, ckpt_path=tmp_path / "step=8.ckpt")
    assert going_on.raised == []


def test_a_resumed_guard_is_one_that_was_never_stopped(tmp_path: Path) -> None:
    batches = [torch.randn(4, 32) for _ in range(5)]
    batches += [*batches, torch.randn(4, 32)]
    whole, resumed = (RepeatedStreamGuard(every_n_iterations=3) for _ in range(2))
    fit(tmp_path, batches, whole)
    # The loader, which is no source of experience, begins with its first batch after a resume.
    fit(tmp_path / "resumed", [*batches[8:], *batches[:8]], resumed, ckpt_path=tmp_path / "step=8.ckpt")
    assert whole.raised == [("repeated_stream", ACT)]
    assert whole.state_dict() == resumed.state_dict()


def test_it_stops_a_run_only_when_told(tmp_path: Path) -> None:
    for mode, steps in (("observe", 12), ("stop", 6)):
        guard = RepeatedStreamGuard(every_n_iterations=3, mode=mode)  # type: ignore[arg-type]
        trainer = fit(tmp_path, [torch.arange(128.0).view(4, 32)] * 12, guard)
        assert (trainer.global_step, guard.stopped is not None) == (steps, mode == "stop")


@pytest.mark.parametrize("epochs", [1, 3])
def test_new_data_and_a_data_set_over_epochs_are_silent(tmp_path: Path, epochs: int) -> None:
    guard = RepeatedStreamGuard(every_n_iterations=3)
    fit(tmp_path, [torch.randn(4, 32) for _ in range(9)], guard, max_epochs=epochs)
    assert guard.raised == []
    assert guard.detector.iteration == 9 * epochs


def test_constant_data_are_silent(tmp_path: Path) -> None:
    guard = RepeatedStreamGuard(every_n_iterations=3)
    fit(tmp_path, [torch.ones(4, 32)] * 9, guard)
    assert guard.raised == []


@pytest.mark.parametrize("options", [{}, {"buffer_size": 64, "batch_size": 8}])
def test_a_healthy_dqn_is_silent(tmp_path: Path, options: dict[str, Any]) -> None:
    """A replay of 64 transitions gives each of them again and again, but no stack twice."""
    guard = RepeatedStreamGuard(every_n_iterations=4)
    fit_small(tmp_path, guard, total_env_steps=480, **options)
    assert guard.raised == []
    assert len(guard.detector.seen) > 20


class Labelled(NamedTuple):
    reward: Tensor
    observation: dict[str, Tensor]
    weight: Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda data, other: Labelled(data[0], {"position": data[1]}, other),
        lambda data, other: {"transition": {"reward": data[0], "observation": data[1]}, "weight": other},
    ],
)
def test_rewards_and_observations_are_what_counts(tmp_path: Path, wrap: Any) -> None:
    """Under other weights they are the same data."""
    data = torch.randn(2, 4, 32)
    guard = RepeatedStreamGuard(every_n_iterations=2)
    for batch_idx in range(4):
        guard.on_train_batch_start(Trainer(logger=False), Manual(), wrap(data, torch.randn(3)), batch_idx)
    assert len(set(guard.state_dict()["prints"])) == 1


def test_a_batch_of_any_size_leaves_a_small_sample() -> None:
    guard = RepeatedStreamGuard()
    trainer = Trainer(logger=False)
    for batch_idx, size in enumerate((0, 1, 2047, 2049, 100_000)):
        batch = transitions(size=8)._replace(reward=torch.randn(size), observation=torch.randn(size, 3))
        guard.on_train_batch_start(trainer, Manual(), batch, batch_idx)
    assert [sample.numel() for sample in guard._samples] == [0, 1 + 3, 512 + 512, 410 + 473, 511 + 512]


def test_a_batch_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got a batch of type str without tensors"):
        fit(tmp_path, ["a"], RepeatedStreamGuard())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"needed": 0}, "needed = 0"),
        ({"capacity": 0}, "capacity = 0"),
        ({"every_n_iterations": 0}, "every_n_iterations = 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RepeatedStreamGuard(**arguments)


# First observations of rollouts


def rollout(start: Tensor) -> Rollout:
    """Two steps of N environments that begin in `start` `[N, 8]`; what comes then is new each time."""
    shape = (2, len(start))
    later = torch.randn_like(start)
    no = torch.zeros(shape, dtype=torch.bool)
    observation, reward = torch.stack([start, later]), torch.randn(shape)
    return Rollout(observation, torch.randn(*shape, 2), reward, reward, observation, no, no, ~no, 0, 0.0)


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        (lambda: torch.arange(24.0).reshape(3, 8), [("repeated_start", WARN)]),
        (lambda: torch.randn(3, 8), []),
        (lambda: torch.arange(24.0)[:8].expand(3, 8), []),  # all begin alike
        (lambda: torch.arange(24.0).reshape(1, 24), []),  # a single environment, one task
    ],
)
def test_rollouts_that_begin_alike_are_told(tmp_path: Path, starts: Any, expected: Any) -> None:
    torch.manual_seed(0)
    guard = RepeatedStreamGuard(every_n_iterations=4)
    fit(tmp_path, [rollout(starts()) for _ in range(12)], guard, model=Manual())
    assert guard.raised == expected


def test_starts_are_counted_over_a_resume() -> None:
    """Two and one make three in a row."""
    trainer, start = Trainer(logger=False), torch.arange(24.0).reshape(3, 8)
    first, second = RepeatedStreamGuard(), RepeatedStreamGuard()
    for batch_idx in range(3):
        first.on_train_batch_start(trainer, Manual(), rollout(start), batch_idx)
    second.load_state_dict(first.state_dict())
    second.on_train_batch_start(trainer, Manual(), rollout(start), 3)
    prints = second.state_dict()["start_prints"]
    assert len(prints) == 4
    assert second.starts.update(prints)[0].evidence == {"first_iteration": 1, "lag": 1, "length": 3}
