"""PPO and its data module with one line broken between the environments and the advantages."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from rlmods.algorithms import PPO, ppo
from rlmods.algorithms.segments import Segments
from rlmods.data import RolloutDataModule
from rlmods.data.observations import map_observation
from rlmods.functional.off_policy import vtrace_advantage
from rlmods.types import Decisions, Rollout

# The algorithm, on batches that are right


class OtherRollout(PPO):
    """Advantages are made of a rollout that a subclass changes; the batch that callbacks see is the real one."""

    def segments(self, rollout: Rollout) -> tuple[Segments, dict[str, Tensor]]:
        """As the original's."""
        return super().segments(self.changed(rollout))

    def changed(self, rollout: Rollout) -> Rollout:
        """What the algorithm takes for the rollout."""
        raise NotImplementedError


class TerminalsBootstrap(OtherRollout):
    """The mask of terminated steps is missing."""

    def changed(self, rollout: Rollout) -> Rollout:
        """γ everywhere."""
        return rollout._replace(discount=torch.full_like(rollout.discount, float(rollout.discount.amax())))


class DiscountTwice(OtherRollout):
    """The batch's discount is multiplied by γ once more."""

    def changed(self, rollout: Rollout) -> Rollout:
        """γ²."""
        return rollout._replace(discount=rollout.discount.square())


class RewardScaled(OtherRollout):
    """Rewards are counted a tenth."""

    def changed(self, rollout: Rollout) -> Rollout:
        """Inside of the algorithm."""
        return rollout._replace(reward=0.1 * rollout.reward)


class RewardClipped(OtherRollout):
    """Rewards are clipped to ±1."""

    def changed(self, rollout: Rollout) -> Rollout:
        """Inside of the algorithm."""
        return rollout._replace(reward=rollout.reward.clamp(-1.0, 1.0))


class RewardLate(OtherRollout):
    """The reward of a step is that of the step before."""

    def changed(self, rollout: Rollout) -> Rollout:
        """Shifted by one."""
        return rollout._replace(reward=rollout.reward.roll(1, 0))


class ObservationLate(OtherRollout):
    """The observation of a step is that of the step before."""

    def changed(self, rollout: Rollout) -> Rollout:
        """Shifted by one."""
        return rollout._replace(observation=map_observation(lambda column: column.roll(1, 0), rollout.observation))


class NoBootstrapAtTruncation(PPO):
    """A time limit is worth 0."""

    def next_value(self, rollout: Rollout, decisions: Decisions, value: Tensor) -> Tensor:
        """Not of the true last observation."""
        return super().next_value(rollout, decisions, value).where(~rollout.truncated, 0.0)


class NoBootstrapAtEnd(PPO):
    """The end of the rollout is worth 0."""

    def next_value(self, rollout: Rollout, decisions: Decisions, value: Tensor) -> Tensor:
        """Nothing follows the last row."""
        next_value = super().next_value(rollout, decisions, value)
        next_value[-1] = 0.0
        return next_value


class NextValueOfReset(PPO):
    """A truncated episode is continued by the value of the next one's first observation."""

    def next_value(self, rollout: Rollout, decisions: Decisions, value: Tensor) -> Tensor:
        """V of the row below."""
        next_value = super().next_value(rollout, decisions, value)
        next_value[:-1] = value[1:]
        return next_value


class OtherAdvantage(PPO):
    """The recursion of the advantages is one that a subclass changes."""

    def segments(self, rollout: Rollout) -> tuple[Segments, dict[str, Tensor]]:
        """As the original's."""
        algorithm: Any = ppo
        algorithm.vtrace_advantage = self.advantage
        try:
            return super().segments(rollout)
        finally:
            algorithm.vtrace_advantage = vtrace_advantage

    def advantage(self, td_error: Tensor, ratio: Tensor, discount: Tensor, *rest: Any) -> Tensor:
        """Of `[T, N]`."""
        raise NotImplementedError


class TracesCrossEnds(OtherAdvantage):
    """The traces of one episode go on into the next."""

    def advantage(self, td_error: Tensor, ratio: Tensor, discount: Tensor, *rest: Any) -> Tensor:
        """γ λ after each step, and no ends."""
        gamma = torch.full_like(discount, float(discount.amax()))
        return vtrace_advantage(td_error, ratio, gamma, *rest[:3])


class TracesIgnoreTruncation(OtherAdvantage):
    """Only a termination cuts the traces."""

    def advantage(self, td_error: Tensor, ratio: Tensor, discount: Tensor, *rest: Any) -> Tensor:
        """Without ends, but with the masked discount."""
        return vtrace_advantage(td_error, ratio, discount, *rest[:3])


class TracesUndiscounted(OtherAdvantage):
    """The traces decay with λ alone."""

    def advantage(self, td_error: Tensor, ratio: Tensor, discount: Tensor, *rest: Any) -> Tensor:
        """λ = 0.95, γ = 1."""
        return vtrace_advantage(td_error, ratio, (discount > 0.0).float(), *rest)


class AdvantageFlipped(OtherAdvantage):
    """V − target in the place of target − V."""

    def advantage(self, td_error: Tensor, ratio: Tensor, discount: Tensor, *rest: Any) -> Tensor:
        """−A, in the value's target too."""
        return -vtrace_advantage(td_error, ratio, discount, *rest)


class AdvantageOnTarget(PPO):
    """The advantage that the actor gets is the value's target."""

    def segments(self, rollout: Rollout) -> tuple[Segments, dict[str, Tensor]]:
        """Without a baseline."""
        segments, signals = super().segments(rollout)
        return segments._replace(advantage=segments.value_target), signals | {"advantage": signals["value_target"]}


# The rollouts


class StaleRollout(RolloutDataModule):
    """Each iteration learns from the rollout of the last."""

    previous: Rollout | None = None

    def iterate(self, trainer: Trainer) -> Rollout:
        """One late; the first comes twice."""
        newest = super().iterate(trainer)
        previous, self.previous = self.previous or newest, newest
        return previous._replace(env_steps=newest.env_steps, progress=newest.progress)


class CollectorDead(RolloutDataModule):
    """From the ninth iteration on the same rollout comes again."""

    last: Rollout | None = None

    def iterate(self, trainer: Trainer) -> Rollout:
        """The eighth, with a clock that goes on."""
        if self.iterations > 8 and self.last is not None:
            self._env_steps += self.last.valid.numel()
            return self.last._replace(env_steps=self._env_steps, progress=self.progress)
        self.last = super().iterate(trainer)
        return self.last


class TerminalsLost(RolloutDataModule):
    """No step is stored as terminated."""

    def iterate(self, trainer: Trainer) -> Rollout:
        """All bootstrap, and values go on into the next episode."""
        rollout = super().iterate(trainer)
        return rollout._replace(
            terminated=torch.zeros_like(rollout.terminated), discount=torch.full_like(rollout.discount, self.gamma)
        )


class TruncationTerminates(RolloutDataModule):
    """`done = terminated or truncated` is stored."""

    def iterate(self, trainer: Trainer) -> Rollout:
        """Join the two."""
        rollout = super().iterate(trainer)
        return rollout._replace(
            terminated=rollout.terminated | rollout.truncated,
            truncated=torch.zeros_like(rollout.truncated),
            discount=rollout.discount * ~rollout.truncated,
        )


class RewardNaN(RolloutDataModule):
    """One reward of the ninth rollout is NaN."""

    def iterate(self, trainer: Trainer) -> Rollout:
        """In the middle of it."""
        rollout = super().iterate(trainer)
        if self.iterations == 9:
            rollout.reward[len(rollout.reward) // 2, 0] = torch.nan
        return rollout
