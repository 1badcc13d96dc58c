"""What the networks are rewarded for: the contract of every objective."""

from typing import Annotated

from torch import Tensor, nn

from hard_fast.runtime.cycle import Cycle, Held, constant, within
from hard_fast.types import LossTerms, Needs, Outputs, Phase, Seen

__all__ = ["Objective", "Temperature", "constant", "terms"]

# Of a softmax: one for the whole run, or one that changes over it.
Temperature = Annotated[float | Cycle, within(above=0.0)]


class Objective(Held):
    """The losses of student and augmentor. Heads that it owns train and save with the student.

    shares_classes: whether the teacher's classes are the student's, and not merely as many.
    """

    shares_classes = True

    def needs(self, phase: Phase) -> Needs:
        """The forward passes that this phase's loss looks at; read once, when the step is built."""
        raise NotImplementedError

    def meet(self, student: nn.Module, teacher: nn.Module | None, image: Tensor) -> None:
        """Look at the networks once, before the step is built, and make heads of their widths.

        Args:    student, teacher: to Outputs with the taps that were asked for.
                 image: [1,C,H,W] zeros, on the networks' device.
        Raises:  ValueError, one line, if they do not fit.
        """

    def keep_score(self, outputs: Outputs) -> Tensor:
        """[M] the higher, the sooner kept; asked for only where `needs(phase).keep` < 1."""
        raise NotImplementedError

    def student_loss(self, seen: Seen) -> LossTerms:
        """What the student minimises."""
        raise NotImplementedError

    def joint_loss(self, seen: Seen) -> LossTerms:
        """What both minimise in a joint phase; if `needs` says `climbs`, the augmentor climbs it.

        The student's loss, unless an objective says otherwise.
        """
        return self.student_loss(seen)

    def augmentor_loss(self, seen: Seen) -> LossTerms:
        """What the augmentor minimises in a phase of its own."""
        raise ValueError(
            f"objective.kind of {type(self).__name__} has no loss for an augmentor; use "
            "schedule.kind = 'student_only', or an objective such as 'hard'"
        )


def terms(loss: Tensor, error: Tensor, **logs: Tensor) -> LossTerms:
    """Loss terms whose logs hold the loss and the error beside `logs`, all detached."""
    shown = {"loss": loss, "error": error, **logs}
    return LossTerms(loss, error.detach(), {key: value.detach() for key, value in shown.items()})
