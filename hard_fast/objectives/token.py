"""A distillation token: a second class token whose head learns from the teacher alone."""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hard_fast.objectives.base import Objective, constant, terms
from hard_fast.objectives.terms import cross_entropy, disagreement, kd_kl
from hard_fast.runtime.configfile import Config
from hard_fast.types import LossTerms, Needs, Phase, Seen


class TokenConfig(Config):
    """(1 - a) CE(class head, label) + a D(distillation head, teacher), of DeiT."""

    kind: Literal["token"] = "token"
    mode: Literal["hard", "soft"] = "hard"
    """hard: cross-entropy with the teacher's first choice; soft: T^2 KL."""
    teacher_share: float = Field(default=0.5, ge=0.0, le=1.0)
    """a."""
    temperature: float = Field(default=1.0, gt=0.0)
    """T of the soft mode."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Of the labels; the teacher's choice is not smoothed."""
    head: str = "head"
    """The class token's classifier in the student, as timm's distilled networks name it."""
    distilled_head: str = "head_dist"
    """The distillation token's."""


class Token(Objective):
    """Each head has its own loss; what the student answers is the mean of both.

    Source:  Touvron et al., arXiv:2012.12877, and facebookresearch/deit, `losses.py`, which divides
             the soft loss by B K; here it is the mean over the images, as everywhere else.
    """

    def __init__(self, config: TokenConfig) -> None:
        super().__init__()
        self.config = config
        self.temperature = constant(config.temperature)

    def needs(self, phase: Phase) -> Needs:
        """Both heads' outputs, and the teacher's view of the same images."""
        return Needs(teacher=True, student_taps=(self.config.head, self.config.distilled_head))

    def student_loss(self, seen: Seen) -> LossTerms:
        """The labels' part and the teacher's part."""
        config, student, teacher_BK = self.config, seen.student[0], seen.teacher.logits_BK
        by_label = student.taps[config.head]
        label = cross_entropy(by_label, seen.view.target_BK, config.label_smoothing)
        taught = self._apart(student.taps[config.distilled_head], teacher_BK)
        share = config.teacher_share
        loss = (1.0 - share) * label + share * taught
        error = disagreement(student.logits_BK, teacher_BK)
        return terms(loss, error, label_loss=label, teacher_loss=taught)

    def _apart(self, student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
        if self.config.mode == "hard":
            return F.cross_entropy(student_BK.float(), teacher_BK.argmax(1))
        return kd_kl(student_BK, teacher_BK, self.temperature).mean()
