"""Tables of numbers in CSV files, as the off-policy laboratory writes them."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_WORDS = {"true", "false", ""}


class RunFolderError(ValueError):
    """A run folder that cannot be read; the message says what was got, what is expected, and what to type."""


@dataclass(frozen=True)
class Table:
    """A CSV file.

    Attributes:
        columns: `[rows]` numbers of each column that has some; NaN for a cell that is empty or no number. A column of
            words only (`False`) is dropped.
        times: the column `iter`, else `step`, else the row numbers.
        time_name: of that column; empty where there is none.
        notes: what was passed over in reading.
    """

    path: Path
    columns: dict[str, list[float]]
    times: list[float]
    time_name: str
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.times)

    def row(self, position: int) -> dict[str, float]:
        """The numbers of a row by column."""
        return {name: values[position] for name, values in self.columns.items()}


def read_table(path: Path) -> Table:
    """Read a CSV file with a header. A last line that a crash cut short is left out, with a note.

    Raises:
        RunFolderError: where there is no header, or a line before the last has the wrong number of cells.
    """
    text = _read_text(path)
    try:
        lines = [line for line in csv.reader(io.StringIO(text.replace("\0", ""))) if line]
    except csv.Error as error:
        raise RunFolderError(f"got {path}, which is no CSV file: {error}, expected a header and rows") from error
    if not lines:
        raise RunFolderError(f"got {path}, which is empty, expected a header and a row for each iteration")
    header, rows, notes = lines[0], lines[1:], []
    if "\0" in text or "\ufffd" in text:
        notes.append(f"{path.name}: holds bytes that are no text")
    # Without its line end, a last number may be half of one and still look like a number.
    if rows and (len(rows[-1]) != len(header) or not text.endswith("\n")):
        rows = rows[:-1]
        notes.append(f"{path.name}: the last line was cut short and is left out")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise RunFolderError(
                f"got {path} with {len(row)} cells in line {number}, expected {len(header)} as in its header: "
                "remove or mend the line"
            )
    columns, damaged = _read_columns(path.name, header, rows)
    notes += damaged
    time_name = next((name for name in ("iter", "step") if name in columns), "")
    times = columns[time_name] if time_name else [float(number) for number in range(len(rows))]
    return Table(path, columns, times, time_name, notes)


def _read_columns(
    file: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[dict[str, list[float]], list[str]]:
    """The numbers by column, and what was none."""
    columns, notes = {}, []
    for position, name in enumerate(header):
        cells = [row[position].strip() for row in rows]
        numbers = [_number(cell) for cell in cells]
        damaged = [row for row, number in enumerate(numbers) if number is None]
        more = f" ({len(damaged)} such cells)" if len(damaged) > 1 else ""
        if not damaged or any(number is not None and cell for number, cell in zip(numbers, cells, strict=True)):
            columns[name] = [math.nan if number is None else number for number in numbers]
            notes += [
                f"{file}: column {name}, row {row}: {cells[row][:20]!r} is no number, read as NaN{more}"
                for row in damaged[:1]
            ]
        elif not {cell.lower() for cell in cells} <= _WORDS:
            notes.append(f"{file}: column {name[:20]!r} has no number, row {damaged[0]}: {cells[damaged[0]][:20]!r}")
    return columns, notes


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise RunFolderError(f"got {path}, which cannot be read: {error.strerror}") from error


def _number(cell: str) -> float | None:
    """NaN for an empty cell; None where it is no number."""
    try:
        return float(cell) if cell.strip() else math.nan
    except ValueError:
        return None
