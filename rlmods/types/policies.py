"""The protocols by which modules are known to data modules and callbacks."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from rlmods.functional.open_loop import OpenLoopCheck
from rlmods.types.nouns import Decision, LinearTransitions, Observation, Rollout, Sequences


@runtime_checkable
class Policy(Protocol):
    """Who chooses actions. `deterministic` asks for the action without exploration."""

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        """Observations `[N, *shape]` to actions `[N]` int64 or `[N, A]` float32."""
        ...


@runtime_checkable
class CarefulPolicy(Policy, Protocol):
    """A policy that explores less where the environment says that exploration is lethal."""

    def act_with_care(self, observation: Observation, care: Tensor, *, env_steps: int) -> Tensor:
        """As `act` with exploration, but less of it in the environments `[N]` bool that need care."""
        ...


@runtime_checkable
class DecidingPolicy(Policy, Protocol):
    """A policy that also says how probable its choice was, and may remember."""

    def initial_state(self, num_envs: int) -> Tensor:
        """The recurrent state at the beginning of an episode, zeros `[N, S]`; S is 0 without one."""
        ...

    def decide(self, observation: Observation, state: Tensor, *, deterministic: bool = False) -> Decision:
        """Choose for observations `[N, *shape]` and states `[N, S]`."""
        ...


@runtime_checkable
class ActionValues(Protocol):
    """A module that has a value for each of n discrete actions."""

    def action_values(self, observation: Observation) -> Tensor:
        """Q of observations `[M, *shape]`, without exploration: `[M, n]`."""
        ...


@runtime_checkable
class ExplorationControl(Protocol):
    """A module whose exploration somebody may override; the schedule goes on counting."""

    exploration_override: float | None  # in [0, 1]; None is the schedule


@runtime_checkable
class LearningRateControl(Protocol):
    """A module whose learning rates somebody may scale; the schedule goes on counting."""

    learning_rate_scale: float  # at least 0; 1 is the schedule


@runtime_checkable
class OpenLoopModel(Protocol):
    """A module with a model of the world that can be asked how far ahead it sees."""

    free_nats: float  # below so many nats the KL of a state has no gradient

    def open_loop_check(self, sequences: Sequences) -> OpenLoopCheck:
        """Dreams that take the actions of sequences, and the priors that they draw from, against what was seen.

        The errors, two rows at least, are relative to predicting the mean of the observations: row 0 is what the
        posterior makes of its own observation, row t a dream of t steps; NaN where no episode reaches it. The KLs,
        `[T, B]` of all rows, are those that the signal `kl_dynamics` should have: of the posterior of row t from the
        prior that a dream of one step has, which begins with the posterior's state of row t − 1. They are NaN in row 0
        and where an episode begins. May draw from torch's global generator.
        """
        ...


@runtime_checkable
class SeedsRollouts(Protocol):
    """A policy that also owns the seeds of the environments: their streams are derived from its own."""

    def begin_rollout(self, num_envs: int, num_steps: int) -> list[int] | None:
        """The seeds with which the N environments are reset before a rollout of T steps; None leaves them alone."""
        ...


@runtime_checkable
class SoftValues(Protocol):
    """A module whose values contain the entropy of its policy, as those of SAC do."""

    @property
    def entropy_coefficient(self) -> Tensor:
        """α, a scalar, as the next update uses it; the entropy is that of actions in [−1, 1]."""
        ...


@runtime_checkable
class OffPolicyLinear(Protocol):
    """A linear critic trained off-policy with Gaussian policies: what the probes of its dynamics ask of a module."""

    behaviour_std: float
    target_std: float

    @property
    def has_exact_bootstrap(self) -> bool:
        """Whether E[φ(s′, a′)] has a closed form."""
        ...

    @property
    def critic_weight(self) -> Tensor:
        """w, `[D]`."""
        ...

    @property
    def critic_learning_rate(self) -> float:
        """α_w as it is used."""
        ...

    @property
    def train_step_scale(self) -> float:
        """α_w c: what an iteration multiplies the sum of ρδφ with."""
        ...

    @property
    def mean_step(self) -> float:
        """α_w c N T: what an iteration multiplies the mean of ρδφ with."""
        ...

    def behaviour_policy(self) -> Policy:
        """μ, with randomness from torch's global generator."""
        ...

    def target_policy(self) -> Policy:
        """π, likewise."""
        ...

    def policy_means(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Means of μ and of π, `[..., A]` each, for observations `[..., O]`."""
        ...

    def linear_transitions(self, rollout: Rollout, num_bootstrap_samples: int | None) -> LinearTransitions:
        """What the critic sees of a rollout; None takes the exact expectation where there is one."""
        ...
