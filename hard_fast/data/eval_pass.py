"""Pictures for evaluation: every one exactly once, decoded while the networks work."""

import logging
from collections import deque
from collections.abc import Generator, Iterator

import numpy as np
import torch
from torch import Tensor

from hard_fast.data.decoding import (
    build_resizer,
    count_threads,
    name_of,
    run,
    to_batch,
    to_tensor,
    with_index,
)
from hard_fast.data.feed import Feed
from hard_fast.data.order import Work
from hard_fast.data.pipelines import eval_pipeline, find_unreadable
from hard_fast.data.resizing import Resizer, Resizing
from hard_fast.data.sources import PicturesConfig, Samples
from hard_fast.types import Batch

_log = logging.getLogger(__name__)


def eval_batches(
    samples: Samples,
    config: PicturesConfig,
    batch_size: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    *,
    resize_in_graph: bool = False,
) -> Iterator[Batch]:
    """Every sample of a part exactly once over all processes, in order and without padding.

    A picture that cannot be decoded is left out with a warning.

    Args:    batch_size: of one process; its last batch may be smaller, and it may get none at all.
             resize_in_graph: DALI resizes without a GPU too, as it does on one, more slowly.
    """
    assert batch_size >= 1
    num, device = len(samples.label), with_index(device)
    first, end = num * rank // world_size, num * (rank + 1) // world_size
    starts = range(first, end, batch_size)
    parts = [np.arange(start, min(start + batch_size, end), dtype=np.int32) for start in starts]
    num_threads = count_threads(config, device, world_size)
    resizer = build_resizer(config, num_threads, device, resize_in_graph)
    try:
        while parts:
            parts = yield from _eval_pass(parts, samples, config, device, num_threads, resizer)
    finally:
        if resizer is not None:
            resizer.close()


def _eval_pass(
    parts: list[np.ndarray],
    samples: Samples,
    config: PicturesConfig,
    device: torch.device,
    num_threads: int,
    resizer: Resizer | None,
) -> Generator[Batch, None, list[np.ndarray]]:
    """Batches of the parts until one cannot be decoded; returns what is left, without the bad."""
    feed = Feed(samples, lambda i: Work(parts[i]) if i < len(parts) else None)
    size = max(map(len, parts))
    pipeline = eval_pipeline(feed, config, size, device, num_threads, resize=resizer is None)
    left: list[np.ndarray] = []
    ahead: deque[tuple[Resizing | Tensor, np.ndarray]] = deque()
    try:
        for k, part in enumerate(parts):
            try:
                pictures, index = run(pipeline, device)
            except RuntimeError as error:
                bad = find_unreadable(samples, Work(part), device, num_threads)
                if not bad and k == 0:
                    raise error
                for i, reason in bad.items():
                    _log.warning("left out: %s: %s", name_of(samples, i), reason)
                good = part[~np.isin(part, list(bad))]
                left = ([good] if len(good) else []) + parts[k + 1 :]
                break
            assert np.array_equal(index, part), "DALI returned other samples than asked for"
            image = to_tensor(pictures) if resizer is None else resizer.centred(pictures)
            ahead.append((image, samples.label[index]))
            if resizer is None or len(ahead) > 1:
                yield to_batch(*ahead.popleft(), device)
        while ahead:
            yield to_batch(*ahead.popleft(), device)
    finally:
        feed.close()
    return left
