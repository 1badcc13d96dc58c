"""Distillation on originals and on the augmented copies of which somebody is least sure.

Letters: B originals, M copies, K classes.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hard_fast.objectives.base import Objective, constant, terms
from hard_fast.objectives.terms import cross_entropy, disagreement, kd_kl
from hard_fast.runtime.configfile import Config
from hard_fast.types import LossTerms, Needs, Outputs, Phase, Seen


class CutmixpickConfig(Config):
    """a CE(x) + (1 - a) T^2 [KL(x) + KL(x')]: originals x have labels, their copies x' have none.

    With `augmentor.kind = "copies"`. CutMixPick is two CutMix copies of each original and keep =
    0.5; keep = 1 is the same loss with any other augmentation.
    """

    kind: Literal["cutmixpick"] = "cutmixpick"
    temperature: float = Field(default=4.0, gt=0.0)
    """T of the softmax in the student's and the teacher's logits; the loss carries T squared."""
    ce_share: float = Field(default=0.1, ge=0.0, le=1.0)
    """a."""
    keep: float = Field(default=0.5, gt=0.0, le=1.0)
    """r: the share of the copies, those of highest entropy, that the losses see."""
    entropy_of: Literal["teacher", "student"] = "teacher"
    """Whose softmax it is, at temperature 1."""

    @property
    def distance(self) -> Literal["kl"]:
        """How far outputs are apart: here always between softmaxes."""
        return "kl"


class CutmixPick(Objective):
    """The published split of the loss, and the pick.

    Source:  Wang et al. 2022, arXiv:2012.02909, equation 3 and section 3.3; both KL weigh 1 - a as
             in MingSun-Tse/Good-DA-in-KD@32ff086 (`-r 0.1 -a 0.9 --lw_mix 1 0 1`).
    """

    def __init__(self, config: CutmixpickConfig) -> None:
        super().__init__()
        self.temperature = constant(config.temperature)
        self.ce_share, self.keep = config.ce_share, config.keep
        self.by_student = config.entropy_of == "student"

    def needs(self, phase: Phase) -> Needs:
        """Both networks on the originals and on the copies that are kept."""
        return Needs(
            teacher=True,
            clean_teacher=True,
            clean_student=True,
            keep=self.keep,
            keep_by_student=self.by_student,
        )

    def keep_score(self, outputs: Outputs) -> Tensor:
        """[M] entropy of the softmax, nats."""
        log_MK = F.log_softmax(outputs.logits_BK.float(), dim=1)
        return -(log_MK.exp() * log_MK).sum(1)

    def student_loss(self, seen: Seen) -> LossTerms:
        """Labels and KL on the originals, KL alone on the copies."""
        student, teacher = seen.student[0].logits_BK, seen.teacher.logits_BK
        clean_student, clean_teacher = seen.clean_student.logits_BK, seen.clean_teacher.logits_BK
        classes = torch.arange(clean_student.shape[1], device=clean_student.device)
        target_BK = (seen.batch.label[:, None] == classes).float()
        hard = cross_entropy(clean_student, target_BK)
        clean = kd_kl(clean_student, clean_teacher, self.temperature).mean()
        copied = kd_kl(student, teacher, self.temperature).mean()
        loss = self.ce_share * hard + (1.0 - self.ce_share) * (clean + copied)
        return terms(
            loss,
            disagreement(student, teacher),
            ce=hard,
            kl_originals=clean,
            kl_copies=copied,
            copies_entropy=self.keep_score(seen.teacher).mean(),
        )
