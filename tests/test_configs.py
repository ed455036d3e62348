import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import newest_checkpoint, newest_run

from rlmods.cli import run
from rlmods.configs import describe_configs, find_config, shipped_configs

SHIPPED = sorted(shipped_configs())
PRESETS = [name for name in SHIPPED if name.startswith("safeguards/")]
CHANGES = ["postmortem/ppo_entropy_pump"]  # of another run, with --from
CONFIGS = [name for name in SHIPPED if name not in [*PRESETS, *CHANGES]]


def test_every_file_is_shipped() -> None:
    folder = Path(__file__).parents[1] / "configs"
    assert [find_config(name).name for name in SHIPPED] == [file.name for file in sorted(folder.rglob("*.yaml"))]
    assert "dqn_cartpole" in CONFIGS


def test_each_says_what_it_is_in_one_line() -> None:
    lines = describe_configs().splitlines()
    assert len(lines) == len(SHIPPED)
    for name, line in zip(SHIPPED, lines, strict=True):
        assert line.startswith(name)
        assert len(line.removeprefix(name).strip()) > 20


def test_a_file_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dqn_cartpole").write_text("")
    assert find_config("dqn_cartpole") == Path("dqn_cartpole")
    with pytest.raises(FileNotFoundError, match=r"got --config dqn_cart, .*dqn_cartpole"):
        find_config("dqn_cart")


OTHER_ALGORITHMS = {
    "safeguards/off_policy",
    "safeguards/actor_critic",
    "safeguards/ppo",
    "safeguards/curriculum",
    "safeguards/world_model",
}


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset not in OTHER_ALGORITHMS])
def test_a_preset_is_added_to_any_run(preset: str, tmp_path: Path) -> None:
    """Twice the same would be two callbacks of one name; the run's own callbacks stay."""
    small = ["total_env_steps", 1_500, "eval_episodes", 2, "updates_per_iteration", 4]
    options = [f"--data.init_args.{key}={value}" for key, value in zip(small[::2], small[1::2], strict=True)]
    own = ["--trainer.callbacks+=rlmods.callbacks.EvalEarlyStopping", "--trainer.callbacks.name=own"]
    command = ["fit", "--config", "dqn_cartpole", *own, "--config", preset, "--trainer.default_root_dir", str(tmp_path)]
    run([*command, *options])
    checkpoint = newest_checkpoint(newest_run(tmp_path))
    mode = preset.removeprefix("safeguards/")
    entries = yaml.safe_load(find_config(preset).read_text())["trainer"]["callbacks+"]
    assert checkpoint["health"] == {name: {} for name in checkpoint["health"]}
    assert len(checkpoint["health"]) == len(entries) + 1
    assert any(key.startswith("Rollback") for key in checkpoint["callbacks"]) == (mode == "safe")


def test_the_preset_of_ratios_is_added_to_a_run_that_has_them(tmp_path: Path) -> None:
    small = ["total_env_steps", 600, "num_envs", 2, "eval_every", 600, "eval_episodes", 2]
    options = [f"--data.init_args.{key}={value}" for key, value in zip(small[::2], small[1::2], strict=True)]
    command = ["fit", "--config", "linear_td", "--config", "safeguards/off_policy"]
    run([*command, "--trainer.default_root_dir", str(tmp_path), *options])
    checkpoint = newest_checkpoint(newest_run(tmp_path))
    entries = yaml.safe_load(find_config("safeguards/off_policy").read_text())["trainer"]["callbacks+"]
    assert checkpoint["health"] == {name: {} for name in checkpoint["health"]}
    assert len(checkpoint["health"]) == len(entries)


@pytest.mark.parametrize("name", ["td3_pendulum", "sac_pendulum"])
def test_the_preset_of_actors_and_critics_is_added_to_a_run_that_has_them(name: str, tmp_path: Path) -> None:
    small = ["total_env_steps", 640, "learning_starts", 128, "eval_every", 640, "eval_episodes", 2, "batch_size", 16]
    options = [f"--data.init_args.{key}={value}" for key, value in zip(small[::2], small[1::2], strict=True)]
    command = ["fit", "--config", name, "--config", "safeguards/actor_critic"]
    run([*command, "--trainer.default_root_dir", str(tmp_path), *options])
    checkpoint = newest_checkpoint(newest_run(tmp_path))
    entries = yaml.safe_load(find_config("safeguards/actor_critic").read_text())["trainer"]["callbacks+"]
    assert checkpoint["health"] == {name: {} for name in checkpoint["health"]}
    assert len(checkpoint["health"]) == len(entries)


