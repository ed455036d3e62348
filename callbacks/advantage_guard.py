"""Advantages and value targets against the rewards, discounts and values of their rollout."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rlmods.callbacks.advantage_detector import AdvantageDetector, AdvantageWindow
from rlmods.callbacks.safeguard import MissingInputError, Mode, Readings, Safeguard, require_signals
from rlmods.types import Rollout

_SIGNALS = ("value", "value_target", "advantage")
_MIN_ROWS = 8  # of a fit
_NUMBERS = tuple(name for name in AdvantageWindow._fields if name != "free")


class AdvantageGuard(Safeguard):
    """Makes the advantages of a rollout anew, from what the batch says, and holds those that were used against them.

    Needs the signals `value`, `value_target` and `advantage` `[1, M]`, of the M steps that count of a batch
    `rlmods.types.Rollout`, before they are standardised. It knows neither λ nor the network: with
    δ_t = r_t + γ_t V(s_{t+1}) − V(s_t), generalised advantages obey A_t = δ_t + λ γ_t A_{t+1} inside of an episode, and
    λ is fitted. All are identities, held in every rollout:

    - `advantage_mismatch`: A = target − V.
    - `bootstraps_through_termination`: where an episode terminates, the target is the reward.
    - `advantage_recursion`: the fit leaves nothing, with a λ between 0 and 1. The evidence says how often reward, next
      value, value and next advantage count, fitted one by one: a reward of another scale, a discount of another γ.
    - `no_bootstrap_at_truncation`, `no_bootstrap_at_rollout_end`: where the discount is above 0, a value continues the
      return.

    With a clipped importance ratio (V-trace) δ counts less than once, which is fitted too. Under target transforms, as
    those of `TargetClamp`, only the first is held. What it cannot see is which value continues a truncated episode.

    Args:
        name: of the instance, in curves and events.
        mode: `observe` and `act` only raise alarms; `stop` ends the run.

    Raises:
        MissingInputError: at the first signals, where one is missing or the batch is no rollout.
    """

    def __init__(self, *, name: str = "advantage", mode: Mode = "act") -> None:
        super().__init__(name=name, mode=mode)
        self.detector = AdvantageDetector()
        self._readings = Readings()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, and decide."""
        if not (isinstance(outputs, Mapping) and outputs):
            return
        require_signals(self, outputs, _SIGNALS)
        if not isinstance(batch, Rollout):
            raise MissingInputError(
                f"AdvantageGuard needs batches of rlmods.types.Rollout, but got a {type(batch).__name__}: give it the "
                "rollout that the signals were made of, or leave this callback out"
            )
        is_transformed = bool(getattr(pl_module, "target_transforms", []))
        statistics = measure_advantages(batch, *(outputs[name] for name in _SIGNALS), is_transformed=is_transformed)
        arrived = self._readings.exchange(trainer, statistics.to(pl_module.device))
        if arrived is not None:
            self._decide(trainer, _of_all_processes(arrived[0]))

    def _decide(self, trainer: Trainer, window: AdvantageWindow) -> None:
        self.report(trainer, self.detector.update(window))
        curves = {"residual": window.residual, "trace": window.trace}
        self.draw(trainer, {name: value for name, value in curves.items() if not math.isnan(value)})


@torch.no_grad()
def measure_advantages(
    rollout: Rollout, value: Tensor, value_target: Tensor, advantage: Tensor, *, is_transformed: bool
) -> Tensor:
    """The numbers of `AdvantageWindow`, its four of `free` last.

    Args:
        rollout: of T steps of N environments.
        value: `[1, M]`, of the steps that count, in the order of the rollout.
        value_target: `[1, M]`.
        advantage: `[1, M]`.
        is_transformed: whether targets were changed before; the recursion is then not held.
    """
    valid = rollout.valid
    reward, discount = rollout.reward.double(), rollout.discount.double()
    v, target, a = (_unfolded(column, valid) for column in (value, value_target, advantage))
    size = a[valid].square().mean().sqrt()
    rounding = v[valid].abs().mean() + reward[valid].abs().mean()
    measured = {
        "size": size,
        "rounding": rounding,
        "mismatch": (a - (target - v))[valid].abs().amax(),
        "value": v[valid].abs().mean(),
    }
    free = a.new_full((4,), math.nan)
    if not is_transformed:
        of_fit, free = _fit(rollout, reward, discount, v, a)
        measured |= of_fit
    nothing = a.new_full((), math.nan)
    return torch.cat([torch.stack([measured.get(name, nothing) for name in _NUMBERS]), free])


