from pathlib import Path
from typing import Any

import pytest
from expert_cart_pole import ENV_ID
from lightning.pytorch import seed_everything
from running import curves
from test_skeleton import make_trainer

from rlmods.algorithms import DQN
from rlmods.callbacks import Curves
from rlmods.callbacks.actor_curves import ActorCurves, replay_ratio
from rlmods.data import ExpertDataModule
from rlmods.types import MixtureTotals


class Source:
    """Says what it is told to."""

    def __init__(self, *totals: float) -> None:
        self.totals = MixtureTotals(int(totals[0]), int(totals[1]), *totals[2:])

    def mixture_totals(self) -> MixtureTotals:
        return self.totals


def test_golden_interval() -> None:
    """30 frames by the network with a reward of 15, 10 by the expert with 20; then 8 more with 2 and none."""
    actors = ActorCurves()
    assert actors.measure(Source(30, 10, 15.0, 20.0)) == {
        "rollout/expert_share": 0.25,
        "rollout/network_reward_per_frame": 0.5,
        "rollout/expert_reward_per_frame": 2.0,
    }
    restored = ActorCurves()
    restored.load_state_dict(actors.state_dict())
    later = {"rollout/expert_share": 0.0, "rollout/network_reward_per_frame": 0.25}
    for each in (actors, restored):
        assert each.measure(Source(38, 10, 17.0, 20.0)) == later
    assert actors.measure(Source(38, 10, 17.0, 20.0)) == {}


def test_who_has_neither_expert_nor_replay_has_no_curves() -> None:
    assert ActorCurves().measure(object()) == {}
    assert replay_ratio(object()) is None


def fit(folder: Path, **options: Any) -> Path:
    seed_everything(0)
    data = ExpertDataModule(
        ENV_ID,
        480,
        expert_share=0.8,
        expert_share_decay=0.5,
        expert_share_decay_steps=160,
        num_envs=4,
        learning_starts=40,
        steps_per_iteration=20,
        updates_per_iteration=1,
        batch_size=8,
        eval_episodes=1,
        seed=5,
    )
    trainer = make_trainer(folder, Curves(), logger=True, log_every_n_steps=4, max_steps=options.pop("max_steps", -1))
    trainer.fit(DQN(data.spec, hidden_sizes=[8]), datamodule=data, **options)
    return Path(str(trainer.log_dir))


def test_the_share_is_the_one_of_the_interval_also_over_a_resume(tmp_path: Path) -> None:
    whole = curves(fit(tmp_path / "whole"))
    shares = whole["rollout/expert_share"]
    # 80 coins a point: 0.8 twice, 0.4 twice, 0.2 twice; five standard deviations are at most 0.28.
    assert [share for _, share in shares] == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2, 0.2], abs=0.28)
    assert shares[0][1] > shares[-1][1]
    assert [value for _, value in whole["rollout/network_reward_per_frame"]] == pytest.approx([1.0] * 6)
    assert [value for _, value in whole["rollout/expert_reward_per_frame"]] == pytest.approx([1.0] * 6)
    # From the iteration on that reaches 40 environment steps, 20 new transitions and 8 drawn ones.
    assert [value for _, value in whole["time/replay_ratio"]] == pytest.approx([0.4] * 6, abs=0.03)
    half = fit(tmp_path / "half", max_steps=10)
    (checkpoint,) = half.glob("checkpoints/*.ckpt")
    resumed = curves(fit(tmp_path / "resumed", ckpt_path=checkpoint))
    for tag in ("rollout/expert_share", "time/replay_ratio"):
        assert resumed[tag] == whole[tag][2:]
