"""The global random state of torch, numpy, Python and CUDA, which Lightning's checkpoints lack."""

import random
from typing import Any

import numpy as np
import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer


class GlobalRNG(Callback):
    """Saves the global random state of every process and restores it when training starts.

    In a fresh run of several processes, the seed of each is folded with its rank, so that they explore differently.
    Without this callback a resumed run draws other numbers than the run that was never stopped.

    Raises:
        ValueError: where a checkpoint was written by another number of processes.
    """

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore, or fold in the rank. Everything before this point may still draw."""
        if self._restored is None:
            if trainer.global_rank > 0:
                _seed_everything(torch.initial_seed() + trainer.global_rank)
            return
        if len(self._restored) != trainer.world_size:
            raise ValueError(
                f"got {trainer.world_size} processes, but the checkpoint was written by {len(self._restored)}: "
                f"type --trainer.devices {len(self._restored)}"
            )
        set_rng_state(self._restored[trainer.global_rank])
        self._restored = None

    def state_dict(self) -> dict[str, Any]:
        """One state a process, in the order of their ranks."""
        state = get_rng_state()
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return {"processes": [state]}
        states: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(states, state)
        return {"processes": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states for `on_train_start`."""
        self._restored = state_dict["processes"]


def get_rng_state() -> dict[str, Any]:
    """The global random state of this process, of tensors, numbers and tuples only."""
    name, keys, position, has_gauss, cached_gaussian = np.random.get_state(legacy=True)  # noqa: NPY002
    with_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if with_cuda else [],
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached_gaussian),
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Set the global random state of this process to what `get_rng_state` gave."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"]:
        for device, cuda_state in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
            torch.cuda.set_rng_state(cuda_state.cpu(), device)
    name, keys, position, has_gauss, cached_gaussian = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached_gaussian))  # noqa: NPY002
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


def _seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
