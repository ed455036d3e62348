"""Small runs on the real command line, and what distinguishes two of them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlmods.cli import run
from rlmods.data.replay import ReplayBuffer
from rlmods.data.segments import ReplaySegments
from rlmods.manifest import newest_intact

SMALL = """\
trainer: {accelerator: cpu, log_every_n_steps: 3, enable_progress_bar: false, enable_model_summary: false}
model:
  class_path: rlmods.algorithms.DQN
  init_args: {hidden_sizes: [16], target_update_interval: 7, exploration_fraction: 0.5}
data:
  class_path: rlmods.data.ReplayDataModule
  init_args:
    env_id: CartPole-v1
    total_env_steps: 600
    learning_starts: 60
    steps_per_iteration: 20
    updates_per_iteration: 4
    batch_size: 8
    buffer_size: 300
    eval_episodes: 2
    eval_every: 140
"""

EVERYTHING_ON = """\
model: {init_args: {dueling: true, tau: 0.01, target_update_interval: 1}}
data:
  init_args:
    {num_envs: 8, steps_per_iteration: 24, n_steps: 3, prioritized_replay: true, vectorization: native}
"""

# Loaded by the command line from PYTHONPATH, as a stranger's module would be.
KILLER = """
import os
from lightning.pytorch import Callback

class Kill(Callback):
    def __init__(self, iteration: int, signal: int = 9) -> None:
        self.iteration = iteration
        self.signal = signal

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.iteration:
            os.kill(os.getpid(), self.signal)
"""


class Runs:
    """A configuration, the run that was never stopped, and how to type its command."""

    def __init__(self, folder: Path, *configs: str) -> None:
        self.folder = folder
        files = [folder / f"{number}.yaml" for number in range(len(configs))]
        for file, config in zip(files, configs, strict=True):
            file.write_text(config)
        (folder / "killer.py").write_text(KILLER)
        self.options = [argument for file in files for argument in ("--config", str(file))]
        self.fit("whole")
        self.whole = newest_run(folder / "whole")

    def command(self, name: str, *more: str) -> list[str]:
        return ["fit", *self.options, "--trainer.default_root_dir", str(self.folder / name), *more]

    def fit(self, name: str, *more: str) -> None:
        run(self.command(name, *more))

    def copy(self, name: str) -> Path:
        """The finished run once more, to be treated badly."""
        shutil.copytree(self.folder / "whole", self.folder / name)
        return newest_run(self.folder / name)


def kill_at(iteration: int, signal: int) -> list[str]:
    """Options that add the callback above; its module must be importable."""
    callbacks = "--trainer.callbacks"
    return [f"{callbacks}+=killer.Kill", f"{callbacks}.iteration={iteration}", f"{callbacks}.signal={int(signal)}"]


def start(*arguments: object, modules: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m rlmods` with these arguments."""
    environment = os.environ | ({"PYTHONPATH": str(modules)} if modules else {})
    command = [sys.executable, "-m", "rlmods", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=170, check=False, env=environment, **options)


def newest_run(root: Path) -> Path:
    return max((root / "lightning_logs").iterdir(), key=lambda run: int(run.name.removeprefix("version_")))


def newest_checkpoint(run: Path) -> dict[str, Any]:
    search = newest_intact(run / "checkpoints", check_files_in=run)
    assert search.found is not None, search.refused
    checkpoint: dict[str, Any] = torch.load(search.found[0], weights_only=True)
    return checkpoint


def replay_of(run: Path) -> ReplayBuffer:
    checkpoint = newest_checkpoint(run)
    state = checkpoint.get("ReplayDataModule") or checkpoint["ExpertDataModule"]
    process = state["processes"][0]
    has_expert = "ExpertDataModule" in checkpoint
    buffer = ReplayBuffer(state["spec"], process["replay"]["capacity"], seed=0, stores_expert=has_expert)
    buffer.load_state_dict(process["replay"])
    files = {Path(name).name: sha256 for name, sha256 in process["files"].items()}
    ReplaySegments(run / "replay/rank0").load(buffer, files)
    return buffer


def replay_rows(run: Path) -> dict[str, Any]:
    """What the replay holds, by field; nothing where there is none."""
    if not {"ReplayDataModule", "ExpertDataModule"} & newest_checkpoint(run).keys():
        return {}
    buffer = replay_of(run)
    held = (buffer.inserted - len(buffer), buffer.inserted)
    flags = {} if buffer.by_expert is None else {"by_expert": buffer.by_expert.between(*held)}
    return buffer.rows(*held)._asdict() | flags


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def differences(run: Path, other: Path) -> list[str]:
    """What differs between the ends of two runs: state, replay, curves."""
    states = dict(_leaves(newest_checkpoint(run))), dict(_leaves(newest_checkpoint(other)))
    rows = replay_rows(run), replay_rows(other)
    found = [f"state{name}" for name in _differing(*states) if not _may_differ(name)]
    found += [f"replay{name}" for name in _differing(*(dict(_leaves(row)) for row in rows))]
    drawn = curves(run), curves(other)
    found += [f"curve {tag}" for tag in drawn[0].keys() | drawn[1].keys() if not _timed(tag) and _differ(tag, drawn)]
    return found


def _timed(tag: str) -> bool:
    """Whether a curve says how fast the machine was."""
    return tag.startswith("system/") or (tag.startswith("time/") and tag != "time/total_timesteps")


def _differ(key: str, pair: tuple[dict[str, Any], dict[str, Any]]) -> bool:
    return bool(pair[0].get(key) != pair[1].get(key))


def _may_differ(name: str) -> bool:
    """Paths and the cut of the replay into files tell how often a run was stopped; nobody draws from the spaces."""
    return any(
        part in name for part in ("ModelCheckpoint", "BestCheckpoint", "files", "action_space", "observation_space")
    )


def _differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    names = sorted(first.keys() | second.keys())
    return [name for name in names if not _same(first.get(name), second.get(name))]


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return type(first) is type(second) and bool(first == second)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _leaves(item, f"{name}.{position}")
    else:
        yield name, value
