"""The documentation says what is true: its Python runs with the installed wheel, its commands parse."""

import re
import shlex
from pathlib import Path

import pytest
from installed_wheel import REPOSITORY, Installed, run_installed

from rlmods.cli import run
from rlmods.configs import shipped_configs
from rlmods.doctor.command import main as doctor

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
README = REPOSITORY / "README.md"
CALLBACKS = REPOSITORY / "docs" / "callbacks.md"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def run_block(block: str, installed: Installed, folder: Path) -> str:
    script = folder / "example.py"
    script.write_text(block)
    return run_installed(installed, [str(script)], folder)


def test_a_strangers_callback_runs(installed_wheel: Installed, tmp_path: Path) -> None:
    block = blocks(CALLBACKS, "python")[0]
    assert len([line for line in block.splitlines() if line]) < 30
    output = run_block(block, installed_wheel, tmp_path)
    left_out = re.search(r"^(\d+) updates were left out$", output, flags=re.MULTILINE)
    assert left_out is not None, output
    assert int(left_out[1]) > 0
    assert int(left_out[1]) % 128 == 0


def test_a_strangers_module_runs(installed_wheel: Installed, tmp_path: Path) -> None:
    block = blocks(CALLBACKS, "python")[1]
    assert len([line for line in block.splitlines() if line]) < 30
    block += "\nprint(data.env_steps, data.trainer.callback_metrics['step'].item(), data.trainer.global_step)"
    # An iteration has 256 steps: four of them, each with 128 updates, and an evaluation after the last.
    assert run_block(block, installed_wheel, tmp_path).endswith("\n1000 1000.0 512\n")


def test_a_strangers_module_runs_under_three_safeguards(installed_wheel: Installed, tmp_path: Path) -> None:
    block = blocks(CALLBACKS, "python")[2]
    said = run_block(block, installed_wheel, tmp_path).splitlines()[-1]
    assert f"It prints `{said}`" in CALLBACKS.read_text()


def test_the_stages_of_a_run(installed_wheel: Installed, tmp_path: Path) -> None:
    (block,) = [block for block in blocks(CALLBACKS, "python") if "StageGates(" in block]
    said = run_block(block, installed_wheel, tmp_path).splitlines()
    assert "above_random: the evaluation is " in said[-4]
    assert "\n".join(said[-3:]) in CALLBACKS.read_text()


def test_a_strangers_actor_and_critic_are_asked(installed_wheel: Installed, tmp_path: Path) -> None:
    block = blocks(CALLBACKS, "python")[4]
    said = run_block(block, installed_wheel, tmp_path).splitlines()[-1]
    assert f"It prints `{said}`" in CALLBACKS.read_text()


def test_the_readmes_python_runs(installed_wheel: Installed, tmp_path: Path) -> None:
    (block,) = blocks(README, "python")
    last_evaluation = run_block(block, installed_wheel, tmp_path).splitlines()[-1]
    assert 0.0 < float(last_evaluation) <= 500.0
    assert list(tmp_path.glob("lightning_logs/version_0/events.out.*"))


def test_every_python_block_is_run_above() -> None:
    assert {page.name: len(blocks(page, "python")) for page in PAGES if blocks(page, "python")} == {
        "README.md": 1,
        "callbacks.md": 5,
    }


def test_the_commands_of_the_documentation_parse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (mine,) = blocks(README, "yaml")
    Path("mine.yaml").write_text(mine)
    python = [words for page in PAGES for words in commands(page) if words[0] == "python"]
    given = {shlex.join(words): words[3:] for words in python if words[:3] == ["python", "-m", "rlmods"]}
    assert len(given) > 8
    others = [words[1] for words in python if shlex.join(words) not in given]
    assert all((REPOSITORY / script).is_file() for script in others), others
    for line, arguments in given.items():
        if arguments[0] == "doctor":
            assert doctor(arguments[1:]) in (0, 1), line
            continue
        needs_a_run = "--from" in arguments or arguments[0] in ("next", "replay", "report")
        if needs_a_run or arguments[0] in ("configs", "sanity") or "--help" in arguments:
            continue
        with pytest.raises(SystemExit) as end:
            run([*arguments, *([] if "--print_config" in arguments else ["--print_config"])])
        assert end.value.code in (None, 0), f"{line}: {capsys.readouterr().err}"
    assert "prioritized_replay: true" in capsys.readouterr().out


def test_the_make_targets_of_the_documentation_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
    given = {words[1] for page in PAGES for words in commands(page) if words[0] == "make"}
    assert {"fit", "test"} <= given <= set(targets)


def test_the_first_commands_of_the_readme_are_make_fit_and_make_test() -> None:
    assert commands(README)[:2] == [["make", "fit"], ["make", "test"]]


def test_the_links_of_the_documentation_lead_to_files() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_pages_of_the_algorithms_name_every_curve_of_the_vocabulary() -> None:
    from rlmods.signals import SIGNALS

    pages = ("dqn.md", "linear_td.md", "td3.md", "ppo.md", "dreamer_v3.md")
    text = "".join((REPOSITORY / "docs" / page).read_text() for page in pages)
    tags = [tag for signal in SIGNALS.values() for tag in signal.curves]
    assert [tag for tag in tags if f"`{tag}" not in text] == []


def test_the_shipped_configurations_are_described() -> None:
    for name, file in shipped_configs().items():
        assert re.match(r"# \S.{10,}", file.read_text()), f"{name}: the first line says in a comment what it is"
