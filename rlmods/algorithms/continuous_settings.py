"""What the hyper-parameters of TD3 and SAC must satisfy."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, get_args

from rlmods.networks.continuous import EncoderOwnership
from rlmods.networks.pixel_encoders import PixelEncoder

Range: TypeAlias = tuple[Callable[[Any], bool], str]


def check_continuous_settings(settings: Mapping[str, Any], *, optimizers: Sequence[str]) -> None:
    """Refuse hyper-parameters outside their range; those that an algorithm does not have are passed over.

    Args:
        settings: by name.
        optimizers: names that `max_grad_norm` may have.

    Raises:
        ValueError: with what was got, what is expected and what to type.
    """
    at_least_0: Range = (lambda value: value >= 0.0, "at least 0")
    above_0: Range = (lambda value: value > 0.0, "above 0")
    share: Range = (lambda value: 0.0 < value <= 1.0, "in (0, 1]")
    at_least_1: Range = (lambda value: value >= 1, "at least 1")

    def is_number(value: Any) -> bool:
        return not isinstance(value, str)

    def one_of(literal: Any) -> Range:
        return (lambda value: value in get_args(literal), f"out of {', '.join(get_args(literal))}")

    ranges: dict[str, Range] = {
        "learning_rate": above_0,
        "tau": share,
        "target_encoder_tau": share,
        "policy_delay": at_least_1,
        "target_update_interval": at_least_1,
        "target_policy_noise": at_least_0,
        "target_noise_clip": at_least_0,
        "exploration_noise": at_least_0,
        "final_exploration_noise": at_least_0,
        "exploration_fraction": (lambda value: 0.0 <= value <= 1.0, "in [0, 1]"),
        "n_critics": at_least_1,
        "features_dim": at_least_1,
        "random_shift": at_least_0,
        "ent_coef": (lambda value: value == "auto" or (is_number(value) and value > 0.0), "above 0, or auto"),
        "target_entropy": (lambda value: value == "auto" or is_number(value), "in nats, or auto"),
        "encoder": one_of(PixelEncoder),
        "encoder_ownership": one_of(EncoderOwnership),
    }
    for name, (is_inside, expected) in ranges.items():
        value = settings.get(name)
        if value is not None and not is_inside(value):
            raise ValueError(f"got {name} = {value}, expected a value {expected}: type --model.init_args.{name} VALUE")
    for name, limit in (settings["max_grad_norm"] or {}).items():
        if name not in optimizers or not limit > 0.0:
            raise ValueError(
                f"got max_grad_norm = {settings['max_grad_norm']}, expected an L2 norm above 0 for some of "
                f"{list(optimizers)}: type --model.init_args.max_grad_norm.{optimizers[0]} 10.0"
            )