def _unfolded(column: Tensor, valid: Tensor) -> Tensor:
    """`[1, M]` to `[T, N]` float64, 0 where a step does not count."""
    rows = torch.zeros(valid.shape, dtype=torch.float64, device=column.device)
    rows[valid] = column.detach().double().flatten()
    return rows


def _fit(rollout: Rollout, reward: Tensor, discount: Tensor, v: Tensor, a: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What the recursion says, and the coefficients that are fitted one by one, `[4]`."""
    valid, ends = rollout.valid, rollout.terminated | rollout.truncated
    inside = (valid & ~ends)[:-1] & valid[1:]
    reward_in, gamma, value = reward[:-1][inside], discount[:-1][inside], v[:-1][inside]
    next_value, trace = gamma * v[1:][inside], gamma * a[1:][inside]
    delta_in = reward_in + next_value - value
    coefficients, residual = _admissible_fit(delta_in, trace, a[:-1][inside])
    free, _ = _least_squares(torch.stack([reward_in, next_value, -value, trace], -1), a[:-1][inside])
    delta = coefficients[0].nan_to_num(1.0)
    terminal = (a - delta * (reward - v)).abs()[valid & rollout.terminated]
    bootstrap = (a / delta - reward + v).abs() / discount
    last = torch.zeros_like(valid)
    last[-1] = True
    continues = valid & ~rollout.terminated & (discount > 0.0)
    nothing = a.new_full((1,), math.nan)
    return {
        "delta": coefficients[0],
        "trace": coefficients[1],
        "residual": residual,
        # NaN where there is none; amax of nothing would raise.
        "terminal_error": _largest(terminal, nothing),
        "truncated_value": _largest(bootstrap[continues & rollout.truncated], nothing),
        "last_value": _largest(bootstrap[continues & last & ~rollout.truncated], nothing),
    }, free


def _admissible_fit(delta: Tensor, trace: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
    """A and b of A = a δ + b γ A′, both in [0, 1], and what they leave; a = 1 unless another one is much better."""
    one = delta.new_ones(())
    plain = torch.stack([one, ((advantage - delta) * trace).sum() / trace.square().sum().clamp(min=1e-300)])
    clipped, _ = _least_squares(torch.stack([delta, trace], -1), advantage)
    if not len(delta) >= _MIN_ROWS:
        return clipped, clipped[0]
    fits = torch.stack([plain, clipped]).clamp(0.0, 1.0)
    residuals = (advantage - fits @ torch.stack([delta, trace])).square().mean(-1).sqrt()
    is_clipped = residuals[1] < 0.1 * torch.minimum(residuals[0], 1e-2 * advantage.square().mean().sqrt())
    return torch.where(is_clipped, fits[1], fits[0]), torch.where(is_clipped, residuals[1], residuals[0])


def _least_squares(columns: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients `[n]` of `columns` `[M, n]` and the root mean square of the residual; NaN for too few rows."""
    if len(target) < _MIN_ROWS:
        return target.new_full((columns.shape[1],), math.nan), target.new_full((), math.nan)
    is_finite = columns.isfinite().all() & target.isfinite().all()
    columns, target = columns.where(is_finite, 0.0), target.where(is_finite, 0.0)
    # Scaled before, so that the pseudo-inverse drops what is proportional and not what is small.
    scale = columns.square().mean(0).sqrt().clamp(min=1e-30)
    scaled = columns / scale
    coefficients = torch.linalg.pinv(scaled.T @ scaled, rtol=1e-12, hermitian=True) @ (scaled.T @ target)
    residual = (target - scaled @ coefficients).square().mean().sqrt()
    return (coefficients / scale).where(is_finite, math.nan), residual.where(is_finite, math.nan)


def _largest(values: Tensor, nothing: Tensor) -> Tensor:
    return values.amax() if len(values) else nothing[0]


def _of_all_processes(rows: list[list[float]]) -> AdvantageWindow:
    """The process with the largest residual or mismatch, for its numbers belong together."""
    number = len(_NUMBERS)
    windows = [AdvantageWindow(**dict(zip(_NUMBERS, row, strict=False)), free=row[number:]) for row in rows]
    return max(windows, key=lambda window: max(0.0, window.residual, window.mismatch, window.terminal_error))
