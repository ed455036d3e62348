"""Which optimiser gets which parameters of an actor and a critic."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from torch import nn
from torch.optim import Adam, AdamW, Muon, Optimizer

OptimizerName: TypeAlias = Literal["adam", "adamw", "muon"]
MuonParameters: TypeAlias = Literal["hidden_matrices", "all_matrices"]

# Huang et al. 2022, "The 37 implementation details of proximal policy optimization", detail 3; torch has 1e-8.
_ADAM_EPS = 1e-5


def make_optimizers(
    groups: Mapping[str, Sequence[nn.Parameter]],
    hidden_matrices: Sequence[nn.Parameter],
    *,
    optimizer: OptimizerName,
    muon_parameters: MuonParameters,
    learning_rate: float,
    weight_decay: float,
) -> list[Optimizer]:
    """One optimiser with a parameter group of each name; Muon takes matrices and leaves the rest to Adam.

    Muon's step has a constant norm, however small the gradient is. On log σ it makes a slow drift out of every bias of
    the gradient's sign, so it gets the hidden layers' matrices alone, unless `all_matrices` says otherwise.

    Args:
        groups: parameters by the name of their group.
        hidden_matrices: those that Muon may have by default.
        optimizer: adam, adamw (with `weight_decay`) or muon.
        muon_parameters: hidden_matrices, or all_matrices with heads and log σ.
        learning_rate: of all groups.
        weight_decay: of AdamW and Muon.
    """
    if optimizer != "muon":
        return [_adam(groups, learning_rate, weight_decay if optimizer == "adamw" else None)]
    hidden = {id(parameter) for parameter in hidden_matrices}

    def is_muon(parameter: nn.Parameter) -> bool:
        return id(parameter) in hidden or (muon_parameters == "all_matrices" and parameter.ndim == 2)

    rest = {name: [p for p in parameters if not is_muon(p)] for name, parameters in groups.items()}
    matrices = {name: [p for p in parameters if is_muon(p)] for name, parameters in groups.items()}
    muon = Muon(_named(matrices), lr=learning_rate, weight_decay=weight_decay)
    return [muon, _adam(rest, learning_rate, None)] if any(rest.values()) else [muon]


def _adam(groups: Mapping[str, Sequence[nn.Parameter]], learning_rate: float, weight_decay: float | None) -> Optimizer:
    if weight_decay is None:
        return Adam(_named(groups), lr=learning_rate, eps=_ADAM_EPS, fused=True)
    return AdamW(_named(groups), lr=learning_rate, eps=_ADAM_EPS, weight_decay=weight_decay, fused=True)


def _named(groups: Mapping[str, Sequence[nn.Parameter]]) -> list[dict[str, object]]:
    return [{"params": list(parameters), "name": name} for name, parameters in groups.items() if parameters]
