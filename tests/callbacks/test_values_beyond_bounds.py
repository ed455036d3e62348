"""Values beyond what any policy's can be: those that begin there, and those that are few."""

from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import causes, fit_small, warnings_of
from test_value_bound_guard import HEALTHY, detector
from torch import Tensor

from rlmods.algorithms import DQN
from rlmods.callbacks import TargetClamp, ValueBoundGuard
from rlmods.data import ReplayDataModule
from rlmods.data.collector import Collected
from rlmods.types import Transition


def test_fewer_values_than_a_tenth_beyond_the_bound_are_for_information_and_stay_on_record() -> None:
    """The bound is 100: 149 passes it by 49 % of the interval; no later window passes it by more."""
    watch = detector()
    passing = [HEALTHY._replace(q_high=high, q_outside=0.01) for high in (106.0, 149.0, 120.0)]
    said = [watch.update(window) for window in [HEALTHY, *passing, HEALTHY]]
    assert [[verdict.cause for verdict in verdicts] for verdicts in said] == [[], *[["values_pass_bound"]] * 4]
    assert not any(causes(verdicts) for verdicts in said)
    assert said[-1][0].evidence["over"] == pytest.approx(0.49)
    assert said[-1][0].evidence["interval"] == [1.0, 100.0]
    assert watch.update(HEALTHY._replace(q_high=104.9, q_outside=0.0))[0].evidence["highest"] == 149.0


def test_a_breach_by_the_interval_s_own_size_is_told_at_once_and_lasts_three_windows() -> None:
    """The interval is [1, 100], and the size is that of its larger end, 100: 199 passes it by 99, 201 by 101."""
    watch = detector()
    short, far = (HEALTHY._replace(q_high=high, q_outside=0.98) for high in (199.0, 201.0))
    assert [causes(watch.update(window)) for window in (short, HEALTHY)] == [[], []]
    said = [causes(watch.update(window)) for window in (far, HEALTHY, HEALTHY, HEALTHY)]
    assert said == [["value_out_of_bounds"]] * 3 + [[]]
    assert not causes(detector().update(far._replace(q_outside=0.09)))


def test_values_that_begin_outside_pass_the_bound_where_they_go_twice_as_far() -> None:
    """They begin at 130, beyond the bound of 100 by 30 % of the interval's size."""
    watch = detector()
    start = HEALTHY._replace(low=0.0, size=100.0, start_high=130.0, q_outside=1.0)
    assert not any(watch.update(start._replace(q_high=high)) for high in (130.0, 159.0, 159.0, 159.0, 120.0))
    said = [watch.update(start._replace(q_high=161.0)) for _ in range(3)]
    assert [causes(verdicts) for verdicts in said] == [[], [], ["value_out_of_bounds"]]


# 51 atoms whose middle, with which every value begins, lies far above what values can be, [0, 100].
WIDE = {"num_atoms": 51, "v_min": -100.0, "v_max": 900.0, "learning_rate": 1e-2, "target_update_interval": 4}


class Unpaid(DQN):
    """Adds to each target, after a few updates, what no environment pays."""

    @torch.no_grad()
    def td_target(self, transition: Transition, bootstrap: Tensor | None = None) -> Tensor:
        return super().td_target(transition, bootstrap) + (800.0 if self.update_steps > 8 else 0.0)


@pytest.mark.parametrize(("model_class", "warns"), [(DQN, False), (Unpaid, True)])
def test_values_that_begin_outside_and_come_closer_are_silent(
    tmp_path: Path, model_class: type[DQN], warns: bool
) -> None:
    """Clamped targets say nothing of where the values began."""
    guard = ValueBoundGuard(every_n_iterations=2)
    fit_small(tmp_path, TargetClamp(), guard, model_class=model_class, arguments=WIDE, gamma=0.99)
    assert guard.state_dict()["start"][2] > 350.0
    assert ("value_out_of_bounds" in warnings_of(guard)) is warns
    assert bool(guard.raised) is warns


# What is lost on the way into the replay


class Forgets(ReplayDataModule):
    """Stores a share of the terminations as if the episodes went on."""

    share = 1.0

    def _store(self, collected: Collected) -> None:
        transition = collected.transition
        lost = transition.terminated & (torch.rand(transition.terminated.shape) < self.share)
        discount = transition.discount.where(~lost, self.gamma**self.n_steps)
        terminated = transition.terminated & ~lost
        super()._store(collected._replace(transition=transition._replace(discount=discount, terminated=terminated)))


class ForgetsHalf(Forgets):
    share = 0.5


@pytest.mark.parametrize(
    ("data_class", "n_steps", "expected"),
    [
        (Forgets, 1, ["episode_ends_not_stored"]),
        (ForgetsHalf, 1, ["episode_ends_not_stored"]),
        (ReplayDataModule, 1, []),
        (ReplayDataModule, 5, []),
    ],
)
def test_each_termination_is_stored(
    tmp_path: Path, data_class: type[ReplayDataModule], n_steps: int, expected: list[str]
) -> None:
    """Known for certain with the first episode, long before the replay has been drawn from often enough."""
    guard = ValueBoundGuard(every_n_iterations=2)
    settings: dict[str, Any] = {
        "num_envs": 4,
        "buffer_size": 64,
        "learning_starts": 48,
        "batch_size": 8,
        "n_steps": n_steps,
    }
    trainer = fit_small(tmp_path, guard, data_class=data_class, total_env_steps=320, **settings)
    source = trainer.datamodule  # type: ignore[attr-defined]
    assert source.terminations > 5
    assert warnings_of(guard) == expected
    assert (source.terminated_stored >= source.terminations) is not bool(expected)
