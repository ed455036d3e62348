import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from running import (
    EVERYTHING_ON,
    SMALL,
    Runs,
    curves,
    differences,
    kill_at,
    newest_checkpoint,
    newest_run,
    replay_of,
    start,
)

from rlmods.cli import run
from rlmods.configs import find_config
from rlmods.manifest import Manifest


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("plain"), SMALL)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("everything"), SMALL, EVERYTHING_ON, find_config("safeguards/safe").read_text())


def test_killed_terminated_interrupted_and_never_stopped(plain: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    last = ["--ckpt_path", "last"]
    # Checkpoints are written every 7 iterations: each of these loses or interrupts work.
    killed = start(*plain.command("stopped", *kill_at(12, signal.SIGKILL)), modules=plain.folder)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    terminated = start(*plain.command("stopped", *last, *kill_at(17, signal.SIGTERM)), modules=plain.folder)
    assert terminated.returncode == 143, terminated.stderr
    assert "--ckpt_path last" in terminated.stderr
    monkeypatch.syspath_prepend(str(plain.folder))
    with pytest.raises(SystemExit, match="130"):
        plain.fit("stopped", *last, *kill_at(21, signal.SIGINT))
    plain.fit("stopped", *last)
    stopped = newest_run(plain.folder / "stopped")
    assert stopped.name == "version_0"
    assert differences(plain.whole, stopped) == []
    events = [json.loads(line) for line in (stopped / "events.jsonl").read_text().splitlines()]
    assert [event["kind"] for event in events] == ["start", "resume", "stop", "resume", "stop", "resume", "stop"]
    assert [event["env_steps"] for event in events] == [0, 140, 340, 340, 420, 420, 600]
    starts = json.loads((stopped / "run.json").read_text())["starts"]
    assert [begin["env_steps"] for begin in starts] == [0, 140, 340, 420]


def test_killed_with_everything_on(everything: Runs) -> None:
    killed = start(*everything.command("stopped", *kill_at(18, signal.SIGKILL)), modules=everything.folder)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    time.sleep(1.1)  # TensorBoard orders the files of a run by the second in which they were opened
    everything.fit("stopped", "--ckpt_path", "last")
    stopped = newest_run(everything.folder / "stopped")
    assert differences(everything.whole, stopped) == []
    assert "priority_tree" in newest_checkpoint(stopped)["ReplayDataModule"]["processes"][0]["replay"]


def test_the_comparison_sees_another_seed(plain: Runs) -> None:
    plain.fit("other", "--seed_everything", "1")
    found = differences(plain.whole, newest_run(plain.folder / "other"))
    for part in ("state.state_dict", "state.optimizer_states", "state.callbacks.GlobalRNG", "replay.obs", "curve eval"):
        assert any(name.startswith(part) for name in found), part


def test_curves_stand_on_environment_steps(plain: Runs) -> None:
    drawn = curves(plain.whole)
    assert [step for step, _ in drawn["eval/mean_reward"]] == [140, 280, 420, 560, 600]
    assert [step for step, _ in drawn["rollout/ep_rew_mean"]] == list(range(60, 660, 60))
    assert newest_checkpoint(plain.whole)["global_step"] == 30


RANDOM_KILLS = """
import os, random, sys, time
from pathlib import Path
from rlmods.cli import run
from rlmods.configs import find_config

def has_ended():
    logs = Path(sys.argv[-1]).glob("lightning_logs/*/events.jsonl")
    return any("training ends" in log.read_text() for log in logs)

rng = random.Random(0)
arguments, kills, last = sys.argv[1:], 0, []
for attempt in range(40):
    time.sleep(1.1)  # TensorBoard orders the files of a run by the second in which they were opened
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            run([*arguments, *last])
        except SystemExit as end:
            code = end.code
        finally:
            os._exit(code)
    # Longer from time to time, so that the run comes to its end on a slow machine too.
    deadline = time.monotonic() + rng.uniform(0.05, 0.3 + 0.2 * attempt)
    done = status = 0
    while not done and time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.005)
    if not done:
        os.kill(pid, 9)
        kills += 1
        os.waitpid(pid, 0)
    if has_ended():
        print(kills)
        sys.exit()
    if not done:
        last = ["--ckpt_path", "last"]
    else:
        last = []  # nothing was saved yet
"""


def test_killed_at_random_moments(everything: Runs, tmp_path: Path) -> None:
    script = tmp_path / "kills.py"
    script.write_text(RANDOM_KILLS)
    command = [sys.executable, str(script), *everything.command("random")]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert completed.returncode == 0, completed.stderr
    assert int(completed.stdout) >= 3
    assert differences(everything.whole, newest_run(everything.folder / "random")) == []


def test_a_spent_budget(plain: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    resumed = plain.copy("spent")
    before = {file: file.read_bytes() for file in resumed.rglob("*") if file.is_file()}
    with pytest.raises(SystemExit, match="2"):
        plain.fit("spent", "--ckpt_path", "last")
    error = capsys.readouterr().err
    assert "environment step 600 of 600" in error
    assert "--data.init_args.total_env_steps N" in error
    assert before == {file: file.read_bytes() for file in resumed.rglob("*") if file.is_file()}
    plain.fit("spent", "--ckpt_path", "last", "--data.init_args.total_env_steps", "800")
    after = newest_checkpoint(resumed)
    assert after["ReplayDataModule"]["env_steps"] == 800
    assert after["global_step"] == 40
    assert [step for step, _ in curves(resumed)["eval/mean_reward"]] == [140, 280, 420, 560, 600, 700, 800]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_last_passes_over_the_damaged_by_name(plain: Runs, recwarn: pytest.WarningsRecorder) -> None:
    damaged = plain.copy("damaged")
    flip(damaged / "checkpoints/step=600.ckpt")
    manifest = Manifest.read(damaged / "checkpoints/step=560.ckpt.manifest.json")
    assert manifest is not None
    os.truncate(damaged / "checkpoints/step=560.ckpt", 1000)
    plain.fit("damaged", "--ckpt_path", "last")
    refused = [str(warning.message) for warning in recwarn if "refused" in str(warning.message)]
    assert any("step=600.ckpt: changed: its sha256" in message for message in refused)
    assert any("step=560.ckpt: truncated: 1000 of" in message for message in refused)
    assert next(event for event in events_of(damaged) if event["kind"] == "resume")["env_steps"] == 420
    assert differences(plain.whole, damaged) == []


def events_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_what_happened_beyond_the_checkpoint_is_marked(plain: Runs) -> None:
    again = plain.copy("again")
    plain.fit("again", "--ckpt_path", str(again / "checkpoints/step=420.ckpt"))
    marks = [(event["kind"], event["env_steps"], event.get("superseded", False)) for event in events_of(again)]
    assert marks == [("start", 0, False), ("stop", 600, True), ("resume", 420, False), ("stop", 600, False)]
    assert curves(again).keys() == curves(plain.whole).keys()
    assert curves(again)["eval/mean_reward"] == curves(plain.whole)["eval/mean_reward"]


def test_last_is_the_newest_run_of_this_kind(plain: Runs) -> None:
    plain.copy("kinds")
    cartpole_0 = ["--data.init_args.env_id", "CartPole-v0"]
    plain.fit("kinds", *cartpole_0)
    runs = plain.folder / "kinds/lightning_logs"
    plain.fit("kinds", "--ckpt_path", "last", "--data.init_args.total_env_steps", "640")
    assert len(events_of(runs / "version_0")) == 4
    plain.fit("kinds", *cartpole_0, "--ckpt_path", "last", "--data.init_args.total_env_steps", "640")
    assert len(events_of(runs / "version_1")) == 4
    assert len(list(runs.iterdir())) == 2


def test_a_copied_checkpoint_goes_on_in_a_new_folder(plain: Runs) -> None:
    source = plain.whole / "checkpoints/step=420.ckpt"
    plain.fit("elsewhere", "--ckpt_path", str(source))
    new = newest_run(plain.folder / "elsewhere")
    assert json.loads((new / "run.json").read_text())["parent_run"] == str(plain.whole)
    ours, theirs = replay_of(new), replay_of(plain.whole)
    assert torch.equal(ours.rows(300, 600).observation, theirs.rows(300, 600).observation)  # type: ignore[arg-type]
    alone = shutil.copy(source, plain.folder)
    run(["validate", *plain.options, "--ckpt_path", str(alone)])


def test_replay_on_disk_stays_bounded(plain: Runs) -> None:
    small = ["--data.init_args.buffer_size", "60", "--data.init_args.eval_every", "20"]
    plain.fit("bounded", *small, "--data.init_args.total_env_steps", "1000")
    bounded = newest_run(plain.folder / "bounded")
    segments = sorted((bounded / "replay/rank0").iterdir())
    manifests = [Manifest.read(file) for file in (bounded / "checkpoints").glob("*.manifest.json")]
    named = {name for manifest in manifests if manifest for name in manifest.files}
    assert {f"replay/rank0/{file.name}" for file in segments} == named
    # Four checkpoints of at most three segments each, of which the newest three share most.
    assert len(segments) <= 8
    for name in ("step=960.ckpt", "step=980.ckpt"):
        plain.fit("bounded", *small, "--data.init_args.total_env_steps", "1000", "--ckpt_path",
                  str(bounded / "checkpoints" / name))  # fmt: skip
