from time import sleep

from torch.profiler import ProfilerActivity, profile

from rlmods.algorithms.phases import Phases


def test_of_a_phase_within_another_only_one_counts() -> None:
    phases = Phases()
    with phases("outer"), phases("inner"):
        sleep(0.05)
    with phases("inner"):
        sleep(0.05)
    seconds = phases.take()
    assert list(seconds) == ["seconds/inner", "seconds/outer"]
    assert float(seconds["seconds/inner"]) >= 0.1
    assert 0.0 <= float(seconds["seconds/outer"]) < float(seconds["seconds/inner"])
    assert phases.take() == {}


def test_a_trace_shows_the_phases() -> None:
    with profile(activities=[ProfilerActivity.CPU]) as trace, Phases()("imagination"):
        pass
    assert "imagination" in {event.key for event in trace.key_averages()}
