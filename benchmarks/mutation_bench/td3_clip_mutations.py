"""What can be wrong with a gradient clip, each as an algorithm with one line broken; ids as in C1 to C16.

They override `optimize` of the base class, so that each breaks TD3, SAC and DQN alike: `broken(TD3, NeverClips)`.
"""

import copy
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn.utils import clip_grad_value_
from torch.optim import Adam, Optimizer

from rlmods.algorithms import SAC, TD3
from rlmods.algorithms.base import Algorithm
from rlmods.functional.norms import clip_by_global_norm_, global_norm
from rlmods.types import EnvSpec, Observation, ReplayBatch


class ClipOrder(Algorithm):
    """`optimize`, its lines in the order of `order`: zero_grad, backward, clip, step."""

    order = "zbcs"

    def optimize(
        self, optimizer: LightningOptimizer, loss: Tensor, max_grad_norm: float | None, *, counts: bool
    ) -> Tensor:
        """In letters."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        lines = {
            "z": lambda: zero_grad(parameters),
            "b": lambda: self.manual_backward(loss),
            "c": lambda: self.clip(gradients(parameters), max_grad_norm or float("inf")),
            "s": lambda: self._step(optimizer, counts=counts),
        }
        for line in self.order:
            lines[line]()
        return global_norm(gradients(parameters))

    @torch.no_grad()
    def clip(self, gradients: list[Tensor], limit: float) -> None:
        """As it should be."""
        clip_by_global_norm_(gradients, limit)


def zero_grad(parameters: list[Tensor]) -> None:
    for parameter in parameters:
        parameter.grad = None


def gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def broken(algorithm: type[Algorithm], mutation: type[Algorithm]) -> type[Any]:
    """The algorithm with the mutation in front of it."""
    return type(f"{mutation.__name__}{algorithm.__name__}", (mutation, algorithm), {})


# Where the clip is, and what it covers


class NeverClips(ClipOrder):
    """C16: `max_grad_norm` is configured, and nobody reads it."""

    order = "zbs"


class ClipsBeforeBackward(ClipOrder):
    """C2: the gradients of the last update are clipped, then those of this one are made."""

    order = "czbs"


class ClipsAfterStep(ClipOrder):
    """C3: the gradients are clipped when they have been used."""

    order = "zbsc"


class LeavesFirstLayerOut(ClipOrder):
    """C1: two tensors are in no clip."""

    def clip(self, gradients: list[Tensor], limit: float) -> None:
        """All but the first layer's."""
        super().clip(gradients[2:], limit)


class ClipsPerTensor(ClipOrder):
    """C6: each tensor has the whole limit for itself."""

    def clip(self, gradients: list[Tensor], limit: float) -> None:
        """One by one."""
        for gradient in gradients:
            super().clip([gradient], limit)


class ClipsByValue(ClipOrder):
    """C7: another norm than the one that is declared."""

    def clip(self, gradients: list[Tensor], limit: float) -> None:
        """Element by element."""
        stand_ins = [nn.Parameter(torch.empty_like(gradient)) for gradient in gradients]
        for stand_in, gradient in zip(stand_ins, gradients, strict=True):
            stand_in.grad = gradient
        clip_grad_value_(stand_ins, limit)


class ClipsToTwice(ClipOrder):
    """C7: another limit than the one that is declared."""

    def clip(self, gradients: list[Tensor], limit: float) -> None:
        """Twice as much."""
        super().clip(gradients, 2.0 * limit)


# Which gradients there are


class ForgetsZeroGrad(ClipOrder):
    """C5: gradients add up."""

    order = "bcs"


class NaNLoss(ClipOrder):
    """C8: one loss is NaN."""

    def optimize(
        self, optimizer: LightningOptimizer, loss: Tensor, max_grad_norm: float | None, *, counts: bool
    ) -> Tensor:
        """The twentieth update's."""
        factor = float("nan") if self.update_steps == 20 else 1.0
        return super().optimize(optimizer, factor * loss, max_grad_norm, counts=counts)


