"""What student and augmentor are rewarded for."""

from typing import Annotated

from pydantic import Field

from hard_fast.objectives.base import Objective
from hard_fast.objectives.ce import CeConfig, CrossEntropy
from hard_fast.objectives.cudfkd import Cudfkd, CudfkdConfig
from hard_fast.objectives.cutmixpick import CutmixPick, CutmixpickConfig
from hard_fast.objectives.dafl import Dafl, DaflConfig
from hard_fast.objectives.hard import Hard, HardConfig
from hard_fast.objectives.kd import Distillation, KdConfig
from hard_fast.objectives.prototypes import Prototypes, PrototypesConfig
from hard_fast.objectives.relations import Features, FeaturesConfig, Relations, RelationsConfig
from hard_fast.objectives.self_distill import (
    Byot,
    ByotConfig,
    Cosub,
    CosubConfig,
    SdDropout,
    SdDropoutConfig,
)
from hard_fast.objectives.token import Token, TokenConfig
from hard_fast.objectives.tst import TeachWhatYouShould, TstLossConfig
from hard_fast.objectives.vae import Vae, VaeConfig

__all__ = [
    "Objective",
    "ObjectiveConfig",
    "build_objective",
    "check_reaches_all",
    "compares_answers",
    "reads_labels",
]

ObjectiveConfig = Annotated[
    CeConfig
    | KdConfig
    | HardConfig
    | VaeConfig
    | TstLossConfig
    | DaflConfig
    | CudfkdConfig
    | CutmixpickConfig
    | TokenConfig
    | ByotConfig
    | SdDropoutConfig
    | CosubConfig
    | RelationsConfig
    | FeaturesConfig
    | PrototypesConfig,
    Field(discriminator="kind"),
]


def compares_answers(config: ObjectiveConfig) -> bool:
    """Whether a loss reads the teacher's answers, so that its classes must be the student's."""
    if isinstance(config, RelationsConfig | FeaturesConfig):
        return config.kd_weight > 0.0
    return not isinstance(config, PrototypesConfig)


def reads_labels(config: ObjectiveConfig) -> bool:
    """Whether a loss, or the error that a schedule compares, is nothing without labels."""
    match config:
        case KdConfig() | CutmixpickConfig() | PrototypesConfig():
            return config.ce_share > 0.0
        case RelationsConfig() | FeaturesConfig():
            return config.ce_weight > 0.0
        case HardConfig():
            return config.reference == "label"
        case TokenConfig():
            return config.teacher_share < 1.0
        case CosubConfig():
            return config.label_share > 0.0
    return isinstance(config, CeConfig | TstLossConfig | ByotConfig | SdDropoutConfig)


def check_reaches_all(config: ObjectiveConfig) -> None:
    """Raise ValueError if no loss reaches the student's answers, so that its last layers idle."""
    is_inner = isinstance(config, RelationsConfig | FeaturesConfig)
    if is_inner and not (config.ce_weight or config.kd_weight):
        raise ValueError(
            f"distributed.overlap = true: waits for a gradient of every weight, and objective.kind "
            f"= {config.kind!r} has none behind its layers; set ce_weight or kd_weight, or no "
            "overlap"
        )


def build_objective(config: ObjectiveConfig) -> Objective:
    """The objective that a configuration describes."""
    match config:
        case CeConfig():
            return CrossEntropy(config)
        case KdConfig():
            return Distillation(config)
        case HardConfig():
            return Hard(config)
        case CutmixpickConfig():
            return CutmixPick(config)
        case TokenConfig():
            return Token(config)
        case ByotConfig():
            return Byot(config)
        case SdDropoutConfig():
            return SdDropout(config)
        case CosubConfig():
            return Cosub(config)
        case RelationsConfig():
            return Relations(config)
        case FeaturesConfig():
            return Features(config)
        case PrototypesConfig():
            return Prototypes(config)
        case TstLossConfig():
            return TeachWhatYouShould(config)
        case VaeConfig():
            return Vae(config)
        case DaflConfig():
            return Dafl(config)
        case CudfkdConfig():
            return Cudfkd(config)
