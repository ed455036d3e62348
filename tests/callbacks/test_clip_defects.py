import json
import math
from typing import Any

import pytest

from rlmods.callbacks.clip_defects import ClipDetector
from rlmods.callbacks.clip_measurement import ClipMeasurement, how_changed, module_name
from rlmods.callbacks.detectors import Severity, Verdict

TENSORS = ("net.0.weight", "net.0.bias", "net.2.weight")


def measured(after: list[float], before: list[float] | None = None, **options: Any) -> ClipMeasurement:
    """Tensors of two equal values: the largest magnitude is the norm / √2."""

    def largest(norms: list[float]) -> tuple[float, ...]:
        return tuple(norm / math.sqrt(2.0) if norm > 0.0 else norm for norm in norms)

    defaults: dict[str, Any] = {
        "group": "q",
        "update": 0,
        "tensors": tuple(f"net.{n}.weight" for n in range(8)) if len(after) == 8 else TENSORS[: len(after)],
        "before": None if before is None else tuple(before),
        "before_max": None if before is None else largest(before),
        "after": tuple(after),
        "after_max": largest(after),
        "limit": 1.0,
        "is_by_value": False,
        "is_certain": True,
        "tolerance": 1e-3,
    }
    return ClipMeasurement(**(defaults | options))


def decide(*measurements: ClipMeasurement, windows: int = 1, **metrics: float) -> list[Verdict]:
    detector = ClipDetector(depth=2)
    for _ in range(windows):
        verdicts = detector.update(measurements, metrics, measurements)
    return verdicts


def causes(verdicts: list[Verdict]) -> list[tuple[str, Severity]]:
    return [verdict[:2] for verdict in verdicts]


def test_golden_norms() -> None:
    measurement = measured([0.36, 0.48, -1.0], [3.0, 4.0, -1.0])
    assert measurement.norm_before == 5.0
    assert measurement.norm_after == pytest.approx(0.6)
    assert measurement.modules(2) == {"net.0": 5.0, "net.2": 0.0}
    assert measurement.is_clipped


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ([3.0, 4.0], [3.0, 4.0], "unchanged"),
        ([3.0, 4.0], [0.6, 0.8], "scaled"),
        ([3.0, 4.0], [0.6, 4.0], "partly"),
        ([3.0, 4.0], [1.0, 1.0], "apart"),
        ([3.0, 0.0], [0.6, 0.0], "scaled"),  # a tensor without gradient says nothing
        ([3.0, -1.0], [0.6, -1.0], "scaled"),
        (None, [0.6, 0.8], "unknown"),
    ],
)
def test_how_gradients_were_changed(before: list[float] | None, after: list[float], kind: str) -> None:
    assert how_changed(measured(after, before))[0] == kind


def test_a_clip_by_value_turns_the_direction() -> None:
    """(3, 4) clipped at 3.5: norm 5 → 4.61, a factor of 0.92; largest value 4 → 3.5, a factor of 0.875."""
    measurement = measured([math.hypot(3.0, 3.5)], [5.0], before_max=(4.0,), after_max=(3.5,))
    assert how_changed(measurement)[0] == "reshaped"
    assert causes(decide(measurement)) == [("clip_by_value", Severity.ACT)]


def test_the_limit_has_a_tolerance_and_no_more() -> None:
    assert decide(measured([1.0009])) == []
    (verdict,) = decide(measured([1.002]))
    assert verdict[:2] == ("clip_limit_exceeded", Severity.ACT)
    assert decide(measured([1.002], tolerance=1e-2)) == []
    assert decide(measured([50.0], limit=None)) == []


def test_a_limit_of_values() -> None:
    """Norm √2 of two values of 1."""
    assert decide(measured([math.sqrt(2.0)], is_by_value=True)) == []
    (verdict,) = decide(measured([2.0], [2.0], is_by_value=True))
    assert verdict.cause == "clip_never_applied"
    assert verdict.evidence["measured"] == pytest.approx(math.sqrt(2.0))


@pytest.mark.parametrize(
    ("measurement", "cause"),
    [
        (measured([3.0, 4.0], [3.0, 4.0]), "clip_never_applied"),
        (measured([3.0, 4.0], [3.0, 4.0], at_end=1.0), "clip_after_step"),
        (measured([3.0, 4.0], [3.0, 4.0], at_end=5.0, at_next=1.0), "clip_before_backward"),
        (measured([3.0, 4.0], [3.0, 4.0], at_end=0.0, at_next=0.0), "clip_never_applied"),  # zeroed, not clipped
        (measured([1.0, 4.0], [3.0, 4.0]), "parameter_outside_clip"),
        (measured([1.0, 0.9], [3.0, 0.9]), "clip_limit_exceeded"),  # either outside, or clipped tensor by tensor
        (measured([1.0, 1.0], [3.0, 4.0]), "clip_per_group"),
        (measured([1.2, 1.6], [3.0, 4.0]), "clip_limit_exceeded"),
        (measured([3.0, 4.0]), "clip_limit_exceeded"),
    ],
)
def test_why_the_limit_was_exceeded(measurement: ClipMeasurement, cause: str) -> None:
    assert causes(decide(measurement)) == [(cause, Severity.ACT)]