def test_the_preset_of_rollouts_is_added_to_a_run_that_has_them(tmp_path: Path) -> None:
    small = ["total_env_steps", 1_024, "eval_every", 1_024, "eval_episodes", 2]
    options = [f"--data.init_args.{key}={value}" for key, value in zip(small[::2], small[1::2], strict=True)]
    command = ["fit", "--config", "ppo_cartpole", "--config", "safeguards/ppo", "--model.init_args.n_epochs=2"]
    run([*command, "--trainer.default_root_dir", str(tmp_path), *options])
    checkpoint = newest_checkpoint(newest_run(tmp_path))
    entries = yaml.safe_load(find_config("safeguards/ppo").read_text())["trainer"]["callbacks+"]
    assert checkpoint["health"] == {name: {} for name in checkpoint["health"]}
    assert len(checkpoint["health"]) == len(entries)


def test_the_preset_of_curricula_is_added_to_a_run_that_has_one(tmp_path: Path) -> None:
    small = ["total_env_steps", 640, "learning_starts", 320, "eval_every", 640, "eval_episodes", 2]
    small += ["updates_per_iteration", 1, "max_replay_ratio", 8.0]
    options = [f"--data.init_args.{key}={value}" for key, value in zip(small[::2], small[1::2], strict=True)]
    command = ["fit", "--config", "postmortem/dqn_replay_ratio", "--trainer.callbacks=null"]
    run([*command, "--config", "safeguards/curriculum", "--trainer.default_root_dir", str(tmp_path), *options])
    checkpoint = newest_checkpoint(newest_run(tmp_path))
    entries = yaml.safe_load(find_config("safeguards/curriculum").read_text())["trainer"]["callbacks+"]
    assert checkpoint["health"] == {name: {} for name in checkpoint["health"]}
    assert len(checkpoint["health"]) == len(entries)


def small_run(config: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The iterations after which something has been learned, and the settings that end the run there."""
    small: dict[str, Any]
    if config["model"]["class_path"].endswith("PPO"):
        horizon, num_envs = config["model"]["init_args"]["bptt_horizon"] or 1, config["data"]["init_args"]["num_envs"]
        rollout = max(horizon * num_envs, config["model"]["init_args"]["batch_size"])
        return 2, {"n_steps": rollout // num_envs, "total_env_steps": 2 * rollout, "eval_episodes": 8}
    if config["data"]["class_path"].endswith("SequenceDataModule"):
        small = {"total_env_steps": 2 * config["data"]["init_args"]["steps_per_iteration"], "buffer_size": 1000}
        return 2, {**small, "batch_size": 2, "batch_length": 8, "train_ratio": 1, "eval_episodes": 1}
    if config["data"]["class_path"].endswith(("ReplayDataModule", "ExpertDataModule")):
        steps = config["data"]["init_args"]["steps_per_iteration"]
        small = {"total_env_steps": 2 * steps, "learning_starts": steps, "buffer_size": 1000}
        if config["data"]["init_args"]["n_steps"] * config["data"]["init_args"]["num_envs"] >= 2 * steps:
            small["n_steps"] = 1
        if config["data"]["init_args"]["resize"] is not None:
            small |= {"batch_size": 4, "env_kwargs": {"max_episode_steps": 20}}
        return 2, {**small, "eval_episodes": 1, "updates_per_iteration": 2}
    # On the first ten rollouts a dimensionless step is measured.
    num_iterations = 2 if config["model"]["init_args"]["dimensionless_step"] is None else 12
    return num_iterations, {"num_envs": 2, "n_steps": 5, "total_env_steps": 10 * num_iterations, "eval_episodes": 1}


@pytest.mark.parametrize("name", CONFIGS)
def test_builds_trains_and_parses_again(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", name, "--trainer.default_root_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match="0"):
        run(["fit", *options, "--print_config"])
    printed = capsys.readouterr().out
    num_iterations, small = small_run(yaml.safe_load(printed))
    run(["fit", *options, *(f"--data.init_args.{key}={json.dumps(value)}" for key, value in small.items())])
    checkpoint = newest_checkpoint(newest_run(tmp_path))
    assert checkpoint["global_step"] == num_iterations
    assert checkpoint["algorithm"]["update_steps"] > 0
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        run(["fit", "--config", str(newest_run(tmp_path) / "config.yaml"), "--print_config"])
    again = yaml.safe_load(capsys.readouterr().out)
    assert again["model"] == yaml.safe_load(printed)["model"]


def test_the_preset_of_world_models_is_added_to_a_run_that_has_one(tmp_path: Path) -> None:
    small = ["total_env_steps", 320, "eval_every", 320, "eval_episodes", 2, "batch_size", 4, "batch_length", 16]
    small += ["train_ratio", 8]
    options = [f"--data.init_args.{key}={value}" for key, value in zip(small[::2], small[1::2], strict=True)]
    command = ["fit", "--config", "dreamer_v3_cartpole", "--config", "safeguards/world_model"]
    run([*command, "--trainer.default_root_dir", str(tmp_path), *options])
    checkpoint = newest_checkpoint(newest_run(tmp_path))
    entries = yaml.safe_load(find_config("safeguards/world_model").read_text())["trainer"]["callbacks+"]
    assert checkpoint["health"] == {name: {} for name in checkpoint["health"]}
    assert len(checkpoint["health"]) == len(entries)
