import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from expert_cart_pole import ENV_ID, ExpertCartPole
from lightning.pytorch import Trainer
from test_bad_input import refusal
from test_skeleton import make_trainer
from torch import Tensor

from rlmods.algorithms.base import Algorithm
from rlmods.data import ExpertDataModule, ReplayDataModule
from rlmods.data.segments import ReplaySegments
from rlmods.data.settings import with_reward_bounds
from rlmods.types import (
    EpisodeBatch,
    ExpertShareControl,
    MeasuresReplay,
    MixtureSource,
    Observation,
    ReplayBatch,
)

SETTINGS: dict[str, Any] = {
    "total_env_steps": 480,
    "num_envs": 4,
    "learning_starts": 100,
    "steps_per_iteration": 20,
    "updates_per_iteration": 3,
    "batch_size": 8,
    "buffer_size": 200,
    "eval_episodes": 3,
    "eval_every": 240,
    "expert_share": 0.8,
    "expert_share_decay": 0.5,
    "expert_share_decay_steps": 200,
    "expert_share_floor": 0.1,
    "seed": 5,
}


class Keeper(Algorithm):
    """Pushes right, learns nothing, and keeps its batches."""

    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        self.save_hyperparameters()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[ReplayBatch] = []

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        assert isinstance(observation, Tensor)
        return torch.ones(len(observation), dtype=torch.int64)

    def training_step(self, batch: ReplayBatch, batch_idx: int) -> dict[str, Tensor]:
        self.batches.append(batch)
        self.count_iteration(self.single_optimizer())
        return {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_data(env_id: str = ENV_ID, **settings: Any) -> ExpertDataModule:
    return ExpertDataModule(env_id, **(SETTINGS | settings))


def fit(
    folder: Path, data: ReplayDataModule, *, ckpt_path: Path | None = None, max_steps: int = -1
) -> tuple[Keeper, Trainer]:
    model = Keeper(data.spec)
    trainer = make_trainer(folder, max_steps=max_steps, logger=True)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return model, trainer


def test_it_keeps_its_protocols() -> None:
    data = make_data()
    for protocol in (MixtureSource, MeasuresReplay, ExpertShareControl):
        assert isinstance(data, protocol)
    plain = ReplayDataModule("CartPole-v1", 2_000)
    assert isinstance(plain, MeasuresReplay)
    assert not isinstance(plain, MixtureSource)
    assert not isinstance(plain, ExpertShareControl)


def test_the_settings_of_the_replay_have_the_same_defaults() -> None:
    mine, theirs = (inspect.signature(kind.__init__).parameters for kind in (ExpertDataModule, ReplayDataModule))
    assert theirs.keys() <= mine.keys()
    differing = [name for name in theirs if mine[name] != theirs[name]]
    assert differing == ["vectorization"]  # only native environments have an expert


def test_the_frame_at_which_the_floor_is_reached() -> None:
    assert make_data().expert_floor_reached == 600  # 0.8, 0.4, 0.2, 0.1
    assert ExpertDataModule(ENV_ID, 10_000).expert_floor_reached == 5_620_000
    assert make_data(expert_share_floor=0.0).expert_floor_reached == float("inf")


@pytest.mark.parametrize(
    "replay", [{}, {"prioritized_replay": True}, {"replay_strata": {"recent": 0.5, "uniform": 0.5}}]
)
def test_batches_say_which_actions_the_expert_chose(tmp_path: Path, replay: dict[str, Any]) -> None:
    data = make_data(**replay)
    model, _ = fit(tmp_path, data)
    assert [batch.num_updates for batch in model.batches] == [0] * 4 + [3] * 20
    for batch in model.batches:
        assert batch.by_expert is not None
        assert batch.by_expert.shape == batch.transition.action.shape
        # The network never does 0: whoever did was the expert.
        assert bool(batch.by_expert[batch.transition.action == 0].all())
    drawn = torch.cat([batch.by_expert for batch in model.batches])  # type: ignore[misc]
    assert 0.1 < float(drawn.float().mean()) < 0.9
    totals = data.mixture_totals()
    assert totals.frames_by_network + totals.frames_by_expert == data.env_steps >= 480
    # 0.8 of 200 frames, 0.4 of 200, 0.2 of 80: 256, with a standard deviation of 9.6.
    assert totals.frames_by_expert == pytest.approx(256, abs=48)
    assert totals.reward_by_network == totals.frames_by_network


def test_a_replay_without_an_expert_has_no_flags(tmp_path: Path) -> None:
    settings = {name: value for name, value in SETTINGS.items() if not name.startswith("expert")}
    model, _ = fit(tmp_path, ReplayDataModule(ENV_ID, **settings))
    assert [batch.by_expert for batch in model.batches] == [None] * 24


def test_evaluations_are_without_the_expert_whose_score_stands_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    expert_action = ExpertCartPole.expert_action

    def count(self: ExpertCartPole) -> Any:
        asked.append(self.num_envs)
        return expert_action(self)

    monkeypatch.setattr(ExpertCartPole, "expert_action", count)
    _, trainer = fit(tmp_path / "expert", make_data())
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    settings = {name: value for name, value in SETTINGS.items() if not name.startswith("expert")}
    _, plain = fit(tmp_path / "plain", ReplayDataModule(ENV_ID, vectorization="native", **settings))
    assert metrics["eval/mean_reward"] == float(plain.callback_metrics["eval/mean_reward"]) < 12.0
    assert metrics["eval/expert_mean_reward"] == 500.0
    assert metrics["eval/expert_mean_reward_sem"] == 0.0
    assert "eval/expert_mean_reward" not in plain.callback_metrics
    assert asked.count(3) == 500  # in three environments: one evaluation of two, 500 steps long


def test_the_experts_score_has_a_standard_error(tmp_path: Path) -> None:
    """Of episodes of 8, 12 and 10 steps: mean 10, √(8/3)/√2."""
    returns = torch.tensor([8.0, 12.0, 10.0], dtype=torch.float64)
    zeros = torch.zeros(3)
    episodes = EpisodeBatch(returns, returns.long(), returns, {}, zeros, zeros, zeros, expert_returns=returns)
    metrics = Keeper(make_data().spec).evaluation_metrics(episodes)
    assert float(metrics["expert_mean_reward"]) == 10.0
    assert float(metrics["expert_mean_reward_sem"]) == pytest.approx((8 / 3) ** 0.5 / 2**0.5)


def test_an_override_takes_the_place_of_the_schedule_which_goes_on_counting(tmp_path: Path) -> None:
    shares: list[float] = []

    class Overrides(Keeper):
        def training_step(self, batch: ReplayBatch, batch_idx: int) -> dict[str, Tensor]:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            data.expert_share_override = 1.0 if batch_idx < 11 else None
            shares.append(data.mixture.share(batch.env_steps))
            return super().training_step(batch, batch_idx)

    data = make_data()
    with pytest.raises(RuntimeError, match="no expert yet"):
        data.expert_share_override = 0.5
    make_trainer(tmp_path).fit(Overrides(data.spec), datamodule=data)
    assert shares == [1.0] * 11 + [0.4] * 8 + [0.2] * 5
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"expert_share_override = .*, expected a probability in"):
            data.expert_share_override = share


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"n_steps": 3, "n_step_through_expert": False, "max_replay_ratio": 1.1}
    whole, _ = fit(tmp_path / "whole", data := make_data(**settings))
    fit(tmp_path / "half", make_data(**settings), max_steps=13)
    (half,) = (tmp_path / "half").glob("lightning_logs/*/checkpoints/*.ckpt")
    resumed, _ = fit(tmp_path / "resumed", resumed_data := make_data(**settings), ckpt_path=half)
    torch.testing.assert_close(resumed.batches, whole.batches[13:], rtol=0, atol=0)
    assert resumed_data.mixture_totals() == data.mixture_totals()
    assert resumed_data.rollout_statistics() == data.rollout_statistics()
    assert resumed_data.replay_ratio == data.replay_ratio
    state = torch.load(half, weights_only=True)["ExpertDataModule"]["processes"][0]
    assert state["expert_returns"] == {2: pytest.approx(torch.full((3,), 500.0, dtype=torch.float64))}
    assert any(name.endswith(".expert.pt") for name in state["files"])
    assert isinstance(resumed_data.segments, ReplaySegments)


