import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel

from rlmods.checkpoint_io import AtomicCheckpointIO, CheckpointWriteError
from rlmods.manifest import DamagedCheckpointError, Manifest, newest_intact, referenced_files, verify

IO = AtomicCheckpointIO()
SEGMENT = "replay/0-256-ab12cd34.pt"


def checkpoint(counter: int, thousands: int = 1, files: dict[str, str] | None = None) -> dict[str, Any]:
    # Tensors so small that torch starts no threads: a forked child would wait for them for ever.
    return {
        "global_step": counter,
        "weights": [torch.full((1000,), float(counter)) for _ in range(thousands)],
        "AnyDataModule": {
            "manifest": {
                "env_steps": 4 * counter,
                "files": files or {},
                "model": "DQN",
                "data": None,
                "env_id": "CartPole-v1",
            }
        },
    }


def counter_of(path: Path) -> int:
    loaded = IO.load_checkpoint(path)
    assert all((tensor == loaded["global_step"]).all() for tensor in loaded["weights"])
    return int(loaded["global_step"])


def leftovers(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.endswith((".tmp", ".pending")))


def flip(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def manifest_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.manifest.json")


def in_child(work: Callable[[], str]) -> tuple[int, str]:
    """Exit code and answer of work done in a forked process."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, work().encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), answer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def test_round_trip_and_manifest(folder: Path) -> None:
    path = folder / "a.ckpt"
    before = time.time_ns()
    IO.save_checkpoint(checkpoint(7, files={SEGMENT: "ab"}), str(path))
    assert counter_of(path) == 7
    assert sorted(os.listdir(folder)) == ["a.ckpt", "a.ckpt.manifest.json"]
    fields = json.loads(manifest_of(path).read_text())
    assert fields["sha256"] == sha256(path.read_bytes()).hexdigest()
    assert fields["bytes"] == path.stat().st_size
    assert (fields["version"], fields["env_steps"], fields["global_step"]) == (1, 28, 7)
    assert (fields["model"], fields["data"], fields["env_id"]) == ("DQN", None, "CartPole-v1")
    assert fields["files"] == {SEGMENT: "ab"}
    assert before <= fields["written_ns"] <= time.time_ns()
    assert fields["written"].endswith("+00:00")
    assert verify(path) == Manifest.read(manifest_of(path))


def test_foreign_checkpoint_has_a_manifest_too(folder: Path) -> None:
    IO.save_checkpoint({"state_dict": {}}, folder / "a.ckpt")
    manifest = verify(folder / "a.ckpt")
    assert manifest is not None
    assert (manifest.env_steps, manifest.files, manifest.model) == (None, {}, None)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fraction=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), of_manifest=st.booleans())
def test_flipped_bit_is_refused(tmp_path: Path, fraction: float, bit: int, of_manifest: bool) -> None:
    path = tmp_path / "a.ckpt"
    IO.save_checkpoint(checkpoint(1), path)
    victim = manifest_of(path) if of_manifest else path
    flip(victim, int(fraction * victim.stat().st_size), bit)
    with pytest.raises(DamagedCheckpointError, match=r"unreadable" if of_manifest else r"sha256 differs"):
        IO.load_checkpoint(path)
    assert newest_intact(tmp_path).refused.keys() == {path}


@pytest.mark.parametrize("keep", [0, 1, 1000])
def test_truncated_is_refused(folder: Path, keep: int) -> None:
    path = folder / "a.ckpt"
    IO.save_checkpoint(checkpoint(1), path)
    size = path.stat().st_size
    os.truncate(path, keep)
    with pytest.raises(
        DamagedCheckpointError, match=rf"a\.ckpt is damaged: truncated: {keep} of {size} bytes.*no intact"
    ):
        IO.load_checkpoint(path)


def test_newest_intact_refuses_by_name(folder: Path) -> None:
    for counter, name in enumerate("zyxw"):
        IO.save_checkpoint(checkpoint(counter), folder / f"{name}.ckpt")
        os.utime(folder / f"{name}.ckpt", (0, 0))
    shutil.copy(folder / "z.ckpt", folder / "copy.ckpt")
    flip(folder / "w.ckpt", 500)
    os.truncate(folder / "x.ckpt", 10)
    search = newest_intact(folder)
    assert search.found is not None
    assert search.found[0] == folder / "y.ckpt"
    assert search.found[1].global_step == 1
    assert list(search.refused) == [folder / f"{name}.ckpt" for name in ("copy", "w", "x")]
    assert "no manifest" in search.refused[folder / "copy.ckpt"]
    assert "sha256 differs" in search.refused[folder / "w.ckpt"]
    assert "truncated: 10 of" in search.refused[folder / "x.ckpt"]
    with pytest.raises(DamagedCheckpointError, match=re.escape(f"--ckpt_path {folder / 'y.ckpt'}")):
        IO.load_checkpoint(folder / "w.ckpt")


@pytest.mark.parametrize("folder_is_there", [True, False])
def test_newest_intact_of_nothing(folder: Path, folder_is_there: bool) -> None:
    if folder_is_there:
        folder.mkdir()
    assert newest_intact(folder) == (None, {})
    assert referenced_files(folder) == set()


@pytest.mark.parametrize(("harm", "reason"), [(Path.unlink, "is missing"), (lambda file: flip(file, 3), "is changed")])
def test_replay_files_are_checked(folder: Path, harm: Callable[[Path], None], reason: str) -> None:
    segments = {}
    for name in ("replay/0.pt", "replay/1.pt"):
        segment = folder.parent / name
        segment.parent.mkdir(exist_ok=True)
        segment.write_bytes(name.encode() * 100)
        segments[name] = sha256(segment.read_bytes()).hexdigest()
    old, new = folder / "old.ckpt", folder / "new.ckpt"
    IO.save_checkpoint(checkpoint(1, files={"replay/0.pt": segments["replay/0.pt"]}), old)
    IO.save_checkpoint(checkpoint(2, files=segments), new)
    assert referenced_files(folder) == set(segments)
    assert newest_intact(folder, check_files_in=folder.parent).refused == {}
    harm(folder.parent / "replay/1.pt")
    search = newest_intact(folder, check_files_in=folder.parent)
    assert search.found is not None
    assert search.found[0] == old
    assert re.search(f"replay/1.pt {reason}", search.refused[new])
    without_files = newest_intact(folder).found
    assert without_files is not None
    assert without_files[0] == new


def test_copied_file_is_checked_by_its_own_crcs(tmp_path: Path, folder: Path) -> None:
    IO.save_checkpoint(checkpoint(5), folder / "a.ckpt")
    copy = Path(shutil.copy(folder / "a.ckpt", tmp_path / "b.ckpt"))
    assert verify(copy) is None
    assert counter_of(copy) == 5
    flip(copy, copy.read_bytes().index(torch.full((100,), 5.0).numpy().tobytes()) + 50)
    with pytest.raises(DamagedCheckpointError, match="CRC"):
        IO.load_checkpoint(copy)
    os.truncate(copy, 2000)
    with pytest.raises(DamagedCheckpointError, match="truncated or changed"):
        IO.load_checkpoint(copy)


def test_link_stands_for_its_target(tmp_path: Path, folder: Path) -> None:
    IO.save_checkpoint(checkpoint(5), folder / "a.ckpt")
    (folder / "last.ckpt").symlink_to("a.ckpt")
    assert verify(folder / "last.ckpt") == verify(folder / "a.ckpt") is not None
    IO.save_checkpoint(checkpoint(6), folder / "last.ckpt")
    assert (counter_of(folder / "a.ckpt"), counter_of(folder / "last.ckpt")) == (5, 6)


def test_refuses_to_run_code(folder: Path) -> None:
    IO.save_checkpoint(checkpoint(5), folder / "a.ckpt")
    with pytest.raises(ValueError, match="weights_only=False"):
        IO.load_checkpoint(folder / "a.ckpt", weights_only=False)
    IO.save_checkpoint({"path": Path()}, folder / "object.ckpt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        IO.load_checkpoint(folder / "object.ckpt")


def test_refuses_what_is_not_a_local_file(folder: Path) -> None:
    with pytest.raises(ValueError, match="local folder"):
        IO.save_checkpoint({}, "s3://bucket/a.ckpt")
    with pytest.raises(TypeError, match="no storage options"):
        IO.save_checkpoint({}, folder / "a.ckpt", storage_options={})
    with pytest.raises(FileNotFoundError):
        IO.load_checkpoint(folder / "a.ckpt")


def test_remove(folder: Path) -> None:
    IO.save_checkpoint(checkpoint(5), folder / "a.ckpt")
    IO.remove_checkpoint(str(folder / "a.ckpt"))
    IO.remove_checkpoint(str(folder / "a.ckpt"))
    assert os.listdir(folder) == []


@pytest.mark.parametrize("limit", [100, 100_000, 399_000])
def test_full_disk(folder: Path, limit: int) -> None:
    path = folder / "a.ckpt"
    IO.save_checkpoint(checkpoint(1), path)

    def save_on_a_full_disk() -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            IO.save_checkpoint({"weights": torch.empty(100_000)}, path)  # one write: torch hides its error
        except CheckpointWriteError as error:
            return str(error)
        return "saved"

    code, sentence = in_child(save_on_a_full_disk)
    assert code == 0
    assert re.fullmatch(
        rf"Could not write the checkpoint {path}: File too large\. Its disk has \d+ bytes free\. The previous one,"
        rf" {path}, is intact\. Free some space .*, then go on with --ckpt_path last",
        sentence,
    )
    assert counter_of(path) == 1
    assert sorted(os.listdir(folder)) == ["a.ckpt", "a.ckpt.manifest.json"]


def test_unwritable_folder_of_a_first_save(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointWriteError, match="There is no previous one"):
        IO.save_checkpoint(checkpoint(1), tmp_path / "file" / "a.ckpt")


def test_error_that_is_not_the_disks_leaves_nothing(folder: Path) -> None:
    IO.save_checkpoint(checkpoint(1), folder / "a.ckpt")
    with pytest.raises(AttributeError, match="pickle"):
        IO.save_checkpoint({"state": lambda: None}, folder / "a.ckpt")
    assert leftovers(folder) == []
    assert counter_of(folder / "a.ckpt") == 1


def save_and_die(path: Path, counter: int, calls: int) -> str:
    """Save, and exit before the given number of calls of those that change the disk is over."""
    for name in ("fsync", "replace", "unlink", "open"):
        original = getattr(os, name)

        def counted(*args: Any, original: Callable[..., Any] = original, **kwargs: Any) -> Any:
            nonlocal calls
            calls -= 1
            if calls == 0:
                os._exit(9)
            return original(*args, **kwargs)

        setattr(os, name, counted)
    IO.save_checkpoint(checkpoint(counter, files={f"replay/{counter}": ""}), path)
    return "saved"


def die_at_every_step(start: Path, counter: int) -> dict[tuple[bool, tuple[str, ...]], Path]:
    """From a copy of a folder, save and die at the first, second, ... step; the distinct folders that this left."""
    states: dict[tuple[bool, tuple[str, ...]], Path] = {}
    before = counter_of(start / "a.ckpt")
    for calls in range(1, 40):
        folder = Path(shutil.copytree(start, start.parent / f"{counter}-{calls}", dirs_exist_ok=True))
        path = folder / "a.ckpt"
        code, _ = in_child(partial(save_and_die, path, counter, calls))
        now = counter_of(path)
        assert now in (before, counter)
        assert f"replay/{now}" in referenced_files(folder)
        search = newest_intact(folder)
        assert search.found is not None
        assert search.found[1].global_step == now
        if code == 0:
            assert now == counter
            assert sorted(os.listdir(folder)) == ["a.ckpt", "a.ckpt.manifest.json"]
            return states
        assert code == 9
        states[now == counter, tuple(re.sub(r"\d+", "PID", name) for name in leftovers(folder))] = folder
    raise AssertionError("a save does not end")


def test_exit_at_every_step_of_a_save_and_of_the_next(folder: Path) -> None:
    IO.save_checkpoint(checkpoint(1, files={"replay/1": ""}), folder / "a.ckpt")
    states = die_at_every_step(folder, 2)
    temporary, pending = ".a.ckpt.PID.rlmods.tmp", "a.ckpt.manifest.json.pending"
    assert states.keys() == {
        (False, ()),
        (False, (temporary,)),
        (False, (temporary, pending)),
        (True, (pending,)),
        (True, ()),
    }
    for number, state in enumerate(states.values(), start=3):
        die_at_every_step(state, number)


def test_torn_pending_manifest_is_ignored(folder: Path) -> None:
    path = folder / "a.ckpt"
    IO.save_checkpoint(checkpoint(1), path)
    path.with_name("a.ckpt.manifest.json.pending").write_text('{"sha256": "ab')
    assert counter_of(path) == 1
    IO.save_checkpoint(checkpoint(2), path)
    assert counter_of(path) == 2
    assert leftovers(folder) == []


def test_killed_save_of_the_newest_does_not_hide_a_newer_one(folder: Path) -> None:
    for counter, name in enumerate("ab"):
        IO.save_checkpoint(checkpoint(counter), folder / f"{name}.ckpt")
    code, _ = in_child(partial(save_and_die, folder / "a.ckpt", 2, 4))
    assert code == 9
    assert leftovers(folder)[-1] == "a.ckpt.manifest.json.pending"
    search = newest_intact(folder)
    assert search.found is not None
    assert search.found[0].name == "b.ckpt"
    assert search.refused == {}


def test_leftovers_of_the_dead_are_removed_and_of_the_living_kept(folder: Path) -> None:
    folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        _, dead = in_child(lambda: str(os.getpid()))
        kept = [f".b.ckpt.{living.pid}.rlmods.tmp", "b.ckpt.manifest.json.pending", ".x.tmp", "c.manifest.json"]
        removed = [f".c.ckpt.{dead}.rlmods.tmp", f".c.ckpt.{os.getpid()}.rlmods.tmp", "c.ckpt.manifest.json"]
        for name in kept + removed:
            (folder / name).touch()
        IO.save_checkpoint(checkpoint(1), folder / "a.ckpt")
        living.communicate(b"\n")
    assert set(os.listdir(folder)) == {"a.ckpt", "a.ckpt.manifest.json", *kept}


def save_for_ever(path: Path, counter: int, report: int) -> None:
    while True:
        counter += 1
        IO.save_checkpoint(checkpoint(counter, 75), path)
        os.write(report, counter.to_bytes(8))


def test_kill_at_random_moments(folder: Path) -> None:
    path = folder / "a.ckpt"
    start = time.perf_counter()
    IO.save_checkpoint(checkpoint(0, 75), path)
    duration = time.perf_counter() - start
    rng = random.Random(0)
    counter = interrupted = 0
    for _ in range(40):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                save_for_ever(path, counter, write)
            finally:
                os._exit(1)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            first = pipe.read(8)
            time.sleep(rng.uniform(0, 2 * duration))
            os.kill(pid, signal.SIGKILL)
            committed = int.from_bytes((first + pipe.read())[-8:])
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        assert verify(path) is not None
        interrupted += bool(leftovers(folder))
        counter = counter_of(path)
        assert committed <= counter <= committed + 1
    assert interrupted >= 5


class Counting(BoringModel):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own: dict[str, Any] = dict.fromkeys(("model", "data", "env_id"))
        checkpoint["AnyDataModule"] = {"manifest": {**own, "env_steps": self.trainer.global_step * 2, "files": {}}}


def fit(folder: Path, max_steps: int, ckpt_path: Path | None = None) -> Trainer:
    trainer = Trainer(
        default_root_dir=folder,
        max_steps=max_steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        plugins=[AtomicCheckpointIO()],
        callbacks=[ModelCheckpoint(folder, every_n_train_steps=2, save_last=True)],
    )
    trainer.fit(Counting(), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.filterwarnings("ignore:.*(num_workers|not empty|`isinstance).*")
def test_trainer_saves_and_resumes(folder: Path) -> None:
    fit(folder, 4)
    names = {"epoch=0-step=4.ckpt", "last.ckpt"}
    assert set(os.listdir(folder)) == names | {f"{name}.manifest.json" for name in names}
    search = newest_intact(folder)
    assert search.found is not None
    path, manifest = search.found
    assert (path.name, manifest.global_step, manifest.env_steps) == ("last.ckpt", 4, 8)
    assert fit(folder, 6, path).global_step == 6
    flip(path, 1000)
    with pytest.raises(DamagedCheckpointError, match=re.escape(f"--ckpt_path {folder / 'epoch=0-step=6.ckpt'}")):
        fit(folder, 8, path)
