"""What Lightning makes every algorithm repeat: one update, the clocks, the evaluation step."""

import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from rlmods.functional.norms import clip_by_global_norm_, global_norm
from rlmods.functional.proportions import rate_metrics
from rlmods.types import (
    EnvSpec,
    EpisodeBatch,
    Evaluator,
    ExperienceSource,
    Feedback,
    Observation,
    ReplaySource,
    RolloutSource,
    SequenceSource,
)

TargetTransform = Callable[[Tensor], Tensor]


class Algorithm(LightningModule):
    """Manual optimisation, `update_steps`, bootstrap-target hooks, evaluation.

    `trainer.global_step` counts iterations: of all optimiser steps of an iteration exactly one goes through Lightning's
    wrapper, all others step raw. Callbacks see each update, raw or wrapped, in `on_after_backward` (before the clip)
    and in torch's `register_step_pre_hook` (after it).

    Attributes:
        network_settings: names of the hyper-parameters that a checkpoint's weights fit one value of.
        learns_from: what its batches come from: a replay of transitions, rollouts, or a replay of sequences.
        spec: of the environment that the networks were built for.
        total_env_steps: the budget, by which schedules run; the data module owns it, 0 until a trainer has attached it.
        learning_starts: environment steps before the first update; owned by the data module as well.
        update_steps: gradient updates so far.
        target_transforms: callables that the algorithm applies in turn to its bootstrap targets `[B]`.
        grad_norm: L2 norm before the clip of the update under way, for who looks at it in a step hook.
        learning_rate_scale: factor on every learning rate that `set_learning_rate` writes; a rollback lowers it.
    """

    network_settings: tuple[str, ...] = ()
    learns_from: Literal["replay", "rollouts", "sequences"] = "replay"

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.spec = spec
        self.total_env_steps = 0
        self.learning_starts = 0
        self.update_steps = 0
        self.target_transforms: list[TargetTransform] = []
        self.grad_norm: Tensor | None = None
        self.learning_rate_scale = 1.0
        self._backward_is_hooked: bool | None = None  # not known before the first update
        self._accumulates = False  # gradients of `accumulate` wait for the rest of theirs

    def setup(self, stage: str) -> None:
        """Take the budget from the data module; let the CPU round denormal numbers to zero.

        Raises:
            TypeError: where the data module is one of ours, and of the other kind.
            ValueError: under a precision other than 32-true or bf16-mixed.
        """
        if self.trainer.precision not in ("32-true", "bf16-mixed"):
            raise ValueError(
                f"got Trainer(precision={self.trainer.precision!r}), expected 32-true or bf16-mixed: raw optimiser "
                "steps pass by the loss scaler of 16-bit training, and replay is single precision; type "
                "--trainer.precision bf16-mixed"
            )
        self._backward_is_hooked = None
        # Where a ReLU unit is dead, Adam's moments decay into denormal numbers, on which arithmetic is slow.
        torch.set_flush_denormal(True)
        source = self.trainer.datamodule  # type: ignore[attr-defined]
        if _batches_of(source) not in (self.learns_from, None):
            expected = {"replay": "Replay", "rollouts": "Rollout", "sequences": "Sequence"}[self.learns_from]
            raise TypeError(
                f"got {type(source).__name__} for {type(self).__name__}, which learns from {self.learns_from}: type "
                f"--data rlmods.data.{expected}DataModule"
            )
        if isinstance(source, ExperienceSource):
            self.total_env_steps = source.total_env_steps
        if isinstance(source, ReplaySource):
            self.learning_starts = source.learning_starts

    def teardown(self, stage: str) -> None:
        """Give the CPU its denormal numbers back."""
        torch.set_flush_denormal(False)

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        """Observations `[N, *shape]` to actions `[N]` int64 or `[N, A]` float32."""
        raise NotImplementedError

    def accumulate(self, optimizer: LightningOptimizer, loss: Tensor) -> None:
        """A part of the next update's loss: zero_grad where it is the first, backward; `optimize` does the rest."""
        if not self._accumulates:
            optimizer.zero_grad()
            self._accumulates = True
        self.manual_backward(loss)

    def optimize(
        self, optimizer: LightningOptimizer, loss: Tensor, max_grad_norm: float | None, *, counts: bool
    ) -> Tensor:
        """One update: zero_grad (not after `accumulate`), backward, clip, step.

        Args:
            optimizer: as `self.optimizers()` gives it.
            loss: scalar.
            max_grad_norm: L2 bound of all its gradients together; None does not clip.
            counts: whether this is the iteration's one step that goes through Lightning's wrapper.

        Returns:
            The L2 norm before the clip, a scalar on the device.
        """
        return self.optimize_all([optimizer], loss, max_grad_norm, counts=counts)

    def optimize_all(
        self, optimizers: Sequence[LightningOptimizer], loss: Tensor, max_grad_norm: float | None, *, counts: bool
    ) -> Tensor:
        """The same with several optimisers, which all take a step after one backward pass and one clip."""
        parameters = [
            parameter for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]
        ]
        if not self._accumulates:
            for parameter in parameters:
                parameter.grad = None
        self._accumulates = False
        self.manual_backward(loss)
        with torch.no_grad():
            grad_norm = self.clip_(parameters, max_grad_norm)
        self.grad_norm = grad_norm
        for number, optimizer in enumerate(optimizers):
            self._step(optimizer, counts=counts and number == 0)
        return grad_norm

    def clip_(self, parameters: Sequence[nn.Parameter], max_grad_norm: float | None) -> Tensor:
        """Bound the gradients in place; returns their L2 norm before."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        return global_norm(gradients) if max_grad_norm is None else clip_by_global_norm_(gradients, max_grad_norm)

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """As Lightning's, which spends a fifth of a small update on entering hooks, also where nobody has one."""
        trainer: Any = self.trainer  # Lightning's own attributes, some without a type
        strategy = trainer.strategy
        plain = type(strategy.precision_plugin) is Precision and type(trainer.profiler) is PassThroughProfiler
        if self._backward_is_hooked is None:
            self._backward_is_hooked = self._finds_backward_hooks()
        if not plain or self._backward_is_hooked:
            super().manual_backward(loss, *args, **kwargs)
            return
        strategy.pre_backward(loss)  # prepares DDP
        self.backward(loss, *args, **kwargs)
        strategy.post_backward(loss)

    def _finds_backward_hooks(self) -> bool:
        """Whether a callback or the module has a hook of its own around the backward pass."""
        trainer: Any = self.trainer
        return any(
            getattr(getattr(hooked, name), "__func__", None) is not getattr(base, name)
            for base, all_hooked in ((Callback, trainer.callbacks), (LightningModule, [self]))
            for hooked in all_hooked
            for name in ("on_before_backward", "on_after_backward")
        )

    def single_optimizer(self) -> LightningOptimizer:
        """The optimiser of an algorithm that has one."""
        (optimizer,) = self.named_optimizers().values()
        return optimizer

    def named_optimizers(self) -> dict[str, LightningOptimizer]:
        """The optimisers by the name of their first parameter group, else by number."""
        optimizers = self.optimizers()
        if not isinstance(optimizers, list):
            optimizers = [optimizers]
        return {
            str(optimizer.param_groups[0].get("name", number)): optimizer for number, optimizer in enumerate(optimizers)
        }

    def feed_back(self, index: Tensor, *, td_error: Tensor) -> None:
        """Tell the replay, where it listens, the TD errors `[K, B]` of the slots `[K, B]`."""
        source = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(source, Feedback):
            source.feedback(index, td_error=td_error)

    def count_iteration(self, optimizer: LightningOptimizer) -> None:
        """Let `global_step` advance in an iteration without an update; gradients of None leave the weights as they are.

        Without it `ModelCheckpoint` skips the evaluations at an unchanged `global_step`, and `max_steps` never comes.
        """
        optimizer.zero_grad()
        self._step(optimizer, counts=True)

    def _step(self, optimizer: LightningOptimizer, *, counts: bool) -> None:
        if counts:
            optimizer.step()
        else:
            optimizer.optimizer.step()

    def set_learning_rate(self, optimizer: LightningOptimizer, learning_rate: float) -> float:
        """Write the learning rate, scaled, into every parameter group; returns what was written."""
        effective = learning_rate * self.learning_rate_scale
        for group in optimizer.param_groups:
            group["lr"] = effective
        return effective

    def validation_step(self, batch: Evaluator, batch_idx: int) -> STEP_OUTPUT:
        """Play the evaluation episodes and log them under `eval/`. Returns `returns` `[E]`, for paired comparisons."""
        return {"returns": self._log_episodes("eval", batch).returns}

    def test_step(self, batch: Evaluator, batch_idx: int) -> None:
        """Play the test episodes and log them under `test/`."""
        self._log_episodes("test", batch)

    def predict_step(self, batch: Observation | Evaluator, batch_idx: int) -> Tensor | dict[str, Tensor]:
        """Actions `[B]` or `[B, A]` for given observations, or the recorded steps of a roll-out."""
        if isinstance(batch, (Tensor, dict)):
            return self.act(batch, env_steps=0, deterministic=True)
        return batch.record(self)

    def evaluation_metrics(self, episodes: EpisodeBatch) -> dict[str, Tensor]:
        """What an evaluation reports, by its name after the slash; an algorithm with a value function adds to it."""
        metrics = {
            "mean_reward": episodes.returns.mean(),
            "std_reward": episodes.returns.std(correction=0),
            "mean_ep_length": episodes.lengths.double().mean(),
            "mean_discounted_reward": episodes.discounted_returns.mean(),
            "episodes": torch.tensor(float(episodes.returns.numel())),
        }
        metrics |= {f"{name}_mean": summed.nanmean() for name, summed in (episodes.sums or {}).items()}
        for event, happened in episodes.events.items():
            metrics |= {name: torch.tensor(value) for name, value in rate_metrics(event, happened).items()}
        if episodes.expert_returns is not None:
            returns = episodes.expert_returns
            metrics["expert_mean_reward"] = returns.mean()
            metrics["expert_mean_reward_sem"] = returns.std(correction=0) / max(returns.numel() - 1, 1) ** 0.5
        return metrics

    def value_gap(self, episodes: EpisodeBatch, start_value: Tensor, final_value: Tensor) -> dict[str, Tensor]:
        """What the policy expected at the first observations, and by how much it was wrong.

        Args:
            episodes: E of them.
            start_value: `[E]`, what the policy expects at their first observations.
            final_value: `[E]`, and at their last, with which a truncated episode is continued.

        Returns:
            `q_start`, the mean of the first; `q_gap`, the mean of it minus the discounted return that followed;
            `q_gap_sem`, the standard error of that mean.
        """
        continuation = episodes.final_discount * final_value
        gap = start_value - (episodes.discounted_returns.to(start_value) + continuation)
        sem = gap.std(correction=0) / max(gap.numel() - 1, 1) ** 0.5
        return {"q_start": start_value.mean(), "q_gap": gap.mean(), "q_gap_sem": sem}

    def _log_episodes(self, group: str, evaluator: Evaluator) -> EpisodeBatch:
        episodes = self._of_all_processes(evaluator.run(self))
        metrics = {f"{group}/{name}": value for name, value in self.evaluation_metrics(episodes).items()}
        # float64, because float32 counts whole steps only up to 16.7 million.
        metrics["step"] = torch.tensor(evaluator.env_steps, dtype=torch.float64)
        # All processes log the same numbers; without sync_dist Lightning warns that they might not, and NCCL needs them
        # on the device.
        self.log_dict({name: value.to(self.device) for name, value in metrics.items()}, batch_size=1, sync_dist=True)
        return episodes

    def _of_all_processes(self, episodes: EpisodeBatch) -> EpisodeBatch:
        if self.trainer.world_size == 1:
            return episodes
        fields: list[Any] = list(episodes)
        gathered: list[Any] = [
            field if field is None else _flatten_processes(self.all_gather(field)) for field in fields
        ]
        return EpisodeBatch(*gathered)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the clock, the scale of the learning rate and the algorithm's name."""
        checkpoint["algorithm"] = {
            "name": type(self).__name__,
            "update_steps": self.update_steps,
            "learning_rate_scale": self.learning_rate_scale,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the clock and the scale of the learning rate."""
        self.check_checkpoint(checkpoint)
        self.update_steps = checkpoint["algorithm"]["update_steps"]
        self.learning_rate_scale = checkpoint["algorithm"]["learning_rate_scale"]

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Whether a checkpoint is of this algorithm and of an environment like this one.

        Raises:
            ValueError: where the checkpoint is of another algorithm, environment or networks.
        """
        saved = checkpoint.get("algorithm", {"name": "a module of unknown name"})
        if saved["name"] != type(self).__name__:
            raise ValueError(
                f"got a checkpoint of {saved['name']}, expected one of {type(self).__name__}: "
                f"type --ckpt_path with a checkpoint of a {type(self).__name__} run"
            )
        settings = checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY]
        spec = settings["spec"]
        for part in ("observation", "action"):
            if spec[part] != self.spec[part]:
                raise ValueError(
                    f"got a checkpoint of {spec['env_id']} with {part} {spec[part]}, expected {part} {self.spec[part]} "
                    f"of {self.spec['env_id']}: type the --config that the checkpoint was trained with"
                )
        for name in self.network_settings:
            if name in settings and settings[name] != self.hparams[name]:  # it may be younger than the checkpoint
                raise ValueError(
                    f"got a checkpoint of networks with {name} = {settings[name]}, expected {name} = "
                    f"{self.hparams[name]}: type --model.init_args.{name} {json.dumps(settings[name])}"
                )


def _batches_of(source: object) -> str | None:
    """What a data module of ours gives; None of one that is not ours."""
    if isinstance(source, SequenceSource):
        return "sequences"
    if isinstance(source, ReplaySource):
        return "replay"
    return "rollouts" if isinstance(source, RolloutSource) else None


def _flatten_processes(field: Any) -> Any:
    """`[W, E, ...]` of W processes to `[W·E, ...]`."""
    if isinstance(field, dict):
        return {key: value.flatten(0, 1) for key, value in field.items()}
    return field.flatten(0, 1)
