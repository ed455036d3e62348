"""What was configured against what is in effect, and settings that nobody reads."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rlmods.doctor.line import Line, fail, line_of


class Setting(NamedTuple):
    """A setting and what became of it.

    Attributes:
        name: dotted, as it is typed.
        configured: as in the configuration.
        effective: as the run would begin with.
        note: what the difference comes from.
    """

    name: str
    configured: Any
    effective: Any
    note: str = ""

    @property
    def differs(self) -> bool:
        """Whether another value is in effect than the one configured."""
        return bool(_plain(self.configured) != _plain(self.effective))


def compare(configured: Mapping[str, Any], effective: Mapping[str, tuple[Any, str]]) -> list[Setting]:
    """A row for each setting.

    Args:
        configured: by dotted name.
        effective: value and note by dotted name; a setting without one is in effect as it is configured.
    """
    return [Setting(name, value, *effective.get(name, (value, ""))) for name, value in configured.items()]


def given_in_vain(
    configured: Mapping[str, Any], defaults: Mapping[str, Any], reasons: Mapping[str, str]
) -> dict[str, str]:
    """Settings that were given another value than their default, and that have no effect, each with the reason.

    Args:
        configured: by dotted name.
        defaults: likewise; a setting without one counts as given.
        reasons: why nobody reads a setting, by dotted name.
    """
    return {
        name: reason
        for name, reason in reasons.items()
        if name in configured and _plain(configured[name]) != _plain(defaults.get(name, ...))
    }


def unread(configured: Mapping[str, Any], given: Mapping[str, str]) -> Line:
    """What `given_in_vain` has found."""
    said = "; ".join(f"{name} = {configured[name]}: {reason}" for name, reason in given.items())
    return line_of(
        "unread_settings",
        said or f"each of {len(configured):,} settings has a reader, or its default",
        fail(bool(given), "What is configured has no effect", f"leave out {', '.join(sorted(given))}" if given else ""),
    )


def table(settings: Iterable[Setting]) -> list[str]:
    """The rows as text; one that differs is marked."""
    rows = [("setting", "configured", "effective", "")]
    rows += [(s.name, _word(s.configured), _word(s.effective), _mark(s)) for s in settings]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return ["  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip() for row in rows]


def _mark(setting: Setting) -> str:
    if not setting.differs:
        return ""
    word = "resolved" if setting.configured in (None, "auto") else "differs"
    return f"{word}: {setting.note}" if setting.note else word


def _plain(value: Any) -> Any:
    """Lists for tuples, so that equal settings compare equal."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
