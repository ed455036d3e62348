"""Which loss trains which network, found out before the first update."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from rlmods.callbacks.detectors import Severity, Verdict
from rlmods.callbacks.events import append_event
from rlmods.callbacks.ownership import all_parameters
from rlmods.callbacks.path_defects import ParameterPaths, PathQuestion, path_defects, path_table
from rlmods.callbacks.safeguard import MissingInputError, Mode, StepSafeguard, makes_update
from rlmods.callbacks.target_networks import target_networks
from rlmods.callbacks.transitions import num_action_dimensions
from rlmods.functional.gradient_paths import gradient_reach, last_in_graph
from rlmods.types import ReplayBatch


class GradientPathProbe(StepSafeguard):
    """Asks autograd, at the first batch that is learned from and before its first update, which loss reaches what.

    Needs `losses(batch)`, the named, differentiable losses of a batch. Identities:

    - `actor_loss_through_state`: with the policy's output detached, the actor's loss reaches parameters of the actor.
      It then rewards them for what the critic is told of the state, which no regression holds back: Q at the policy's
      actions grows without bound, while Q at the data stays as it is. A warning where all of them are in the critic's
      optimiser too.
    - `critic_loss_reaches_actor`: parameters that are the actor's alone.
    - `loss_reaches_target`: a warning as long as no optimiser holds them.
    - `loss_reaches_nothing`.
    - `parameter_without_loss`, a warning: in an optimiser, but in the graph of no loss.
    - `losses_differ_from_training`, a warning: the first update of an optimiser has gradients where no loss reaches.

    The policy's output layers are those modules of the actor's group whose output is A or 2A wide, for actions of A
    dimensions, and on which no other such module depends. Nothing is changed: gradients, weights, buffers and random
    numbers are those of the training without it. It costs two evaluations of all losses, once.

    Args:
        policy_group: name of the parameter group that the actor's loss trains.
        actor_loss: its name among the losses.
        critic_loss: that of the critic.
        policy_output: names of the modules whose output is the policy's; None finds them.
        depth: components of a parameter's name that make a module of the table, 2: `actor.layers`.
        name: of the instance, in events.
        mode: `observe` and `act` only raise alarms.

    Attributes:
        table: a dict for each loss and module: `loss`, `group`, `module`, `parameters`, `reached` (how many of them),
            `norm` (L2, of the gradient), and for the actor's loss `norm_without_action`. Empty before the probe.

    Raises:
        ValueError: where an argument is outside its range; at the first batch, where the module has no `losses` or no
            module of a name of `policy_output`.
    """

    def __init__(
        self,
        *,
        policy_group: str = "actor",
        actor_loss: str = "actor_loss",
        critic_loss: str = "critic_loss",
        policy_output: Sequence[str] | None = None,
        depth: int = 2,
        name: str = "gradient_path",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        if depth < 1:
            raise ValueError(f"GradientPathProbe got depth = {depth}, expected at least 1")
        if policy_output is not None and (isinstance(policy_output, str) or not policy_output):
            raise ValueError(
                f"GradientPathProbe got policy_output = {policy_output!r}, expected a list of names of modules, for "
                "example ['actor.head']"
            )
        self.policy_group = policy_group
        self.actor_loss = actor_loss
        self.critic_loss = critic_loss
        self.policy_output = policy_output
        self.depth = depth
        self.table: list[dict[str, Any]] = []
        self._found: list[Verdict] = []
        self._unreached: dict[int, str] = {}  # parameters that no loss reaches, by identity
        self._unasked: list[Optimizer] = []  # whose first update has not come yet
        self._surprises: list[str] = []  # parameters with a gradient that no loss gave them
        self._is_waiting = False  # for the end of the iteration, to tell of them

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """At the first batch that is learned from, ask."""
        if self.table or (isinstance(batch, ReplayBatch) and batch.num_updates == 0):
            return
        minibatch = batch.minibatches()[0] if isinstance(batch, ReplayBatch) else batch
        with _left_alone(pl_module), isolate_rng(), torch.enable_grad():
            parameters, cut = self._ask(trainer, pl_module, minibatch)
        # Norms differ between the processes of a run, what follows must not.
        parameters = trainer.strategy.broadcast(parameters)
        question = PathQuestion(self.policy_group, self.actor_loss, self.critic_loss, cut)
        self.table = path_table(parameters, question, self.depth)
        self._watch_first_updates(trainer, pl_module, parameters)
        self._tell(trainer, cut)
        self._found = path_defects(parameters, question)
        self.report(trainer, self._found)

    def _ask(
        self, trainer: Trainer, pl_module: LightningModule, minibatch: Any
    ) -> tuple[list[ParameterPaths], list[str]]:
        groups = _groups(trainer.optimizers)
        named = dict(pl_module.named_parameters())
        tensors = list(named.values())
        with self._listening(pl_module, groups, num_action_dimensions(minibatch)) as outputs:
            losses = _losses(pl_module, minibatch)
        reach = gradient_reach(losses, tensors)
        cut = []
        if self.actor_loss in losses:
            cut = list(outputs) if self.policy_output is not None else last_in_graph(outputs)
        without_action: list[float | None] = [None] * len(tensors)
        if cut:
            del losses, outputs
            with _detached(pl_module, cut):
                losses = _losses(pl_module, minibatch)
            without_action = gradient_reach({self.actor_loss: losses[self.actor_loss]}, tensors)[self.actor_loss]
        targets, leaves = _parameters_of_targets(pl_module), _parameters_of_leaves(pl_module)
        paths = [
            ParameterPaths(
                name=name,
                groups=groups.get(id(parameter), ()),
                learns=parameter.requires_grad,
                is_target=id(parameter) in targets,
                is_input_path=id(parameter) in leaves,
                norms={loss: norms[position] for loss, norms in reach.items()},
                norm_without_action=without_action[position],
            )
            for position, (name, parameter) in enumerate(named.items())
        ]
        return paths, cut

    @contextmanager
    def _listening(
        self, pl_module: LightningModule, groups: dict[int, tuple[str, ...]], num_actions: int | None
    ) -> Iterator[dict[str, Tensor]]:
        """Collects the outputs that may be the policy's, by the module's name, in the order of the calls."""
        modules = dict(pl_module.named_modules())
        del modules[""]
        if self.policy_output is not None:
            missing = [name for name in self.policy_output if name not in modules]
            if missing:
                raise ValueError(
                    f"GradientPathProbe got policy_output with {missing}, expected names of modules of "
                    f"{type(pl_module).__name__}: {list(modules)}"
                )
            modules = {name: modules[name] for name in self.policy_output}
        else:
            modules = {name: net for name, net in modules.items() if _is_of(net, self.policy_group, groups)}
        outputs: dict[str, Tensor] = {}

        def listen(name: str, *call: Any) -> None:
            output = call[-1]
            if not isinstance(output, Tensor) or not output.requires_grad:
                return
            if self.policy_output is not None or (num_actions and output.shape[-1] in (num_actions, 2 * num_actions)):
                outputs[name] = output

        handles = [module.register_forward_hook(partial(listen, name)) for name, module in modules.items()]
        try:
            yield outputs
        finally:
            _remove(handles)

    def _tell(self, trainer: Trainer, cut: list[str]) -> None:
        reached = [row for row in self.table if row["reached"]]
        lines = [f"{row['loss']} → {row['module']} ({row['norm']:.3g})" for row in reached]
        has_policy = any(self.policy_group in row["group"].split("+") for row in self.table)
        if has_policy and not cut:
            lines.append(
                f"the path through the state was not asked for: found no loss {self.actor_loss}, or no layer as wide "
                "as the action; type actor_loss=... or policy_output=[...]"
            )
        evidence = {"safeguard": self.name, "table": self.table, "cut": cut}
        append_event(trainer, "probe", f"GradientPathProbe: {'; '.join(lines)}", evidence)

    # What the first updates show

    def _watch_first_updates(
        self, trainer: Trainer, pl_module: LightningModule, parameters: list[ParameterPaths]
    ) -> None:
        unreached = {path.name for path in parameters if all(norm is None for norm in path.norms.values())}
        self._unreached = {id(p): name for name, p in pl_module.named_parameters() if name in unreached}
        self._unasked = list(trainer.optimizers)
        self._surprises, self._is_waiting = [], True

    def before_step(self, optimizer: Optimizer) -> None:
        """Look at the gradients of an optimiser's first update."""
        if optimizer not in self._unasked or not makes_update(optimizer):
            return
        self._unasked.remove(optimizer)
        for parameter in all_parameters(optimizer):
            name = self._unreached.get(id(parameter))
            if name is not None and parameter.grad is not None and bool(parameter.grad.any()):
                self._surprises.append(name)
                self._is_waiting = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell of the first updates."""
        if not self._is_waiting:
            return
        self._is_waiting = bool(self._unasked)
        if not trainer.strategy.reduce_boolean_decision(bool(self._surprises), all=False):
            return
        message = (
            f"{', '.join(self._surprises) or 'in another process, parameters'} had a gradient in the first update, but "
            "no loss of losses(batch) reaches them: what this probe saw is not what is trained; let training_step "
            "minimise the losses that losses(batch) returns"
        )
        evidence = {"parameters": list(self._surprises)}
        self.report(trainer, [*self._found, Verdict("losses_differ_from_training", Severity.WARN, message, evidence)])

    def state_dict(self) -> dict[str, Any]:
        """The table: a resumed run does not ask again."""
        return {**super().state_dict(), "table": [dict(row) for row in self.table]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.table = [dict(row) for row in state_dict["table"]]


def _losses(pl_module: LightningModule, batch: Any) -> dict[str, Tensor]:
    losses = getattr(pl_module, "losses", None)
    if not callable(losses):
        raise MissingInputError(
            f"GradientPathProbe needs {type(pl_module).__name__}.losses(batch), which it does not have: write a method "
            "that returns the differentiable losses of a batch by name, {'critic_loss': ..., 'actor_loss': ...}, those "
            "that training_step minimises; or leave this callback out"
        )
    found: dict[str, Tensor] = losses(batch)
    if not found:
        raise MissingInputError(
            f"GradientPathProbe got no losses from {type(pl_module).__name__}.losses(batch), expected at least one by "
            "its name, {'loss': ...}"
        )
    return found


@contextmanager
def _left_alone(pl_module: LightningModule) -> Iterator[None]:
    """What `losses` may change besides gradients: buffers, and what listens to the targets."""
    transforms: list[Any] = getattr(pl_module, "target_transforms", [])
    listening, buffers = list(transforms), {name: buffer.clone() for name, buffer in pl_module.named_buffers()}
    transforms.clear()
    try:
        yield
    finally:
        transforms.extend(listening)
        with torch.no_grad():
            for name, buffer in pl_module.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])


@contextmanager
def _detached(pl_module: LightningModule, names: Sequence[str]) -> Iterator[None]:
    """The outputs of these modules carry no graph."""
    modules = dict(pl_module.named_modules())
    handles = [modules[name].register_forward_hook(lambda *call: call[-1].detach()) for name in names]
    try:
        yield
    finally:
        _remove(handles)


def _remove(handles: Sequence[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _groups(optimizers: Sequence[Optimizer]) -> dict[int, tuple[str, ...]]:
    """The groups that hold each parameter, by its identity."""
    groups: dict[int, tuple[str, ...]] = {}
    for number, optimizer in enumerate(optimizers):
        for position, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                name = str(group.get("name", f"{number}.{position}"))
                groups[id(parameter)] = (*groups.get(id(parameter), ()), name)
    return groups


def _is_of(module: Module, group: str, groups: dict[int, tuple[str, ...]]) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and all(group in groups.get(id(parameter), ()) for parameter in parameters)


def _parameters_of_targets(pl_module: LightningModule) -> set[int]:
    """Those of target networks alone: a target may share an encoder with its online network."""
    targets = target_networks(pl_module)
    prefixes = tuple(f"{name}." for name in targets)
    online = {id(p) for name, p in pl_module.named_parameters(remove_duplicate=False) if not name.startswith(prefixes)}
    return {id(p) for network in targets.values() for p in network.parameters()} - online


def _parameters_of_leaves(pl_module: LightningModule) -> set[int]:
    leaves = [module for module in pl_module.modules() if next(module.children(), None) is None]
    return {id(parameter) for module in leaves for parameter in module.parameters(recurse=False)}
