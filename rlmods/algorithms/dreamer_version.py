"""In what the authors' versions of DreamerV3 differ, as choices with a name each."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from rlmods.networks.dreamer_heads import BinSpace
from rlmods.networks.dreamer_observations import ImageConvolutions
from rlmods.networks.rssm import CoreKind

VersionName: TypeAlias = Literal["v1_2023", "v2_2024", "2025"]


class Version(NamedTuple):
    """What a version chose. Those that are numbers or None are hyper-parameters too, which take their place."""

    core: CoreKind  # of the recurrence
    initial_state: Literal["learned", "zeros"]  # with which an episode begins
    context: Literal["initial", "stored"]  # with what a replayed sequence begins
    image_encoder: ImageConvolutions
    bins: BinSpace  # in which space a number is shared between two bins
    continuation: Literal["hard", "soft"]  # hard: in dreams yes or no, with γ outside; soft: a probability, γ its part
    first_state: Literal["replayed", "dreamt"]  # what says whether the state that a dream begins with goes on
    actor_gradient: Literal["backprop", "reinforce"]  # of continuous actions
    optimizer: Literal["adam", "laprop"]
    learning_rate: float
    behaviour_learning_rate: float | None  # of actor and critic; None is `learning_rate`
    learning_rate_warmup: int
    agc_clip: float | None  # None bounds the norm of each optimiser's gradient instead, by MAX_GRAD_NORM
    beta_dyn: float
    replay_value_coef: float


# L2 bounds of the three optimisers of 2023, and their ε.
MAX_GRAD_NORM = {"world_model": 1_000.0, "actor": 100.0, "critic": 100.0}
ADAM_EPS = {"world_model": 1e-8, "actor": 1e-5, "critic": 1e-5}

_OF_2025 = Version(
    core="block_gru",
    initial_state="zeros",
    context="stored",
    image_encoder="max_pool",
    bins="symexp",
    continuation="soft",
    first_state="dreamt",
    actor_gradient="reinforce",
    optimizer="laprop",
    learning_rate=4e-5,
    behaviour_learning_rate=None,
    learning_rate_warmup=1_000,
    agc_clip=0.3,
    beta_dyn=1.0,
    replay_value_coef=0.3,
)

VERSIONS: dict[VersionName, Version] = {
    "v1_2023": Version(
        core="gru",
        initial_state="learned",
        context="initial",
        image_encoder="strided_4x4",
        bins="symlog",
        continuation="hard",
        first_state="replayed",
        actor_gradient="backprop",
        optimizer="adam",
        learning_rate=1e-4,
        behaviour_learning_rate=3e-5,
        learning_rate_warmup=0,
        agc_clip=None,
        beta_dyn=0.5,
        replay_value_coef=0.0,
    ),
    "v2_2024": _OF_2025._replace(image_encoder="strided_5x5", first_state="replayed"),
    "2025": _OF_2025,
}

# The hyper-parameters that a version decides where they are left out.
OF_VERSION = (
    "learning_rate", "behaviour_learning_rate", "learning_rate_warmup", "agc_clip", "beta_dyn", "replay_value_coef",
)  # fmt: skip


def version_in_effect(name: VersionName, settings: Mapping[str, Any]) -> Version:
    """What a version chose, with the hyper-parameters that were given in its place.

    Raises:
        ValueError: where there is no such version, or one of them has no meaning in it.
    """
    if name not in VERSIONS:
        raise ValueError(
            f"got version = {name!r}, expected one of {list(VERSIONS)}: type --model.init_args.version 2025"
        )
    given = {setting: settings[setting] for setting in OF_VERSION if settings[setting] is not None}
    chosen = VERSIONS[name]
    if chosen.agc_clip is None and "agc_clip" in given:
        bounds = ", ".join(f"{bound:g} ({group})" for group, bound in MAX_GRAD_NORM.items())
        raise ValueError(
            f"got agc_clip = {given['agc_clip']} with version = {name}, which bounds the norm of each optimiser's "
            f"gradient instead, by {bounds}: leave agc_clip out, or type --model.init_args.version v2_2024"
        )
    return chosen._replace(**given)


def describe_version(name: VersionName, version: Version) -> str:
    """All that is in effect in one line; what is not the version's own is marked."""
    of_name = VERSIONS[name]._asdict()
    fields = [f"{field} {_text(value)}{_mark(value, of_name[field])}" for field, value in version._asdict().items()]
    return f"DreamerV3 {name}: {', '.join(fields)}"


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _mark(value: object, of_version: object) -> str:
    return "" if value == of_version else f" (not {_text(of_version)})"
