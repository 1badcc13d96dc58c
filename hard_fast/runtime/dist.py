"""Processes of one run. Only it, parallel.py and pulse.py touch torch.distributed."""

import atexit
import collections
import datetime
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, TypeVar

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from hard_fast.runtime import pulse
from hard_fast.runtime.configfile import Config
from hard_fast.runtime.rendezvous import check_gpu, meet, read_place, was_restarted

Item = TypeVar("Item")
GradientDtype = Literal["fp32", "bf16"]

_BUCKET_BYTES = 32 * 2**20
# NCCL ends its process without a word, so whoever names the missing must come first, s.
_NCCL_LATER_S = 60.0


class DistributedConfig(Config):
    """How the processes of a run share their work. Nothing of it matters in a single process."""

    overlap: bool = False
    """Average the student's gradients during the backward pass instead of after it; the student
    then compiles apart from augmentor and teacher, and the loss must reach all of its weights."""
    gradient_dtype: GradientDtype = "fp32"
    """What gradients travel in; `bf16` halves the bytes and rounds to 8 bits."""
    teacher: Literal["replicated", "sharded"] = "replicated"
    """`sharded`: each process holds a part of the teacher's weights and fetches the rest layer by
    layer, for a teacher that does not fit beside the rest."""
    sync_batchnorm: bool = False
    """BatchNorm statistics of the global batch instead of each process's own; GPUs only."""
    timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    """How long a process waits for the others, wherever they meet, before it ends and names who is
    missing, s. What all do together, such as an evaluation, may take longer; what one does alone
    may not: read data, compile a phase, write a checkpoint."""


