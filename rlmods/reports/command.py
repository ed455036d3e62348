"""`python -m rlmods report`: reads run folders and writes what they say."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from rlmods.reports.comparison import common_curves, compare, comparison_json, labels
from rlmods.reports.document import Document
from rlmods.reports.html import to_html
from rlmods.reports.lab_plots import PROBE_FIGURES, lab_figures
from rlmods.reports.markdown import to_markdown
from rlmods.reports.plots import curves_figure, overlay_figure, probe_figures
from rlmods.reports.run_data import RunData, read_run
from rlmods.reports.run_report import Report, examine, one_line, plain, to_document, to_json
from rlmods.reports.tables import RunFolderError

_DESCRIPTION = """\
Reads a run folder and writes report.md, report.json and report.html (with plots) into it; of several folders, a
comparison: the settings that differ, the scores over seeds, and the curves over each other. Leaves with 2 where a
folder cannot be read.
"""
_COMPARISON = Path("report_comparison")


def main(arguments: Sequence[str]) -> int:
    """Run the command; the code to leave with."""
    parser = argparse.ArgumentParser("python -m rlmods report", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run folder: lightning_logs/version_N")
    parser.add_argument(
        "--output", type=Path, help=f"folder to write to; without it the run folder, of a comparison {_COMPARISON}"
    )
    options = parser.parse_args(arguments)
    try:
        if len(options.runs) == 1:
            output = options.output or options.runs[0]
            report = write_report(options.runs[0], output)
            print(f"{report.status}: {one_line(report)}")
        else:
            output = options.output or _COMPARISON
            for label, report in write_comparison(options.runs, output).items():
                print(f"{label}: {report.status}: {one_line(report)}")
    except RunFolderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"error: could not write {error.filename or output}: {error.strerror}; type --output DIR", file=sys.stderr
        )
        return 2
    print(f"wrote {output / 'report.md'}, report.json and report.html")
    return 0


def write_report(folder: Path, output: Path | None = None) -> Report:
    """Write `report.md`, `report.json` and `report.html` of a run: all three, or none.

    Args:
        folder: of the run.
        output: folder to write to; without it, `folder`.

    Returns:
        What was found.

    Raises:
        RunFolderError: where the folder cannot be read.
    """
    run = read_run(folder)
    report = examine(run, datetime.now())
    figures = [*_lab_figures(run), *curves_figure(run), *probe_figures(run, PROBE_FIGURES)]
    _write_all(output or folder, to_document(report, figures), to_json(report))
    return report


def _lab_figures(run: RunData) -> list[Any]:
    return [] if run.rows is None else lab_figures(run)


def write_comparison(folders: Sequence[Path], output: Path) -> dict[str, Report]:
    """Write the comparison of two runs or more, as `report.md`, `report.json` and `report.html`.

    Returns:
        The reports, by label.

    Raises:
        RunFolderError: where a folder cannot be read.
    """
    runs = [read_run(folder) for folder in folders]
    now = datetime.now()
    reports = {label: examine(run, now) for label, run in zip(labels(runs), runs, strict=True)}
    figures = overlay_figure({label: report.run for label, report in reports.items()}, common_curves(runs))
    _write_all(output, compare(reports, figures), plain(comparison_json(reports)))
    return reports


def _write_all(folder: Path, document: Document, content: Mapping[str, Any]) -> None:
    """Nothing half-written: all is made first, written beside, and renamed at the end."""
    texts = {
        "report.md": to_markdown(document),
        "report.json": json.dumps(content, indent=1, allow_nan=False) + "\n",
        "report.html": to_html(document),
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in texts}
    try:
        for name, text in texts.items():
            temporary[name].write_text(text, encoding="utf-8")
        for name, path in temporary.items():
            os.replace(path, folder / name)
    finally:
        for path in temporary.values():
            with suppress(FileNotFoundError):
                path.unlink()
