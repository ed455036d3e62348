"""Who acted in an interval of the training, network or expert, and what came of it; how often the replay was drawn."""

from typing import Any

from rlmods.types import MeasuresReplay, MixtureSource, MixtureTotals


class ActorCurves:
    """Differences of the totals of a data module with an expert, from point to point."""

    def __init__(self) -> None:
        self._totals = MixtureTotals(0, 0, 0.0, 0.0)  # at the last point

    def measure(self, source: object) -> dict[str, float]:
        """What happened since the last time, by tag.

        `rollout/expert_share`, the share of the frames on which the expert really acted, and the mean reward of a frame
        of each, `rollout/network_reward_per_frame` and `rollout/expert_reward_per_frame`, missing where it had none.
        Empty for a data module that is no `MixtureSource`.
        """
        if not isinstance(source, MixtureSource):
            return {}
        before, self._totals = self._totals, source.mixture_totals()
        network, expert, network_reward, expert_reward = (
            now - then for now, then in zip(self._totals, before, strict=True)
        )
        curves = {"rollout/expert_share": expert / (network + expert)} if network + expert else {}
        if network:
            curves["rollout/network_reward_per_frame"] = network_reward / network
        if expert:
            curves["rollout/expert_reward_per_frame"] = expert_reward / expert
        return curves

    def state_dict(self) -> dict[str, Any]:
        """The totals at the last point."""
        return {"totals": list(self._totals)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self._totals = MixtureTotals(*state_dict["totals"])


def replay_ratio(source: object) -> float | None:
    """Transitions drawn for each new one since learning began; None where nobody counts, or none was drawn."""
    return source.replay_ratio if isinstance(source, MeasuresReplay) else None