class World(NamedTuple):
    """Where this process stands: its global rank, how many there are, and its device.

    is_restart:  whether the launcher started the run's processes again after one had died.
    """

    rank: int
    size: int
    device: torch.device
    is_restart: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the person."""
        return self.rank == 0


def join(device: str = "auto", timeout_s: float = 1800.0) -> World:
    """Join the process group that torchrun describes, or one that is there, or stand alone.

    Args:    device: `auto` (a GPU where there is one), `cpu` or `cuda`.
             timeout_s: how long a process waits for the others before it ends with an error, s.
    Raises:  ValueError if `cuda` is asked for and there is none, if the environment's numbers
             make no sense, and if this node has fewer GPUs than processes.
    """
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ValueError("device = 'cuda': torch sees no GPU here; use 'auto' or 'cpu'")
    use_cuda = has_cuda and device != "cpu"
    target = torch.device("cpu")
    if dist.is_initialized():
        target = torch.device("cuda", torch.cuda.current_device()) if use_cuda else target
        return World(dist.get_rank(), dist.get_world_size(), target)
    rank, size, local_rank = read_place()
    if use_cuda:
        check_gpu(local_rank, torch.cuda.device_count())
        target = torch.device("cuda", local_rank)
        torch.cuda.set_device(target)
    if size == 1:
        return World(rank, size, target, was_restarted())
    timeout = datetime.timedelta(seconds=timeout_s)
    pulse.begin(rank, size, timeout_s)
    store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timeout))
    store.set_timeout(timeout)
    meeting = meet(store, rank, size, is_restart=was_restarted(), timeout_s=timeout_s)
    store = dist.PrefixStore(meeting.name, store)
    pulse.begin(rank, size, timeout_s, store)
    dist.init_process_group(
        "nccl" if use_cuda else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=timeout + datetime.timedelta(seconds=_NCCL_LATER_S if use_cuda else 0.0),
        device_id=target if use_cuda else None,
    )
    atexit.register(leave)
    return World(rank, size, target, meeting.is_restart)


def is_main_process() -> bool:
    """Whether this process is rank 0, also before it joined a group."""
    return os.environ.get("RANK", "0") == "0"


def who() -> str:
    """` on rank N` where there are several processes, also before they joined a group."""
    return f" on rank {os.environ['RANK']}" if "RANK" in os.environ else ""


def leave() -> None:
    """Leave the process group, if there is one."""
    pulse.end()
    if dist.is_initialized():
        dist.destroy_process_group()


def end(code: int) -> NoReturn:
    """Leave and end this process; under torchrun without the interpreter's end, all written.

    A thread of the group that outlives `leave` and lets go of a tensor while the interpreter goes
    down aborts its process ("terminate called without an active exception"), and torchrun then
    ends the others, though they may still be writing.

    Source:  pytorch/pytorch#179291, pytorch/pytorch#190489.
    """
    leave()
    if "RANK" in os.environ:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def barrier() -> None:
    """Wait, on the host, until every process has come here."""
    pulse.meet()


def mean_(
    tensors: Sequence[Tensor],
    dtype: torch.dtype | None = None,
    exact: Sequence[Tensor] = (),
) -> None:
    """Replace each tensor by its mean over the processes, in flat buckets of fixed order.

    Buckets are filled in the order given and reduced asynchronously, so the copy of the next
    bucket runs while the last one travels. They are allocated anew: kept ones would add to the
    peak of memory, which lies in the forward pass. Does nothing in a single process.

    Args:    tensors, exact: floats; the same shapes and memory layouts in every process.
             dtype: what fp32 `tensors` travel in; None, and always for `exact`: their own.
    """
    if not dist.is_initialized():
        return
    num_processes = dist.get_world_size()
    pending = []
    for bucket, travel_dtype in _buckets(tensors, dtype, exact):
        sizes = [t.numel() for t in bucket]
        flat = torch.empty(sum(sizes), dtype=travel_dtype, device=bucket[0].device)
        parts = [_shaped(p, t) for p, t in zip(flat.split(sizes), bucket, strict=True)]
        torch._foreach_copy_(parts, bucket)
        # Divided before the sum, which then cannot overflow.
        flat.div_(num_processes)
        pending.append((dist.all_reduce(flat, async_op=True), parts, bucket))
    for work, parts, bucket in pending:
        work.wait()
        torch._foreach_copy_(bucket, parts)


class Averager:
    """Averages gradients over the processes and knows what that costs.

    Args:    gradient_dtype: what gradients travel in.
    """

    def __init__(self, world: World, gradient_dtype: GradientDtype = "fp32") -> None:
        self._dtype = torch.bfloat16 if gradient_dtype == "bf16" else None
        self._use_events = world.device.type == "cuda"
        self._events: collections.deque[tuple[torch.cuda.Event, torch.cuda.Event]] = (
            collections.deque()
        )
        self._seconds = 0.0

    def mean_(self, gradients: Sequence[Tensor], exact: Sequence[Tensor] = ()) -> None:
        """Replace gradients by their mean over the processes; `exact` ones travel unrounded."""
        if not dist.is_initialized():
            return
        if not self._use_events:
            since = time.perf_counter()
            mean_(gradients, self._dtype, exact)
            self._seconds += time.perf_counter() - since
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        mean_(gradients, self._dtype, exact)
        end.record()
        self._events.append((start, end))
        self._collect()

    def seconds(self) -> float:
        """Seconds the device spent averaging since the last call, waiting for others included.

        Does not wait for the device: what still runs counts the next time.
        """
        self._collect()
        found, self._seconds = self._seconds, 0.0
        return found

    def _collect(self) -> None:
        while self._events and self._events[0][1].query():
            start, end = self._events.popleft()
            self._seconds += start.elapsed_time(end) / 1000.0


def sum_(tensor: Tensor) -> Tensor:
    """The tensor, replaced by its sum over the processes."""
    if dist.is_initialized():
        pulse.meet()
        dist.all_reduce(tensor)
    return tensor


def in_step(items: Iterable[Item]) -> Iterator[Item | None]:
    """The items, then None for as long as another process still has some.

    For networks that meet the other processes in their forward pass: whoever has no batch left
    must still call them as often as the others do. Waits for the device once an item.
    """
    if not dist.is_initialized():
        yield from items
        return
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    rest = iter(items)
    while True:
        item = next(rest, None)
        if sum_(torch.tensor(float(item is not None), device=device)).item() == 0.0:
            return
        yield item


def broadcast_module(module: nn.Module) -> None:
    """Give every process rank 0's parameters and buffers."""
    if dist.is_initialized():
        pulse.meet()
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


def broadcast_object(value: Any) -> Any:
    """Rank 0's picklable value, on every process."""
    if not dist.is_initialized():
        return value
    pulse.meet()
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """The picklable values of all processes, by rank, on every process."""
    if not dist.is_initialized():
        return [value]
    pulse.meet()
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def _buckets(
    tensors: Sequence[Tensor], dtype: torch.dtype | None, exact: Sequence[Tensor]
) -> Iterator[tuple[list[Tensor], torch.dtype]]:
    """Neighbours that travel in one dtype, at most `_BUCKET_BYTES` unless one alone is larger."""
    narrow = [(t, dtype if dtype and t.dtype == torch.float32 else t.dtype) for t in tensors]
    bucket: list[Tensor] = []
    kind, num_bytes = None, 0
    for tensor, travel_dtype in [*narrow, *((t, t.dtype) for t in exact)]:
        size = tensor.numel() * travel_dtype.itemsize
        if bucket and (num_bytes + size > _BUCKET_BYTES or travel_dtype != kind):
            yield bucket, kind
            bucket, num_bytes = [], 0
        bucket.append(tensor)
        kind = travel_dtype
        num_bytes += size
    if bucket:
        yield bucket, kind


def _shaped(part: Tensor, tensor: Tensor) -> Tensor:
    """A piece of a flat buffer in a tensor's shape, and in its memory order if channels_last."""
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return part.as_strided(tensor.shape, tensor.stride())
    return part.view(tensor.shape)
