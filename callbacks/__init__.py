"""The safeguards and the other callbacks of rlmods, usable with any LightningModule."""

if __name__ != "rlmods.callbacks":
    raise ImportError(f"imported as {__name__!r}; type: import rlmods.callbacks")

from rlmods.callbacks.advantage_guard import AdvantageGuard
from rlmods.callbacks.control_file import ControlFile
from rlmods.callbacks.curriculum_guard import CurriculumGuard
from rlmods.callbacks.curves import Curves
from rlmods.callbacks.distribution_probe import DistributionProbe
from rlmods.callbacks.effective_settings import EffectiveSettings
from rlmods.callbacks.entropy_guard import EntropyGuard
from rlmods.callbacks.eval_early_stopping import EvalEarlyStopping
from rlmods.callbacks.fixed_point_probe import FixedPointProbe
from rlmods.callbacks.global_rng import GlobalRNG
from rlmods.callbacks.graceful_stop import GracefulStop
from rlmods.callbacks.gradient_clip_verifier import GradientClipVerifier
from rlmods.callbacks.gradient_path_probe import GradientPathProbe
from rlmods.callbacks.inert_learning_guard import InertLearningGuard
from rlmods.callbacks.kl_spike_pause import KLSpikePause
from rlmods.callbacks.learning_curves import LearningCurves
from rlmods.callbacks.liveness_guard import LivenessGuard
from rlmods.callbacks.loss_return_guard import LossReturnGuard
from rlmods.callbacks.metric_range_guard import MetricRangeGuard
from rlmods.callbacks.metrics_table import MetricsTable
from rlmods.callbacks.non_finite_guard import NonFiniteGuard
from rlmods.callbacks.policy_update_guard import PolicyUpdateGuard
from rlmods.callbacks.policy_value_gap_guard import PolicyValueGapGuard
from rlmods.callbacks.probe import Probe
from rlmods.callbacks.progress import EnvStepsProgressBar
from rlmods.callbacks.ratio_guard import RatioGuard
from rlmods.callbacks.repeated_stream_guard import RepeatedStreamGuard
from rlmods.callbacks.rollback import Rollback
from rlmods.callbacks.run_record import RunRecord
from rlmods.callbacks.saturation_guard import SaturationGuard
from rlmods.callbacks.stability_probe import StabilityProbe
from rlmods.callbacks.stage_gates import StageGates
from rlmods.callbacks.target_clamp import TargetClamp
from rlmods.callbacks.td_error_kernel_probe import TDErrorKernelProbe
from rlmods.callbacks.value_bound_guard import ValueBoundGuard

__all__ = [
    "AdvantageGuard",
    "ControlFile",
    "CurriculumGuard",
    "Curves",
    "DistributionProbe",
    "EffectiveSettings",
    "EntropyGuard",
    "EnvStepsProgressBar",
    "EvalEarlyStopping",
    "FixedPointProbe",
    "GlobalRNG",
    "GracefulStop",
    "GradientClipVerifier",
    "GradientPathProbe",
    "InertLearningGuard",
    "KLSpikePause",
    "LearningCurves",
    "LivenessGuard",
    "LossReturnGuard",
    "MetricRangeGuard",
    "MetricsTable",
    "NonFiniteGuard",
    "PolicyUpdateGuard",
    "PolicyValueGapGuard",
    "Probe",
    "RatioGuard",
    "RepeatedStreamGuard",
    "Rollback",
    "RunRecord",
    "SaturationGuard",
    "StabilityProbe",
    "StageGates",
    "TDErrorKernelProbe",
    "TargetClamp",
    "ValueBoundGuard",
]