def test_a_limit_that_may_be_meant_for_another_optimizer_only_warns() -> None:
    (verdict,) = decide(measured([5.0], [5.0], is_certain=False))
    assert verdict[:2] == ("clip_never_applied", Severity.WARN)
    assert "max_norm={name: limit}" in verdict.message


def test_twenty_updates_tell_a_small_tensor_outside_from_a_clip_tensor_by_tensor() -> None:
    outside = [measured([1.0, 0.9], [3.0 + n, 0.9]) for n in range(20)]
    (verdict,) = decide(*outside)
    assert verdict.cause == "parameter_outside_clip"
    assert verdict.evidence["outside"] == ["net.0.bias"]
    apart = [*outside[:-1], measured([0.9, 1.0], [0.9, 3.0])]
    assert causes(decide(*apart)) == [("clip_limit_exceeded", Severity.ACT)]


def test_an_alarm_stays_for_eight_windows_with_updates() -> None:
    detector = ClipDetector(depth=2)
    bad, good = measured([2.0], [2.0]), measured([0.5], [0.5])
    assert detector.update([bad], {}, [])
    for _ in range(3):
        assert detector.update([], {}, [])
    for _ in range(7):
        assert detector.update([good], {}, [])
    assert detector.update([good], {}, []) == []
    assert detector.changes == {}


def test_accumulated_gradients() -> None:
    (verdict,) = decide(measured([0.5], leftover=0.0), measured([0.5], leftover=0.7))
    assert verdict[:2] == ("accumulated_gradients", Severity.ACT)
    assert verdict.evidence["leftover"] == 0.7
    assert decide(*[measured([0.5], leftover=0.0)] * 2, measured([0.5], leftover=0.7)) == []


def test_dangling_gradients_of_another_loss_in_two_windows() -> None:
    """Less than the precision is none; −1 is not seen."""
    found = measured([3.0], limit=None, dangling=2.0)
    (verdict,) = decide(found, windows=2)
    assert verdict[:2] == ("dangling_gradients", Severity.WARN)
    assert verdict.evidence["dangling"] == 2.0
    assert decide(found, windows=1) == []
    for harmless in (0.0, -1.0, 1e-3):
        assert decide(measured([3.0], limit=None, dangling=harmless), windows=2) == []


def test_a_nan_is_traced_to_before_the_clip() -> None:
    nan = math.nan
    (verdict,) = decide(measured([nan, nan, nan], [0.1, nan, 0.2]))
    assert verdict[:2] == ("non_finite_gradient", Severity.ACT)
    assert verdict.evidence["tensors"] == ["net.0.bias"]


def test_no_gradient_tells_none_from_zero() -> None:
    updates = [measured([0.5, 0.0, -1.0], [0.5, 0.0, -1.0], update=update) for update in range(80, 100)]
    (verdict,) = decide(*updates)
    assert verdict[:2] == ("no_gradient", Severity.WARN)
    assert (verdict.evidence["none"], verdict.evidence["zero"]) == (["net.2.weight"], ["net.0.bias"])
    assert decide(*updates[:-1]) == []
    assert decide(*[measured([0.0, 0.0], update=update) for update in range(80, 100)]) == []


def test_a_clip_that_always_works() -> None:
    clipped, free = measured([1.0], [2.0], update=500), measured([0.5], [0.5], update=500)
    (verdict,) = decide(clipped, windows=10)
    assert verdict[:2] == ("clip_always_active", Severity.INFO)
    assert (verdict.evidence["clipped_fraction"], verdict.evidence["median_ratio"]) == (1.0, 0.5)
    (verdict,) = decide(measured([1.0], [25.0], update=500), windows=10)
    assert verdict[:2] == ("clip_always_active", Severity.WARN)  # a gradient of 25 times the limit
    assert decide(clipped, windows=9) == []
    assert decide(clipped._replace(update=499), windows=10) == []
    assert decide(*[clipped] * 9, free, windows=10) == []


def test_a_module_that_dominates() -> None:
    """Shares of the squares: 1 and 2.5e-7, against 1 and 4e-6."""
    (verdict,) = decide(measured([1.0, 0.0, 5e-4], [2.0, 0.0, 1e-3]), windows=3)
    assert verdict[:2] == ("module_dominates", Severity.INFO)
    assert decide(measured([1.0, 0.0, 2e-3], [2.0, 0.0, 4e-3]), windows=3) == []


