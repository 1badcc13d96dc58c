"""HARD: inputs on which the student leaves the teacher while the teacher stays sure."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from hard_fast.objectives.base import constant, terms
from hard_fast.objectives.kd import DistanceConfig, Distillation, KdConfig
from hard_fast.objectives.terms import disagreement
from hard_fast.types import LossTerms, Needs, Phase, Seen


class HardConfig(DistanceConfig):
    """Equations 1 to 3 of HARD."""

    kind: Literal["hard"] = "hard"
    lambda_student: float = Field(default=1.0, ge=0.0)
    """Weight of KL(student, teacher) on the augmented image, which the augmentor raises."""
    lambda_teacher: float = Field(default=1.0, ge=0.0)
    """Weight of KL(teacher augmented, teacher clean), which the augmentor keeps low."""
    reference: Literal["teacher", "label"] = "teacher"
    """Whose answer the schedule's error is counted against. With labels a teacher of 95 % never
    lets the student below 5 %, and unlabelled data have none; the paper does not say."""


class Hard(Distillation):
    """Augmentor: max ls D[s(x~), t(x~)] - lt D[t(x~), t(x)]; student: min D[s(x~), t(x~)].

    Source:  HARD equations 1-3; D[a, b] is KL with b as the target, at the distillation's
             temperature, so that both terms weigh alike.
    """

    def __init__(self, config: HardConfig) -> None:
        super().__init__(KdConfig(temperature=config.temperature, distance=config.distance))
        self.lambda_student = constant(config.lambda_student)
        self.lambda_teacher = constant(config.lambda_teacher)
        self.by_label = config.reference == "label"

    def needs(self, phase: Phase) -> Needs:
        """The teacher on both images while the augmentor learns, else on the augmented one."""
        return Needs(teacher=True, clean_teacher=phase is Phase.AUGMENTOR)

    def error(self, seen: Seen) -> Tensor:
        """[] disagreement with the teacher on the same input, or with the label."""
        if self.by_label:
            return disagreement(seen.student[0].logits_BK, seen.view.target_BK)
        return super().error(seen)

    def augmentor_loss(self, seen: Seen) -> LossTerms:
        """Equation 2, negated. The gradient reaches the augmentor through both networks."""
        made, clean = seen.teacher.logits_BK, seen.clean_teacher.logits_BK
        student_apart = self.apart(seen.student[0].logits_BK, made).mean()
        teacher_apart = self.apart(made, clean).mean()
        loss = self.lambda_teacher * teacher_apart - self.lambda_student * student_apart
        return terms(
            loss,
            self.error(seen),
            student_apart=student_apart,
            teacher_apart=teacher_apart,
            teacher_change=disagreement(made, clean),
        )
