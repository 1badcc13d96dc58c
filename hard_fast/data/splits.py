"""Pictures held out of training, class by class, chosen by nothing but a seed and their names."""

import hashlib
from collections.abc import Sequence

import numpy as np


def split_held_out(
    names: Sequence[str],
    label: np.ndarray,
    class_names: Sequence[str],
    share: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the pictures that stay in training, and of those held out, both ascending.

    A class gives its rounded share, but never all it has. Classes too small for that give one
    picture each, as many of them as make up the share of all their pictures. Whether a picture
    is held out depends on its name and its class alone, so that other classes do not move it
    (save in classes that are too small, of which a few may change).

    Raises:  ValueError if nothing can be held out.
    """
    count = np.bincount(label, minlength=len(class_names))
    wanted = share * count
    num_held = np.floor(wanted + 0.5)
    small = np.flatnonzero((wanted < 0.5) & (count > 1))
    num_small = int(np.floor(wanted[small].sum() + 0.5))
    luck = np.array([_draw(seed, class_names[i]) for i in small], np.uint64)
    num_held[small[np.argsort(luck, kind="stable")[:num_small]]] = 1
    num_held = np.minimum(num_held, np.maximum(count - 1, 0))
    if not num_held.any():
        raise ValueError(
            f"data.val_share = {share}: holds out none of {len(label)} pictures; choose a larger "
            "share, or 0"
        )
    draws = np.array([_draw(seed, name) for name in names], np.uint64)
    order = np.lexsort((draws, label))
    rank = np.empty(len(label), np.int64)
    rank[order] = np.arange(len(label)) - np.repeat(np.cumsum(count) - count, count)
    is_held = rank < num_held[label]
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def _draw(seed: int, name: str) -> int:
    # A hash, not a generator: one more picture in a class moves none of the others' numbers.
    text = f"{seed}/{name}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
