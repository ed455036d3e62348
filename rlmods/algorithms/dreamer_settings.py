"""Sizes of DreamerV3, and what its hyper-parameters must satisfy."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, get_args, runtime_checkable

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn

from rlmods.algorithms.dreamer_version import OF_VERSION
from rlmods.functional.schedules import Schedule
from rlmods.functional.value_bounds import discounted_value_bounds
from rlmods.memory import available_memory, size_text
from rlmods.networks.world_model import ModelSize

# The names are those of the authors; they are nominal.
SIZES: dict[str, ModelSize] = {
    "cpu": ModelSize(deter=128, hidden=64, num_classes=4, depth=4, num_latents=16),
    "1M": ModelSize(deter=512, hidden=64, num_classes=4, depth=4),
    "12M": ModelSize(deter=2048, hidden=256, num_classes=16, depth=16),
    "25M": ModelSize(deter=3072, hidden=384, num_classes=24, depth=24),
    "50M": ModelSize(deter=4096, hidden=512, num_classes=32, depth=32),
    "100M": ModelSize(deter=6144, hidden=768, num_classes=48, depth=48),
    "200M": ModelSize(deter=8192, hidden=1024, num_classes=64, depth=64),
    "400M": ModelSize(deter=12288, hidden=1536, num_classes=96, depth=96),
}

Range: TypeAlias = tuple[Callable[[Any], bool], str]

# Of a parameter: its weight, its gradient and two moments, in float32.
_BYTES_PER_PARAMETER = 4 * 4


@runtime_checkable
class SizedReplay(Protocol):
    """A data module that knows before it collects what its replay will take."""

    def replay_bytes(self, state_size: int) -> int:
        """Of this process, with states of so many numbers beside the observations."""
        ...


def check_dreamer_settings(settings: Mapping[str, Any]) -> None:
    """Refuse hyper-parameters outside their range.

    Raises:
        ValueError: with what was got, what is expected and what to type.
    """
    at_least_0: Range = (lambda value: 0.0 <= value < math.inf, "at least 0 and finite")
    above_0: Range = (lambda value: 0.0 < value < math.inf, "above 0 and finite")
    at_least_1: Range = (lambda value: value >= 1, "at least 1")
    share: Range = (lambda value: 0.0 <= value <= 1.0, "in [0, 1]")
    mixed: Range = (lambda value: 0.0 <= value < 1.0, "in [0, 1)")
    ranges: dict[str, Range] = {
        "learning_rate": above_0,
        "behaviour_learning_rate": above_0,
        "learning_rate_warmup": at_least_0,
        "agc_clip": above_0,
        "imagination_horizon": at_least_1,
        "imagination_last": (lambda value: value is None or value >= 1, "at least 1, or null"),
        "gae_lambda": share,
        "ent_coef": at_least_0,
        "beta_dyn": at_least_0,
        "beta_rep": at_least_0,
        "free_nats": at_least_0,
        "unimix": mixed,
        "actor_unimix": mixed,
        "num_bins": (lambda value: value >= 3 and value % 2 == 1, "that is odd and at least 3"),
        # Beyond it the last bin leaves float32.
        "log_bound": (lambda value: 0.0 < value <= 80.0, "above 0 and at most 80"),
        "return_scale_rate": share,
        "slow_critic_tau": (lambda value: 0.0 < value <= 1.0, "in (0, 1]"),
        "slow_critic_coef": at_least_0,
        "replay_value_coef": at_least_0,
    }
    words: dict[str, Collection[str]] = {
        "size": SIZES,
        "learning_rate_schedule": get_args(Schedule),
        "eval_mode": ("both", "argmax", "sample"),
    }
    for name, known in words.items():
        if settings[name] not in known:
            raise ValueError(
                f"got {name} = {settings[name]!r}, expected one of {list(known)}: type --model.init_args.{name} "
                f"{next(iter(known))}"
            )
    for name, (is_inside, expected) in ranges.items():
        if name in OF_VERSION and settings[name] is None:
            continue  # the version decides
        if not is_inside(settings[name]):
            raise ValueError(
                f"got {name} = {settings[name]}, expected a value {expected}: type --model.init_args.{name} VALUE"
            )


def check_value_bins(bound: float, reward_bounds: Sequence[float] | None, gamma: float) -> None:
    """Whether the bins reach as far as values can; where rewards have no known bounds, say what they hold.

    Args:
        bound: the last bin.
        reward_bounds: lowest and highest reward of a step, None where nobody knows them.
        gamma: discount of a step.

    Raises:
        ValueError: where they do not, with the number to type.
    """
    if reward_bounds is None:
        rank_zero_info(
            f"value bins to ±{bound:.6g}: they hold rewards of up to {bound * (1.0 - gamma):.3g} in every step. Nobody "
            "says how large those are: type --data.init_args.reward_bounds '[LOW, HIGH]' to have it checked"
        )
        return
    reward_low, reward_high = reward_bounds
    low, high = discounted_value_bounds(reward_low, reward_high, gamma)
    largest = max(-low, high)
    if largest > bound * (1.0 + 1e-5):
        needed = math.ceil(10.0 * math.log1p(largest)) / 10.0
        raise ValueError(
            f"got a last bin of {bound:.6g}, but with rewards from {reward_low:g} to {reward_high:g} and "
            f"gamma = {gamma:g} values reach from {low:.6g} to {high:.6g}, expected bins that hold them: what lies "
            f"beyond is learned as the last bin; type --model.init_args.log_bound {needed:g}"
        )


def check_model_memory(model: nn.Module, size: str, source: object, *, state_size: int, device: torch.device) -> None:
    """Whether training fits into memory, without what an update holds for its backward pass.

    Args:
        model: whose parameters are allocated already, on the CPU.
        size: its name.
        source: the data module; where it is a `SizedReplay`, its replay counts.
        state_size: of a policy's state.
        device: on which it is trained.

    Raises:
        ValueError: where it does not, with what it takes and what there is.
    """
    parameters = list(model.parameters())
    learning = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    allocated = 4 * sum(parameter.numel() for parameter in parameters)
    training = allocated + (_BYTES_PER_PARAMETER - 4) * learning
    of_replay = source.replay_bytes(state_size) if isinstance(source, SizedReplay) else 0
    said = f"got size = {size}, whose {learning:,} parameters with gradients and two moments take {size_text(training)}"
    mend = f"type --model.init_args.size with a smaller one of {', '.join(SIZES)}"
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        if training > free:
            raise ValueError(f"{said} of {device}, expected at most the {size_text(free)} that are free there; {mend}")
        training = allocated
    available = available_memory()
    missing = training - allocated + of_replay
    if available is not None and missing > available:
        replay = f", and the replay {size_text(of_replay)}" if of_replay else ""
        raise ValueError(
            f"{said}{replay}: {size_text(missing)} more than is allocated already, expected at most the "
            f"{size_text(available)} that are available; {mend}"
            f"{', or a smaller --data.init_args.buffer_size' if of_replay else ''}"
        )
