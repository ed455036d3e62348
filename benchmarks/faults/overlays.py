"""Faults that come from outside of the algorithm: callbacks."""

import copy
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from .modules import Faulty


class FaultyCallback(Faulty, Callback):
    """Breaks the module once, before the first iteration after the onset."""

    def __init__(self) -> None:
        self.done = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Break it, when it is time."""
        if self.is_broken and not self.done:
            self.done = True
            self.break_module(pl_module)

    def break_module(self, pl_module: LightningModule) -> None:
        """What is done to it."""
        raise NotImplementedError


class RebuiltNetwork(FaultyCallback):
    """The network is built again, and the optimiser goes on with the parameters of the old one."""

    def break_module(self, pl_module: LightningModule) -> None:
        """Put a copy in its place."""
        pl_module.q_network = copy.deepcopy(pl_module.q_network)


class NaNParameter(FaultyCallback):
    """One weight becomes NaN."""

    @torch.no_grad()
    def break_module(self, pl_module: LightningModule) -> None:
        """Of the second layer."""
        layer = pl_module.get_submodule("q_network.3")
        if isinstance(layer, nn.Linear):
            layer.weight[0, 0] = torch.nan


class ReinitialisedHead(FaultyCallback):
    """The last layer is drawn anew, as by a wrong load of a checkpoint; it is learned again."""

    @torch.no_grad()
    def break_module(self, pl_module: LightningModule) -> None:
        """Draw it anew, twenty times as large."""
        layer = pl_module.get_submodule("q_network.5")
        if isinstance(layer, nn.Linear):
            layer.weight.normal_(0.0, 20.0 / layer.in_features**0.5)
