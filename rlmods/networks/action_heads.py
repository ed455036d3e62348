"""What a stochastic policy makes of the last layer of its network: draws, densities, entropies."""

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlmods.networks.continuous import ActionBox
from rlmods.types import EnvSpec

ActionDistribution: TypeAlias = Literal["bounded", "unbounded"]

LOG_STD_LOW, LOG_STD_HIGH = -5.0, 0.0  # of the bounded Gaussian before tanh; tanh of σ = 1 nearly fills the cube
_LOG_SQRT_TWO_PI = 0.5 * math.log(2.0 * math.pi)


class ActionHead(nn.Module):
    """A distribution over actions, given `num_outputs` numbers of a network `[B, num_outputs]`."""

    num_outputs: int

    def draw(self, outputs: Tensor, *, deterministic: bool) -> Tensor:
        """A sample `[B]` or `[B, A]`, the mode where deterministic. Draws from torch's global generator."""
        raise NotImplementedError

    def action(self, sample: Tensor) -> Tensor:
        """What the environment gets, `[B]` or `[B, *shape]`."""
        raise NotImplementedError

    def log_prob(self, outputs: Tensor, sample: Tensor) -> Tensor:
        """Of a sample as it was drawn, `[B]`."""
        raise NotImplementedError

    def log_prob_and_entropy(self, outputs: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Both `[B]` and differentiable; the entropy of continuous actions is that in the cube, in nats."""
        raise NotImplementedError


class CategoricalHead(ActionHead):
    """D discrete actions: logits side by side, each with a softmax of its own.

    Args:
        nvec: how many choices each action has.
        is_single: whether a sample is `[B]` instead of `[B, D]`.
        unimix: share of the uniform distribution, so that no probability falls below unimix/n.
    """

    def __init__(self, nvec: list[int], *, is_single: bool, unimix: float = 0.0) -> None:
        super().__init__()
        self.nvec = nvec
        self.is_single = is_single
        self.unimix = unimix
        self.num_outputs = sum(nvec)

    def _log_probs(self, outputs: Tensor) -> list[Tensor]:
        """Of the choices of each action, `[B, n]`."""
        choices = [outputs] if self.is_single else torch.split(outputs, self.nvec, -1)
        log_probs = [logits.float().log_softmax(-1) for logits in choices]
        if self.unimix == 0.0:
            return log_probs
        return [
            torch.log(log_prob.exp() * (1.0 - self.unimix) + self.unimix / log_prob.shape[-1]) for log_prob in log_probs
        ]

    def draw(self, outputs: Tensor, *, deterministic: bool) -> Tensor:
        """Argmax of log p, or of p/E with E ~ Exp(1), which has the distribution p."""
        scores = self._log_probs(outputs)
        if not deterministic:
            scores = [score.exp() / torch.empty_like(score).exponential_() for score in scores]
        choices = [score.argmax(-1) for score in scores]
        return choices[0] if self.is_single else torch.stack(choices, -1)

    def action(self, sample: Tensor) -> Tensor:
        """The sample itself."""
        return sample

    def log_prob(self, outputs: Tensor, sample: Tensor) -> Tensor:
        """Σ over the actions."""
        return self._chosen(self._log_probs(outputs), sample)

    def log_prob_and_entropy(self, outputs: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Both summed over the actions."""
        log_probs = self._log_probs(outputs)
        entropies = [-(log_prob.exp() * log_prob).sum(-1) for log_prob in log_probs]
        return self._chosen(log_probs, sample), torch.stack(entropies).sum(0) if len(entropies) > 1 else entropies[0]

    def _chosen(self, log_probs: list[Tensor], sample: Tensor) -> Tensor:
        if self.is_single:
            return log_probs[0].gather(-1, sample.unsqueeze(-1)).squeeze(-1)
        chosen = [log_prob.gather(-1, sample[..., i : i + 1]) for i, log_prob in enumerate(log_probs)]
        return torch.cat(chosen, -1).sum(-1)


class GaussianHead(ActionHead):
    """A Gaussian u ~ N(μ(s), σ²) in the cube's units, σ independent of the state; a subclass brings it into the box.

    Attributes:
        log_std: `[1, A]`, what is learned of σ.
    """

    def __init__(self, num_actions: int, log_std: float) -> None:
        super().__init__()
        self.num_outputs = num_actions
        self.log_std = nn.Parameter(torch.full((1, num_actions), log_std))

    def bounded_log_std(self) -> Tensor:
        """Log σ, `[1, A]`."""
        raise NotImplementedError

    def unit_action(self, sample: Tensor) -> Tensor:
        """What of a sample `[..., A]` is executed, in the cube's units."""
        raise NotImplementedError

    def draw(self, outputs: Tensor, *, deterministic: bool) -> Tensor:
        """μ + σ ε, or μ."""
        if deterministic:
            return outputs
        return torch.addcmul(outputs, self.bounded_log_std().exp(), torch.randn_like(outputs))

    def log_prob(self, outputs: Tensor, sample: Tensor) -> Tensor:
        """Of the Gaussian, before it is brought into the box: the rest does not depend on the parameters."""
        log_std = self.bounded_log_std()
        distance = (sample - outputs) * (-log_std).exp()
        constant = outputs.shape[-1] * _LOG_SQRT_TWO_PI
        return -0.5 * distance.square().sum(-1) - (log_std.sum(-1) + constant)

    def gaussian_entropy(self, outputs: Tensor) -> Tensor:
        """Of the Gaussian, `[B]`."""
        entropy = self.bounded_log_std().sum(-1) + outputs.shape[-1] * (0.5 + _LOG_SQRT_TWO_PI)
        return entropy.expand(outputs.shape[:-1])


class BoundedGaussianHead(GaussianHead):
    """tanh of a Gaussian with e^-5 < σ < 1 by construction: nothing outside the box has a density.

    Source: Haarnoja et al. 2018 (https://arxiv.org/abs/1801.01290), appendix C.
    """

    def __init__(self, spec: EnvSpec, log_std_init: float) -> None:
        box = ActionBox(spec)
        share = (log_std_init - LOG_STD_LOW) / (LOG_STD_HIGH - LOG_STD_LOW)
        if not 0.0 < share < 1.0:
            raise ValueError(
                f"got log_std_init = {log_std_init}, expected a number between {LOG_STD_LOW:g} and {LOG_STD_HIGH:g}, "
                "the bounds of log σ: type --model.init_args.log_std_init -0.5"
            )
        super().__init__(box.num_actions, math.log(share / (1.0 - share)))
        self.box = box

    def bounded_log_std(self) -> Tensor:
        """Between the bounds, by a sigmoid."""
        return torch.lerp(
            torch.full_like(self.log_std, LOG_STD_LOW),
            torch.full_like(self.log_std, LOG_STD_HIGH),
            self.log_std.sigmoid(),
        )

    def unit_action(self, sample: Tensor) -> Tensor:
        """Tanh u."""
        return sample.tanh()

    def action(self, sample: Tensor) -> Tensor:
        """Tanh u in the box's units."""
        return self.box.from_cube(self.unit_action(sample))

    def log_prob_and_entropy(self, outputs: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """The entropy is estimated by one draw: that of the Gaussian plus E log(1 − tanh²u), at most A log 2."""
        draw = self.draw(outputs, deterministic=False)
        log_slope = 2.0 * (math.log(2.0) - draw - F.softplus(-2.0 * draw))
        return self.log_prob(outputs, sample), self.gaussian_entropy(outputs) + log_slope.sum(-1)


class UnboundedGaussianHead(GaussianHead):
    """A Gaussian whose draws are clipped at the box: σ, and with it the entropy, may grow without limit."""

    def __init__(self, spec: EnvSpec, log_std_init: float) -> None:
        action = spec["action"]
        is_finite = all(map(math.isfinite, [*action["low"], *action["high"]]))
        super().__init__(math.prod(action["shape"]), log_std_init)
        self.shape = action["shape"]
        self.box = ActionBox(spec) if is_finite else None

    def bounded_log_std(self) -> Tensor:
        """As it is."""
        return self.log_std

    def unit_action(self, sample: Tensor) -> Tensor:
        """u, clipped where there is a box."""
        return sample if self.box is None else sample.clamp(-1.0, 1.0)

    def action(self, sample: Tensor) -> Tensor:
        """u, clipped at the box where there is one."""
        unit_action = self.unit_action(sample)
        return unit_action.reshape(-1, *self.shape) if self.box is None else self.box.from_cube(unit_action)

    def log_prob_and_entropy(self, outputs: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """The entropy is that of the Gaussian before the clip."""
        return self.log_prob(outputs, sample), self.gaussian_entropy(outputs)


def action_head(spec: EnvSpec, distribution: ActionDistribution, log_std_init: float) -> ActionHead:
    """The head that fits the actions of an environment.

    Raises:
        ValueError: for a bounded distribution over actions without bounds, or `log_std_init` outside its bounds.
    """
    action = spec["action"]
    if action["kind"] == "discrete":
        return CategoricalHead([action["n"]], is_single=True)
    if action["kind"] == "multi_discrete":
        return CategoricalHead(action["nvec"], is_single=False)
    if distribution == "bounded" and not all(map(math.isfinite, [*action["low"], *action["high"]])):
        raise ValueError(
            f"got action_distribution = bounded for {spec['env_id']}, whose actions are without bounds: type "
            "--model.init_args.action_distribution unbounded, or wrap the environment in gymnasium's RescaleAction"
        )
    return (BoundedGaussianHead if distribution == "bounded" else UnboundedGaussianHead)(spec, log_std_init)
