"""How a run trains: its length, its batches, its arithmetic, and what it tells on the way."""

from typing import Literal

from pydantic import Field, model_validator

from hard_fast.data.growing import ResolutionConfig
from hard_fast.runtime.compile import Precision
from hard_fast.runtime.configfile import Config


class TrainConfig(Config):
    """How long, how much at once, how fast, and what is told on the way."""

    epochs: float | None = Field(default=None, gt=0.0)
    """Length of the run; exactly one of epochs and steps."""
    steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=256, ge=1)
    """Images per step over all processes together."""
    augmentor_batch_size: int | None = Field(default=None, ge=1)
    """Images per step in phases of the augmentor's own, the first of each process; None: all."""
    accumulate: int = Field(default=1, ge=1)
    """Passes that a process cuts its images into, one after the other: the same update in less
    memory, but for what looks at a pass as a whole: BatchNorm, dropout, means over labels."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "auto"
    """Of the networks' arithmetic; weights are fp32. auto: bf16 on a GPU that has it, else fp32.
    fp16 scales the loss. Losses are fp32 always. A teacher may have a precision of its own."""
    log_every: int = Field(default=50, ge=1)
    """Steps between training rows."""
    eval_every_epochs: float = Field(default=1.0, gt=0.0)
    select: Literal["last", "best"] = "last"
    """Which weights are the result: the last, or the best on the validation split."""
    gallery: bool = True
    """Keep a picture of original and augmented images at each evaluation."""
    tensorboard: bool = True
    resolution: ResolutionConfig | None = None
    """Small training pictures first, larger ones later. None: the data's size throughout."""
    profile_steps: int = Field(default=0, ge=0)
    """Steps that torch.profiler records into the run's directory, after the first ten since its
    start; 0: none. The run's results are the same."""

    @model_validator(mode="after")
    def _has_one_length(self) -> "TrainConfig":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of train.epochs and train.steps")
        return self


def check_batches(config: TrainConfig, num_processes: int, group: int) -> None:
    """See that batches can be cut into processes, passes and groups without a remainder.

    Args:    group: images that the augmentor mixes together.
    Raises:  ValueError that names the key which is wrong.
    """
    unit = num_processes * config.accumulate * group
    for key in ("batch_size", "augmentor_batch_size"):
        size = getattr(config, key)
        if size is not None and size % unit:
            mixed = f", groups of {group} images that augmentor mixes" if group > 1 else ""
            raise ValueError(
                f"train.{key} = {size}: must be a multiple of {unit} ({num_processes} processes, "
                f"train.accumulate = {config.accumulate}{mixed})"
            )
    if config.augmentor_batch_size and config.augmentor_batch_size > config.batch_size:
        raise ValueError(
            f"train.augmentor_batch_size = {config.augmentor_batch_size}: is the first part of "
            f"train.batch_size = {config.batch_size}, so it cannot be larger"
        )
