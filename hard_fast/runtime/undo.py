"""Tensors that can go back to what they held, decided on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Undo:
    """A copy of small tensors, taken before something that may spoil them.

    Args:    tensors: of one floating dtype on one device, always changed in place.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = [tensor.detach() for tensor in tensors]
        self._kept = torch.empty(0)
        if tensors:
            self._kept = torch.cat([tensor.flatten() for tensor in self._tensors])
        parts = self._kept.split([tensor.numel() for tensor in tensors])
        self._places = [part.view_as(t) for part, t in zip(parts, self._tensors, strict=True)]

    def remember(self) -> None:
        """Keep what the tensors hold now."""
        if self._tensors:
            torch._foreach_copy_(self._places, self._tensors)

    def go_back(self, is_spoilt: Tensor) -> None:
        """Give them back what was kept, if [] bool `is_spoilt` says so; nothing waits for it."""
        if self._tensors:
            now = torch.cat([tensor.flatten() for tensor in self._tensors])
            torch.where(is_spoilt, self._kept, now, out=self._kept)
            torch._foreach_copy_(self._tensors, self._places)
