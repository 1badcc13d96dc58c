"""What student and augmentor are rewarded for."""

from typing import Annotated

from pydantic import Field

from hard_fast.objectives.base import Objective
from hard_fast.objectives.ce import CeConfig, CrossEntropy
from hard_fast.objectives.hard import Hard, HardConfig
from hard_fast.objectives.kd import Distillation, KdConfig
from hard_fast.objectives.vae import Vae, VaeConfig

__all__ = ["Objective", "ObjectiveConfig", "build_objective"]

ObjectiveConfig = Annotated[
    CeConfig | KdConfig | HardConfig | VaeConfig, Field(discriminator="kind")
]


def build_objective(config: ObjectiveConfig) -> Objective:
    """The objective that a configuration describes."""
    match config:
        case CeConfig():
            return CrossEntropy(config)
        case KdConfig():
            return Distillation(config)
        case HardConfig():
            return Hard(config)
        case VaeConfig():
            return Vae(config)
