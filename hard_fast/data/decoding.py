"""What training and evaluation share: how this process decodes, and how batches come out.

Letters: B pictures of this process's batch, H rows, W columns.
"""

import hashlib
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hard_fast.data.resizing import Resizer, Resizing
from hard_fast.data.sources import PicturesConfig, Samples
from hard_fast.types import Batch

_MAX_THREADS = 8


def run(pipeline: Any, device: torch.device) -> tuple[Any, np.ndarray]:
    """DALI's next pictures and their positions, in order with the device's current stream."""
    # Bound to that stream, DALI's memory is not used again before what the stream does with it.
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    pictures, index = pipeline.run(stream)
    return pictures, np.array(index.as_array())


def to_tensor(pictures: Any) -> Tensor:
    """DALI's batch as [B,3,H,W] uint8, channels_last memory, which is not copied."""
    return torch.from_dlpack(pictures.as_tensor()).permute(0, 3, 1, 2)


def to_batch(image: Resizing | Tensor, label: np.ndarray, device: torch.device) -> Batch:
    """The batch on the device, complete."""
    image = image if isinstance(image, Tensor) else image.result()
    label_B = torch.from_numpy(label)
    if device.type == "cuda":
        # From pinned memory, so that nobody waits for the copy.
        label_B = label_B.pin_memory().to(device, non_blocking=True)
    return Batch(image, label_B)


def build_resizer(
    config: PicturesConfig, num_threads: int, device: torch.device, resize_in_graph: bool
) -> Resizer | None:
    """What resizes outside DALI's graph, None where DALI does it."""
    return None if resize_in_graph or device.type == "cuda" else Resizer(config, num_threads)


def with_index(device: torch.device) -> torch.device:
    """The device, with the number of the current GPU where it has none."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def count_threads(config: PicturesConfig, device: torch.device, world_size: int) -> int:
    """Decoding threads: as configured, or this process's share of the cores it may use."""
    if config.threads is not None:
        return config.threads
    is_cuda = device.type == "cuda"
    num_local = min(world_size, torch.cuda.device_count()) if is_cuda else world_size
    return max(1, min(_MAX_THREADS, len(os.sched_getaffinity(0)) // num_local))


def name_of(samples: Samples, position: int) -> str:
    """What a person is told of a bad picture, also where its shard can no longer be read."""
    try:
        return samples.name(position)
    except (OSError, ValueError):
        path = samples.files[samples.file_of[position]]
        return f"{path} at byte {samples.offset[position]}"


def fingerprint(samples: Samples) -> str:
    """A hash that differs for another list, but not for the same files in another place."""
    found = hashlib.blake2b(digest_size=16)
    for column in samples[1:]:
        found.update(np.ascontiguousarray(column))
    return found.hexdigest()
