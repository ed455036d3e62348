"""What DreamerV3 makes of a latent state: numbers as distributions over bins, and actions.

Hafner et al. 2025, "Mastering diverse control tasks through world models", methods. https://arxiv.org/abs/2301.04104
"""

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlmods.functional.two_hot import symexp, symexp_bins, symlog, two_hot_log_likelihood, two_hot_mean
from rlmods.networks.action_heads import ActionHead, CategoricalHead
from rlmods.networks.continuous import ActionBox
from rlmods.networks.normed import NormedMLP
from rlmods.types import EnvSpec

BinSpace: TypeAlias = Literal["symexp", "symlog"]

_STD_LOW, _STD_HIGH = 0.1, 1.0
_LOG_SQRT_TWO_PI = 0.5 * math.log(2.0 * math.pi)


class TwoHotHead(nn.Module):
    """A number as a distribution over bins; predicts exactly 0 at the start.

    Args:
        num_inputs: width of the latent state.
        hidden: width of the layers.
        num_layers: of them.
        num_bins: Z, odd.
        log_bound: the last bin is symexp of it.
        space: where a value is shared between its neighbours: between bins of raw values (symexp), or, as in the
            version of 2023, between bins at equal distances after symlog.
    """

    bins: Tensor

    def __init__(
        self, num_inputs: int, hidden: int, num_layers: int, *, num_bins: int, log_bound: float, space: BinSpace
    ) -> None:
        super().__init__()
        self.space = space
        bins = symexp_bins(num_bins, log_bound)
        self.register_buffer("bins", bins if space == "symexp" else symlog(bins), persistent=False)
        self.layers = NormedMLP(num_inputs, hidden, num_layers, num_bins, output_scale=0.0)

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[..., Z]` float32 of latent states `[..., num_inputs]`."""
        logits: Tensor = self.layers(features)
        return logits.float()

    def mean(self, logits: Tensor) -> Tensor:
        """The number that is expected, `[...]`."""
        mean = two_hot_mean(logits, self.bins)
        return mean if self.space == "symexp" else symexp(mean)

    def log_likelihood(self, log_probabilities: Tensor, value: Tensor) -> Tensor:
        """Of numbers `[...]`, under `[..., Z]`."""
        return two_hot_log_likelihood(log_probabilities, value if self.space == "symexp" else symlog(value), self.bins)

    def loss(self, logits: Tensor, value: Tensor) -> Tensor:
        """Cross-entropy `[...]`, ln Z at the start."""
        return -self.log_likelihood(logits.log_softmax(-1), value)

    @staticmethod
    def end_mass(log_probabilities: Tensor) -> Tensor:
        """The mean probability of the first and the last bin together, a scalar, under `[..., Z]`."""
        return log_probabilities.detach()[..., [0, -1]].exp().sum(-1).mean()

    @property
    def bound(self) -> float:
        """The largest number that can be predicted."""
        last = self.bins[-1]
        return float(last if self.space == "symexp" else symexp(last))


class BoundedNormalHead(ActionHead):
    """A normal with mean tanh x and 0.1 < σ < 1, in the cube of the actions; draws outside it are clipped there."""

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        self.box = ActionBox(spec)
        self.num_outputs = 2 * self.box.num_actions

    def _mean_and_std(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = outputs.float().chunk(2, -1)
        return mean.tanh(), _STD_LOW + (_STD_HIGH - _STD_LOW) * (std + 2.0).sigmoid()

    def draw(self, outputs: Tensor, *, deterministic: bool) -> Tensor:
        """μ + σ ε, or μ."""
        mean, std = self._mean_and_std(outputs)
        return mean if deterministic else torch.addcmul(mean, std, torch.randn_like(mean))

    def action(self, sample: Tensor) -> Tensor:
        """Clipped, in the box's units."""
        return self.box.from_cube(sample.clamp(-1.0, 1.0))

    def log_prob(self, outputs: Tensor, sample: Tensor) -> Tensor:
        """Of a draw before it is clipped, summed over the actions."""
        mean, std = self._mean_and_std(outputs)
        return (-0.5 * ((sample - mean) / std).square() - std.log() - _LOG_SQRT_TWO_PI).sum(-1)

    def log_prob_and_entropy(self, outputs: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """The entropy is that of the normal."""
        _, std = self._mean_and_std(outputs)
        return self.log_prob(outputs, sample), (std.log() + 0.5 + _LOG_SQRT_TWO_PI).sum(-1)


def dreamer_action_head(spec: EnvSpec, unimix: float) -> ActionHead:
    """The head that fits the actions of an environment; `unimix` is of discrete ones."""
    action = spec["action"]
    if action["kind"] == "continuous":
        return BoundedNormalHead(spec)
    if action["kind"] == "discrete":
        return CategoricalHead([action["n"]], is_single=True, unimix=unimix)
    return CategoricalHead(action["nvec"], is_single=False, unimix=unimix)


class ActionVector(nn.Module):
    """Actions of an environment as the world model gets them: one-hot vectors side by side, or the cube.

    Attributes:
        width: A.
        is_single: whether an action is one number of a few.
    """

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        action = spec["action"]
        self.box = ActionBox(spec) if action["kind"] == "continuous" else None
        self.nvec = [action["n"]] if action["kind"] == "discrete" else list(action.get("nvec", []))
        self.is_single = action["kind"] == "discrete"
        self.width = sum(self.nvec) if self.box is None else self.box.num_actions

    def of_action(self, action: Tensor) -> Tensor:
        """Actions `[M]` or `[M, *shape]`, as the environment got them, to `[M, A]` in [−1, 1]."""
        return self.of_sample(action) if self.box is None else self.of_sample(self.box.to_cube(action))

    def of_sample(self, sample: Tensor) -> Tensor:
        """Draws `[M]` or `[M, D]` of the policy to `[M, A]`: a/max(1, |a|) where they are numbers."""
        if self.box is not None:
            return sample.clamp(-1.0, 1.0)
        columns = sample.unsqueeze(-1) if sample.ndim == 1 else sample
        one_hot = [F.one_hot(columns[:, i], n) for i, n in enumerate(self.nvec)]
        return torch.cat(one_hot, -1).float()
