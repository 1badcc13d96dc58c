"""TST: the augmentor is to keep the teacher right and make the student wrong.

Letters: B images, K classes.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from hard_fast.objectives.base import Objective, Temperature, terms
from hard_fast.objectives.terms import cross_entropy, disagreement, kd_kl
from hard_fast.runtime.configfile import Config
from hard_fast.types import LossTerms, Needs, Phase, Seen


class TstLossConfig(Config):
    """Student: CE + T^2 KL, the mean over augmented and original images."""

    kind: Literal["tst"] = "tst"
    temperature: Temperature = 4.0
    """T of the softmax in both networks' logits."""
    kl_weight: float = Field(default=1.0, ge=0.0)
    """Of T^2 KL beside the labels' cross-entropy."""
    teacher_weight: float = Field(default=1.0, ge=0.0)
    """Of -log p_teacher(y), which keeps the augmented image what its label says."""
    student_weight: float = Field(default=1.0, ge=0.0)
    """Of -log(1 - p_student(y)), which makes it hard."""

    @property
    def distance(self) -> Literal["kl"]:
        """How far outputs are apart: here always between softmaxes."""
        return "kl"


class TeachWhatYouShould(Objective):
    """Both losses of TST. The error is the student's disagreement with the teacher on x~.

    Source:  Shao et al. 2023, arXiv:2212.05422, as its text has them: shaoshitong/TST@18003a9
             takes CE_teacher - CE_student, which has no lower bound. Original and augmented images
             are two passes here, so that each has BatchNorm statistics of its own; there they are
             one batch.
    """

    def __init__(self, config: TstLossConfig) -> None:
        super().__init__()
        self.hold(temperature=config.temperature)
        self.kl_weight = config.kl_weight
        self.teacher_weight, self.student_weight = config.teacher_weight, config.student_weight

    def needs(self, phase: Phase) -> Needs:
        """Both networks on x~, and on the originals too while the student learns."""
        is_student = phase is not Phase.AUGMENTOR
        return Needs(teacher=True, clean_teacher=is_student, clean_student=is_student)

    def student_loss(self, seen: Seen) -> LossTerms:
        """Labels and teacher on both halves."""
        made = self._taught(seen.student[0].logits_BK, seen.teacher.logits_BK, seen)
        clean = self._taught(seen.clean_student.logits_BK, seen.clean_teacher.logits_BK, seen)
        error = disagreement(seen.student[0].logits_BK, seen.teacher.logits_BK)
        return terms((made + clean) / 2.0, error, loss_augmented=made, loss_originals=clean)

    def augmentor_loss(self, seen: Seen) -> LossTerms:
        """-log p_teacher(y | x~) - log(1 - p_student(y | x~)), over the images with a label."""
        student, teacher = seen.student[0].logits_BK, seen.teacher.logits_BK
        target_BK = seen.view.target_BK
        right = cross_entropy(teacher, target_BK)
        wrong = not_the_label(student, target_BK)
        loss = self.teacher_weight * right + self.student_weight * wrong
        return terms(
            loss,
            disagreement(student, teacher),
            teacher_right=right,
            student_wrong=wrong,
            teacher_change=disagreement(teacher, target_BK),
        )

    def _taught(self, student_BK: Tensor, teacher_BK: Tensor, seen: Seen) -> Tensor:
        hard = cross_entropy(student_BK, seen.view.target_BK)
        return hard + self.kl_weight * kd_kl(student_BK, teacher_BK, self.temperature).mean()


def not_the_label(logits_BK: Tensor, target_BK: Tensor) -> Tensor:
    """[] fp32 mean of -log(1 - p(y)) over the samples that have a label y, nats.

    Args:    target_BK: one-hot rows, or zeros where there is no label; of a mixed picture all
                 its labels count as y.
    """
    logits = logits_BK.float()
    # 1 - p(y) as what the other classes have, which stays exact where p(y) rounds to 1.
    others = logits.masked_fill(target_BK > 0, -torch.inf)
    loss = torch.logsumexp(logits, 1) - torch.logsumexp(others, 1)
    return loss.sum() / target_BK.sum().clamp(min=1.0)
