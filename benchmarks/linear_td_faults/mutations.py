"""LinearTD and its data module, each class with one line broken."""

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import SGD, Optimizer

from rlmods.algorithms import LinearTD
from rlmods.algorithms.linear_td import Samples
from rlmods.algorithms.reference_stream import ReferenceStream
from rlmods.data import RolloutDataModule
from rlmods.functional.gaussian_policy import importance_ratio
from rlmods.functional.off_policy import clipped_ratio
from rlmods.types import Rollout

# The ratio, in the action mode raw


class WrongRatio(LinearTD):
    """What takes the place of ρ goes into the update as well."""

    def wrong_ratio(self, ratio: Tensor, rollout: Rollout) -> Tensor:
        """`[M]`, from the right one and the rollout."""
        raise NotImplementedError

    def samples(self, rollout: Rollout) -> Samples:
        """With the wrong ratio."""
        samples = super().samples(rollout)
        with torch.no_grad():
            ratio = self.wrong_ratio(samples.density_ratio, rollout)
        return samples._replace(density_ratio=ratio, ratio=clipped_ratio(ratio, self.ratio_clip))


class InvertedRatio(WrongRatio):
    """μ/π."""

    def wrong_ratio(self, ratio: Tensor, rollout: Rollout) -> Tensor:
        """Upside down."""
        return 1.0 / ratio


class VarianceForStd(WrongRatio):
    """Densities of σ² where σ belongs."""

    def wrong_ratio(self, ratio: Tensor, rollout: Rollout) -> Tensor:
        """Both policies alike."""
        means = self.policy_means(as_tensor(rollout.observation))
        wrong = importance_ratio(rollout.action, means[0], self.behaviour_std**2, means[1], self.target_std**2)
        return wrong.flatten()


class BehaviourStdForBoth(WrongRatio):
    """A ratio of densities, but of another target policy."""

    def wrong_ratio(self, ratio: Tensor, rollout: Rollout) -> Tensor:
        """σ_μ twice."""
        means = self.policy_means(as_tensor(rollout.observation))
        return importance_ratio(rollout.action, means[0], self.behaviour_std, means[1], self.behaviour_std).flatten()


class NoNormalisingConstant(WrongRatio):
    """The exponentials alone."""

    def wrong_ratio(self, ratio: Tensor, rollout: Rollout) -> Tensor:
        """Without (σ_μ/σ_π)²."""
        return ratio * (self.target_std / self.behaviour_std) ** 2


class NextStateMeans(WrongRatio):
    """μ(a|s′) in the denominator."""

    def wrong_ratio(self, ratio: Tensor, rollout: Rollout) -> Tensor:
        """m_μ of the next state."""
        behaviour_mean = self.policy_means(as_tensor(rollout.next_observation))[0]
        target_mean = self.policy_means(as_tensor(rollout.observation))[1]
        wrong = importance_ratio(rollout.action, behaviour_mean, self.behaviour_std, target_mean, self.target_std)
        return wrong.flatten()


class ClippedAsUnclipped(LinearTD):
    """The signal that says "before any clip" is the ratio after it."""

    def samples(self, rollout: Rollout) -> Samples:
        """One for both."""
        samples = super().samples(rollout)
        return samples._replace(density_ratio=samples.ratio)


# The update


class WrongSign(LinearTD):
    """δ = value − target."""

    def samples(self, rollout: Rollout) -> Samples:
        """With −δ."""
        samples = super().samples(rollout)
        return samples._replace(td_error=-samples.td_error)


class BehaviourBootstrap(LinearTD):
    """The value of μ is learned, and called that of π."""

    def _next_value(self, observation: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        mean = self.policy_means(observation)[0]
        return self.critic_features.expected_value(weight, observation, mean, self.behaviour_std)


class NoActorGradient(LinearTD):
    """The score is lost on its way."""

    def _loss(self, samples: Samples, rollout: Rollout) -> Tensor:
        return super()._loss(samples._replace(score=torch.zeros_like(samples.score)), rollout)


class CriticForgotten(LinearTD):
    """w is in no parameter group."""

    def configure_optimizers(self) -> Optimizer:
        """The actor alone."""
        return SGD([{"params": [self.actors.theta], "name": "actor"}], lr=self.actor_learning_rate)


class TwoSteps(LinearTD):
    """Each update is made twice."""

    def optimize(
        self, optimizer: LightningOptimizer, loss: Tensor, max_grad_norm: float | None, *, counts: bool
    ) -> Tensor:
        """Step, and step again."""
        grad_norm = super().optimize(optimizer, loss, max_grad_norm, counts=counts)
        optimizer.optimizer.step()
        return grad_norm


class ClipUnused(LinearTD):
    """`max_grad_norm` is configured, and nobody reads it."""

    def optimize(
        self, optimizer: LightningOptimizer, loss: Tensor, max_grad_norm: float | None, *, counts: bool
    ) -> Tensor:
        """Without a clip."""
        return super().optimize(optimizer, loss, None, counts=counts)


# Randomness and data


class StreamRestarted(LinearTD):
    """The generators are seeded in each iteration."""

    def begin_rollout(self, num_envs: int, num_steps: int) -> list[int] | None:
        """From the seed."""
        self.stream = ReferenceStream(self.hparams["seed"])
        return super().begin_rollout(num_envs, num_steps)


class StreamNotSaved(LinearTD):
    """A resume restores the parameters and not the generators, as in the published runs."""

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Without the stream."""
        super().on_save_checkpoint(checkpoint)
        state = checkpoint["algorithm"]
        assert isinstance(state, dict)  # noqa: S101, for mypy
        state["stream"] = None


class SameRollout(RolloutDataModule):
    """Steps are made and counted, and the first rollout is handed out again."""

    first: Rollout | None = None

    def iterate(self, trainer: Trainer) -> Rollout:
        """The first one, with the clock of the newest."""
        rollout = super().iterate(trainer)
        self.first = self.first or rollout
        return self.first._replace(env_steps=rollout.env_steps, progress=rollout.progress)


class ConstantObservation(RolloutDataModule):
    """The environment says for ever what it said at first."""

    def begin_fit(self, trainer: Trainer) -> None:
        """Break its step."""
        super().begin_fit(trainer)
        collector = self._fitting()
        (part,) = collector.environments.parts
        first, finish = collector.observation, part.finish
        part.finish = lambda: finish()._replace(  # type: ignore[method-assign]
            observation=first, next_observation=first
        )


class NaNReward(RolloutDataModule):
    """One reward is NaN, from iteration 20 on."""

    def iterate(self, trainer: Trainer) -> Rollout:
        """The first of the rollout."""
        rollout = super().iterate(trainer)
        if self.iterations > 20:
            rollout.reward[0, 0] = float("nan")
        return rollout


class TruncationEnds(RolloutDataModule):
    """A time limit is treated as termination."""

    def iterate(self, trainer: Trainer) -> Rollout:
        """No bootstrap at the limit."""
        rollout = super().iterate(trainer)
        return rollout._replace(discount=rollout.discount * ~rollout.truncated)


def as_tensor(observation: object) -> Tensor:
    assert isinstance(observation, Tensor)  # noqa: S101, the laboratory has no others
    return observation
