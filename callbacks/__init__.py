"""The safeguards and the other callbacks of rlmods, usable with any LightningModule."""

if __name__ != "rlmods.callbacks":
    raise ImportError(f"imported as {__name__!r}; type: import rlmods.callbacks")

from rlmods.callbacks.advantage_guard import AdvantageGuard
from rlmods.callbacks.advantage_sign_guard import AdvantageSignGuard
from rlmods.callbacks.continuation_guard import ContinuationGuard
from rlmods.callbacks.control_file import ControlFile
from rlmods.callbacks.curriculum_guard import CurriculumGuard
from rlmods.callbacks.curves import Curves
from rlmods.callbacks.distribution_probe import DistributionProbe
from rlmods.callbacks.dream_gap_guard import DreamGapGuard
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
from rlmods.callbacks.latent_guard import LatentGuard
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
from rlmods.callbacks.surprise_learning_rate import SurpriseLearningRate
from rlmods.callbacks.surprise_monitor import SurpriseMonitor
from rlmods.callbacks.target_clamp import TargetClamp
from rlmods.callbacks.td_error_kernel_probe import TDErrorKernelProbe
from rlmods.callbacks.torch_trace import TorchTrace
from rlmods.callbacks.value_bound_guard import ValueBoundGuard
from rlmods.callbacks.value_support_guard import ValueSupportGuard
from rlmods.callbacks.world_model_bootstrap import WorldModelBootstrap
from rlmods.callbacks.world_model_focus import WorldModelFocus
from rlmods.callbacks.world_model_pictures import WorldModelPictures
from rlmods.callbacks.world_model_ratio import WorldModelRatio
from rlmods.callbacks.world_model_start import WorldModelStart

__all__ = [
    "AdvantageGuard",
    "AdvantageSignGuard",
    "ContinuationGuard",
    "ControlFile",
    "CurriculumGuard",
    "Curves",
    "DistributionProbe",
    "DreamGapGuard",
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
    "LatentGuard",
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
    "SurpriseLearningRate",
    "SurpriseMonitor",
    "TDErrorKernelProbe",
    "TargetClamp",
    "TorchTrace",
    "ValueBoundGuard",
    "ValueSupportGuard",
    "WorldModelBootstrap",
    "WorldModelFocus",
    "WorldModelPictures",
    "WorldModelRatio",
    "WorldModelStart",
]
