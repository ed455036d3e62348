"""The settings of the off-policy laboratory, in one vocabulary for our runs and for those of the original program."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_ENV_ID = "TorusGobletGhost-v0"

# Field: name in the original's `config.json`; `env` stands for its environment.
_ORIGINAL = {
    "seed": "seed",
    "outer_iters": "outer_iters",
    "trajectories": "trajectories",
    "horizon": "horizon",
    "gamma": "gamma",
    "alpha_w": "alpha_w",
    "alpha_pi": "alpha_pi",
    "beta": "beta",
    "sigma_mu": "sigma_mu",
    "sigma_pi": "sigma_pi",
    "bootstrap_samples": "K_mc",
    "check_name": "check_name",
}
_OF_MODEL = {
    "alpha_w": "learning_rate",
    "alpha_pi": "actor_learning_rate",
    "beta": "beta",
    "sigma_mu": "behaviour_std",
    "sigma_pi": "target_std",
    "bootstrap_samples": "num_bootstrap_samples",
    "scale_mode": "scale_mode",
    "rho_clip": "ratio_clip",
}
_OF_DATA = {"trajectories": "num_envs", "horizon": "n_steps", "gamma": "gamma"}
_OF_ENVIRONMENT = ("action_mode", "p_mix", "feature_dim", "v_max")


@dataclass(frozen=True)
class LabSettings:
    """What the rules need; None where the configuration does not say.

    Attributes:
        trajectories: B of an iteration.
        horizon: T, steps of a trajectory.
        alpha_w: step size of the critic.
        alpha_pi: step size of the actor.
        beta: share of the target policy that the behaviour policy takes over in an iteration.
        sigma_mu: standard deviation of the behaviour policy.
        sigma_pi: of the target policy.
        bootstrap_samples: actions that the bootstrap feature averages over.
        action_mode: "ball_clip", "box_clip", "tanh" or "raw".
        action_mode_source: "configured", or why it is taken to be so.
        scale_mode: "BT" divides the sums of an iteration by B·T, "sqrtB_T" by √B·T.
        rho_clip: upper limit of the ratio in the update.
        check_name: of the sanity check that the run was meant for.
        probes_every: iterations between two probes.
    """

    seed: int | None = None
    outer_iters: int | None = None
    trajectories: int | None = None
    horizon: int | None = None
    gamma: float | None = None
    alpha_w: float | None = None
    alpha_pi: float | None = None
    beta: float | None = None
    sigma_mu: float | None = None
    sigma_pi: float | None = None
    bootstrap_samples: int | None = None
    p_mix: float | None = None
    feature_dim: int | None = None
    v_max: float | None = None
    action_mode: str | None = None
    action_mode_source: str = "configured"
    scale_mode: str | None = None
    rho_clip: float | None = None
    check_name: str | None = None
    probes_every: int | None = None

    @property
    def samples(self) -> int | None:
        """Transitions of an iteration, B·T."""
        if self.trajectories is None or self.horizon is None:
            return None
        return self.trajectories * self.horizon

    @property
    def train_step_scale(self) -> float | None:
        """α_w·c: what multiplies the sum over an iteration; c = 1/(B·T) or 1/(√B·T)."""
        if self.alpha_w is None or self.trajectories is None or self.horizon is None:
            return None
        divisor = self.trajectories**0.5 if self.scale_mode == "sqrtB_T" else float(self.trajectories)
        return self.alpha_w / (divisor * self.horizon)

    @property
    def key_hparams(self) -> dict[str, Any]:
        """Those of the original's report, in its order; what is not known is left out."""
        names = ["outer_iters", "horizon", "gamma", "alpha_w", "alpha_pi", "beta", "sigma_mu", "sigma_pi", "p_mix"]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def read_lab_settings(
    config: Mapping[str, Any], environment: Mapping[str, Any], columns: Mapping[str, Sequence[float]]
) -> LabSettings | None:
    """The settings of a laboratory run; None for a run of anything else.

    Args:
        config: `config.yaml` of ours or `config.json` of the original.
        environment: the original's `env_resolved.json`.
        columns: of the learning curves; the original's configuration does not tell its versions apart, they do.
    """
    if "alpha_w" in config and "sigma_mu" in config:
        return _of_original(config, environment, columns)
    if str(_arguments(config, "data").get("env_id", "")).endswith(_ENV_ID):
        return _of_ours(config, columns)
    return None


def _arguments(config: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    section = config.get(part)
    arguments = section.get("init_args") if isinstance(section, Mapping) else None
    return arguments if isinstance(arguments, Mapping) else {}


def _of_ours(config: Mapping[str, Any], columns: Mapping[str, Sequence[float]]) -> LabSettings:
    model, data = _arguments(config, "model"), _arguments(config, "data")
    settings: dict[str, Any] = {field: model.get(name) for field, name in _OF_MODEL.items()}
    settings |= {field: data.get(name) for field, name in _OF_DATA.items()}
    environment = data.get("env_kwargs") or {}
    settings |= {field: environment.get(field) for field in _OF_ENVIRONMENT}
    if model.get("dimensionless_step") is not None:
        # The step was measured in the run, and takes the place of the configured one.
        settings["alpha_w"] = columns["learning_rate"][-1] if columns.get("learning_rate") else None
    samples, budget = (settings["trajectories"] or 0) * (settings["horizon"] or 0), data.get("total_env_steps")
    settings["outer_iters"] = -(-budget // samples) if samples and budget else None
    return LabSettings(seed=config.get("seed_everything"), **settings)


def _of_original(config: Mapping[str, Any], environment: Mapping[str, Any], columns: Mapping[str, Any]) -> LabSettings:
    settings: dict[str, Any] = {field: config.get(name) for field, name in _ORIGINAL.items()}
    environment = {**environment, **(config.get("env") or {})}
    settings |= {field: environment.get(field) for field in _OF_ENVIRONMENT}
    mode, source = _original_action_mode({**environment, **config}, columns)
    settings["action_mode"], settings["action_mode_source"] = mode, source
    # Its last version divides by √B·T; it is the first whose configuration knows the clip of the action.
    settings["scale_mode"] = config.get("scale_mode") or ("sqrtB_T" if "clip_action" in environment else "BT")
    if not config.get("disable_rho_clip"):
        settings["rho_clip"] = config.get("rho_clip") or None
    settings["probes_every"] = (config.get("probes") or {}).get("every")
    return LabSettings(**settings)


def _original_action_mode(settings: Mapping[str, Any], columns: Mapping[str, Any]) -> tuple[str | None, str]:
    """What its four versions did with the action of the policy."""
    if settings.get("action_mode") is not None:
        return str(settings["action_mode"]), "configured"
    if settings.get("squash_action"):
        return "tanh", "squash_action is set"
    if "clip_action" in settings:
        return ("box_clip" if settings["clip_action"] else "raw"), "clip_action is configured"
    if "clip_fraction" in columns:
        return None, "not told: neither configured nor to be seen in the columns"
    return "ball_clip", "inferred: the versions without the column clip_fraction projected the action on a disc"
