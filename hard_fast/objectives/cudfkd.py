"""CuDFKD: data-free distillation that goes from easy pictures to hard ones.

Letters: B images, K classes.
"""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from hard_fast.models.statistics import NORM_GAP
from hard_fast.objectives.base import Objective, constant, terms
from hard_fast.objectives.dafl import batch_entropy, one_hot_apart
from hard_fast.objectives.terms import disagreement, kd_kl
from hard_fast.runtime.configfile import Config
from hard_fast.types import LossTerms, Needs, Phase, Seen


class CudfkdConfig(Config):
    """The defaults are the published ones for CIFAR-10."""

    kind: Literal["cudfkd"] = "cudfkd"
    one_hot: float = Field(default=1.0, ge=0.0)
    """Weight of the cross-entropy of the teacher's answer with its own most likely class."""
    statistics: float = Field(default=1.0, ge=0.0)
    """Weight of the gap to what the teacher's BatchNorm layers keep; 0: the teacher has none."""
    entropy: float = Field(default=20.0, ge=0.0)
    """Weight of the entropy, in nats, of the batch's mean answer, which the generator raises. The
    mean is over the images of one pass of one process: with train.accumulate or several processes
    a part of the batch, whose entropy cannot exceed the logarithm of how many images it has."""
    temperature: float = Field(default=20.0, gt=0.0)
    """T of the softmax in that entropy."""
    adversarial_growth: float = Field(default=0.5, ge=0.0)
    """What the weight of the student's distance from the teacher gains with each epoch between
    `begin` and `end`; before, it is 0."""
    adversarial_temperature: float = Field(default=3.0, gt=0.0)
    """T of that distance; it carries T squared."""
    begin: float = Field(default=0.25, ge=0.0, le=1.0)
    """Share of the run after which the generator starts to make harder pictures."""
    end: float = Field(default=0.75, ge=0.0, le=1.0)
    """Share of the run after which they grow no harder."""
    pace: float = Field(default=2.0)
    """lambda of the student's sample weights in the first step: a sample whose loss lies below it
    counts almost in full, one far above almost nothing."""
    pace_growth: float = Field(default=1e-4, ge=0.0)
    """What lambda gains in each step of the run, the generator's steps included."""

    @model_validator(mode="after")
    def _begins_before_it_ends(self) -> Self:
        if self.begin >= self.end:
            raise ValueError(f"begin = {self.begin} must be below end = {self.end}")
        return self


class Cudfkd(Objective):
    """A generator that turns adversarial, and a student that weighs samples by how easy they are.

    Source:  Li et al. 2022, arXiv:2208.13648; ljrprocc/DataFree, datafree/synthesis/cudfkd.py and
             datafree_kd.py. There the student's loss is averaged before it is weighed, so that a
             whole batch has one weight; here each sample has its own, as in the paper.
    """

    def __init__(self, config: CudfkdConfig) -> None:
        super().__init__()
        self.config = config
        self.temperature = constant(config.temperature)
        self.adversarial_temperature = constant(config.adversarial_temperature)
        self.adversarial, self.pace = constant(0.0), constant(config.pace)

    def advance(self, step: int, *, num_steps: int, num_steps_per_epoch: int) -> None:
        """The weight grows after each epoch that lies wholly between `begin` and `end`."""
        num_epochs = num_steps / num_steps_per_epoch
        first, last = (int(num_epochs * share) for share in (self.config.begin, self.config.end))
        num_grown = min(max(0, step // num_steps_per_epoch - first - 1), max(0, last - first - 1))
        self.adversarial.fill_(self.config.adversarial_growth * num_grown)
        self.pace.fill_(self.config.pace + self.config.pace_growth * step)

    def needs(self, phase: Phase) -> Needs:
        """Both networks, and the teacher's statistics where the generator learns."""
        is_watched = phase is Phase.AUGMENTOR and self.config.statistics > 0.0
        return Needs(teacher=True, teacher_taps=(NORM_GAP,) if is_watched else ())

    def student_loss(self, seen: Seen) -> LossTerms:
        """The mean absolute difference of the logits, each sample weighed by its own loss."""
        student, teacher = seen.student[0].logits_BK, seen.teacher.logits_BK
        apart_B = (student.float() - teacher.float()).abs().mean(1)
        weight_B = easiness(apart_B.detach(), self.pace)
        loss = (weight_B * apart_B).mean()
        return terms(loss, disagreement(student, teacher), sample_weight=weight_B.mean())

    def augmentor_loss(self, seen: Seen) -> LossTerms:
        """Certain and balanced answers, known statistics, and what the student still gets wrong.

        The student's distance counts on pictures where both networks name the same class.
        """
        student, teacher = seen.student[0].logits_BK, seen.teacher.logits_BK.float()
        config = self.config
        one_hot = one_hot_apart(teacher, "ce").mean()
        entropy = batch_entropy(teacher / self.temperature)
        agrees_B = (student.argmax(1) == teacher.argmax(1)).float()
        apart = (kd_kl(student, teacher, self.adversarial_temperature) * agrees_B).mean()
        loss = config.one_hot * one_hot - config.entropy * entropy - self.adversarial * apart
        logs = {"one_hot": one_hot, "entropy": entropy, "student_apart": apart}
        if config.statistics > 0.0:
            logs["norm_gap"] = seen.teacher.taps[NORM_GAP].sum()
            loss = loss + config.statistics * logs["norm_gap"]
        error = disagreement(student, teacher)
        return terms(loss, error, adversarial=self.adversarial.clone(), **logs)


def easiness(loss_B: Tensor, pace: Tensor) -> Tensor:
    """[B] in (0,1]: 1 for no loss, falling past `pace` towards 0.

    Args:    loss_B: [B] >= 0. pace: [] lambda, a tensor so that its growth does not recompile.
    Source:  arXiv:2208.13648, the logarithmic self-paced regulariser: (1 + e^-l) / (1 + e^(x-l)).
    """
    return (1.0 + torch.exp(-pace)) / (1.0 + torch.exp(loss_B - pace))
