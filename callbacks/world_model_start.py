"""Begin with the world model of another run, and say what becomes of its actor and critic."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from rlmods.callbacks.events import append_event


class WorldModelStart(Callback):
    """Copies the weights of a world model out of a checkpoint before training begins.

    Weights alone: clocks, warm-ups and the optimiser's moments begin anew. To go on with everything, resume
    (`--ckpt_path`) instead; a run that is itself resumed keeps what it has.

    Args:
        init_from: the checkpoint.
        init_actor_critic: `reset` keeps the actor and critic that were just made, `resume` copies theirs too. It has no
            default: the difference between the two is a fresh start that looks like a continuation.
        world_model: names of the submodules that make up the world model.
        actor_critic: names of those that make up actor and critic, with all that belongs to them.

    Raises:
        ValueError: where `init_actor_critic` is neither; at the start, where there is no checkpoint, or it has other
            names or shapes.
    """

    def __init__(
        self,
        init_from: str,
        init_actor_critic: Literal["reset", "resume"],
        *,
        world_model: Sequence[str] = ("world_model",),
        actor_critic: Sequence[str] = ("actor", "critic", "slow_critic", "return_scale"),
    ) -> None:
        if init_actor_critic not in ("reset", "resume"):
            raise ValueError(f"got init_actor_critic = {init_actor_critic!r}, expected 'reset' or 'resume'")
        self.init_from = init_from
        self.init_actor_critic = init_actor_critic
        self.copied = [*world_model, *(actor_critic if init_actor_critic == "resume" else ())]
        self._said: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at the checkpoint before anything is written. A run that is resumed does without it."""
        if stage == "fit" and Path(self.init_from).is_file():
            self._fitting(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy, unless this run is itself resumed: Lightning says so only now."""
        if trainer.ckpt_path is not None:
            return
        pl_module.load_state_dict(self._fitting(pl_module), strict=False)
        others = "theirs too" if self.init_actor_critic == "resume" else "new ones"
        self._said = f"the world model is that of {self.init_from}; actor and critic are {others}"
        rank_zero_info(self._said)

    def _fitting(self, pl_module: LightningModule) -> dict[str, Tensor]:
        """The weights that are to be copied."""
        saved = _weights(self.init_from)
        own = {name: weight for name, weight in pl_module.state_dict().items() if name.partition(".")[0] in self.copied}
        check_shapes(self.init_from, saved, own)
        return {name: saved[name] for name in own}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put it on record."""
        if self._said is not None:
            evidence = {"init_from": self.init_from, "init_actor_critic": self.init_actor_critic}
            append_event(trainer, "action", self._said, {"safeguard": "world_model_start", **evidence})
            self._said = None


def _weights(path: str) -> Mapping[str, Tensor]:
    if not Path(path).is_file():
        raise ValueError(f"got init_from = {path}, where there is no file, expected a checkpoint of a run")
    checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"got init_from = {path}, which holds no state_dict, expected a checkpoint of a run")
    weights: Mapping[str, Tensor] = checkpoint["state_dict"]
    return weights


def check_shapes(path: str, saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Whether a checkpoint has everything that is to be copied, in the shape that it has here.

    Raises:
        ValueError: naming the first that differs.
    """
    if not own:
        raise ValueError(f"nothing to copy from {path}: the module has no submodule of these names")
    for name, weight in own.items():
        got = list(saved[name].shape) if name in saved else "missing"
        if got != list(weight.shape):
            raise ValueError(
                f"got init_from = {path}, whose {name} is {got}, expected {list(weight.shape)}: type the "
                "--model.init_args (size, version, num_bins) and the --data.init_args.env_id of the run that wrote it"
            )
