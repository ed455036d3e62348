"""What is shipped, what an import costs, and that the dependencies are declared."""

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from installed_wheel import REPOSITORY, Installed, run_installed

PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PACKAGE_FOLDERS = [REPOSITORY / "rlmods", REPOSITORY / "callbacks", REPOSITORY / "configs"]
DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python", "yaml": "pyyaml"}  # where the names differ
OPTIONAL = {"ale_py", "mujoco"}  # imported only if the user's environment needs them


def distribution(requirement: str) -> str:
    return re.split(r"[\[<>=~!;]", requirement)[0].strip().lower().replace("_", "-")


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def sources() -> list[Path]:
    """The package's Python files, each once: two of its folders are also reached by symbolic links."""
    return sorted({file.resolve() for folder in PACKAGE_FOLDERS for file in folder.rglob("*.py")})


def test_the_wheel_has_callbacks_configurations_and_the_marker_for_types(installed_wheel: Installed) -> None:
    content = names(installed_wheel.wheel)
    expected = {
        "callbacks": [file.name for file in (REPOSITORY / "callbacks").glob("*.py")],
        "configs": [
            file.relative_to(REPOSITORY / "configs").as_posix() for file in (REPOSITORY / "configs").rglob("*.*")
        ],
    }
    for folder, files in expected.items():
        wanted = [f"rlmods/{folder}/{name}" for name in files if not name.endswith(".pyc")]
        assert [name for name in wanted if name not in content] == []
    assert "rlmods/reports/report.html.jinja" in content
    assert {"rlmods/py.typed", "rlmods/callbacks/__init__.py", "rlmods/configs/dqn_cartpole.yaml"} <= content
    top_level = {name.partition("/")[0] for name in content}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"rlmods"}


def test_the_wheel_has_every_module(installed_wheel: Installed) -> None:
    relative = [file.relative_to(REPOSITORY).as_posix() for file in sources()]
    wanted = {name if name.startswith("rlmods/") else f"rlmods/{name}" for name in relative}
    assert wanted == {name for name in names(installed_wheel.wheel) if name.endswith(".py")}


def test_the_wheel_of_the_sdist_is_the_wheel_of_the_repository(installed_wheel: Installed) -> None:
    assert names(installed_wheel.wheel_of_sdist) == names(installed_wheel.wheel)
    with tarfile.open(installed_wheel.sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "callbacks/curves.py", "configs/dqn_cartpole.yaml"} <= files


def test_the_installed_wheel_finds_its_configurations(installed_wheel: Installed, tmp_path: Path) -> None:
    output = run_installed(installed_wheel, ["-m", "rlmods", "configs"], tmp_path)
    assert re.search(r"^dqn_cartpole +DQN on CartPole", output, flags=re.MULTILINE)
    assert output == run_installed(
        installed_wheel, [str(installed_wheel.python.parent / "rlmods"), "configs"], tmp_path
    )


def test_the_bare_name_callbacks_is_refused() -> None:
    code = "import callbacks"
    completed = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 1
    assert completed.stderr.endswith("ImportError: imported as 'callbacks'; type: import rlmods.callbacks\n")


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import rlmods", ["torch", "lightning", "gymnasium", "numpy"]),
        ("import rlmods.__main__", ["torch", "lightning", "gymnasium", "numpy"]),
        ("import rlmods.functional.td", ["lightning", "gymnasium"]),
        ("import rlmods.data, rlmods.algorithms, rlmods.callbacks, rlmods.cli", ["cv2", "pygame"]),
    ],
)
def test_an_import_does_not_load_what_it_does_not_need(statement: str, absent: list[str]) -> None:
    code = f"{statement}\nimport sys\nprint(*[name for name in {absent} if name in sys.modules])"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout.split() == []


def test_every_dependency_is_declared() -> None:
    """The light environment of the wheel tests also sees what only tests need: an undeclared import works there."""
    imported = set()
    for file in sources():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).partition(".")[0])
    needed = imported - set(sys.stdlib_module_names) - OPTIONAL - {"rlmods", "_typeshed"}
    declared = {distribution(line) for line in PYPROJECT["project"]["dependencies"]}
    assert {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in needed} <= declared


def test_what_was_tested_is_pinned() -> None:
    lines = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {distribution(line): line.partition("==")[2] for line in lines}
    assert all(pins.values())
    assert pins["torch"] == "2.13.0"  # without a local version: a CPU build and a CUDA build both fit
    extras = PYPROJECT["project"]["optional-dependencies"]
    for requirement in [*PYPROJECT["project"]["dependencies"], *extras["dev"]]:
        assert distribution(requirement) in pins
