"""Processes of one run. The only module that touches torch.distributed."""

import datetime
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

_BUCKET_BYTES = 32 * 2**20


class World(NamedTuple):
    """Where this process stands: its global rank, how many there are, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the person."""
        return self.rank == 0


def join(device: str = "auto", timeout_s: float = 1800.0) -> World:
    """Join the process group that torchrun describes, or stand alone.

    Args:    device: `auto` (a GPU where there is one), `cpu` or `cuda`.
    Raises:  ValueError if `cuda` is asked for and there is none.
    """
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ValueError("device = 'cuda': torch sees no GPU here; use 'auto' or 'cpu'")
    use_cuda = has_cuda and device != "cpu"
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    target = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(target)
    if size > 1:
        dist.init_process_group(
            "nccl" if use_cuda else "gloo",
            timeout=datetime.timedelta(seconds=timeout_s),
            device_id=target if use_cuda else None,
        )
    return World(rank, size, target)


def is_main_process() -> bool:
    """Whether this process is rank 0, also before it joined a group."""
    return os.environ.get("RANK", "0") == "0"


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def mean_(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over the processes, in flat buckets of fixed order.

    Buckets are filled in the order given and reduced asynchronously, so the copy of the next
    bucket runs while the last one travels. Does nothing in a single process.
    """
    if not dist.is_initialized():
        return
    pending = []
    for bucket in _buckets(tensors):
        flat = torch.cat([t.reshape(-1) for t in bucket])
        pending.append((dist.all_reduce(flat, async_op=True), flat, bucket))
    for work, flat, bucket in pending:
        work.wait()
        flat.div_(dist.get_world_size())
        parts = flat.split([t.numel() for t in bucket])
        for tensor, part in zip(bucket, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def sum_(tensor: Tensor) -> Tensor:
    """The tensor, replaced by its sum over the processes."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def broadcast_module(module: nn.Module) -> None:
    """Give every process rank 0's parameters and buffers."""
    if dist.is_initialized():
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


def broadcast_object(value: Any) -> Any:
    """Rank 0's picklable value, on every process."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _buckets(tensors: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        num_bytes = tensor.numel() * tensor.element_size()
        if bucket and (size + num_bytes > _BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += num_bytes
    if bucket:
        yield bucket
