import json
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from rlmods.callbacks.events import append_event, mark_events_beyond


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(accelerator="cpu", logger=CSVLogger(tmp_path, name="", version=""), enable_progress_bar=False)


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_one_line_an_event(trainer: Trainer, tmp_path: Path) -> None:
    append_event(trainer, "alarm", "Q above\nits bound", {"q": 120.5, "bound": 100})
    append_event(trainer, "stop", "training ends", {})
    first, second = lines(tmp_path)
    assert first["kind"] == "alarm"
    assert first["message"] == "Q above\nits bound"
    assert first["evidence"] == {"q": 120.5, "bound": 100}
    assert (first["env_steps"], first["iteration"]) == (None, 0)
    assert second["kind"] == "stop"


def test_what_never_happened_is_marked_and_nothing_is_lost(tmp_path: Path) -> None:
    events = [{"env_steps": steps, "message": f"at {steps}"} for steps in (0, 100, 101, 300)]
    torn = '{"env_steps": 3'
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + torn)
    mark_events_beyond(tmp_path, 100)
    expected = [*events[:2], *(event | {"superseded": True} for event in events[2:]), {"damaged": torn}]
    assert lines(tmp_path) == expected
    mark_events_beyond(tmp_path, 100)
    assert lines(tmp_path) == expected
    mark_events_beyond(tmp_path / "no", 100)
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]
