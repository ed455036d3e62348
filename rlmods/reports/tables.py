"""Tables of numbers in CSV files, as the off-policy laboratory writes them."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


class RunFolderError(ValueError):
    """A run folder that cannot be read; the message says what was got, what is expected, and what to type."""


@dataclass(frozen=True)
class Table:
    """A CSV file.

    Attributes:
        columns: `[rows]` numbers of each fully numeric column; NaN for an empty cell. Words (`False`) drop a column.
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
    lines = [line for line in csv.reader(io.StringIO(text.replace("\0", ""))) if line]
    if not lines:
        raise RunFolderError(f"got {path}, which is empty, expected a header and a row for each iteration")
    header, rows, notes = lines[0], lines[1:], []
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
    read = ((name, _numbers([row[position] for row in rows])) for position, name in enumerate(header))
    columns = {name: values for name, values in read if values is not None}
    time_name = next((name for name in ("iter", "step") if name in columns), "")
    times = columns[time_name] if time_name else [float(number) for number in range(len(rows))]
    return Table(path, columns, times, time_name, notes)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise RunFolderError(f"got {path}, which cannot be read: {error.strerror}") from error


def _numbers(cells: Sequence[str]) -> list[float] | None:
    """None where a cell is neither a number nor empty."""
    try:
        return [float(cell) if cell.strip() else float("nan") for cell in cells]
    except ValueError:
        return None