class CriticNotFrozen(TD3):
    """C5, harmless: the actor's loss leaves gradients on the critic, which zeroes them before its own backward pass."""

    def actor_signals(self, observation: Observation) -> dict[str, Tensor]:
        """Without `frozen`."""
        encoded = self.critic.encoded_without_gradient(observation)
        pre_tanh = self.actor(encoded if self.actor.borrows(encoded) else observation)
        q_policy = self.critic.first(encoded, self.actions.from_cube(pre_tanh.tanh()))
        return {"actor_loss": -q_policy.mean(), "q_policy": q_policy, "pre_tanh": pre_tanh}


class CriticTakesActorGradient(ClipOrder, CriticNotFrozen):
    """C5, harmful: each optimiser zeroes its gradients after its own step, so the critic also follows the actor."""

    order = "bcsz"


class DominatedCritic(SAC):
    """C12: the clip scales all layers by what one needs whose gradient is far too large."""

    def on_train_start(self) -> None:
        """The last layer's times 10⁶, as of a loss of another scale."""
        for parameter in self.critic.q_functions.layers[-1].parameters():
            parameter.register_hook(_times_a_million)  # type: ignore[no-untyped-call]


def _times_a_million(gradient: Tensor) -> Tensor:
    return 1e6 * gradient


class LosesScale(ClipOrder):
    """C14: half precision, where the clip sees gradients times a loss scaler's factor. The base class refuses it."""

    def setup(self, stage: str) -> None:
        """Without the check."""

    def _step(self, optimizer: LightningOptimizer, *, counts: bool) -> None:
        optimizer.optimizer.step()


# What the optimisers hold


class ActorHoldsCritic(TD3):
    """C4: two optimisers share the critic."""

    def configure_optimizers(self) -> list[Optimizer]:
        """The critic's parameters, twice."""
        critic, actor = super().configure_optimizers()
        actor.param_groups[0]["params"] += critic.param_groups[0]["params"]
        return [critic, actor]


class ActorHasUnusedLayer(TD3):
    """C9: a layer of the actor that nobody calls."""

    def __init__(self, spec: EnvSpec, **arguments: Any) -> None:
        super().__init__(spec, **arguments)
        self.actor.unused = nn.Linear(2, 2)
        self.target_actor.unused = nn.Linear(2, 2).requires_grad_(False)


class ActorNeverSteps(TD3):
    """C9: the actor's optimiser is made, and forgotten."""

    def optimize(
        self, optimizer: LightningOptimizer, loss: Tensor, max_grad_norm: float | None, *, counts: bool
    ) -> Tensor:
        """The critic's alone."""
        if optimizer.param_groups[0]["name"] == "actor":
            return torch.zeros(())
        return super().optimize(optimizer, loss, max_grad_norm, counts=counts)


class ReplacesActor(TD3):
    """C10: the optimiser goes on with the parameters of an actor that was replaced."""

    def on_train_start(self) -> None:
        """A copy in its place."""
        self.actor = copy.deepcopy(self.actor)


class ActorNotOptimised(SAC):
    """C10: the first layer of the actor is in no optimiser."""

    def configure_optimizers(self) -> list[Optimizer]:
        """Without its weight."""
        optimizers = super().configure_optimizers()
        del optimizers[1].param_groups[0]["params"][0]
        return optimizers


class HiddenOptimizer(TD3):
    """C15: an optimiser that Lightning does not know steps the actor."""

    def configure_optimizers(self) -> list[Optimizer]:
        """The critic's alone."""
        self.hidden = Adam([{"params": self.actor.own_parameters(), "name": "actor"}], lr=self.learning_rate)
        return super().configure_optimizers()[:1]

    def named_optimizers(self) -> dict[str, LightningOptimizer]:
        """With the hidden one."""
        hidden = LightningOptimizer(self.hidden)
        return {**super().named_optimizers(), "actor": hidden}


# What the user logs


class LogsSumOfNorms(Algorithm):
    """C13: nothing is broken but a metric of the user: the sum of the norms of the critic's tensors."""

    def training_step(self, batch: ReplayBatch, batch_idx: int) -> dict[str, Tensor]:
        """Log it."""
        signals: dict[str, Tensor] = super().training_step(batch, batch_idx)  # type: ignore[assignment]
        norms = [gradient.norm() for gradient in gradients(list(self.get_submodule("critic").parameters()))]
        if norms:
            self.log("train/clipped_grad_norm", torch.stack(norms).sum(), batch_size=1)
        return signals
