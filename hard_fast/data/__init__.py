"""Where the images come from: sets that live on the device, and pictures decoded on the way."""

from typing import Annotated

import torch
from pydantic import Field

from hard_fast.data.arrays import (
    Arrays,
    DataSet,
    Loader,
    Part,
    place,
)
from hard_fast.data.npz import NpzConfig, read_npz
from hard_fast.data.pictures import open_pictures
from hard_fast.data.readers import Cifar10Config, MnistConfig, read_cifar10, read_mnist
from hard_fast.data.shifted import shift_corners
from hard_fast.data.sources import PicturesConfig
from hard_fast.data.toys import (
    DigitsConfig,
    LineConfig,
    SyntheticConfig,
    draw_line,
    draw_synthetic,
    read_digits,
)

__all__ = [
    "Arrays",
    "DataConfig",
    "DataSet",
    "Loader",
    "Part",
    "PicturesConfig",
    "load_data",
    "shift_corners",
]

DataConfig = Annotated[
    PicturesConfig
    | MnistConfig
    | Cifar10Config
    | NpzConfig
    | DigitsConfig
    | LineConfig
    | SyntheticConfig,
    Field(discriminator="kind"),
]


def load_data(config: DataConfig, device: torch.device) -> DataSet:
    """The configured data set, split; small sets are resident on the device.

    Raises:  ValueError, one line, if a file or a key is wrong.
    """
    match config:
        case PicturesConfig():
            return open_pictures(config, device)
        case MnistConfig():
            data = read_mnist(config)
        case Cifar10Config():
            data = read_cifar10(config)
        case NpzConfig():
            data = read_npz(config)
        case DigitsConfig():
            data = read_digits(config)
        case LineConfig():
            data = draw_line(config)
        case SyntheticConfig():
            data = draw_synthetic(config)
    return place(data, config, device)
