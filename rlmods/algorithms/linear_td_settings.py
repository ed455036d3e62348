"""What the hyper-parameters of linear TD must satisfy, said before anything is built."""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

Method = Literal["td0", "gtd2", "tdc", "etd"]
ScaleMode = Literal["BT", "sqrtB_T"]


def check_ranges(hyper: Mapping[str, Any]) -> None:
    """Refuse hyper-parameters outside their range.

    Raises:
        ValueError: with what was got, what is expected and what to type.
    """
    positive = ("auxiliary_learning_rate", "behaviour_std", "target_std")
    positive_or_null = ("ratio_clip", "dimensionless_step", "max_grad_norm")
    at_least_zero = (
        "learning_rate", "actor_learning_rate", "theta_radius", "theta_init_scale", "w_init_scale",
        "behaviour_offset_scale",
    )  # fmt: skip
    vtrace_lambda = hyper["vtrace_lambda"]
    ranges = {
        **{name: (hyper[name] > 0.0, "above 0") for name in positive},
        **{name: (hyper[name] is None or hyper[name] > 0.0, "above 0, or null") for name in positive_or_null},
        **{name: (hyper[name] >= 0.0, "of at least 0") for name in at_least_zero},
        "beta": (0.0 <= hyper["beta"] <= 1.0, "in [0, 1]"),
        "num_bootstrap_samples": ((hyper["num_bootstrap_samples"] or 0) >= 0, "of at least 0, or null"),
        "vtrace_lambda": (
            vtrace_lambda is None or (0.0 <= vtrace_lambda <= 1.0 and hyper["method"] == "td0"),
            "in [0, 1] with the method td0, or null",
        ),
        "method": (hyper["method"] in get_args(Method), f"among {', '.join(get_args(Method))}"),
        "scale_mode": (hyper["scale_mode"] in get_args(ScaleMode), f"among {', '.join(get_args(ScaleMode))}"),
        "random_stream": (hyper["random_stream"] in ("torch", "numpy"), "torch or numpy"),
    }
    for name, value in hyper.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(
                f"got {name} = {value}, expected a value that is finite: type --model.init_args.{name} VALUE"
            )
    for name, (is_inside, expected) in ranges.items():
        if not is_inside:
            raise ValueError(
                f"got {name} = {hyper[name]}, expected a value {expected}: type --model.init_args.{name} VALUE"
            )