def test_a_module_whose_gradient_has_vanished() -> None:
    detector = ClipDetector(depth=2)
    early, late = measured([1.0, 0.0, 0.5], limit=None), measured([0.5, 0.0, 4e-5], limit=None)
    for measurement in [early, late, late]:
        assert detector.update([measurement], {}, []) == []
    (verdict,) = detector.update([late], {}, [])
    assert verdict[:2] == ("vanished_gradient", Severity.WARN)
    assert verdict.evidence["modules"] == {"q/net.2": [4e-5, 8e-5]}


def test_a_gradient_that_falls_with_the_error_is_no_defect() -> None:
    """To 8e-5 of its peak, while the squared error is at 7e-5 of its own, or still at 9e-5."""
    for error_ratio, found in ((7e-5, []), (9e-5, ["vanished_gradient"])):
        detector = ClipDetector(depth=2)
        detector.update([measured([1.0, 0.0, 0.5], limit=None)], {}, [])
        late = measured([0.5, 0.0, 4e-5], limit=None)
        said = [detector.update([late], {}, [], error_ratio) for _ in range(3)]
        assert [verdict.cause for verdict in said[-1]] == found


def test_all_modules_may_get_small_together() -> None:
    detector = ClipDetector(depth=2)
    detector.update([measured([1.0, 0.0, 0.5], limit=None)], {}, [])
    for exponent in range(2, 12):
        small = measured([10.0**-exponent, 0.0, 0.5 * 10.0**-exponent], limit=None)
        assert detector.update([small], {}, []) == []


def test_an_exploding_gradient() -> None:
    """Twice as large in each window: after 10 windows 1000 times."""
    found = []
    detector = ClipDetector(depth=2)
    for window in range(16):
        found += detector.update([measured([2.0**window], limit=None)], {}, [])
    assert found[0][:2] == ("exploding_gradient", Severity.WARN)
    detector = ClipDetector(depth=2)
    for window in range(40):  # as large in the end, but slowly
        assert detector.update([measured([1.3**window], limit=None)], {}, []) == []


def test_golden_sum_of_norms() -> None:
    """Seed of the question: 8 tensors, limit 1, "2.42" logged. Here norms 0.6 and 0.8: L2 1, sum 1.4."""
    updates = measured([0.6, 0.8], [3.0, 4.0])
    (verdict,) = decide(updates, windows=2, grad_norm=1.4)
    assert verdict[:2] == ("sum_of_norms", Severity.INFO)
    assert "clip OK" in verdict.message
    assert verdict.evidence["largest_possible_ratio"] == pytest.approx(math.sqrt(2.0))
    assert causes(decide(updates, windows=2, grad_norm=7.0)) == [("sum_of_norms", Severity.INFO)]
    for harmless in (1.0, 5.0, 1.3):
        assert decide(updates, windows=2, grad_norm=harmless) == []


def test_the_sum_of_eight_tensors() -> None:
    """Of a CNN under a clip of 1: one tensor of 0.8 and seven of 0.6/√7 have the L2 norm 1 and the sum 0.8 + 0.6·√7."""
    clipped = [0.8] + [0.6 / math.sqrt(7.0)] * 7
    (verdict,) = decide(measured(clipped), windows=2, cnn_grad_norm=2.3874507866387544)
    assert "clip OK, the metric is a sum" in verdict.message
    assert verdict.evidence["l2_norm"] == pytest.approx(1.0)
    assert verdict.evidence["tensors"] == 8


def test_a_sum_does_not_excuse_a_limit_that_is_exceeded() -> None:
    found = {verdict.cause: verdict for verdict in decide(measured([3.0, 4.0]), windows=2, grad_norm=7.0)}
    assert "NOT OK" in found["sum_of_norms"].message
    assert found["clip_limit_exceeded"].severity is Severity.ACT


def test_a_sum_over_a_module() -> None:
    (verdict,) = decide(measured([0.3, 0.4, 0.5]), windows=2, encoder_norm=0.7)
    assert "of 2 tensors of net.0" in verdict.message


def test_state_goes_through_json_and_decides_alike() -> None:
    windows = [
        [measured([1.0, 1.0], [3.0, 4.0], update=100 * n, at_end=1.0), measured([0.5, 0.2 * n], [0.5, 0.2 * n])]
        for n in range(14)
    ]
    whole, first, second = (ClipDetector(depth=2) for _ in range(3))
    for n, window in enumerate(windows):
        expected = whole.update(window, {"norm": 2.0}, window[:1])
        if n == 7:
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert (second if n >= 7 else first).update(window, {"norm": 2.0}, window[:1]) == expected
    assert whole.state_dict() == second.state_dict()


def test_module_names() -> None:
    assert module_name("q_network.0.weight", 2) == "q_network.0"
    assert module_name("actor.encoder.conv.0.weight", 2) == "actor.encoder"
    assert module_name("log_alpha", 2) == "log_alpha"
