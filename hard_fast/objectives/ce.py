"""Supervised learning: the student, or a teacher in the making, alone."""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hard_fast.objectives.base import Objective, Temperature, terms
from hard_fast.objectives.terms import cross_entropy, disagreement
from hard_fast.runtime.configfile import Config
from hard_fast.runtime.cycle import closeness
from hard_fast.types import LossTerms, Needs, Phase, Seen


class FocalConfig(Config):
    """Cyclical focal loss: sure samples count at the run's ends, unsure ones at its peak."""

    gamma: float = Field(default=2.0, ge=0.0)
    """At the peak a sample weighs (1 - p)^gamma, as in the focal loss."""
    gamma_sure: float = Field(default=3.0, ge=0.0)
    """At both ends it weighs (1 + p)^gamma_sure."""
    factor: float = Field(default=4.0, ge=1.0)
    """The peak is where 1 / factor of the run is done."""


class CeConfig(Config):
    """Cross-entropy with the labels of the augmented images."""

    kind: Literal["ce"] = "ce"
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    temperature: Temperature = 1.0
    """The logits are divided by it while the student learns."""
    focal: FocalConfig | None = None


class CrossEntropy(Objective):
    """No teacher; the error is the student's disagreement with the label.

    Source:  temperature: Smith 2022, arXiv:2202.08835; focal: arXiv:2202.08978, equation 5.
    """

    def __init__(self, config: CeConfig) -> None:
        super().__init__()
        self.label_smoothing, self.focal = config.label_smoothing, config.focal
        self.hold(temperature=config.temperature, closeness=1.0)

    def needs(self, phase: Phase) -> Needs:
        """Only the student's logits."""
        return Needs()

    def advance(self, step: int, *, num_steps: int, num_steps_per_epoch: int) -> None:
        """Lead temperature and focal loss along their cycles."""
        super().advance(step, num_steps=num_steps, num_steps_per_epoch=num_steps_per_epoch)
        if self.focal:
            self.closeness.fill_(closeness(step, num_steps, self.focal.factor))

    def student_loss(self, seen: Seen) -> LossTerms:
        """Cross-entropy with the view's soft labels."""
        logits, target = seen.student[0].logits_BK, seen.view.target_BK
        scaled = logits.float() / self.temperature
        if self.focal:
            loss = self._focal_loss(scaled, target)
        else:
            loss = cross_entropy(scaled, target, self.label_smoothing)
        return terms(loss, disagreement(logits, target))

    def _focal_loss(self, logits_BK: Tensor, target_BK: Tensor) -> Tensor:
        """[] cross-entropy in which each class weighs by its own probability."""
        log_BK = F.log_softmax(logits_BK, dim=1)
        share, p_BK = self.closeness, log_BK.exp()
        # An exponent has no gradient where its base is 0, so p = 1 is kept just below.
        unsure = (1.0 - p_BK).clamp(min=1e-6) ** self.focal.gamma
        weight_BK = (1.0 - share) * unsure + share * (1.0 + p_BK) ** self.focal.gamma_sure
        has_label = target_BK.sum(1, keepdim=True)
        smoothing = self.label_smoothing
        smooth = target_BK * (1.0 - smoothing) + has_label * smoothing / target_BK.shape[1]
        loss = -(smooth * weight_BK * log_BK).sum(1)
        return loss.sum() / has_label.sum().clamp(min=1.0)
