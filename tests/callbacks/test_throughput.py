import re
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlmods.callbacks.throughput import Totals, TrainingClock, describe_rates, describe_shares
from rlmods.callbacks.utilization import Utilization, cpu_percent_of_machine, describe_usage
from rlmods.types import CollectionSeconds

CPU = torch.device("cpu")


class Source:
    """A data module's clock, and what it says of its collecting."""

    total_env_steps = 10_000

    def __init__(self, env_steps: int = 0) -> None:
        self.env_steps = env_steps

    def rollout_statistics(self) -> dict[str, float]:
        return {}

    def collection_seconds(self) -> CollectionSeconds:
        return CollectionSeconds(policy=1.0, environments=0.5, total=2.0)


def evaluated(mean_ep_length: float, episodes: float) -> Any:
    metrics = {"eval/mean_ep_length": torch.tensor(mean_ep_length), "eval/episodes": torch.tensor(episodes)}
    return SimpleNamespace(callback_metrics=metrics)


def test_an_evaluation_is_never_counted_as_training() -> None:
    """Two iterations of 2 s collecting and 3 s learning, 100 frames each; an evaluation of 500 frames in 10 s."""
    seconds = iter([0.0, 2.0, 5.0, 5.0, 15.0, 17.0, 20.0, 20.0, 20.0])
    clock, source = TrainingClock(lambda: next(seconds)), Source(1_000)
    clock.train_start(source)
    clock.train_batch_start(source)
    source.env_steps = 1_100
    clock.train_batch_end()
    clock.validation_start()
    clock.validation_end(evaluated(50.0, 10.0))
    clock.train_batch_start(source)
    source.env_steps = 1_200
    clock.train_batch_end()
    totals = clock.totals(source)
    assert totals == Totals(200, 10.0, 500.0, 10.0, learning=6.0, collection=4.0, policy=2.0, environments=1.0)
    assert totals.rates() == {"train": 20.0, "eval": 50.0, "end_to_end": 10.0}
    assert totals.shares() == {"learn": 0.6, "collect": 0.4, "policy": 0.2, "environments": 0.1}
    assert describe_rates(totals) == "train 20/s, eval 50/s, end to end 10/s"
    assert describe_shares(totals) == "collect 40 % (policy 20 %, environments 10 %), learn 60 %"
    assert describe_shares(totals._replace(sampling=1.0)) == (
        "collect 40 % (policy 20 %, environments 10 %), sample 10 %, learn 60 %"
    )
    first = Totals(100, 5.0, 0.0, 0.0, 3.0, 2.0, 1.0, 0.5)
    assert totals.since(first).rates() == {"train": 20.0, "eval": 50.0, "end_to_end": 100 / 15}


def test_what_is_not_known_is_not_said() -> None:
    assert Totals().rates() == {}
    assert Totals().shares() == {}
    seconds = iter([0.0, 4.0, 6.0, 8.0])
    clock, source = TrainingClock(lambda: next(seconds)), Source()
    clock.train_start(source)
    clock.validation_start()
    clock.validation_end(SimpleNamespace(callback_metrics={}))  # type: ignore[arg-type]
    source.env_steps = 60
    totals = clock.totals(source)
    # The evaluation took its time all the same.
    assert totals.rates() == {"train": 10.0, "end_to_end": 7.5}
    assert describe_shares(totals) == "learn 0 %"


@pytest.mark.parametrize(
    ("cpu_seconds", "wall_seconds", "num_cores", "percent"),
    [(1.0, 1.0, 8, 12.5), (4.0, 2.0, 2, 100.0), (0.0, 1.0, 2, 0.0), (2.02, 1.0, 2, 100.0), (45.0, 10.0, 56, 8.04)],
)
def test_cpu_is_a_share_of_the_whole_machine(
    cpu_seconds: float, wall_seconds: float, num_cores: int, percent: float
) -> None:
    assert cpu_percent_of_machine(cpu_seconds, wall_seconds, num_cores) == pytest.approx(percent, abs=0.005)


def test_the_time_of_child_processes_counts() -> None:
    """A child that is busy while this process sleeps, and says how much CPU time it has used."""
    work = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        utilization = Utilization()
        utilization.begin()
        started = time.perf_counter()
        assert child.stdout is not None
        child.stdout.readline()
        usage = utilization.measure(CPU)
        seconds = usage["system/cpu_percent_of_machine"] / 100 * utilization.num_cores
        # It may have had some of its time before; a process that counts itself alone has next to none.
        assert 0.1 < seconds * (time.perf_counter() - started) < 0.6
        child.communicate(b"\n")
    # One that has ended is no error.
    assert set(utilization.measure(CPU)) == {"system/cpu_percent_of_machine", "system/memory_gib"}


def test_the_panel_shows_a_gpu_only_where_there_is_one() -> None:
    usage = Utilization().measure(CPU)
    assert re.fullmatch(r"cpu \d+ % of 2 cores, memory \d+\.\d GiB", describe_usage(usage, 2))
    on_gpu = {
        "system/cpu_percent_of_machine": 51.2, "system/memory_gib": 0.62, "system/gpu_percent": 40.0,
        "system/gpu_memory_gib": 1.25,
    }  # fmt: skip
    expected = "cpu 51 % of 2 cores, memory 0.6 GiB, gpu 40 %, gpu memory 1.2 GiB"
    assert describe_usage(on_gpu, 2) == expected
