"""Stratified replay: fixed shares of each mini-batch come from parts of the buffer that are seen too rarely."""

from bisect import bisect_left
from collections.abc import Mapping
from math import ceil
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlmods.data.flags import FlagRing
from rlmods.data.priorities import Index
from rlmods.data.replay import ReplayBuffer
from rlmods.functional.priorities import importance_weight
from rlmods.types import EnvSpec, Transition

STRATA: Final = ("recent", "high_reward", "before_end", "uniform")

RECENT: Final = 0.25  # of the transitions that are held
HIGH_REWARD: Final = 0.75  # quantile of the rewards
REWARD_WINDOW: Final = 10_000  # last transitions over which the quantile is taken


class StratifiedReplayBuffer(ReplayBuffer):
    """Replay that draws from four strata, which overlap.

    - `recent`: the last quarter of what is held, by time, wherever the ring has its end.
    - `high_reward`: transitions whose n-step reward is at or above the third quartile of the last 10,000, and above the
      smallest of these, judged once, when they come.
    - `before_end`: transitions whose horizon contains the terminal step of their episode, which are its last n.
    - `uniform`: all.

    A share of a stratum that is empty goes to `uniform`. Drawing takes a time that does not depend on the size of the
    buffer; inserting takes its logarithm besides.

    The share of a stratum holds in each mini-batch to within one transition, so that on average over its places
    P(i) = Σ_s share_s · [i ∈ s] / |s|. What is drawn more often because of what came of it (a high reward, an end)
    biases the mean that a value is to learn: importance weights (N · P(i))^−β take that back.
    """

    def __init__(
        self,
        spec: EnvSpec,
        buffer_size: int,
        *,
        seed: int,
        replay_strata: Mapping[str, float],
        replay_strata_beta: float = 1.0,
        stores_expert: bool = False,
    ) -> None:
        """Allocate the ring and the lists of members.

        Args:
            spec: What one transition holds.
            buffer_size: Capacity in transitions, at least 1.
            seed: Of the draws.
            replay_strata: The share of each stratum in a mini-batch; together 1. One that is not named has none.
            replay_strata_beta: β, from 0 (no correction) to 1 (as if all had been drawn alike).
            stores_expert: Whether to store who chose the actions.

        Raises:
            ValueError: As in `ReplayBuffer`, or the shares or β are out of range.
        """
        check_strata(replay_strata, replay_strata_beta)
        super().__init__(spec, buffer_size, seed=seed, stores_expert=stores_expert)
        self._shares = {name: float(replay_strata.get(name, 0.0)) for name in STRATA}
        self._beta = replay_strata_beta
        self._members = {name: _Members(buffer_size) for name in ("high_reward", "before_end")}

    @classmethod
    def memory_bytes(cls, spec: EnvSpec, buffer_size: int) -> int:
        """Bytes that a buffer of this size takes, the lists of members included."""
        return super().memory_bytes(spec, buffer_size) + 2 * 9 * buffer_size  # a number and a flag each

    def extend(self, transitions: Transition, by_expert: Tensor | None = None) -> None:
        """As in `ReplayBuffer`, and say which stratum the new transitions belong to."""
        first = self.inserted
        super().extend(transitions, by_expert)
        first = max(first, self.oldest)
        new = slice(len(transitions.reward) - (self.inserted - first), None)
        belongs = {
            "high_reward": self._has_high_reward(transitions.reward[new]),
            "before_end": transitions.terminated[new],
        }
        for name, members in self._members.items():
            members.forget(self.oldest)
            members.append(first, belongs[name])

    def sizes(self) -> dict[str, int]:
        """How many transitions each stratum holds."""
        held = len(self)
        members = {name: len(members) for name, members in self._members.items()}
        return {"recent": ceil(held * RECENT), **members, "uniform": held}

    def shares(self) -> dict[str, float]:
        """The share of each stratum as it is now, with those of empty ones given to `uniform`."""
        sizes = self.sizes()
        shares = {name: share if sizes[name] else 0.0 for name, share in self._shares.items()}
        return shares | {"uniform": 1.0 - sum(share for name, share in shares.items() if name != "uniform")}

    def probabilities(self, index: Index) -> npt.NDArray[np.float64]:
        """P(i) of slots `[...]` that hold a transition: how likely it is at a place of a mini-batch, on average."""
        sizes, shares = self.sizes(), self.shares()
        newest = self.inserted - 1
        age = (newest - index) % self.capacity  # 0 is the newest
        inside = {
            "recent": age < sizes["recent"],
            **{name: members.flags.take(index) for name, members in self._members.items()},
            "uniform": np.ones(index.shape, dtype=np.bool_),
        }
        terms = [share / sizes[name] * inside[name] for name, share in shares.items() if share > 0.0]
        total: npt.NDArray[np.float64] = np.sum(terms, axis=0)
        return total

    def state_dict(self) -> dict[str, Any]:
        """As in `ReplayBuffer`, with the members, a byte for each transition and stratum."""
        held = (self.oldest, self.inserted)
        members = {name: members.flags.between(*held) for name, members in self._members.items()}
        return {**super().state_dict(), "strata": members}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in `ReplayBuffer`, with the members."""
        super().load_state_dict(state_dict)
        for name, flags in state_dict["strata"].items():
            self._members[name] = _Members(self.capacity)
            self._members[name].append(self.oldest, flags)

    def _draw(self, num_batches: int, batch_size: int) -> Index:
        index = super()._draw(num_batches, batch_size)
        shares, sizes = self.shares(), self.sizes()
        if shares["uniform"] == 1.0 or index.size == 0:
            return index
        # One random offset for each mini-batch: the number of places of a stratum is its share to within one.
        place = np.arange(batch_size) + self._generator.random((num_batches, 1))
        stratum = np.cumsum(list(shares.values())).searchsorted(place / batch_size, side="right")
        for number, name in enumerate(STRATA[:-1]):
            chosen = stratum == number
            drawn = self._generator.integers(max(1, sizes[name]), size=int(np.count_nonzero(chosen)))
            if name == "recent":
                index[chosen] = (self.inserted - 1 - drawn) % self.capacity
            else:
                index[chosen] = self._members[name].numbers(drawn) % self.capacity
        return index

    def _importance_weight(self, index: Index, progress: float) -> Tensor:
        if index.size == 0:
            return super()._importance_weight(index, progress)
        return importance_weight(torch.from_numpy(self.probabilities(index)), beta=self._beta).float()

    def _has_high_reward(self, reward: Tensor) -> Tensor:
        """Rewards `[M]` of the newest transitions to whether they are high, `[M]` bool."""
        window = np.arange(max(self.oldest, self.inserted - REWARD_WINDOW), self.inserted) % self.capacity
        rewards = self._rows["reward"].take(window)
        if not len(rewards):
            return torch.zeros(0, dtype=torch.bool)
        return (reward >= float(np.quantile(rewards, HIGH_REWARD))) & (reward > float(rewards.min()))


class _Members:
    """Which transitions belong to a stratum: their numbers in the order of time, and a flag in each slot."""

    def __init__(self, capacity: int) -> None:
        self.flags = FlagRing(capacity)
        self._numbers = np.zeros(capacity, dtype=np.int64)
        self._first = self._last = 0  # of the members ever appended

    def __len__(self) -> int:
        return self._last - self._first

    def append(self, first: int, belongs: Tensor) -> None:
        """Take in those of the transitions number `first` and following that belong `[M]` bool; at most all slots."""
        self.flags.write(first, belongs)
        numbers = first + belongs.numpy(force=True).nonzero()[0]
        self._numbers[np.arange(self._last, self._last + len(numbers)) % len(self._numbers)] = numbers
        self._last += len(numbers)

    def forget(self, oldest: int) -> None:
        """Give up the transitions before a number."""
        self._first = bisect_left(range(self._last), oldest, lo=self._first, key=self._number)

    def numbers(self, position: Index) -> Index:
        """The members at positions `[M]`, 0 the oldest, by number."""
        return self._numbers.take((self._first + position) % len(self._numbers))

    def _number(self, position: int) -> int:
        return int(self._numbers[position % len(self._numbers)])


def check_strata(shares: Mapping[str, float], beta: float) -> None:
    """Refuse shares that cannot be drawn.

    Raises:
        ValueError: with what was got, what is expected and what to type.
    """
    unknown = sorted(shares.keys() - set(STRATA))
    if unknown:
        raise ValueError(
            f"got replay_strata with {unknown}, expected some of {list(STRATA)}: type --data.init_args.replay_strata "
            "'{recent: 0.2, high_reward: 0.4, before_end: 0.2, uniform: 0.2}'"
        )
    total = sum(shares.values())
    if not (all(share >= 0.0 for share in shares.values()) and abs(total - 1.0) < 1e-6):
        raise ValueError(
            f"got replay_strata = {dict(shares)}, which add up to {total:g}, expected shares from 0 that add up to 1: "
            "type --data.init_args.replay_strata '{recent: 0.25, uniform: 0.75}'"
        )
    if not 0.0 <= beta <= 1.0:
        raise ValueError(
            f"got replay_strata_beta = {beta}, expected 0 (no correction) to 1: type "
            "--data.init_args.replay_strata_beta 1.0"
        )
