"""What flows through one training step.

Letters: B images of a batch, M images the networks see, C channels, H rows, W columns, K classes.
"""

import enum
from typing import NamedTuple

from torch import Tensor


class Phase(enum.Enum):
    """Which network learns now. A run has one graph per phase that it uses."""

    STUDENT = "student"
    AUGMENTOR = "augmentor"
    JOINT = "joint"


class Batch(NamedTuple):
    """What a loader yields: this rank's share of one global batch, on the device.

    image: [B,C,H,W] uint8, channels_last memory; float in the data's own range where the data are
           not pictures; zeros where there are no data.
    label: [B] int64 class, -1 = unlabelled.
    """

    image: Tensor
    label: Tensor


# All randomness of one step. A tensor's first dimension is the batch; a 0-dim tensor is shared by
# the whole batch. Parts of a composition prefix their names.
Noise = dict[str, Tensor]


class View(NamedTuple):
    """What an augmentor reads and returns. (Build it anew: torch 2.11 cannot compile `_replace`.)

    image:     [M,C,H,W] float in [0,1]; uint8 only before the first augmentor of a chain.
    target_BK: [M,K] soft labels that belong to the picture; None where the data have no labels.
    original:  [M,C,H,W] the images before anything that learns changed them, or [B,C,H,W] those
               that copies were made of; None: the batch's own.
    """

    image: Tensor
    target_BK: Tensor | None
    original: Tensor | None = None


class Outputs(NamedTuple):
    """What a network returns: logits [M,K] and the inner layers an objective asked for."""

    logits_BK: Tensor
    taps: dict[str, Tensor]


class Needs(NamedTuple):
    """Which forward passes an objective wants in one phase; what is not asked for is not run.

    keep: share of the M images with the highest `keep_score` that the losses see, in (0, 1].
    keep_by_student: whether that score is taken from the student's outputs, not the teacher's.
    climbs: in a joint phase the augmentor climbs what the student descends. False: it descends a
            loss of its own, whose gradient comes through the teacher alone; the student sees the
            image detached, and `joint_loss` adds both up.
    """

    teacher: bool = False
    clean_teacher: bool = False
    clean_student: bool = False
    student_copies: int = 1
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    keep: float = 1.0
    keep_by_student: bool = False
    climbs: bool = True


class Seen(NamedTuple):
    """Everything a loss may look at; absent parts are None."""

    batch: Batch
    view: View
    noise: Noise
    student: tuple[Outputs, ...]
    teacher: Outputs | None
    clean_student: Outputs | None
    clean_teacher: Outputs | None


class LossTerms(NamedTuple):
    """What one step returns.

    loss:  [] fp32 with gradient.
    error: [] fp32, detached: what the schedule compares with its thresholds.
    logs:  [] fp32 each, detached, still on the device.
    """

    loss: Tensor
    error: Tensor
    logs: dict[str, Tensor]
