"""The pictures of a world model and its error against the steps ahead: pure, on records by hand."""

import io
import math
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from rlmods.callbacks.picture_album import album, longest, open_loop_errors, select
from rlmods.callbacks.picture_frames import Picture, dream_film, encode, open_loop_film
from rlmods.functional.open_loop import OpenLoop, Outlook

T, B, H, CONTEXT = 6, 2, 4, 2
PNG, GIF = b"\x89PNG", b"GIF89a"


def outlook(observation: dict[str, Tensor]) -> Outlook:
    rows = len(next(iter(observation.values())))
    return Outlook(observation, *(torch.zeros(rows, B) for _ in range(3)))


def record(truth: dict[str, Tensor], predicted: dict[str, Tensor], counts: Tensor | None = None) -> OpenLoop:
    latents = torch.full((T, B, 3, 2), 0.5)
    return OpenLoop(
        truth=truth,
        reward=torch.zeros(T, B),
        discount=torch.ones(T, B),
        counts=torch.ones(T, B, dtype=torch.bool) if counts is None else counts,
        reconstruction=predicted,
        prediction=outlook(predicted),
        posterior=latents,
        prior=latents,
        foreseen=latents,
        dream=outlook({key: array[: H + 1] for key, array in predicted.items()}),
        context=CONTEXT,
    )


def images(grey: float, channels: int = 1) -> Tensor:
    return torch.full((T, B, channels, 4, 8), grey)


def opened(picture: Picture) -> Any:
    return Image.open(io.BytesIO(picture.data))


# Errors


def test_golden_errors() -> None:
    """The last row seen is −1 and 1, later ones 0 and 2 with variance 1; guesses of 1 and 2 are wrong by 1 and 0."""
    truth = torch.tensor([[-9.0, 9.0], [-1.0, 1.0], *[[0.0, 2.0]] * 4]).unsqueeze(-1)
    guess = torch.tensor([[-9.0, 9.0], [-1.0, 1.0], [0.0, 2.0], *[[1.0, 2.0]] * 3]).unsqueeze(-1)
    errors = open_loop_errors(record({"": truth}, {"": guess}))
    assert errors == {"model": [0.0, 0.5, 0.5, 0.5], "copy": [1.0] * 4}


def test_a_model_that_copies_has_the_error_of_a_copy() -> None:
    truth = torch.randn(T, B, 3, generator=torch.Generator().manual_seed(0)).cumsum(0)
    copied = truth.clone()
    copied[CONTEXT:] = truth[CONTEXT - 1]
    errors = open_loop_errors(record({"": truth}, {"": copied}))
    assert errors["model"] == pytest.approx(errors["copy"])
    assert min(errors["copy"]) > 0.0


def test_entries_count_alike_and_pixels_together() -> None:
    """Of a vector one entry is right and one is its mean: 1/2. An image is wrong in every second sequence: 1/2 too."""
    vector = torch.tensor([[0.0, 1e3], [2.0, 3e3]]).expand(T, B, 2)
    guess = torch.tensor([[0.0, 2e3], [2.0, 2e3]]).expand(T, B, 2)
    errors = open_loop_errors(record({"x": vector}, {"x": guess}))
    assert errors["model"] == pytest.approx([0.5] * 4)
    image = torch.stack([images(0.0)[:, 0], images(1.0)[:, 0]], 1)
    half = torch.stack([images(0.0)[:, 0], images(0.5)[:, 0]], 1)
    both = open_loop_errors(record({"x": vector, "y": image}, {"x": guess, "y": half}))
    assert both["model"] == pytest.approx([0.5 * (0.5 + 0.5)] * 4)


def test_rows_of_other_episodes_and_of_nobody_are_left_out() -> None:
    truth = torch.tensor([0.0, 2.0]).expand(T, B).unsqueeze(-1)
    counts = torch.tensor([[1, 1]] * 4 + [[1, 0], [0, 0]], dtype=torch.bool)
    errors = open_loop_errors(record({"": truth}, {"": truth}, counts))["model"]
    assert errors[:3] == [0.0, 0.0, 0.0]
    assert math.isnan(errors[3])


