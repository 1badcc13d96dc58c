"""Randomness of an image out of its own key: the same in any batch, order and rank, on any device.

A few numbers come from a hash of the key. Whole fields are windows of one long table of noise,
each image at a place of its own: that costs a copy, a tenth of drawing them.

Letters: B images, N numbers.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from hard_fast.runtime.seed import derive_seed

_TABLE_LEN = 2**22
_MASK_24 = 2**24 - 1


class Draws:
    """The random numbers of B images, in the order in which they are asked for.

    Args:    key: of the corruption; see derive_seed.
             index_B: [B] int64, the images' own numbers.
    """

    def __init__(self, key: int, index_B: Tensor) -> None:
        self._state_B = _mix(index_B * _signed(0x9E3779B97F4A7C15) + key)
        self._num_drawn = 0

    def uniform(self, num: int) -> Tensor:
        """[B,num] fp32 in [0,1), each from the hash."""
        return self._hashed(num).float() / 2**24

    def whole(self, num: int, below: int) -> Tensor:
        """[B,num] int64 in [0,below), each from the hash."""
        # 24 bits are few enough for the product, and the bias is below / 2**24.
        return (self._hashed(num) * below) >> 24

    def normal_field(self, *shape: int) -> Tensor:
        """[B,*shape] fp32, standard normal: a window of the table."""
        return self.window(normal_table, *shape)

    def uniform_field(self, *shape: int) -> Tensor:
        """[B,*shape] fp32 in [0,1): a window of the table."""
        return self.window(uniform_table, *shape)

    def window(self, table_of: Callable[[int, torch.device], Tensor], *shape: int) -> Tensor:
        """[B,*shape]: windows of a table that is a function of one of the two below.

        Args:    table_of: the table of a length and on a device; best one that remembers it.
        """
        num = torch.Size(shape).numel()
        table = table_of(max(_TABLE_LEN, 1 << (4 * num - 1).bit_length()), self._state_B.device)
        start_B = self.whole(1, len(table) - num + 1)[:, 0]
        # All windows as rows that overlap, of which B are copied.
        return table.unfold(0, num, 1).index_select(0, start_B).view(-1, *shape)

    def _hashed(self, num: int) -> Tensor:
        steps = torch.arange(num, device=self._state_B.device) + self._num_drawn + 1
        self._num_drawn += num
        mixed = _mix(self._state_B[:, None] + steps * _signed(0xD1B54A32D192ED03))
        return (mixed >> 20) & _MASK_24


def draws_for(seed: int, name: str, severity: int, index_B: Tensor) -> Draws:
    """The draws of these images under one corruption."""
    return Draws(derive_seed(seed, f"corruption/{name}", severity), index_B)


@lru_cache(maxsize=4)
def normal_table(num: int, device: torch.device) -> Tensor:
    """[num] fp32: standard normal numbers, always the same."""
    generator = torch.Generator().manual_seed(derive_seed(0, "corruptions' normal table"))
    return torch.randn(num, generator=generator).to(device)


@lru_cache(maxsize=4)
def uniform_table(num: int, device: torch.device) -> Tensor:
    """[num] fp32: numbers in [0,1), always the same."""
    generator = torch.Generator().manual_seed(derive_seed(0, "corruptions' uniform table"))
    return torch.rand(num, generator=generator).to(device)


def _mix(value: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on int64, whose products wrap.

    Source:  Steele et al. 2014, "Fast splittable pseudorandom number generators", figure 16.
    """
    value = (value ^ _shifted(value, 30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ _shifted(value, 27)) * _signed(0x94D049BB133111EB)
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, bits: int) -> Tensor:
    # Without the mask, >> would fill with the sign.
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits
