"""How many updates an iteration makes, so that each environment step is replayed a given number of times."""

from typing import Any


class TrainRatio:
    """Gives out updates in proportion to environment steps, and counts both.

    What is left of an update waits for the next iteration. Steps before learning began are never caught up with, and
    neither is a ratio that a resumed run has raised.

    Args:
        train_ratio: steps replayed for each environment step (not frame: repeated actions do not count).
        update_steps: that one update replays, over all processes, B · T each.

    Attributes:
        replayed: steps so far.
        env_steps: so far, those of the first iteration with an update included.
    """

    def __init__(self, train_ratio: float, update_steps: int) -> None:
        self.train_ratio = train_ratio
        self.update_steps = update_steps
        self.replayed = 0
        self.env_steps = 0
        self._owed = 0.0  # steps that are still to be replayed

    @property
    def value(self) -> float | None:
        """Steps replayed for each environment step, as it was; None before the first update."""
        return self.replayed / self.env_steps if self.replayed else None

    def take(self, new_env_steps: int) -> int:
        """Count one iteration of learning, of all processes; returns the updates to make."""
        self.env_steps += new_env_steps
        self._owed += self.train_ratio * new_env_steps
        num_updates = int(self._owed // self.update_steps)
        self._owed -= num_updates * self.update_steps
        self.replayed += num_updates * self.update_steps
        return num_updates

    def state_dict(self) -> dict[str, Any]:
        """The counters."""
        return {"replayed": self.replayed, "env_steps": self.env_steps, "owed": self._owed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""
        self.replayed, self.env_steps, self._owed = state["replayed"], state["env_steps"], state["owed"]
