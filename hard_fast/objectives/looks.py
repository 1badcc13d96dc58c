"""What is left of the pictures that a learned augmentor made: the first signs that it is lost.

Letters: M images made, C channels, H rows, W columns.
"""

import torch
from torch import Tensor

from hard_fast.types import Outputs, Seen

# As many pictures of each process tell enough, and cost next to nothing.
_NUM_IMAGES = 32
# The contrast below which originals are no measure: a generator's are zeros.
_LEAST_CONTRAST = 0.02
# How far above chance a teacher's answers to originals must be before it can lose anything.
_LEAST_SURE = 0.3


def looks(seen: Seen, original: Tensor) -> dict[str, Tensor]:
    """Two logs, [] fp32 and detached, that are near 0 where an augmentor destroys its pictures.

    contrast: spread of the pixels within the made pictures, as a share of that in the originals.
    sure:     how far the teacher's answers to made pictures are above chance, as a share of that
              to the originals; 1 if those tell nothing. Left out where it does not see the clean.

    Args:    original: [M,C,H,W] uint8 or float in [0,1].
    Returns: nothing where a sample is a single number per channel.
    """
    made = seen.view.image
    if made.shape[2:].numel() == 1:
        return {}
    clean = contrast(original).clamp(min=_LEAST_CONTRAST)
    found = {"contrast": contrast(made) / clean}
    if seen.teacher is not None and seen.clean_teacher is not None:
        now, before = above_chance(seen.teacher), above_chance(seen.clean_teacher)
        found["sure"] = torch.where(before > _LEAST_SURE, now / before, 1.0)
    return found


def contrast(image: Tensor) -> Tensor:
    """[] fp32 mean standard deviation of a channel within a picture; 0 for plain colours.

    Args:    image: [M,C,H,W] uint8, or float in [0,1].
    """
    some = image.detach()[:_NUM_IMAGES]
    some = some / 255.0 if some.dtype == torch.uint8 else some.float()
    return some.std((2, 3), correction=0).mean()


def above_chance(outputs: Outputs) -> Tensor:
    """[] fp32 mean share of the most likely class, less that of a guess among all."""
    logits = outputs.logits_BK.detach().float()
    return logits.softmax(1).amax(1).mean() - 1.0 / logits.shape[1]
