"""Whether `run.json` and `summary.json` are what their schemas in `schemas/` say."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from rlmods.reports.tables import RunFolderError

_ADVICE = {
    "run": "the run cannot be told from others without it: take it from a copy of the run folder",
    "summary": "remove the file, and it is made anew from the rest of the run folder",
}


def check_schema(path: Path, name: Literal["run", "summary"]) -> dict[str, Any]:
    """Read a JSON file and hold it against its schema.

    Args:
        path: of the file.
        name: of the schema.

    Raises:
        RunFolderError: where the file is no JSON, which has no NaN, or does not match: which entry, what was got and
            expected.
    """
    from jsonschema import Draft202012Validator  # late: it takes a tenth of a second
    from jsonschema.exceptions import best_match

    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunFolderError(f"got {path}, which cannot be read: {reason}: {_ADVICE[name]}") from error
    schema = json.loads(files("rlmods.reports").joinpath(f"schemas/{name}.json").read_text(encoding="utf-8"))
    wrong = best_match(Draft202012Validator(schema).iter_errors(content))
    if wrong is not None:
        entry = ".".join(map(str, wrong.absolute_path)) or "the whole"
        raise RunFolderError(
            f"got {path}, which does not match its schema: {entry}: {wrong.message[:200]}; {_ADVICE[name]}"
        )
    checked: dict[str, Any] = content
    return checked


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word}, for which JSON has no number")
