"""The report that every `fit` ends with, whatever it ended by."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from rlmods.callbacks.events import FILE_NAME
from rlmods.callbacks.safeguard import clock


@contextmanager
def report_of_fit(trainer: Trainer, has_begun: Callable[[], bool]) -> Iterator[None]:
    """Write the report of a fit when it ends: by itself, by a safeguard, by a signal or by an exception.

    An exception is put on record in `events.jsonl` first, and goes on. A report that cannot be written is a warning: it
    never hides what happened to the training.

    Args:
        trainer: of the fit; one without a logger that has a folder gets no report.
        has_begun: asked at the end; an error before the first iteration is the user's to correct, and is no run.
    """
    try:
        yield
    except Exception as error:
        if has_begun():
            _write(trainer, error)
        raise
    except SystemExit:  # a signal: GracefulStop has put it on record
        _write(trainer, None)
        raise
    else:
        _write(trainer, None)


def _write(trainer: Trainer, error: Exception | None) -> None:
    # Not trainer.log_dir: that waits for the other processes, which may be gone.
    folder = next((Path(logger.log_dir) for logger in trainer.loggers if logger.log_dir is not None), None)
    if folder is None or not trainer.is_global_zero or not folder.is_dir():
        return
    try:
        if error is not None:
            _record(trainer, folder, error)
        # Late: the parts that read and draw are not needed before.
        from rlmods.reports.command import write_report
        from rlmods.reports.run_report import one_line
        from rlmods.reports.run_summary import write_summary

        report = write_report(folder)
        write_summary(folder)
        rank_zero_info(f"report: {report.status} ({one_line(report)}), {folder / 'report.html'}")
    except Exception as failure:
        reason = " ".join(str(failure).split())
        rank_zero_warn(
            f"no report was written: {type(failure).__name__}: {reason}; to try again: python -m rlmods report {folder}"
        )


def _record(trainer: Trainer, folder: Path, error: Exception) -> None:
    message = f"{type(error).__name__}: {' '.join(str(error).split())}"
    event = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "kind": "stop",
        "env_steps": clock(trainer),
        "iteration": trainer.global_step,
        "message": message,
        "evidence": {"exception": message},
    }
    with (folder / FILE_NAME).open("a") as file:
        file.write(json.dumps(event) + "\n")
