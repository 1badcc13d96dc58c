"""Knowledge distillation on the augmented input: the same view for teacher and student."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from hard_fast.objectives.base import Objective, Temperature, terms
from hard_fast.objectives.terms import cross_entropy, disagreement, kd_kl, squared_error
from hard_fast.runtime.configfile import Config
from hard_fast.types import LossTerms, Needs, Phase, Seen


class DistanceConfig(Config):
    """How far two networks' outputs are apart; shared by every objective with a teacher."""

    temperature: Temperature = 5.0
    """T of the softmax, in the student's and the teacher's logits; the loss carries T squared."""
    distance: Literal["kl", "mse"] = "kl"
    """kl between softmaxes; mse between raw outputs, for regression."""


class KdConfig(DistanceConfig):
    """a CE + (1 - a) T^2 KL(batchmean), as timm's task and torchdistill's KDLoss have it."""

    kind: Literal["kd"] = "kd"
    ce_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """a: the share of the cross-entropy with the labels; the paper uses none."""


class Distillation(Objective):
    """KL (or squared error) between student and teacher on what both see.

    Source:  Hinton et al. 2015, arXiv:1503.02531; the batch mean of per-sample KL sums.
    """

    def __init__(self, config: KdConfig) -> None:
        super().__init__()
        self.hold(temperature=config.temperature)
        self.ce_share = config.ce_share
        self.is_kl = config.distance == "kl"

    def needs(self, phase: Phase) -> Needs:
        """The teacher's view of the augmented image, nothing of the clean one."""
        return Needs(teacher=True)

    def apart(self, student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
        """[B] distance of the student's outputs from the teacher's."""
        if self.is_kl:
            return kd_kl(student_BK, teacher_BK, self.temperature)
        return squared_error(student_BK, teacher_BK)

    def error(self, seen: Seen) -> Tensor:
        """[] what a schedule compares: disagreement on the same input, or the squared error."""
        student, teacher = seen.student[0].logits_BK, seen.teacher.logits_BK
        if self.is_kl:
            return disagreement(student, teacher)
        return squared_error(student, teacher).mean().detach()

    def student_loss(self, seen: Seen) -> LossTerms:
        """The distance, and the labels' cross-entropy where it has a share."""
        student = seen.student[0].logits_BK
        loss = self.apart(student, seen.teacher.logits_BK).mean()
        if self.ce_share:
            hard = cross_entropy(student, seen.view.target_BK)
            loss = self.ce_share * hard + (1.0 - self.ce_share) * loss
        return terms(loss, self.error(seen))
