"""Sets that need no files: scikit-learn's digits, points on a line, made-up pictures."""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch.nn import functional as F

from hard_fast.data.arrays import TEST_SEED, Arrays, DataSet, SplitConfig, split_off
from hard_fast.data.shifted import ShiftedConfig
from hard_fast.runtime.seed import derive_seed

_DIGITS_CANVAS_PX = 28
_DIGITS_TOP = 16


class DigitsConfig(ShiftedConfig):
    """scikit-learn's bundled 1,797 real handwritten digits, as a small MNIST."""

    kind: Literal["digits"] = "digits"
    test_share: float = Field(default=0.2, gt=0.0, lt=1.0)
    """Share of the images split off for the test, the same ones in every run."""
    classes: tuple[Annotated[int, Field(ge=0, le=9)], ...] | None = Field(
        default=None, min_length=2
    )
    """Only these digits, numbered anew in this order; None: all ten."""

    @model_validator(mode="after")
    def _names_each_class_once(self) -> Self:
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes = {list(self.classes)}: names a digit twice; remove one")
        return self


def read_digits(config: DigitsConfig) -> DataSet:
    """The digits on a 28x28 canvas, tested centred and shifted as MNIST is.

    The 8x8 digits are enlarged to 16x16 and centred, so a shift of up to 6 pixels cuts off nothing.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float()[:, None]
    # Doubling weighs by sixteenths, which fp32 holds exactly: the same bytes on every machine.
    large = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    margin = (_DIGITS_CANVAS_PX - large.shape[-1]) // 2
    image = F.pad((large * 255 / _DIGITS_TOP).round().byte(), [margin] * 4)
    whole = Arrays(image, torch.from_numpy(bunch.target).long())
    train, test = split_off(whole, config.test_share, TEST_SEED, "test")
    if config.classes is not None:
        train, test = (_only(part, config.classes) for part in (train, test))
    num_classes = 10 if config.classes is None else len(config.classes)
    return DataSet(num_classes, train, None, {"test": test})


def _only(arrays: Arrays, classes: tuple[int, ...]) -> Arrays:
    """The images of some classes, whose labels become their places among them."""
    is_one_NK = arrays.label[:, None] == torch.tensor(classes)
    kept = is_one_NK.any(1)
    return Arrays(arrays.image[kept], is_one_NK[kept].int().argmax(1))


class LineConfig(SplitConfig):
    """Points on a line for the regression toy. The paper does not give the training interval."""

    kind: Literal["line"] = "line"
    num_train: int = Field(default=1000, ge=1)
    low: float = Field(default=-5.0, allow_inf_nan=False)
    """Training points are uniform in [low, high]."""
    high: float = Field(default=5.0, allow_inf_nan=False)
    num_test: int = Field(default=100, ge=1)
    test_low: float = Field(default=-10.0, allow_inf_nan=False)
    """Test points are uniform in [test_low, test_high]."""
    test_high: float = Field(default=10.0, allow_inf_nan=False)
    seed: int = 0

    @model_validator(mode="after")
    def _check_intervals(self) -> Self:
        for low, high in ((self.low, self.high), (self.test_low, self.test_high)):
            if not low < high:
                raise ValueError(f"interval [{low}, {high}] is empty; swap or widen its ends")
        return self


def draw_line(config: LineConfig) -> DataSet:
    """Unlabelled points as images of one float: the target is the teacher's function of them.

    Source:  HARD figure 2: 100 test points, uniform in [-10, 10].
    """

    def draw(num: int, low: float, high: float, part: str) -> Arrays:
        generator = _generator(config.seed, part)
        x = low + (high - low) * torch.rand(num, 1, 1, 1, generator=generator)
        return Arrays(x, torch.full((num,), -1))

    train = draw(config.num_train, config.low, config.high, "train")
    test = draw(config.num_test, config.test_low, config.test_high, "test")
    return DataSet(1, train, None, {"test": test})


class SyntheticConfig(SplitConfig):
    """Made-up pictures that a network can learn to tell apart, for smoke tests and benchmarks."""

    kind: Literal["synthetic"] = "synthetic"
    size: int = Field(default=32, ge=1)
    """Height and width, px."""
    channels: int = Field(default=3, ge=1)
    num_classes: int = Field(default=10, ge=1)
    num_train: int = Field(default=1000, ge=1)
    num_test: int = Field(default=200, ge=1)
    seed: int = 0


def draw_synthetic(config: SyntheticConfig) -> DataSet:
    """Pictures of noise over a coarse pattern that belongs to the class."""
    shape = (config.channels, config.size, config.size)
    pattern = torch.randint(
        0, 192, (config.num_classes, config.channels, 4, 4), generator=_generator(config.seed, "")
    )
    pattern = F.interpolate(pattern.float(), shape[1:], mode="nearest").byte()

    def draw(num: int, part: str) -> Arrays:
        generator = _generator(config.seed, part)
        label = torch.randint(config.num_classes, (num,), generator=generator)
        noise = torch.randint(64, (num, *shape), dtype=torch.uint8, generator=generator)
        return Arrays(noise.add_(pattern[label]), label)

    train, test = draw(config.num_train, "train"), draw(config.num_test, "test")
    return DataSet(config.num_classes, train, None, {"test": test})


def _generator(seed: int, part: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, f"data.{part}"))
