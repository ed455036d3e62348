"""A mistake of wiring that a published TD3 from pixels had, for the configuration of the same name."""

from torch import Tensor

from rlmods.algorithms import TD3
from rlmods.networks.continuous import Encoded
from rlmods.types import Observation


class SharedFeatures(TD3):
    """TD3 whose actor's loss asks the critic about features that the actor's own convolutions made.

    Wrong on purpose, by one method: everything else is TD3. The critic was never trained on these features, and their
    gradient flows through its state input, so that the actor's convolutions are rewarded for showing the critic states
    that it overrates, whatever the action. No regression pushes back there: Q at the policy's actions runs away from Q
    at the data's, the growing features saturate the tanh, and the layers behind them get a gradient of exactly 0. A
    clipped gradient bounds the steps that way, not the way.

    It passes one network's features off as another's, which `Critic.encode` refuses otherwise. Wants
    `encoder_ownership: separate`.
    """

    def actor_signals(self, observation: Observation) -> dict[str, Tensor]:
        """The wrong loss, and what it was made of, `[B]` each."""
        features = self.actor.encoder(observation)
        pre_tanh = self.actor(Encoded(features, self.actor.encoder))
        with self.critic.frozen():
            mistaken = Encoded(features, self.critic.encoder)
            q_policy = self.critic.first(mistaken, self.actions.from_cube(pre_tanh.tanh()))
        return {"actor_loss": -q_policy.mean(), "q_policy": q_policy, "pre_tanh": pre_tanh}
