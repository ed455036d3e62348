"""How much memory is left, as the files of the system say it."""

from pathlib import Path

import pytest

from rlmods.memory import _of_container, _of_system, available_memory


def test_golden_of_the_system(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    assert _of_system(file) is None
    file.write_text("MemTotal:       16000 kB\nMemAvailable:    8000 kB\n")
    assert _of_system(file) == 8_192_000


@pytest.mark.parametrize(("limit", "expected"), [("1000", 500), ("600", 100), ("300", 0), ("max", None)])
def test_golden_of_a_container(tmp_path: Path, limit: str, expected: int | None) -> None:
    """700 bytes are used, 200 of them by files that can go."""
    assert _of_container(tmp_path) is None
    for name, text in (("max", limit), ("current", "700"), ("stat", "anon 500\ninactive_file 200")):
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    assert _of_container(tmp_path) == expected


def test_this_machine_says_it() -> None:
    available = available_memory()
    assert available is None or available > 0