def test_the_experts_score_is_that_of_the_games_that_are_played_now(tmp_path: Path) -> None:
    fit(tmp_path / "half", make_data(), max_steps=13)
    (half,) = (tmp_path / "half").glob("lightning_logs/*/checkpoints/*.ckpt")
    resumed = make_data(eval_episodes=2)
    fit(tmp_path / "resumed", resumed, ckpt_path=half)
    assert [len(returns) for returns in resumed._expert_returns.values()] == [2]


@pytest.mark.parametrize(("limit", "updates"), [(None, [3] * 20), (0.9, [2, 2, 2, 3, 2, 2, 2, 3]), (0.1, [0, 0, 0, 1])])
def test_the_replay_ratio_is_limited(tmp_path: Path, limit: float | None, updates: list[int]) -> None:
    """20 new transitions and 3 updates of 8 an iteration. At most 0.9: 18 may be drawn, 36, 54, 72, ...

    That makes 2 (16), 2 (32), 2 (48), 3 (72) updates. At most 0.1: 2, 4, 6, 8.
    """
    data = ReplayDataModule(
        "CartPole-v1",
        480,
        learning_starts=100,
        steps_per_iteration=20,
        updates_per_iteration=3,
        batch_size=8,
        eval_episodes=1,
        max_replay_ratio=limit,
    )
    model, _ = fit(tmp_path, data)
    made = [batch.num_updates for batch in model.batches[4:]]
    assert made[: len(updates)] == updates
    assert data.replay_ratio == sum(made) * 8 / (20 * 20)
    assert data.uses_per_transition == pytest.approx(min(1.2, limit or 2.0))


