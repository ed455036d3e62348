"""The built wheel, installed apart from the repository. Run as a script, it uses the wheel from an empty folder."""

import os
import shlex
import shutil
import site
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "rlmods", "callbacks", "configs")


class Installed(NamedTuple):
    """A wheel and a Python that has it."""

    python: Path
    wheel: Path  # built from the sources
    wheel_of_sdist: Path
    sdist: Path


def install_wheel(folder: Path) -> Installed:
    """Build sdist and wheels from a copy of the sources, and install the sdist's wheel in a new environment.

    The environment finds the dependencies in the one that runs this, by a .pth file: installing a second torch would
    take a gigabyte and a minute. Of rlmods it sees the wheel only, because .pth files and editable installations that
    lie in a folder named by a .pth file have no effect.
    """
    sources = folder / "sources"
    sources.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in BUILT_FROM:
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, sources / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(path, sources / name)
    build = [sys.executable, "-m", "build", "--no-isolation"]
    _run([*build, "--outdir", str(folder / "direct"), "--wheel", str(sources)])
    shutil.rmtree(sources / "build")
    _run([*build, "--outdir", str(folder / "dist"), str(sources)])  # the sdist, and the wheel from it
    (wheel,) = (folder / "dist").glob("*.whl")

    environment = folder / "venv"
    _run([sys.executable, "-m", "venv", "--without-pip", str(environment)])
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    _run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)])
    (packages,) = (environment / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text("".join(f"{path}\n" for path in site.getsitepackages()))
    return find_installed(folder)


def find_installed(folder: Path) -> Installed:
    """What `install_wheel` left in a folder."""
    return Installed(
        python=folder / "venv" / "bin" / "python",
        wheel=next((folder / "direct").glob("*.whl")),
        wheel_of_sdist=next((folder / "dist").glob("*.whl")),
        sdist=next((folder / "dist").glob("*.tar.gz")),
    )


def run_installed(installed: Installed, arguments: list[str], folder: Path) -> str:
    """Run Python with the wheel in a folder outside the repository; its output.

    Raises:
        RuntimeError: with the output, where it fails.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["OMP_NUM_THREADS"] = "1"  # several threads fight for the cores with the other tests
    return _run([str(installed.python), *arguments], folder=folder, environment=environment)


def _run(command: list[str], *, folder: Path | None = None, environment: dict[str, str] | None = None) -> str:
    completed = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    if completed.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} left with {completed.returncode}:\n{completed.stdout}")
    return completed.stdout


IMPORT_ALL = """
import importlib, pkgutil, sys
import rlmods
if not rlmods.__file__.startswith(sys.prefix):
    raise SystemExit(f"imported {rlmods.__file__}, expected the wheel in {sys.prefix}")
for module in pkgutil.walk_packages(rlmods.__path__, "rlmods."):
    importlib.import_module(module.name)
    print(module.name)
"""

TRAIN = """
-m rlmods fit --config dqn_cartpole --trainer.limit_train_batches 2 --data.init_args.learning_starts 256
--data.init_args.updates_per_iteration 4 --data.init_args.eval_episodes 2
"""
TEST = "-m rlmods test --config dqn_cartpole --ckpt_path last --data.init_args.eval_episodes 2"


def smoke_test(installed: Installed, folder: Path) -> None:
    """Import every module, list the configurations, train two iterations, evaluate their checkpoint.

    Raises:
        RuntimeError: where one of them fails, or leaves out what it should have made.
    """
    modules = run_installed(installed, ["-c", IMPORT_ALL], folder).split()
    packages = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    missing = set(packages) - {"rlmods"} - set(modules)
    if missing:
        raise RuntimeError(f"the wheel lacks {sorted(missing)}")
    configs = run_installed(installed, ["-m", "rlmods", "configs"], folder)
    if "dqn_cartpole" not in configs:
        raise RuntimeError(f"python -m rlmods configs said:\n{configs}")
    run_installed(installed, shlex.split(TRAIN), folder)
    if not list(folder.glob("lightning_logs/version_0/checkpoints/*.ckpt")):
        raise RuntimeError(f"no checkpoint among {sorted(str(path) for path in folder.rglob('*'))}")
    if "test/mean_reward" not in run_installed(installed, shlex.split(TEST), folder):
        raise RuntimeError("python -m rlmods test did not print test/mean_reward")
    print(f"{installed.wheel_of_sdist.name}: {len(modules)} modules imported, two iterations trained and tested")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        empty = Path(temporary, "empty")
        empty.mkdir()
        smoke_test(install_wheel(Path(temporary)), empty)
