"""What a bench runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlmods.algorithms.base import Algorithm
from rlmods.data.experience import ExperienceDataModule


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run, healthy where no cause is right.

    Attributes:
        id: short, unique.
        what: is broken, or ugly, in words.
        causes: that count as the right one.
        unseen: why no safeguard finds it; empty where one does.
        onset: iterations before which nothing is broken.
        algorithm: the real one, or a mutation.
        data_module: the same.
        model: arguments over those of the bench.
        data: the same.
    """

    id: str
    what: str
    causes: frozenset[str] = frozenset()
    unseen: str = ""
    onset: int = 0
    algorithm: type[Algorithm]
    data_module: type[ExperienceDataModule]
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Faults and healthy runs of one kind of algorithm.

    Attributes:
        name: in the titles of the tables.
        preset: of the safeguards, a shipped configuration.
        model: arguments of every case.
        data: the same.
        faults: each with the causes that count as right.
        healthy: configurations, ugly ones among them.
        seeds: that are reported; safeguards are tuned with seeds from 100 up.
        smoke: ids of a few cases that show in a minute what they should.
        smoke_env_steps: of each of them.
    """

    name: str
    preset: str
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    faults: Sequence[Case]
    healthy: Sequence[Case]
    seeds: Sequence[int]
    smoke: Sequence[str]
    smoke_env_steps: int

    @property
    def cases(self) -> dict[str, Case]:
        """All of them by id."""
        return {case.id: case for case in [*self.faults, *self.healthy]}


def causes(words: str) -> frozenset[str]:
    """Several, with spaces between them."""
    return frozenset(words.split())
