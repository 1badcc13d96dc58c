"""Device values that the host reads later, so that neither waits for the other."""

import torch
from torch import Tensor


class Late:
    """A tensor on its way to the host: the copy starts now, and `value` waits for it if it must.

    On a CPU it is the tensor itself, which must not be written to afterwards.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._ready: torch.cuda.Event | None = None
        self._host = tensor
        if tensor.is_cuda:
            self._host = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()

    def value(self) -> Tensor:
        """The tensor, on the CPU."""
        if self._ready is not None:
            self._ready.synchronize()
        return self._host
