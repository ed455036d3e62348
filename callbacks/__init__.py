"""The safeguards and the other callbacks of rlmods, usable with any LightningModule."""

if __name__ != "rlmods.callbacks":
    raise ImportError(f"imported as {__name__!r}; type: import rlmods.callbacks")

from rlmods.callbacks.curves import Curves
from rlmods.callbacks.eval_early_stopping import EvalEarlyStopping
from rlmods.callbacks.global_rng import GlobalRNG
from rlmods.callbacks.graceful_stop import GracefulStop
from rlmods.callbacks.gradient_clip_verifier import GradientClipVerifier
from rlmods.callbacks.inert_learning_guard import InertLearningGuard
from rlmods.callbacks.kl_spike_pause import KLSpikePause
from rlmods.callbacks.liveness_guard import LivenessGuard
from rlmods.callbacks.metric_range_guard import MetricRangeGuard
from rlmods.callbacks.non_finite_guard import NonFiniteGuard
from rlmods.callbacks.progress import EnvStepsProgressBar
from rlmods.callbacks.ratio_guard import RatioGuard
from rlmods.callbacks.repeated_stream_guard import RepeatedStreamGuard
from rlmods.callbacks.rollback import Rollback
from rlmods.callbacks.run_record import RunRecord
from rlmods.callbacks.target_clamp import TargetClamp
from rlmods.callbacks.value_bound_guard import ValueBoundGuard

__all__ = [
    "Curves",
    "EnvStepsProgressBar",
    "EvalEarlyStopping",
    "GlobalRNG",
    "GracefulStop",
    "GradientClipVerifier",
    "InertLearningGuard",
    "KLSpikePause",
    "LivenessGuard",
    "MetricRangeGuard",
    "NonFiniteGuard",
    "RatioGuard",
    "RepeatedStreamGuard",
    "Rollback",
    "RunRecord",
    "TargetClamp",
    "ValueBoundGuard",
]
