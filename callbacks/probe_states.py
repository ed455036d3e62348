"""Q on the same states for the whole run: percentiles that can be compared from one moment to another."""

from typing import Any

import torch
from torch import Tensor

from rlmods.types import ActionValues, Observation, ReplayBatch

_PERCENTILES = {"min": 0.0, "p01": 0.01, "p50": 0.5, "p99": 0.99, "max": 1.0}
_PLAIN = ""  # key of an observation that is one array


class ProbeStates:
    """States that were drawn from the replay when learning began, and are never drawn again.

    The extremes of a fresh sample are no curve: they differ from one moment to another by the states alone.

    Args:
        num_states: M, at least 1.
    """

    def __init__(self, num_states: int) -> None:
        self.num_states = num_states
        self.columns: dict[str, Tensor] = {}  # [up to M, *shape] each

    @property
    def is_complete(self) -> bool:
        """Whether all M are there."""
        return bool(self.columns) and len(next(iter(self.columns.values()))) == self.num_states

    def collect(self, batch: ReplayBatch) -> None:
        """Take states of a batch, until there are M."""
        if self.is_complete or batch.num_updates == 0:
            return
        observation = batch.transition.observation
        drawn = observation if isinstance(observation, dict) else {_PLAIN: observation}
        for key, column in drawn.items():
            rows = [*([self.columns[key]] if key in self.columns else []), column.flatten(0, 1)]
            self.columns[key] = torch.cat(rows)[: self.num_states].clone()

    def to(self, device: torch.device) -> None:
        """Those of a checkpoint come from the CPU."""
        self.columns = {key: column.to(device) for key, column in self.columns.items()}

    @torch.no_grad()
    def percentiles(self, module: ActionValues) -> dict[str, float]:
        """Of Q over all M states and actions, by name; nothing before all states are there."""
        if not self.is_complete:
            return {}
        observation: Observation = self.columns.get(_PLAIN, self.columns)
        values = module.action_values(observation).float().flatten()
        levels = torch.quantile(values, torch.tensor(list(_PERCENTILES.values()), device=values.device))
        return dict(zip(_PERCENTILES, levels.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The states."""
        return {"columns": self.columns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the same states."""
        self.columns = dict(state["columns"])
