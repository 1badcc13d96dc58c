"""Supervised learning: the student, or a teacher in the making, alone."""

from typing import Literal

from pydantic import Field

from hard_fast.objectives.base import Objective, terms
from hard_fast.objectives.terms import cross_entropy, disagreement
from hard_fast.runtime.configfile import Config
from hard_fast.types import LossTerms, Needs, Phase, Seen


class CeConfig(Config):
    """Cross-entropy with the labels of the augmented images."""

    kind: Literal["ce"] = "ce"
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)


class CrossEntropy(Objective):
    """No teacher; the error is the student's disagreement with the label."""

    def __init__(self, config: CeConfig) -> None:
        super().__init__()
        self.label_smoothing = config.label_smoothing

    def needs(self, phase: Phase) -> Needs:
        """Only the student's logits."""
        return Needs()

    def student_loss(self, seen: Seen) -> LossTerms:
        """Cross-entropy with the view's soft labels."""
        logits, target = seen.student[0].logits_BK, seen.view.target_BK
        loss = cross_entropy(logits, target, self.label_smoothing)
        return terms(loss, disagreement(logits, target))
