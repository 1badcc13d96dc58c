"""What the networks are rewarded for: the contract of every objective."""

import torch
from torch import Tensor, nn

from hard_fast.types import LossTerms, Needs, Outputs, Phase, Seen


class Objective(nn.Module):
    """The losses of student and augmentor. Heads that it owns train and save with the student."""

    def needs(self, phase: Phase) -> Needs:
        """The forward passes that this phase's loss looks at; read once, when the step is built."""
        raise NotImplementedError

    def keep_score(self, outputs: Outputs) -> Tensor:
        """[M] the higher, the sooner kept; asked for only where `needs(phase).keep` < 1."""
        raise NotImplementedError

    def student_loss(self, seen: Seen) -> LossTerms:
        """What the student minimises. In a joint phase the augmentor climbs it."""
        raise NotImplementedError

    def augmentor_loss(self, seen: Seen) -> LossTerms:
        """What the augmentor minimises in a phase of its own."""
        raise ValueError(
            f"objective.kind of {type(self).__name__} has no loss for an augmentor; use "
            "schedule.kind = 'student_only', or an objective such as 'hard'"
        )


def constant(value: float) -> nn.Buffer:
    """A number that a schedule may change between steps without a recompile."""
    return nn.Buffer(torch.tensor(value, dtype=torch.float32), persistent=False)


def terms(loss: Tensor, error: Tensor, **logs: Tensor) -> LossTerms:
    """Loss terms whose logs hold the loss and the error beside `logs`, all detached."""
    shown = {"loss": loss, "error": error, **logs}
    return LossTerms(loss, error.detach(), {key: value.detach() for key, value in shown.items()})
