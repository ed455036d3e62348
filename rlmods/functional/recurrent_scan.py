"""The recurrent part of a world model over a whole sequence, with a backward pass of its own.

A sequence of 64 steps of 16 rows is thousands of tiny operations. Here only what waits for the step before stays in the
loop: inputs are multiplied before it, slopes and the gradients of all weights are computed after it for all steps at
once. Automatic differentiation gives the same gradients in nearly twice the time.

Hafner et al. 2025, "Mastering diverse control tasks through world models", methods. https://arxiv.org/abs/2301.04104
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlmods.functional.discrete_latents import one_hot_sample, with_uniform
from rlmods.functional.normed_silu import NormedSiLUSlopes, normed_silu, normed_silu_slopes


class CoreWeights(NamedTuple):
    """Of the block GRU. G blocks of n = D/G units; d is the width of its layers."""

    deter: Tensor  # [d, D], of h
    deter_bias: Tensor  # [d]
    stoch: Tensor  # [d, S], of z
    stoch_bias: Tensor  # [d]
    both_scale: Tensor  # [2, d], of the norms after these two
    inputs: Tensor  # [D, 2d], of both together
    block: Tensor  # [G, n, n], of each block of h
    scale: Tensor  # [D]
    gates: Tensor  # [3, G, n, n], reset, candidate, update
    gates_bias: Tensor  # [3, G, 1, n]


class PosteriorWeights(NamedTuple):
    """Of the posterior."""

    deter: Tensor  # [d, D], of h
    scale: Tensor  # [d]
    output: Tensor  # [S, d]
    output_bias: Tensor  # [S]


class Gates(NamedTuple):
    """Of a step, after their nonlinearities, by block: `[G, B, n]`."""

    reset: Tensor
    linear: Tensor  # of the candidate, before the reset
    candidate: Tensor
    update: Tensor


class CoreStep(NamedTuple):
    """What a step of the core went through."""

    of_both: Tensor  # [B, 2, d], of h and z, before the norms
    mixed: Tensor  # [B, D], before the norm
    gates: Gates
    deter: Tensor  # [B, D]


def core_step(deter: Tensor, stoch: Tensor, of_action: Tensor, weights: CoreWeights) -> CoreStep:
    """One step of the block GRU.

    Args:
        deter: `[B, D]`, h.
        stoch: `[B, S]`, z.
        of_action: `[B, D]`, what the action adds to the layer that mixes h, z and a, with its bias.
        weights: of the core.
    """
    of_deter = torch.addmm(weights.deter_bias, deter, weights.deter.T)
    of_stoch = torch.addmm(weights.stoch_bias, stoch, weights.stoch.T)
    of_both = torch.stack([of_deter, of_stoch], 1)
    inputs = normed_silu(of_both, weights.both_scale).flatten(1)
    num_blocks = weights.block.shape[0]
    blocks = in_blocks(deter, num_blocks)
    mixed = torch.addmm(of_action, inputs, weights.inputs.T)
    # In place: no copy from blocks to rows. Autocast does not see it, so the types are matched here.
    in_blocks(mixed, num_blocks).baddbmm_(blocks.to(mixed.dtype), weights.block.to(mixed.dtype))
    hidden = in_blocks(normed_silu(mixed, weights.scale), num_blocks)
    # Three products: slices of one would be strided, on which sigmoid and tanh are slow.
    to_reset, to_linear, to_update = weights.gates.unbind()
    reset_bias, linear_bias, update_bias = weights.gates_bias.unbind()
    # Under mixed precision a product is bfloat16; everything else is float32.
    reset = torch.bmm(hidden, to_reset).float().add_(reset_bias).sigmoid_()
    linear = torch.bmm(hidden, to_linear).float().add_(linear_bias)
    update = torch.bmm(hidden, to_update).float().add_(update_bias - 1.0).sigmoid_()
    candidate = (reset * linear).tanh_()
    return CoreStep(
        of_both,
        mixed,
        Gates(reset, linear, candidate, update),
        from_blocks(torch.lerp(blocks, candidate, update)),
    )


def in_blocks(x: Tensor, num_blocks: int) -> Tensor:
    """`[B, D]` as `[G, B, n]`, a view."""
    return x.view(x.shape[0], num_blocks, -1).transpose(0, 1)


def from_blocks(x: Tensor) -> Tensor:
    """`[G, B, n]` to `[B, D]`."""
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def posterior_scan(
    of_action: Tensor,
    of_tokens: Tensor,
    goes_on: Tensor,
    deter: Tensor,
    stoch: Tensor,
    uniform: Tensor,
    unimix: float,
    core: CoreWeights,
    posterior: PosteriorWeights,
) -> tuple[Tensor, Tensor, Tensor]:
    """Live through T steps.

    Args:
        of_action: `[T, B, D]`, as `core_step` takes it.
        of_tokens: `[T, B, d]`, what the observation adds to the posterior's layer, with its bias.
        goes_on: `[T, B, 1]` float32, 0 where nothing before counts.
        deter: `[B, D]`, h before the first step.
        stoch: `[B, S]`, z before the first step.
        uniform: `[T, B, 1, L]`, draws from [0, 1), by which the latents are drawn.
        unimix: of the posterior, in [0, 1).
        core: weights.
        posterior: weights.

    Returns:
        h `[T, B, D]`, z `[T, B, S]` with a straight-through gradient, and the posterior's p `[T, B, C, L]`.
    """
    # In float32 also under mixed precision: products of so few rows gain nothing, and a recurrence loses digits.
    with torch.autocast(deter.device.type, enabled=False):
        outputs: tuple[Tensor, Tensor, Tensor] = _PosteriorScan.apply(  # type: ignore[no-untyped-call]
            unimix, goes_on, uniform, of_action.float(), of_tokens.float(), deter, stoch, *core, *posterior
        )
    return outputs


class _PosteriorScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, unimix: float, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        goes_on, uniform, of_action, of_tokens, deter, stoch = inputs[:6]
        core, posterior = CoreWeights(*inputs[6:16]), PosteriorWeights(*inputs[16:])
        num_latents = uniform.shape[-1]
        steps: list[CoreStep] = []
        columns: list[tuple[Tensor, ...]] = []
        for step, running in enumerate(goes_on.unbind()):
            before, latents_before = deter * running, stoch * running
            lived = core_step(before, latents_before, of_action[step], core)
            deter = lived.deter
            query = torch.addmm(of_tokens[step], deter, posterior.deter.T)
            logits = torch.addmm(posterior.output_bias, normed_silu(query, posterior.scale), posterior.output.T)
            softmax = logits.view(logits.shape[0], -1, num_latents).softmax(-2)
            mixed = with_uniform(softmax, unimix)
            stoch = one_hot_sample(mixed, uniform[step]).flatten(-2)
            steps.append(lived)
            columns.append((before, latents_before, query, softmax, stoch))
        befores, latents_befores, queries, softmaxes, stochs = (
            torch.stack(column) for column in zip(*columns, strict=True)
        )
        deters = torch.stack([step.deter for step in steps])
        ctx.unimix = unimix
        ctx.save_for_backward(
            goes_on,
            befores,
            latents_befores,
            queries,
            softmaxes,
            deters,
            torch.stack([step.of_both for step in steps]),
            torch.stack([step.mixed for step in steps]),
            *(torch.stack([step.gates[i] for step in steps]) for i in range(4)),
            *core,
            *posterior,
        )
        return deters, stochs, with_uniform(softmaxes, unimix)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # Lightning calls it where mixed precision is on.
        with torch.autocast(gradients[0].device.type, enabled=False):
            return _scan_backward(ctx, *gradients)


def _scan_backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    d_deters, d_stochs, d_probabilities = gradients
    goes_on, befores, latents_befores, queries, softmaxes, deters, of_both, mixed = ctx.saved_tensors[:8]
    gates = Gates(*ctx.saved_tensors[8:12])
    core, posterior = CoreWeights(*ctx.saved_tensors[12:22]), PosteriorWeights(*ctx.saved_tensors[22:])
    num_blocks = core.block.shape[0]

    # Of all steps at once: slopes of everything that is not linear.
    both_slopes = normed_silu_slopes(of_both, core.both_scale)
    mixed_slopes = normed_silu_slopes(mixed, core.scale)
    query_slopes = normed_silu_slopes(queries, posterior.scale)
    reset, linear, candidate, update = gates
    blocks_before = _all_in_blocks(befores, num_blocks)
    update_slope = (candidate - blocks_before).mul_(update).mul_(1.0 - update)
    to_candidate = (1.0 - candidate.square()).mul_(update)
    linear_slope = to_candidate * reset
    reset_slope = to_candidate.mul_(linear).mul_(reset).mul_(1.0 - reset)
    gate_slopes = torch.stack([reset_slope, linear_slope, update_slope], 1)  # [T, 3, G, B, n]
    keep = _from_all_blocks(1.0 - update)
    # Transposed once: of all gates together a product with [G, 3n, n].
    gates_back = core.gates.permute(1, 0, 3, 2).flatten(1, 2)
    block_back = core.block.transpose(1, 2)

    d_deter, d_stoch = torch.zeros_like(d_deters[0]), torch.zeros_like(d_stochs[0])
    columns: list[tuple[Tensor, ...]] = []
    # unbind makes all views of a column in one call.
    by_step = zip(
        *(column.unbind() for column in (d_deters, d_stochs, d_probabilities, softmaxes, gate_slopes, keep, goes_on)),
        *(slopes.unbind() for slopes in (query_slopes, mixed_slopes, both_slopes)),
        strict=True,
    )
    for given, given_stoch, given_p, softmax, gate, kept, running, query, mix, both in reversed(list(by_step)):
        of_probabilities = given_p + (given_stoch + d_stoch).view_as(softmax)
        weighted = softmax * of_probabilities
        d_logits = torch.addcmul(weighted, softmax, weighted.sum(-2, keepdim=True), value=-1.0)
        d_logits = d_logits.mul_(1.0 - ctx.unimix).flatten(-2)
        d_answer = d_logits @ posterior.output
        d_query = query.backward(d_answer)
        d_deter = torch.addmm(given + d_deter, d_query, posterior.deter)
        d_gates = gate * in_blocks(d_deter, num_blocks)  # [3, G, B, n]
        d_hidden = from_blocks(torch.bmm(d_gates.permute(1, 2, 0, 3).flatten(2), gates_back))
        d_mixed = mix.backward(d_hidden)
        d_inputs = (d_mixed @ core.inputs).view_as(both.normed)
        d_both = both.backward(d_inputs)
        d_of_deter, d_of_stoch = d_both.unbind(1)
        of_block = from_blocks(torch.bmm(in_blocks(d_mixed, num_blocks), block_back))
        columns.append((d_logits, d_answer, d_query, d_gates, d_hidden, d_mixed, d_inputs, d_both))
        d_deter = torch.addmm(of_block.addcmul_(d_deter, kept), d_of_deter, core.deter).mul_(running)
        d_stoch = (d_of_stoch @ core.stoch).mul_(running)

    # Of all steps at once: the weights.
    columns.reverse()
    d_logits, d_answer, d_query, d_gates, d_hidden, d_mixed, d_inputs, d_both = (
        torch.stack(column) for column in zip(*columns, strict=True)
    )
    d_of_deter, d_of_stoch = d_both.unbind(2)
    d_blocks = _all_in_blocks(d_mixed, num_blocks)
    hidden_blocks = _all_in_blocks(_activated(mixed_slopes, core.scale), num_blocks)
    inputs = _activated(both_slopes, core.both_scale).flatten(2)
    answers = _activated(query_slopes, posterior.scale)
    of_core = CoreWeights(
        deter=_outer(d_of_deter, befores),
        deter_bias=_sum(d_of_deter),
        stoch=_outer(d_of_stoch, latents_befores),
        stoch_bias=_sum(d_of_stoch),
        both_scale=both_slopes.of_scale(d_inputs),
        inputs=_outer(d_mixed, inputs),
        block=_block_outer(blocks_before, d_blocks),
        scale=mixed_slopes.of_scale(d_hidden),
        gates=torch.stack([_block_outer(hidden_blocks, d_gates[:, i]) for i in range(3)]),
        gates_bias=d_gates.sum((0, 3)).unsqueeze(-2),
    )
    of_posterior = PosteriorWeights(
        deter=_outer(d_query, deters),
        scale=query_slopes.of_scale(d_answer),
        output=_outer(d_logits, answers),
        output_bias=_sum(d_logits),
    )
    return None, None, None, d_mixed, d_query, d_deter, d_stoch, *of_core, *of_posterior


def _activated(slopes: NormedSiLUSlopes, scale: Tensor) -> Tensor:
    return torch.nn.functional.silu(slopes.normed * scale, inplace=True)


def _all_in_blocks(x: Tensor, num_blocks: int) -> Tensor:
    """`[T, B, D]` as `[T, G, B, n]`."""
    return x.view(*x.shape[:-1], num_blocks, -1).transpose(1, 2)


def _from_all_blocks(x: Tensor) -> Tensor:
    """`[T, G, B, n]` to `[T, B, D]`."""
    return x.transpose(1, 2).flatten(-2)


def _outer(gradient: Tensor, x: Tensor) -> Tensor:
    """Σ over `[T, B]` of gradient ⊗ x: `[out, in]`."""
    return gradient.flatten(0, 1).T @ x.flatten(0, 1)


def _block_outer(x: Tensor, gradient: Tensor) -> Tensor:
    """Σ over T and B of x ⊗ gradient, block by block: `[G, in, out]` of `[T, G, B, n]`."""
    rows = x.transpose(0, 1).flatten(1, 2)
    return rows.transpose(1, 2) @ gradient.transpose(0, 1).flatten(1, 2)


def _sum(gradient: Tensor) -> Tensor:
    return gradient.flatten(0, 1).sum(0)
