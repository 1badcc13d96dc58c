"""DAFL: a generator whose pictures the teacher takes for real, and a student that learns on them.

Letters: B images, K classes.
"""

import math
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hard_fast.objectives.base import Objective, constant, terms
from hard_fast.objectives.terms import disagreement, kd_kl
from hard_fast.runtime.configfile import Config
from hard_fast.types import LossTerms, Needs, Phase, Seen

OneHot = Literal["ce", "l1", "l2"]


class DaflConfig(Config):
    """one_hot L_oh + activation L_a + entropy L_ie for the generator, KL for the student."""

    kind: Literal["dafl"] = "dafl"
    one_hot: float = Field(default=1.0, ge=0.0)
    """Weight of the distance of the teacher's answer from its own most likely class."""
    one_hot_distance: OneHot = "ce"
    """ce: cross-entropy, as published; l1, l2: (squared) distance of the probabilities."""
    activation: float = Field(default=0.1, ge=0.0)
    """Weight of the mean absolute feature, which the generator raises."""
    features: str = "flatten"
    """The teacher's module whose output the features are: what its classifier reads."""
    entropy: float = Field(default=5.0, ge=0.0)
    """Weight of the entropy, in decimal digits as in DAFL's code, which the generator raises. The
    paper writes the natural logarithm: 2.3 times as much."""
    entropy_of: Literal["batch", "sample"] = "batch"
    """batch: of the mean answer, so that all classes are made, as published. sample: the mean
    entropy of each answer, so that each lies between classes. `batch` is the images of one pass of
    one process: with train.accumulate or several processes a part of a batch, whose entropy cannot
    exceed the logarithm of the number of its images."""
    temperature: float = Field(default=1.0, gt=0.0)
    """T of the softmax that the student learns from; the loss carries T squared."""


class Dafl(Objective):
    """The generator reads the teacher alone; the student never reaches it.

    In a joint phase both learn from the same pictures in one pass, as published; in phases of
    their own the student sees the pictures of a generator in eval mode.

    Source:  Chen et al. 2019, arXiv:1904.01186, equations 2 to 6, and
             huawei-noah/Data-Efficient-Model-Compression, DAFL/DAFL-train.py: mean absolute
             feature and base-10 logarithm are the code's.
    """

    def __init__(self, config: DaflConfig) -> None:
        super().__init__()
        self.config = config
        self.one_hot, self.activation = constant(config.one_hot), constant(config.activation)
        self.entropy, self.temperature = constant(config.entropy), constant(config.temperature)

    def needs(self, phase: Phase) -> Needs:
        """The teacher with its features where the generator learns, and no student if it alone."""
        if phase is Phase.STUDENT:
            return Needs(teacher=True)
        copies = 1 if phase is Phase.JOINT else 0
        taps = (self.config.features,)
        return Needs(teacher=True, teacher_taps=taps, student_copies=copies, climbs=False)

    def student_loss(self, seen: Seen) -> LossTerms:
        """KL to the teacher, which is a constant here."""
        student, teacher = seen.student[0].logits_BK, seen.teacher.logits_BK.detach()
        loss = kd_kl(student, teacher, self.temperature).mean()
        return terms(loss, disagreement(student, teacher))

    def augmentor_loss(self, seen: Seen) -> LossTerms:
        """Equation 6. Its error is how unsure the teacher is: the student was not asked."""
        logits = seen.teacher.logits_BK.float()
        one_hot = one_hot_apart(logits, self.config.one_hot_distance).mean()
        activation = -seen.teacher.taps[self.config.features].float().abs().mean()
        entropy = entropy_digits(logits, of_batch=self.config.entropy_of == "batch")
        loss = self.one_hot * one_hot + self.activation * activation - self.entropy * entropy
        unsure = 1.0 - logits.softmax(1).amax(1).mean()
        return terms(loss, unsure, one_hot=one_hot, activation=activation, entropy=entropy)

    def joint_loss(self, seen: Seen) -> LossTerms:
        """Both at once: no parameter is in both of the sums."""
        student, maker = self.student_loss(seen), self.augmentor_loss(seen)
        own = {name: maker.logs[name] for name in ("one_hot", "activation", "entropy")}
        logs = {**student.logs, **own, "augmentor_loss": maker.loss.detach()}
        return LossTerms(student.loss + maker.loss, student.error, logs)


def one_hot_apart(logits_BK: Tensor, distance: OneHot) -> Tensor:
    """[B] fp32: how far each answer is from certainty about its own most likely class.

    Returns: cross-entropy in nats, or the l1 or squared l2 distance between the probabilities and
             that class's one-hot vector.
    """
    best = logits_BK.detach().argmax(1)
    if distance == "ce":
        return F.cross_entropy(logits_BK.float(), best, reduction="none")
    apart = logits_BK.float().softmax(1) - F.one_hot(best, logits_BK.shape[1])
    return apart.abs().sum(1) if distance == "l1" else apart.square().sum(1)


def entropy_digits(logits_BK: Tensor, *, of_batch: bool) -> Tensor:
    """[] fp32: entropy, in decimal digits, of the batch's mean answer or the mean of each answer's.

    It lies between 0 and log10 K.
    """
    if of_batch:
        return batch_entropy(logits_BK) / math.log(10.0)
    log = logits_BK.float().log_softmax(1)
    return -(log.exp() * log).sum(1).mean() / math.log(10.0)


def batch_entropy(logits_BK: Tensor) -> Tensor:
    """[] fp32: entropy, in nats, of the batch's mean answer."""
    # By logarithms, whose gradient is finite where a class's share underflows to zero.
    log_K = logits_BK.float().log_softmax(1).logsumexp(0) - math.log(len(logits_BK))
    return -(log_K.exp() * log_K).sum()
