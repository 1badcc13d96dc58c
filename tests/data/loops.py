"""A loader of a few small pictures, and what comes out of it."""

import io

import torch

from hard_fast.data.dali import TrainLoader
from hard_fast.data.sources import PicturesConfig, Samples
from hard_fast.types import Batch

CPU = torch.device("cpu")
NUM, BATCH = 14, 4


def build(samples: Samples, batch_size: int = BATCH, **options) -> TrainLoader:
    keys = {key: options.pop(key) for key in ("max_bad", "flip") if key in options}
    size = options.pop("size", 12)
    config = PicturesConfig(root="/some/root", size=size, threads=1, **keys)
    options = {"seed": 5, "device": CPU, **options}
    return TrainLoader(samples, config, batch_size=batch_size, **options)


def take(loader: TrainLoader, num: int) -> list[Batch]:
    return [loader.next_batch() for _ in range(num)]


def labels(batches: list[Batch]) -> list[list[int]]:
    return [batch.label.tolist() for batch in batches]


def same(some: list[Batch], others: list[Batch]) -> bool:
    return all(
        torch.equal(a.image, b.image) and torch.equal(a.label, b.label)
        for a, b in zip(some, others, strict=True)
    )


def saved(loader: TrainLoader) -> dict:
    """The state as a checkpoint gives it back."""
    buffer = io.BytesIO()
    torch.save(loader.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def growing(step: int) -> int:
    """Three steps of each of two smaller sizes; the first one ends with the epoch."""
    return (8, 10, 12)[min(step // 3, 2)]
