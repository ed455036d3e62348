"""Observations to tokens and back: vectors, images, both."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlmods.networks.dreamer_observations import ObservationDecoder, ObservationEncoder, ObservationKeys
from rlmods.networks.rssm import LatentState
from rlmods.types import ActionSpec, ArraySpec, EnvSpec

VECTOR: ArraySpec = {"shape": [3], "dtype": "float32"}
IMAGE: ArraySpec = {"shape": [3, 48, 64], "dtype": "uint8"}
DETER, STOCH = 16, 6
ACTION: ActionSpec = {"kind": "discrete", "n": 2, "shape": [], "low": [], "high": []}


def keys_of(observation: ArraySpec | dict[str, ArraySpec]) -> ObservationKeys:
    return ObservationKeys(EnvSpec(env_id="Toy-v0", observation=observation, action=ACTION))


def encoder_of(observation: ArraySpec | dict[str, ArraySpec]) -> ObservationEncoder:
    torch.manual_seed(0)
    return ObservationEncoder(keys_of(observation), hidden=8, depth=2)


def decoder_of(observation: ArraySpec | dict[str, ArraySpec], depth: int = 2) -> ObservationDecoder:
    torch.manual_seed(0)
    return ObservationDecoder(keys_of(observation), (DETER, STOCH), hidden=8, depth=depth, num_blocks=8)


def pixels(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8)


def latents(num: int) -> LatentState:
    return LatentState(torch.randn(num, DETER), torch.randn(num, STOCH))


@torch.no_grad()
def predict_nothing(decoder: ObservationDecoder) -> None:
    """Vectors of 0, and images of sigmoid 0 = 1/2."""
    last = [decoder.to_vectors.output] if decoder.keys.vectors else []
    for layer in [*last, *([decoder.to_images.convolutions[-1]] if decoder.keys.images else [])]:
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        layer.weight.zero_()


def test_keys_are_read_in_alphabetical_order() -> None:
    keys = keys_of({"z": VECTOR, "pixels": IMAGE, "a": {"shape": [], "dtype": "int64"}, "b": IMAGE})
    assert keys.vectors == {"a": 1, "z": 3}
    assert keys.images == {"b": 3, "pixels": 3}
    assert keys.size == (48, 64)
    observation = {"z": torch.full((1, 3), 1.0 - math.e), "a": torch.tensor([0])}
    assert keys.vector(observation)[0].tolist() == pytest.approx([0.0, -1.0, -1.0, -1.0])
    images = {"pixels": torch.full((1, 3, 48, 64), 255).byte(), "b": torch.zeros(1, 3, 48, 64).byte()}
    assert keys.image(images).mean((0, 2, 3)).tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("shapes", "remedy"),
    [
        ([(3, 40, 64)], "type --data"),
        ([(3, 32, 64)], "type --data"),
        ([(3, 64, 272)], "type --data"),
        ([(3, 64, 64), (3, 48, 48)], "let the environment itself make 0, 1 alike"),
    ],
)
def test_images_that_do_not_fit_are_refused(shapes: list[tuple[int, int, int]], remedy: str) -> None:
    observation: dict[str, ArraySpec] = {
        str(number): {"shape": list(shape), "dtype": "uint8"} for number, shape in enumerate(shapes)
    }
    with pytest.raises(ValueError, match=rf"got images of \d+x\d+.*in Toy-v0.*multiples of 16 from 48: {remedy}"):
        keys_of(observation)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({"x": torch.zeros(2, 3)}, r"keys \['x'\], expected also \['image'\]"),
        ({"x": torch.zeros(2, 3), "image": torch.zeros(2, 3, 48, 64)}, r"torch.float32, expected \(3, 48, 64\)"),
        ({"x": torch.zeros(2, 3), "image": torch.zeros(2, 48, 64, 3).byte()}, r"got images 'image' \(48, 64, 3\)"),
    ],
)
def test_what_the_networks_were_not_built_for_is_refused(observation: dict[str, Tensor], message: str) -> None:
    """Pixels that somebody has made floats were perhaps divided by 255 already: nobody can tell by looking."""
    with pytest.raises(ValueError, match=message):
        encoder_of({"x": VECTOR, "image": IMAGE})(observation)


@pytest.mark.parametrize(
    ("observation", "num_tokens"),
    [
        (VECTOR, 8),
        ({"b": VECTOR, "a": {"shape": [2, 2], "dtype": "float64"}}, 8),
        ({"shape": [3, 64, 64], "dtype": "uint8"}, 8 * 4 * 4),
        ({"shape": [1, 96, 96], "dtype": "uint8"}, 8 * 6 * 6),
        ({"image": IMAGE, "x": VECTOR}, 8 + 8 * 3 * 4),
    ],
)
def test_tokens_of_all_kinds_of_observations(observation: Any, num_tokens: int) -> None:
    encoder = encoder_of(observation)
    tokens = encoder(sample_of(observation, 5))
    assert encoder.num_tokens == num_tokens
    assert tokens.shape == (5, num_tokens)
    assert bool(tokens.isfinite().all())


def sample_of(observation: Any, num: int) -> Any:
    if "dtype" not in observation:
        return {key: sample_of(array, num) for key, array in observation.items()}
    shape = (num, *observation["shape"])
    return pixels(*shape) if observation["dtype"] == "uint8" else torch.randn(shape)


@pytest.mark.parametrize("observation", [VECTOR, IMAGE, {"image": IMAGE, "x": VECTOR}])
def test_tokens_of_many_observations_are_those_of_each(observation: Any) -> None:
    """One row at a time when acting, all rows of all sequences when learning."""
    encoder, sample = encoder_of(observation), sample_of(observation, 4)
    together = encoder(sample)
    for row in range(4):
        one = (
            {key: array[row : row + 1] for key, array in sample.items()}
            if isinstance(sample, dict)
            else sample[row:][:1]
        )
        torch.testing.assert_close(encoder(one)[0], together[row], rtol=1e-4, atol=1e-5)


def test_tokens_of_vectors_come_first() -> None:
    encoder = encoder_of({"image": IMAGE, "x": VECTOR})
    sample = sample_of({"image": IMAGE, "x": VECTOR}, 1)
    tokens = encoder(sample)
    other = encoder({**sample, "image": pixels(1, 3, 48, 64)})
    assert torch.equal(tokens[:, :8], other[:, :8])
    assert not torch.equal(tokens[:, 8:], other[:, 8:])


def test_the_image_encoder_layer_by_layer() -> None:
    """x/255 − 0.5, then four times: 5×5 convolution of the same size, the larger of 2×2, norm over channels, SiLU."""
    encoder = encoder_of(IMAGE)
    x = pixels(2, 3, 48, 64)
    convolutions = [layer for layer in encoder.of_images if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [4, 6, 8, 8]
    maps = x.double() / 255.0 - 0.5
    for layer in convolutions:
        assert layer.bias is not None
        maps = F.conv2d(maps, layer.weight.double(), layer.bias.double(), padding=2)
        maps = F.max_pool2d(maps, 2)
        maps = F.silu(maps / (maps.square().mean(1, keepdim=True) + 1e-4).sqrt())
    torch.testing.assert_close(encoder(x).double(), maps.flatten(1), rtol=1e-3, atol=1e-4)


def test_the_image_decoder_layer_by_layer() -> None:
    """A map of h block by block, as a dense matrix with zeros off the blocks, plus one of z in two layers; norm, SiLU.

    Then four times: each pixel twice in both directions, 5×5 convolution; norm and SiLU between them, a sigmoid after.
    """
    decoder, state = decoder_of(IMAGE, depth=4), latents(2)
    images = decoder.to_images
    with torch.no_grad():
        images.of_deter_bias.normal_()
    dense = torch.block_diag(*images.of_deter.double())  # type: ignore[no-untyped-call]
    maps = state.deter.double() @ dense + images.of_deter_bias.double().flatten()
    maps = (maps + images.of_stoch(state.stoch).double()).view(2, 16, 3, 4)
    maps = F.silu(maps / (maps.square().mean(1, keepdim=True) + 1e-4).sqrt())
    widths = []
    for number, layer in enumerate(images.convolutions):
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        maps = maps.repeat_interleave(2, 2).repeat_interleave(2, 3)
        maps = F.conv2d(maps, layer.weight.double(), layer.bias.double(), padding=2)
        if number < 3:
            maps = F.silu(maps / (maps.square().mean(1, keepdim=True) + 1e-4).sqrt())
        widths.append(layer.out_channels)
    assert widths == [16, 12, 8, 3]
    torch.testing.assert_close(images(state).double(), maps.sigmoid(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("copies", [1, 2])
def test_golden_errors_of_vectors_are_summed_not_averaged(copies: int) -> None:
    """Of e − 1 and 1 − e², predicted as 0, (1² + 2²) in symlog; twice that where each is seen twice. No factor ½."""
    decoder = decoder_of({"shape": [2 * copies], "dtype": "float32"})
    predict_nothing(decoder)
    errors = decoder.errors(latents(1), torch.tensor([[math.e - 1.0, 1.0 - math.e**2] * copies]))
    assert list(errors) == decoder.kinds == ["vectors"]
    assert errors["vectors"].tolist() == pytest.approx([5.0 * copies])


@pytest.mark.parametrize("copies", [1, 2])
def test_golden_errors_of_images_are_summed_not_averaged(copies: int) -> None:
    """White, where 1/2 is predicted: 1/4 for each pixel of each channel."""
    decoder = decoder_of({str(number): IMAGE for number in range(copies)}, depth=2)
    predict_nothing(decoder)
    white = {str(number): torch.full((1, 3, 48, 64), 255, dtype=torch.uint8) for number in range(copies)}
    errors = decoder.errors(latents(1), white)
    assert list(errors) == decoder.kinds == ["images"]
    assert errors["images"].tolist() == pytest.approx([0.25 * 3 * 48 * 64 * copies])


def test_errors_are_of_each_row() -> None:
    observation: Any = {"image": IMAGE, "x": VECTOR}
    decoder, state, sample = decoder_of(observation), latents(3), sample_of(observation, 3)
    errors = decoder.errors(state, sample)
    assert sorted(errors) == sorted(decoder.kinds) == ["images", "vectors"]
    alone = decoder.errors(LatentState(*(part[1:2] for part in state)), {key: x[1:2] for key, x in sample.items()})
    for kind in decoder.kinds:
        assert errors[kind].shape == (3,)
        torch.testing.assert_close(errors[kind][1:2], alone[kind], rtol=1e-4, atol=1e-4)


def test_predictions_are_in_the_units_of_the_observation() -> None:
    """What is predicted has no error: symexp of the network for vectors; images up to the rounding to 256 levels."""
    observation: Any = {"b": VECTOR, "a": {"shape": [2], "dtype": "float32"}, "image": IMAGE}
    decoder, state = decoder_of(observation), latents(2)
    with torch.no_grad():
        predicted = decoder.predict(state)
        assert {key: tuple(array.shape) for key, array in predicted.items()} == {
            "a": (2, 2),
            "b": (2, 3),
            "image": (2, 3, 48, 64),
        }
        seen = {**predicted, "image": (predicted["image"] * 255.0).round().byte()}
        errors = decoder.errors(state, seen)
    assert errors["vectors"].tolist() == pytest.approx([0.0, 0.0], abs=1e-9)
    assert float(errors["images"].max()) <= 3 * 48 * 64 * (0.5 / 255.0) ** 2
    assert 0.0 < float(predicted["image"].min()) < float(predicted["image"].max()) < 1.0


@pytest.mark.parametrize("observation", [VECTOR, IMAGE, {"image": IMAGE, "x": VECTOR}])
def test_every_weight_gets_a_gradient(observation: Any) -> None:
    encoder, decoder, sample = encoder_of(observation), decoder_of(observation), sample_of(observation, 2)
    sum(error.sum() for error in decoder.errors(latents(2), sample).values()).backward()  # type: ignore[union-attr]
    encoder(sample).square().sum().backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name
