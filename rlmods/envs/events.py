"""What happened in an episode, read from the infos of the step that ends it."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

# By what the environment calls it.
EVENTS = {"success": "is_success", "collision": "collision", "out_of_bounds": "out_of_bounds"}
RATES = tuple(f"{name}_rate" for name in EVENTS)

Rows: TypeAlias = npt.NDArray[np.float32]


def read_events(env_id: str, ended: npt.NDArray[np.bool_], infos: Mapping[str, Any]) -> dict[str, Rows]:
    """The events that the infos report of the episodes that ended, `[N]`: 0 or 1, NaN in the other rows.

    Args:
        env_id: for the error.
        ended: `[N]`.
        infos: of the vector environment's step.

    Raises:
        ValueError: where an event is neither 0 nor 1.
    """
    infos = infos.get("final_info", infos)
    events = {name: _rows(infos, key, ended) for name, key in EVENTS.items() if key in infos}
    for name, rows in events.items():
        known = rows[ended & infos.get(f"_{EVENTS[name]}", ended)]
        wrong = known[(known != 0.0) & (known != 1.0)]
        if len(wrong):
            key = EVENTS[name]
            raise ValueError(
                f'got infos["{key}"] = {wrong[0]:g} from {env_id} at the end of an episode, expected 0 or 1: an '
                f'episode has an event or has it not; type infos["{key}"] = bool(...) in the environment, and give a '
                "count another name"
            )
    return events


def read_reported_rates(ended: npt.NDArray[np.bool_], infos: Mapping[str, Any]) -> dict[str, Rows]:
    """Rates of events that the environment has computed itself, `[N]`, as they are; NaN where no episode ended."""
    infos = infos.get("final_info", infos)
    return {name: _rows(infos, name, ended) for name in RATES if name in infos}


def read_sums(ended: npt.NDArray[np.bool_], infos: Mapping[str, Any]) -> dict[str, Rows]:
    """What the infos have as `episode_sums` of the episodes that ended, `[N]` by name; NaN in the other rows.

    An environment whose reward has parts reports at an episode's end what each came to, as a dict of numbers.
    """
    sums = infos.get("final_info", infos).get("episode_sums", {})
    return {name: _rows(sums, name, ended) for name in sums if not name.startswith("_")}


def _rows(infos: Mapping[str, Any], key: str, ended: npt.NDArray[np.bool_]) -> Rows:
    reported = ended & infos.get(f"_{key}", ended)
    rows = np.full(len(ended), np.nan, np.float32)
    rows[reported] = np.asarray(infos[key])[reported]
    return rows
