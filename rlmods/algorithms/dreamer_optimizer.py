"""How the versions of DreamerV3 sum up their losses, bound gradients and make steps."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from rlmods.algorithms.dreamer_version import ADAM_EPS, MAX_GRAD_NORM, Version
from rlmods.algorithms.laprop import LaProp
from rlmods.functional.norms import adaptive_clip_, clip_by_global_norm_

_OF_BEHAVIOUR = ("actor", "critic", "replay_critic")


def weighted_total(losses: Mapping[str, Tensor], scales: Mapping[str, float]) -> Tensor:
    """Σ scale · mean over `[T, B]` or `[M, B]`.

    Raises:
        ValueError: where a loss has no scale, a scale no loss, or a loss another shape than the others of its kind.
    """
    shapes = {name: tuple(loss.shape) for name, loss in losses.items()}
    of_model = {shape for name, shape in shapes.items() if name not in _OF_BEHAVIOUR}
    of_behaviour = {shapes[name] for name in _OF_BEHAVIOUR if name in shapes}
    are_rows = all(len(shape) == 2 for shape in shapes.values())
    if losses.keys() != scales.keys() or len(of_model) != 1 or len(of_behaviour) != 1 or not are_rows:
        raise ValueError(
            f"got losses {shapes}, expected one for each of {sorted(scales)}: [T, B] of the world model, "
            f"[M, B] of {sorted(_OF_BEHAVIOUR)}"
        )
    return torch.stack([scales[name] * loss.mean() for name, loss in losses.items()]).sum()


def dreamer_optimizer(groups: Mapping[str, nn.Module], version: Version) -> Optimizer:
    """One optimiser with a parameter group of each name."""
    parameters = [{"params": list(module.parameters()), "name": name} for name, module in groups.items()]
    if version.optimizer == "laprop":
        return LaProp(parameters, lr=version.learning_rate)
    return Adam([group | {"eps": ADAM_EPS[str(group["name"])]} for group in parameters], lr=version.learning_rate)


def clip_adaptively_(parameters: Iterable[nn.Parameter], clip: float) -> Tensor:
    """Bound each gradient tensor by the norm of its parameter; returns the norm of all together before."""
    learning = [parameter for parameter in parameters if parameter.grad is not None]
    return adaptive_clip_(_gradients(learning), [parameter.detach() for parameter in learning], clip)


def clip_groups_(groups: Mapping[str, nn.Module]) -> Tensor:
    """Bound the norm of each group's gradient by its own MAX_GRAD_NORM; returns that of all together before."""
    gradients = {name: found for name, module in groups.items() if (found := _gradients(module.parameters()))}
    norms = [clip_by_global_norm_(found, MAX_GRAD_NORM[name]) for name, found in gradients.items()]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
