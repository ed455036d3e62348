"""What is wrong with the paths of gradients from losses to parameters: the pure detector of `GradientPathProbe`."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rlmods.callbacks.detectors import Severity, Verdict


class ParameterPaths(NamedTuple):
    """One parameter: who holds it, and which loss reaches it."""

    name: str
    groups: tuple[str, ...]  # of the optimisers that hold it
    learns: bool  # requires_grad
    is_target: bool  # of a target network, and of no other
    is_input_path: bool  # of a module without children: who reaches it went through what that module was given
    norms: Mapping[str, float | None]  # by loss; None where there is no path
    norm_without_action: float | None = None  # of the actor's loss with the policy's output cut


class PathQuestion(NamedTuple):
    """What is what among losses and parameter groups."""

    policy_group: str
    actor_loss: str
    critic_loss: str
    cut: Sequence[str]  # modules whose output was detached; empty where the state path could not be asked for


def path_defects(parameters: Sequence[ParameterPaths], question: PathQuestion) -> list[Verdict]:
    """All defects, the gravest first."""
    return [
        *_state_path(parameters, question),
        *_critic_reaches_actor(parameters, question),
        *_reaches_target(parameters),
        *_reaches_nothing(parameters),
        *_without_loss(parameters),
    ]


def path_table(parameters: Sequence[ParameterPaths], question: PathQuestion, depth: int) -> list[dict[str, Any]]:
    """A row for each loss and module: how many of its parameters it reaches, and the L2 norm of its gradient there.

    Args:
        parameters: of the whole module.
        question: names the actor's loss, whose rows also have the norm with the policy's output cut.
        depth: components of a parameter's name that make a module.
    """
    rows: dict[tuple[str, str, str], list[ParameterPaths]] = {}
    for parameter in parameters:
        for loss in parameter.norms:
            key = (loss, "+".join(parameter.groups), _module(parameter.name, depth))
            rows.setdefault(key, []).append(parameter)
    table = []
    for (loss, groups, module), members in rows.items():
        norms = [parameter.norms[loss] for parameter in members]
        row = {
            "loss": loss,
            "group": groups,
            "module": module,
            "parameters": len(members),
            "reached": sum(norm is not None for norm in norms),
            "norm": _total(norms),
        }
        if loss == question.actor_loss and question.cut:
            row["norm_without_action"] = _total([parameter.norm_without_action for parameter in members])
        table.append(row)
    return table


def _state_path(parameters: Sequence[ParameterPaths], question: PathQuestion) -> list[Verdict]:
    cut_ones = [p for p in parameters if any(p.name.startswith(f"{module}.") for module in question.cut)]
    if not question.cut or any(p.norm_without_action is not None for p in cut_ones):
        # The layer that was cut is still reached: another term holds all weights, as a penalty on them does.
        return []
    found = _where(parameters, lambda p: question.policy_group in p.groups and _moves(p.norm_without_action))
    # A parameter of its own, as a standard deviation is, has no input, and is reached beside the output.
    if not any(parameter.is_input_path for parameter in found):
        return []
    norms = {parameter.name: parameter.norm_without_action for parameter in found}
    is_shared = all(len(parameter.groups) > 1 for parameter in found)
    message = (
        f"with the policy's action cut ({', '.join(question.cut)}), {question.actor_loss} still reaches "
        f"{_some(found)} (gradient norm {_total(norms.values()):.3g}): the actor is paid for drawing states that "
        "please the critic, without acting. Let the critic encode the observation itself, or detach the features that "
        "it is given, and let the actor be reached through the action alone; a term on the actor's features that is "
        "meant belongs into a loss of its own name"
    )
    evidence = {"norms": norms, "cut": list(question.cut), "loss": question.actor_loss}
    severity = Severity.WARN if is_shared else Severity.ACT
    return [Verdict("actor_loss_through_state", severity, message, evidence)]


def _critic_reaches_actor(parameters: Sequence[ParameterPaths], question: PathQuestion) -> list[Verdict]:
    loss = question.critic_loss
    found = _where(parameters, lambda p: p.groups == (question.policy_group,) and _moves(p.norms.get(loss)))
    if not found:
        return []
    norms = {parameter.name: parameter.norms[loss] for parameter in found}
    message = (
        f"{loss} reaches {_some(found)} of the group {question.policy_group} (gradient norm "
        f"{_total(norms.values()):.3g}): the critic's error moves the policy, or what is meant to train the critic is "
        "lost in the actor's next zero_grad. Encode with the critic's own encoder, and compute targets without a graph"
    )
    return [Verdict("critic_loss_reaches_actor", Severity.ACT, message, {"norms": norms, "loss": loss})]


def _reaches_target(parameters: Sequence[ParameterPaths]) -> list[Verdict]:
    found = _where(parameters, lambda p: p.is_target and any(map(_moves, p.norms.values())))
    if not found:
        return []
    held = [parameter for parameter in found if parameter.groups]
    losses = sorted({loss for p in found for loss, norm in p.norms.items() if _moves(norm)})
    if held:
        consequence = f"an optimiser holds {_some(held)}, and moves the target towards the prediction"
    else:
        consequence = "no optimiser holds them, so that nothing comes of it yet"
    message = (
        f"{', '.join(losses)} reaches the target network ({_some(found)}): {consequence}. Compute targets under "
        "torch.no_grad(), and freeze target networks with requires_grad_(False)"
    )
    evidence = {"parameters": [parameter.name for parameter in found], "losses": losses}
    return [Verdict("loss_reaches_target", Severity.ACT if held else Severity.WARN, message, evidence)]


def _reaches_nothing(parameters: Sequence[ParameterPaths]) -> list[Verdict]:
    losses = list(dict.fromkeys(loss for parameter in parameters for loss in parameter.norms))
    idle = [loss for loss in losses if all(parameter.norms[loss] is None for parameter in parameters)]
    if not idle:
        return []
    message = (
        f"{', '.join(idle)} reaches no parameter that learns: nothing is learned from it; look for a detach, a "
        "no_grad() or an .item() between the loss and the network"
    )
    return [Verdict("loss_reaches_nothing", Severity.ACT, message, {"losses": idle})]


def _without_loss(parameters: Sequence[ParameterPaths]) -> list[Verdict]:
    found = _where(parameters, lambda p: bool(p.groups) and p.learns and all(n is None for n in p.norms.values()))
    if not found:
        return []
    message = (
        f"no loss reaches {_some(found)}, which an optimiser holds: they do not learn from this batch; take them out "
        "of the optimiser, or look where their path to the loss was cut"
    )
    return [Verdict("parameter_without_loss", Severity.WARN, message, {"parameters": [p.name for p in found]})]


def _where(parameters: Iterable[ParameterPaths], holds: Callable[[ParameterPaths], bool]) -> list[ParameterPaths]:
    return [parameter for parameter in parameters if holds(parameter)]


def _moves(norm: float | None) -> bool:
    """A gradient that is not 0; NaN is none either."""
    return norm is not None and norm != 0.0


def _total(norms: Iterable[float | None]) -> float:
    return math.sqrt(sum(norm * norm for norm in norms if norm is not None))


def _module(parameter: str, depth: int) -> str:
    return ".".join(parameter.split(".")[:-1][:depth]) or parameter


def _some(parameters: Sequence[ParameterPaths]) -> str:
    names = [parameter.name for parameter in parameters]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
