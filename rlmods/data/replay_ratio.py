"""How often transitions are drawn for each new one, and a limit on it."""

from typing import Any


class ReplayRatio:
    """Counts what was really drawn and inserted since learning began, and says how much may still be drawn.

    Args:
        limit: transitions drawn for each new one, at most; None does not limit.

    Attributes:
        drawn: transitions so far.
        inserted: new transitions so far, those of the first iteration with an update included.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self.drawn = 0
        self.inserted = 0

    @property
    def value(self) -> float | None:
        """Transitions drawn for each new one; None before the first draw."""
        return self.drawn / self.inserted if self.drawn else None

    def take(self, num_updates: int, batch_size: int, inserted: int) -> int:
        """Count one iteration of learning.

        Args:
            num_updates: that are wanted.
            batch_size: transitions of one update, over all processes.
            inserted: new transitions of the iteration, over all processes.

        Returns:
            The updates to make, at most those wanted: so many that the ratio does not exceed the limit.
        """
        self.inserted += inserted
        if self.limit is not None:
            left = int(self.limit * self.inserted) - self.drawn
            num_updates = max(0, min(num_updates, left // batch_size))
        self.drawn += num_updates * batch_size
        return num_updates

    def state_dict(self) -> dict[str, Any]:
        """The counters."""
        return {"drawn": self.drawn, "inserted": self.inserted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""
        self.drawn, self.inserted = state["drawn"], state["inserted"]
