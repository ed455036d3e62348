"""The data module that replays sequences, with a small policy that remembers."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from test_datamodule import fit
from torch import Tensor
from torch.optim import SGD, Optimizer

from rlmods.algorithms import DQN, PPO
from rlmods.callbacks import GlobalRNG
from rlmods.data import SequenceDataModule
from rlmods.data.settings import check_sequence_budget
from rlmods.types import (
    Decision,
    ExperienceSource,
    LatentFeedback,
    MeasuresReplay,
    Observation,
    ReplaySource,
    RolloutSource,
    SequenceBatch,
    SequenceSource,
)


class Counter(LightningModule):
    """Acts at random. Its state is the step of the episode, the observation's first number and the action."""

    def __init__(self, *, writes: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.writes = writes
        self.batches: list[SequenceBatch] = []
        self.evaluated_at: list[int] = []

    def initial_state(self, num_envs: int) -> Tensor:
        return torch.zeros(num_envs, 3)

    def decide(self, observation: Observation, state: Tensor, *, deterministic: bool = False) -> Decision:
        assert isinstance(observation, Tensor)
        action = torch.randint(2, (len(observation),))
        state = torch.stack([state[:, 0] + 1, observation[:, 0], action.float()], 1)
        return Decision(action, action, torch.zeros(len(action)), state)

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        self.batches.append(batch)
        if self.writes:
            source: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            later = torch.arange(batch.num_updates).view(-1, 1, 1, 1)
            source.write_states(batch.index, (batch.index[..., None] + 100.0 * later).expand(*batch.index.shape, 3))
        optimizer: Any = self.optimizers()
        optimizer.step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluated_at.append(batch.env_steps)

    def configure_optimizers(self) -> Optimizer:
        return SGD(self.parameters(), lr=0.1)


def make_data(env_id: str = "CartPole-v1", **options: Any) -> SequenceDataModule:
    """Episodes of 5 steps: 6 rows each."""
    defaults: dict[str, Any] = {
        "total_env_steps": 64, "num_envs": 2, "steps_per_iteration": 8, "batch_size": 3, "batch_length": 4,
        "train_ratio": 3.0, "buffer_size": 1000, "eval_every": 32, "eval_episodes": 2, "vectorization": "sync",
        "env_kwargs": {"max_episode_steps": 5}, "seed": 0,
    }  # fmt: skip
    return SequenceDataModule(env_id, **(defaults | options))


def train(folder: Path, data: SequenceDataModule, *callbacks: Callback, **options: Any) -> Counter:
    model = Counter(**options)
    torch.manual_seed(0)
    fit(folder, data, model, callbacks=[GlobalRNG(), *callbacks])  # type: ignore[arg-type]
    return model


def test_it_keeps_its_protocols() -> None:
    data = make_data()
    for protocol in (ExperienceSource, ReplaySource, MeasuresReplay, LatentFeedback, SequenceSource):
        assert isinstance(data, protocol), protocol
    assert not isinstance(data, RolloutSource)


# Iterations


def test_clock_warm_up_and_updates(tmp_path: Path) -> None:
    """12 rows are a batch: after 16 steps. 3 · 8 replayed steps are 2 updates of 12."""
    data = make_data()
    model = train(tmp_path, data)
    assert [batch.env_steps for batch in model.batches] == [8, 16, 24, 32, 40, 48, 56, 64]
    assert [batch.num_updates for batch in model.batches] == [0, 2, 2, 2, 2, 2, 2, 2]
    assert [batch.progress for batch in model.batches] == pytest.approx([i / 8 for i in range(1, 9)])
    assert model.evaluated_at == [32, 64]
    last = model.batches[-1]
    assert last.index.shape == last.reward.shape == last.discount.shape == (2, 4, 3)
    assert last.state.shape == (2, 3, 3)
    assert data.replay_ratio == 3.0
    assert data.updates_per_policy_step == 0.25
    assert data.uses_per_transition == 3.0
    assert data.rollout_statistics()["rollout/ep_len_mean"] == 5.0
    assert data.transitions_added == data.replay_size == 64 + 2 * 6  # 6 episodes of each ended


def test_a_later_start_is_not_caught_up_with(tmp_path: Path) -> None:
    data = make_data(learning_starts=40)
    model = train(tmp_path, data)
    assert [batch.num_updates for batch in model.batches] == [0, 0, 0, 0, 2, 2, 2, 2]
    assert data.replay_ratio == 3.0
    assert data.first_replay_size == 40
    assert data.replay_size > 40


def test_what_an_update_costs_is_said_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        train(tmp_path, make_data())
    assert caplog.text.count("0.25 updates for each environment step (3 / (3 sequences x 4 steps)), 2 for each") == 1
    assert "8 steps, the first after 16 steps of each process" in caplog.text
    assert caplog.text.count("SequenceReplay: 1,000 rows of 59 bytes, 0.1 MiB") == 1


# Rows of real environments


@pytest.mark.parametrize(
    ("options", "env_steps"),
    [
        ({"vectorization": "native"}, 64 - 2 * 5),  # in 32 frames of each, 5 only reset
        ({"vectorization": "sync"}, 64),
        ({"vectorization": "workers", "num_workers": 1, "double_buffering": True}, 64),
    ],
)
def test_rows_of_episodes_that_meet_their_time_limit(tmp_path: Path, options: dict[str, Any], env_steps: int) -> None:
    """6 rows each, whichever way the environments reset; a time limit ends an episode and terminates nothing."""
    data = make_data(**options)
    train(tmp_path, data)
    assert data.env_steps == env_steps
    assert data.replay is not None
    rows = data.replay.rows(0, data.replay.inserted)
    for stream in range(2):
        of_stream = [field[rows.stream == stream] for field in rows[1:]]
        action, reward, is_first, is_last, is_terminal, _, state = of_stream
        step = torch.arange(len(action)) % 6
        assert torch.equal(is_first, step == 0)
        assert torch.equal(is_last, step == 5)
        assert not is_terminal.any()
        assert torch.equal(reward, (step > 0).float())  # CartPole pays 1 a step
        assert torch.equal(state[:, 0], torch.where(is_last, 0, step + 1).float())
        assert torch.equal(state[:, 2], action.float())
        assert not action[is_last].any()


def test_rows_of_poles_that_fall(tmp_path: Path) -> None:
    data = make_data(env_kwargs=None, total_env_steps=200)
    train(tmp_path, data)
    assert data.replay is not None
    rows = data.replay.rows(0, data.replay.inserted)
    assert isinstance(rows.observation, Tensor)
    assert int(rows.is_last.sum()) >= 6
    assert torch.equal(rows.is_terminal, rows.is_last)
    fallen = (rows.observation[:, 2].abs() > 0.2095) | (rows.observation[:, 0].abs() > 2.4)
    assert torch.equal(rows.is_terminal, fallen)


@pytest.mark.parametrize("vectorization", ["native", "sync"])
def test_sequences_begin_with_the_state_of_the_row_before(tmp_path: Path, vectorization: str) -> None:
    data = make_data(vectorization=vectorization, batch_size=8, train_ratio=4.0, total_env_steps=160)
    model = train(tmp_path, data)
    sequences = [one for batch in model.batches for one in batch.minibatches()]
    assert len(sequences) >= 6
    for one in sequences:
        begins, observation = one.is_first[0], one.observation
        assert isinstance(observation, Tensor)
        assert torch.equal(one.state[~begins, 0] % 6, _step_of_episode(one.is_first, one.is_last)[~begins])
        assert not one.state[begins].any()  # that of a last row
        assert torch.equal(one.is_last[:-1], one.is_first[1:])
        assert bool((one.reward == (~one.is_first).float()).all())
        assert torch.equal(one.discount, torch.full((4, 8), data.gamma))


def _step_of_episode(is_first: Tensor, is_last: Tensor) -> Tensor:
    """Of the first row of sequences `[4, B]` of episodes of 6 rows: at most one of the flags is in sight twice."""
    to_last = torch.where(is_last.any(0), is_last.float().argmax(0), 99)
    to_first = torch.where(is_first.any(0), is_first.float().argmax(0), 99)
    step = torch.where(to_last < 99, 5 - to_last, torch.where(to_first < 99, 6 - to_first, 1))
    return step.float()


def test_states_are_written_into_the_replay(tmp_path: Path) -> None:
    data = make_data()
    model = train(tmp_path, data, writes=True)
    assert data.replay is not None
    index = model.batches[-1].index
    states = data.replay.rows(0, data.replay.inserted).state[:, 0]
    assert torch.equal(states[index[1]], index[1] + 100.0)
    only_first = index[0][~torch.isin(index[0], index[1])]
    assert torch.equal(states[only_first], only_first.float())
    context = [state for batch in model.batches[2:] for state in batch.state[..., 0].flatten().tolist()]
    assert max(context) > 6  # no step of an episode: a state that was written back


# Stop and resume


class SaveAt(Callback):
    """Saves a checkpoint after an iteration, as a stop would."""

    def __init__(self, iteration: int, path: Path) -> None:
        self.iteration = iteration
        self.path = path

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.iteration:
            trainer.save_checkpoint(self.path)


def resume(folder: Path, data: SequenceDataModule, checkpoint: Path) -> Counter:
    model = Counter(writes=True)
    trainer = Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, max_epochs=1, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, callbacks=[GlobalRNG()], num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return model


@pytest.mark.parametrize(
    ("options", "folder", "oldest", "num_waiting"),
    [
        ({"vectorization": "native", "buffer_size": 20}, "run", 4, 0),  # the ring has wrapped
        ({"train_ratio": 0.8, "batch_length": 2, "batch_size": 3}, "elsewhere", 0, 4),  # the queue is half drained
        ({"learning_starts": 40, "online_queue": False}, "run", 0, 0),
    ],
)
def test_stopped_and_resumed_is_never_stopped(
    tmp_path: Path, options: dict[str, Any], folder: str, oldest: int, num_waiting: int
) -> None:
    run = tmp_path / "run"
    stopped = run / "checkpoints/stopped.ckpt"
    whole_data = make_data(**options)
    whole = train(run, whole_data, SaveAt(3, stopped), writes=True)
    state = torch.load(stopped, weights_only=True)["SequenceDataModule"]["processes"][0]["replay"]
    assert max(0, state["inserted"] - state["capacity"]) == oldest
    assert len(state["index"]["queue"]) == num_waiting
    data = make_data(**options)
    resumed = resume(tmp_path / folder, data, stopped)
    assert len(resumed.batches) == 5
    assert sum(batch.num_updates for batch in resumed.batches) > 0
    for expected, found in zip(whole.batches[3:], resumed.batches, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert data.replay is not None
    assert whole_data.replay is not None
    held = (data.replay.oldest, data.replay.inserted)
    torch.testing.assert_close(data.replay.rows(*held), whole_data.replay.rows(*held), rtol=0, atol=0)
    assert data.replay_ratio == whole_data.replay_ratio


class Unsavable(gymnasium.Wrapper[npt.NDArray[np.float32], np.int64, npt.NDArray[np.float32], np.int64]):
    """Holds what cannot be saved."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self.handle = object()


gymnasium.register("rlmods-tests/Unsavable-v0", entry_point=lambda **_: Unsavable(), max_episode_steps=5)


def test_episodes_that_cannot_be_saved_are_truncated(tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = run / "checkpoints/stopped.ckpt"
    settings: dict[str, Any] = {"env_id": "rlmods-tests/Unsavable-v0", "env_kwargs": None}
    train(run, make_data(**settings), SaveAt(3, path))
    data = make_data(**settings)
    with pytest.warns(UserWarning, match="running episodes were truncated at environment step 24"):
        resume(run, data, path)
    assert data.replay is not None
    rows = data.replay.rows(0, data.replay.inserted)
    for stream in range(2):
        is_first, is_last = (flag[rows.stream == stream] for flag in (rows.is_first, rows.is_last))
        # 12 steps before: two episodes, and two steps of a third one, whose third observation ends it.
        assert is_last.nonzero()[:4, 0].tolist() == [5, 11, 14, 20]
        assert torch.equal(is_last[:-1], is_first[1:])
    assert not rows.is_terminal.any()
    assert bool((rows.reward == (~rows.is_first).float()).all())


@pytest.mark.parametrize(("name", "value"), [("batch_length", 3), ("buffer_size", 999), ("online_queue", False)])
def test_a_resume_cannot_change_what_the_data_are(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "checkpoints/stopped.ckpt"
    train(tmp_path, make_data(), SaveAt(1, path))
    state = torch.load(path, weights_only=True)["SequenceDataModule"]
    with pytest.raises(ValueError, match=f"got {name} = {value}, but the checkpoint was written with"):
        make_data(**{name: value}).check_checkpoint(state, 1)
    make_data(train_ratio=6.0, batch_size=2).check_checkpoint(state, 1)


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_length": 500, "batch_size": 1, "total_env_steps": 9000}, "buffer_size = 1000 with num_envs = 2 and"),
        ({"batch_length": 500, "batch_size": 1, "total_env_steps": 9000}, "init_args.buffer_size 1002 or more, or a"),
        ({"steps_per_iteration": 9}, "a multiple of num_envs: type --data.init_args.steps_per_iteration 10"),
        ({"train_ratio": 0.0}, "train_ratio = 0.0, expected replayed steps for each environment step"),
        ({"train_ratio": float("nan")}, "train_ratio = nan"),
        (
            {"train_ratio": 1.0},
            "expected an update in each iteration, which replays 12 .*steps_per_iteration 12 or more",
        ),
        ({"train_ratio": 1.1, "num_envs": 4}, "steps_per_iteration 12 or more"),  # 11 steps, in rounds of four
        ({"grayscale": True}, "grayscale = True without resize"),
        (
            {"batch_size": 17, "train_ratio": 9.0},
            "expected a budget that reaches the first update: .*total_env_steps 68 or more",
        ),
        ({"learning_starts": 64}, "learning_starts = 64 with total_env_steps = 64"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"batch_length": 0}, "batch_length = 0"),
        ({"num_workers": 2}, "num_workers = 2 with vectorization = sync"),
        ({"gamma": 1.0}, "gamma = 1.0"),
        ({"reward_bounds": [1.0, 0.0]}, "two finite numbers"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_data(**options)


def test_each_process_must_come_to_an_update() -> None:
    """64 steps are 32 of each of two, and 12 are needed; 5 processes have 12.8, 6 have 10.7."""
    data = make_data()
    check_sequence_budget(data.hparams, 5)
    with pytest.raises(ValueError, match=r"in each of 6 processes, expected a budget that .*total_env_steps 72"):
        check_sequence_budget(data.hparams, 6)


def test_reward_bounds_reach_the_spec() -> None:
    assert make_data(reward_bounds=[0, 1]).spec["settings"]["reward_bounds"] == [0.0, 1.0]


def test_other_algorithms_are_refused(tmp_path: Path) -> None:
    data = make_data()
    with pytest.raises(TypeError, match=r"PPO, which learns from rollouts: type --data rlmods\.data\.RolloutDataMod"):
        fit(tmp_path, data, PPO(data.spec, batch_size=2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"got DQN without the methods initial_state.* rlmods\.data\.ReplayDataModule"):
        fit(tmp_path, data, DQN(data.spec))  # type: ignore[arg-type]
