"""What the parts that make DreamerV3 fast on a CPU are worth, each beside the plain way.

`python benchmarks/dreamer_parts.py` prints the least of some repeats, one thread: a softmax over the classes of latents
that lie side by side or rows apart; a draw of latents with one random number for each class or for each latent; the
scan of a sequence, forward and backward, by its own backward pass or by automatic differentiation.
"""

import argparse
from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor

from rlmods.functional.discrete_latents import one_hot_sample, straight_through, with_uniform
from rlmods.functional.normed_silu import normed_silu
from rlmods.functional.recurrent_scan import PosteriorWeights, core_step, posterior_scan
from rlmods.memory_allocator import keep_freed_memory
from rlmods.networks.rssm import RSSM, BlockGRU

UNIMIX = 0.01


def main() -> None:
    """Print a line for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    rows, classes, latents = 1_024, 4, 16
    side_by_side, apart = torch.randn(rows, latents, classes), torch.randn(rows, classes, latents)
    _compare(
        f"softmax over {classes} classes, {rows:,} x {latents} latents",
        {"side by side": lambda: side_by_side.softmax(-1), "rows apart": lambda: apart.softmax(-2)},
        repeats,
    )
    probabilities, flat = apart.softmax(-2), side_by_side.softmax(-1)
    _compare(
        "draw of these latents",
        {
            "a number for each class": lambda: (flat / torch.empty_like(flat).exponential_()).argmax(-1),
            "a number for each latent": lambda: one_hot_sample(probabilities, torch.rand(rows, 1, latents)),
        },
        repeats,
    )
    for deter, num_classes, num_latents, steps, width in ((512, 4, 32, 64, 16), (128, 4, 16, 32, 32)):
        _compare_scans(deter, num_classes, num_latents, steps, width, repeats)


def _compare_scans(deter: int, num_classes: int, num_latents: int, steps: int, rows: int, repeats: int) -> None:
    rssm = RSSM(
        64, 2, deter=deter, hidden=64, num_latents=num_latents, num_classes=num_classes, num_blocks=8, unimix=UNIMIX
    )
    stoch = num_latents * num_classes
    of_action, of_tokens = torch.randn(steps, rows, deter, requires_grad=True), torch.randn(steps, rows, 64)
    goes_on, uniform = torch.ones(steps, rows, 1), torch.rand(steps, rows, 1, num_latents)
    start = torch.zeros(rows, deter), torch.zeros(rows, stoch)
    core = rssm.core
    assert isinstance(core, BlockGRU)  # noqa: S101, the default
    posterior = PosteriorWeights(
        deter=rssm.posterior_of_deter.weight,
        scale=rssm.posterior_norm.scale,
        output=rssm.posterior_output.weight,
        output_bias=rssm.posterior_output.bias,
    )

    def scanned() -> None:
        outputs = posterior_scan(of_action, of_tokens, goes_on, *start, uniform, UNIMIX, core.weights(), posterior)
        _backward(outputs)

    def stepped() -> None:
        h, z = start
        lived: list[tuple[Tensor, Tensor, Tensor]] = []
        for step in range(steps):
            h = core_step(h * goes_on[step], z * goes_on[step], of_action[step], core.weights()).deter
            query = normed_silu(of_tokens[step] + h @ posterior.deter.T, posterior.scale)
            logits = torch.addmm(posterior.output_bias, query, posterior.output.T)
            mixed = with_uniform(logits.view(rows, num_classes, num_latents).softmax(-2), UNIMIX)
            z = straight_through(one_hot_sample(mixed, uniform[step]), mixed).flatten(-2)
            lived.append((h, z, mixed))
        _backward(tuple(torch.stack(column) for column in zip(*lived, strict=True)))

    _compare(
        f"scan of {steps} steps, {rows} rows, h of {deter}",
        {"automatic differentiation": stepped, "its own backward pass": scanned},
        repeats,
    )


def _backward(outputs: tuple[Tensor, ...]) -> None:
    torch.stack([output.square().mean() for output in outputs]).sum().backward()  # type: ignore[no-untyped-call]


def _compare(name: str, ways: dict[str, Callable[[], object]], repeats: int) -> None:
    print(name)
    for way, function in ways.items():
        seconds = []
        for _ in range(repeats + 2):
            began = perf_counter()
            function()
            seconds.append(perf_counter() - began)
        print(f"  {way:>26}: {1e6 * min(seconds[2:]):10,.0f} microseconds", flush=True)


if __name__ == "__main__":
    main()
