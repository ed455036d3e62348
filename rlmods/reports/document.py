"""A report before it has a format: sections of facts, lists, tables and figures."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Facts(NamedTuple):
    """Lines of a name and what it is."""

    pairs: list[tuple[str, str]]


class Items(NamedTuple):
    """A list of sentences."""

    lines: list[str]


class Grid(NamedTuple):
    """A table of words."""

    header: list[str]
    rows: list[list[str]]


class Figure(NamedTuple):
    """A picture; formats of text leave it out."""

    title: str
    png: bytes


Block = Facts | Items | Grid | Figure


@dataclass(frozen=True)
class Section:
    """A heading and what is below it."""

    title: str
    blocks: list[Block] = field(default_factory=list)
    sections: list["Section"] = field(default_factory=list)


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        status: PASS, WARN or FAIL; of a comparison, empty.
        summary: what to read where only one line is read.
    """

    title: str
    status: str
    summary: str
    sections: list[Section]
