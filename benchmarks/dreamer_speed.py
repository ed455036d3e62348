"""An update of DreamerV3 beside its own matrix products alone.

The products of one update are recorded as it makes them, with their shapes, and then made again with nothing between:
no implementation of the same networks on the same library can be faster than that.

    python benchmarks/dreamer_speed.py --size 1M --threads 2
    python benchmarks/dreamer_speed.py --config configs/dreamer_v3_cartpole.yaml
"""

import argparse
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlmods.algorithms import DreamerV3
from rlmods.memory_allocator import keep_freed_memory
from rlmods.networks.target import polyak_update
from rlmods.types import EnvSpec, Sequences

_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"}


def main() -> None:
    """Print a line for the update and one for its products."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    if not arguments.release_memory:
        keep_freed_memory()
    settings: dict[str, Any] = {"size": arguments.size}
    batch_size, batch_length = arguments.batch_size, arguments.batch_length
    if arguments.config is not None:
        config = yaml.safe_load(arguments.config.read_text())
        settings = config["model"]["init_args"]
        batch_size, batch_length = (config["data"]["init_args"][name] for name in ("batch_size", "batch_length"))
    spec = cartpole_spec()
    model = DreamerV3(spec, **settings)
    update = Update(model, random_sequences(model, batch_size, batch_length), bf16=arguments.bf16)
    update()
    recorder = _Recorder()
    with recorder:
        update()
    seconds = _timed(update, arguments.repeats)
    floor = _timed(recorder.replay, arguments.repeats)
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    precision = "bf16-mixed" if arguments.bf16 else "float32"
    print(
        f"{settings['size']}: {parameters:,} parameters, {batch_size} x {batch_length} steps, "
        f"{arguments.threads} threads, {precision}; median (least) of {arguments.repeats}"
    )
    for name, times in (("update", seconds), (f"its {len(recorder.products):,} products alone", floor)):
        median = statistics.median(times)
        print(
            f"  {name:>28}: {1e3 * median:7.1f} ms ({1e3 * min(times):.1f}), "
            f"{batch_size * batch_length / median:,.0f} transitions/s"
        )


class Update:
    """One update as `training_step` makes it, without the Trainer."""

    def __init__(self, model: DreamerV3, sequences: Sequences, *, bf16: bool) -> None:
        self.model = model
        self.sequences = sequences
        self.bf16 = bf16
        optimizer = model.configure_optimizers()
        self.optimizers = optimizer if isinstance(optimizer, list) else [optimizer]

    def __call__(self) -> None:
        """Losses, gradients, step, slow critic."""
        model = self.model
        with torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext():
            loss = model.total(model.losses(self.sequences))
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            model.clip_(list(model.parameters()), model.choices.agc_clip)
        for optimizer in self.optimizers:
            optimizer.step()
        polyak_update(model.slow_critic.parameters(), model.critic.parameters(), model.slow_critic_tau)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers every matrix product and convolution with its operands, and makes them again."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in _PRODUCTS:
            self.products.append((func, tuple(_detached(argument) for argument in args), kwargs))
        return func(*args, **kwargs)

    def replay(self) -> None:
        """All of them, in their order."""
        with torch.no_grad():
            for function, args, kwargs in self.products:
                function(*args, **kwargs)


def _detached(argument: Any) -> Any:
    return argument.detach() if isinstance(argument, Tensor) else argument


def cartpole_spec() -> EnvSpec:
    """Four numbers, two actions."""
    return {
        "env_id": "CartPole-v1",
        "observation": {"shape": [4], "dtype": "float32"},
        "action": {"kind": "discrete", "n": 2, "shape": [], "low": [], "high": []},
    }


def random_sequences(model: DreamerV3, batch_size: int, batch_length: int) -> Sequences:
    """A mini-batch of the right shapes; the time of an update does not depend on what is in it."""
    shape = (batch_length, batch_size)
    is_first = torch.rand(shape) < 0.02
    never = torch.zeros(shape, dtype=torch.bool)
    return Sequences(
        observation=torch.randn(*shape, 4),
        action=torch.randint(0, 2, shape),
        reward=(~is_first).float(),
        is_first=is_first,
        is_last=never,
        is_terminal=never,
        discount=torch.full(shape, 1.0 - 1.0 / 333.0),
        state=model.initial_state(batch_size),
        index=torch.zeros(shape, dtype=torch.int64),
    )


def _timed(function: Callable[[], None], repeats: int) -> list[float]:
    """Seconds of each of some calls, after two that do not count."""
    seconds = []
    for number in range(repeats + 2):
        began = perf_counter()
        function()
        if number >= 2:
            seconds.append(perf_counter() - began)
    return seconds


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="1M")
    parser.add_argument("--config", type=Path, help="takes networks and batch from a configuration instead")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--batch-length", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--release-memory", action="store_true", help="let freed memory go back to the system")
    parser.add_argument("--repeats", type=int, default=10)
    return parser.parse_args()


if __name__ == "__main__":
    main()
