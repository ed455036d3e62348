"""What a control file says, and whether it may: text in, numbers out."""

import math
from typing import Any, Final

import yaml

# The lowest and highest value of each key; null is the schedule.
KEYS: Final[dict[str, tuple[float, float]]] = {
    "expert_share": (0.0, 1.0),
    "exploration_rate": (0.0, 1.0),
    "learning_rate_scale": (0.0, math.inf),
}


def parse_control(text: str) -> dict[str, float | None]:
    """The overrides that a text asks for, by key; a key that it does not name is left as it is.

    Raises:
        ValueError: where a part of it cannot be used; then nothing of it should be.
    """
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of a date that is none, of a thousand brackets
        raise ValueError(f"it is no YAML ({' '.join(str(error).split())}): type expert_share: 0.5") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"it holds {content!r}, expected lines of key: value, such as expert_share: 0.5")
    unknown = [key for key in content if key not in KEYS]
    if unknown:
        raise ValueError(f"it has the keys {unknown}, expected some of {list(KEYS)}")
    return {key: _number(key, value) for key, value in content.items()}


def _number(key: str, value: Any) -> float | None:
    if value is None:
        return None
    low, high = KEYS[key]
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)  # YAML reads 1e-3 as a word
        except (ValueError, OverflowError):
            number = math.nan
    if not (low <= number <= high and math.isfinite(number)):
        bound = f"from {low:g} to {high:g}" if math.isfinite(high) else f"from {low:g} on"
        raise ValueError(f"it has {key}: {value!r}, expected a number {bound}, or null for the schedule")
    return number