# What is drawn


def test_the_longest_come_first() -> None:
    counts = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 1, 0]], dtype=torch.bool)
    assert longest(counts, 3) == [2, 0, 3]
    assert longest(counts, 9) == [2, 0, 3, 1]


def test_sequences_are_selected_everywhere() -> None:
    truth = torch.arange(2.0).expand(T, B).unsqueeze(-1)
    chosen = select(record({"": truth}, {"": truth}), [1])
    assert torch.equal(chosen.truth[""], torch.ones(T, 1, 1))
    assert chosen.prediction.value.shape == (T, 1)
    assert chosen.dream.observation[""].shape == (H + 1, 1, 1)
    assert chosen.posterior.shape == (T, 1, 3, 2)
    assert chosen.context == CONTEXT


def test_golden_film() -> None:
    """A white truth, a black prediction, their difference black; grey where the second episode has ended."""
    counts = torch.ones(T, B, dtype=torch.bool)
    counts[4:, 1] = False
    film = open_loop_film(record({"": images(1.0)}, {"": images(0.0)}, counts), "")
    side, gap, bar = 128, 2, 4  # enlarged by 32
    assert film.shape == (T, bar + 3 * (side + 2 * gap), 2 * (256 + 2 * gap), 3)
    first_line, second_line, third_line = (bar + gap + line * (side + 2 * gap) + side // 2 for line in range(3))
    for row in range(T):
        pixels = [film[row, height, 100].tolist() for height in (first_line, second_line, third_line)]
        assert pixels == [[255] * 3, [0] * 3, [0] * 3]
        assert (film[row, first_line, 400].tolist() == [128] * 3) == (row >= 4)
    assert film[:, 0, 0].argmax(-1).tolist() == [2, 2, 0, 0, 0, 0]  # blue, then red


def test_a_film_plays() -> None:
    frames = dream_film(record({"": images(0.0, 3)}, {"": torch.rand(T, B, 3, 4, 8)}), "")
    assert frames.shape == (H + 1, 132, 520, 3)
    film = encode(frames, 4.0)
    assert film.data.startswith(GIF)
    assert (film.height, film.width) == (132, 520)
    picture = opened(film)
    assert picture.size == (520, 132)
    assert picture.n_frames == H + 1
    assert picture.info["duration"] == 250


def test_what_is_no_number_or_lies_outside_is_shown_somehow() -> None:
    strange = images(math.nan)
    strange[1:] = math.inf
    film = dream_film(record({"": images(0.0)}, {"": strange}), "")
    assert film[:, 60, 60, 0].tolist() == [0, 255, 255, 255, 255]


def test_an_album_of_vectors_and_images() -> None:
    truth = {"x": torch.randn(T, B, 9), "image": torch.rand(T, B, 3, 16, 16)}
    pictures = album(record(truth, {"x": torch.full((T, B, 9), math.nan), "image": torch.rand(T, B, 3, 16, 16)}), 5)
    films = {"open_loop_image_film", "dream_image_film"}
    plots = {"open_loop", "dream", "latents", "open_loop_error", "open_loop_image", "reconstruction_image"}
    assert pictures.keys() == films | plots
    for name, picture in pictures.items():
        assert picture.data.startswith(GIF if name in films else PNG)
        assert picture.suffix == ("gif" if name in films else "png")
        assert opened(picture).size == (picture.width, picture.height)


def test_an_album_of_an_episode_that_ends_with_the_context() -> None:
    counts = torch.arange(T).lt(CONTEXT).unsqueeze(1).expand(T, B)
    pictures = album(record({"front/left": images(0.3)}, {"front/left": images(0.2)}, counts), 1)
    assert pictures["open_loop_front_left"].data.startswith(PNG)  # a name of a file