def test_reward_bounds_are_written_into_the_spec() -> None:
    data = ReplayDataModule("CartPole-v1", 2_000, reward_bounds=[0, 1])
    assert data.spec["settings"] == {"reward_bounds": [0.0, 1.0]}
    assert "settings" not in ReplayDataModule("CartPole-v1", 2_000).spec


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"expert_share": 1.2}, r"expert_share = 1.2, expected a probability in \[0, 1\]: type .*expert_share 0.95"),
        ({"expert_share": -0.1}, "expert_share = -0.1, expected a probability"),
        ({"expert_share_floor": 0.9}, "expert_share_floor = 0.9 with expert_share = 0.8.*args.expert_share_floor 0.1"),
        ({"expert_share": 0.05}, "expert_share_floor = 0.1 with expert_share = 0.05.*args.expert_share_floor 0.05"),
        ({"expert_share_decay": 1.1}, r"expert_share_decay = 1.1, expected a factor in \(0, 1\]"),
        ({"expert_share_decay_steps": 0}, "expert_share_decay_steps = 0, expected at least 1"),
        ({"expert_care_scale": -1.0}, "expert_care_scale = -1.0, expected a factor from 0"),
        ({"expert_care_scale": float("inf")}, "expert_care_scale = inf, expected a factor from 0"),
        (
            {"env_id": "Pendulum-v1"},
            "got the continuous actions of Pendulum-v1, expected discrete ones",
        ),
        ({"max_replay_ratio": 0.0}, "max_replay_ratio = 0.0, expected a finite ratio above 0.*args.max_replay_ratio 8"),
        (
            {"max_replay_ratio": float("inf")},
            "max_replay_ratio = inf, expected a finite ratio above 0",
        ),
        ({"replay_strata": {"recent": 0.5}}, "add up to 0.5, expected shares from 0 that add up to 1"),
        (
            {"replay_strata": {"recent": 1.0}, "prioritized_replay": True},
            "replay_strata with prioritized_replay = True, expected one of them",
        ),
        ({"reward_bounds": [1.0, -1.0]}, r"reward_bounds = \[1.0, -1.0\], expected two finite numbers, the lower"),
        ({"reward_bounds": [1.0]}, r"reward_bounds = \[1.0\], expected two finite numbers"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_data(**settings)


def test_other_bounds_than_those_of_the_environment_are_refused() -> None:
    spec = with_reward_bounds(make_data().spec, [-1.0, 1.0])
    assert with_reward_bounds(spec, [-1, 1]) == spec
    with pytest.raises(ValueError, match=r"reward_bounds = \[0.0, 1.0\], but .* itself states \[-1.0, 1.0\]: leave"):
        with_reward_bounds(spec, [0.0, 1.0])


CONFIG = """\
model: {class_path: rlmods.algorithms.DQN}
data:
  class_path: rlmods.data.ExpertDataModule
  init_args: {env_id: CartPole-v1, total_env_steps: 2000}
"""


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ([], ["got CartPole-v1, which has no expert", "--data.init_args.env_id rlmods/LaneShooter-v0"]),
        (["--data.init_args.expert_share", "1.5"], ["expert_share = 1.5", "[0, 1]"]),
        (["--data.init_args.replay_strata", "{recnt: 1.0}"], ["['recnt']", "'recent', 'high_reward'"]),
    ],
)
def test_what_cannot_work_is_a_sentence_before_anything_is_written(
    option: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, root = tmp_path / "config.yaml", tmp_path / "root"
    config.write_text(CONFIG)
    sentence = refusal(capsys, "fit", "-c", str(config), "--trainer.default_root_dir", str(root), *option)
    assert [word for word in words if word not in sentence] == []
    assert not root.exists()
