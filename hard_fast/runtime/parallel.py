"""Networks over several processes: gradients averaged on the way back, weights held in parts."""

from collections.abc import Iterator

import torch
from torch import nn

from hard_fast.runtime.dist import GradientDtype, World

# A smaller block is not worth a message of its own; it travels with the rest of the network.
_MIN_BLOCK_BYTES = 2**20


def overlapped(
    student: nn.Module, world: World, gradient_dtype: GradientDtype = "fp32"
) -> nn.parallel.DistributedDataParallel:
    """The student under DDP, which averages its gradients while the backward pass still runs.

    All that is ever to learn must require gradients now, and backward must reach all of it. Call
    the result only where a backward pass through the student's weights follows or gradients are
    off; where the student is frozen call the bare module instead, since DDP would wait for
    gradients that never come. While gradients accumulate, forward and backward of all but the
    last part belong inside `no_sync()`. BatchNorm statistics stay each process's own.

    Args:    student: on its device, with the same values in every process of the group.
             gradient_dtype: what gradients travel in.
    """
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

    wrapped = nn.parallel.DistributedDataParallel(
        student,
        device_ids=[world.device.index] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )
    # As an attribute, since the argument's name changed between versions of PyTorch.
    wrapped.broadcast_buffers = False
    if gradient_dtype == "bf16":
        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped


def shard_(module: nn.Module, world: World) -> None:
    """Leave each process its part of a frozen network's weights, in place.

    The weights of a block are fetched from the others when the network comes to it, and dropped
    after it; where gradient flows to the input, once more on the way back. So all processes call
    the network equally often (see `dist.in_step`), and outside of compiled regions. Weights lose
    their channels_last layout, which FSDP2 does not know. Does nothing in a single process.

    Args:    module: on its device, the same values in every process, one dtype in each block.
    """
    if world.size == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()
    # A single number cannot be divided.
    whole = {p for p in module.parameters() if p.dim() == 0}
    for part in [*_blocks(module), module]:
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=whole)


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard_` left this process only its part of the weights."""
    if not torch.distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def sync_batchnorm(module: nn.Module, world: World) -> nn.Module:
    """The module with BatchNorm layers that share their statistics; as it is in one process.

    Each of them waits for the GPU in the forward pass.

    Raises:  ValueError on a CPU, for which PyTorch has no such layer.
    """
    if world.size == 1:
        return module
    if world.device.type != "cuda":
        raise ValueError(
            "distributed.sync_batchnorm = true: needs GPUs, and this run is on the CPU; leave it "
            "false"
        )
    # Not PyTorch's own function, which drops the activation inside timm's BatchNormAct2d.
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(module)


def _blocks(module: nn.Module, is_list: bool = False) -> Iterator[nn.Module]:
    """The members of the network's lists of layers that are large enough to travel alone."""
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from _blocks(child, is_list=True)
        elif not is_list:
            yield from _blocks(child)
        elif _num_bytes(child) >= _MIN_BLOCK_BYTES:
            yield child


def _num_bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())
