"""LeNet-5 and its half-width student: the pair of the data-free methods on MNIST."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Annotated

from pydantic import Field
from torch import nn

_Count = Annotated[int, Field(ge=1)]
_INPUT_PX = 32


def lenet5(
    num_classes: int,
    in_channels: int,
    image_size: int,
    widths: tuple[_Count, _Count, _Count] = (6, 16, 120),
    hidden: _Count = 84,
) -> nn.Sequential:
    """LeNet-5 with ReLU and max-pooling; `flatten` gives the last convolution's features.

    Args:    image_size: px; smaller pictures than 32 get a border of zeros.
             widths: output channels of the three 5x5 convolutions. hidden: width of `fc1`.
    Returns: [B,C,H,W] -> [B,K]; 61,706 parameters by default for one channel and ten classes.
    Raises:  ValueError if the picture cannot be centred in 32 px.
    Source:  LeCun et al. 1998; the layers of DAFL's code (arXiv:1904.01186), which enlarges MNIST
             to 32 px where here, as in LeCun's, a border is added.
    """
    border_px = _INPUT_PX - image_size
    if border_px < 0 or border_px % 2:
        raise ValueError(f"image_size = {image_size}: LeNet-5 reads an even number up to 32 px")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if border_px:
        layers["pad"] = nn.ZeroPad2d(border_px // 2)
    channels = in_channels
    for i, width in enumerate(widths, start=1):
        layers[f"conv{i}"] = nn.Conv2d(channels, width, 5)
        layers[f"relu{i}"] = nn.ReLU()
        if i < len(widths):
            layers[f"pool{i}"] = nn.MaxPool2d(2)
        channels = width
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(channels, hidden)
    layers["relu4"] = nn.ReLU()
    layers["fc2"] = nn.Linear(hidden, num_classes)
    return nn.Sequential(layers)


# 61,706 parameters, and the 15,738 of DAFL's student.
LENETS: dict[str, Callable[..., nn.Module]] = {
    "lenet5": lenet5,
    "lenet5_half": partial(lenet5, widths=(3, 8, 60), hidden=42),
}
