"""Pictures of a run at work: images and what the augmentor makes of them."""

from functools import partial
from pathlib import Path

import torch
from torch import nn

from hard_fast.augment.mix import PatchMix
from hard_fast.data import Part
from hard_fast.report.figures import write_gallery
from hard_fast.report.learned import write_patch_map
from hard_fast.step import DistillStep
from hard_fast.types import Batch, Noise, Phase, View

_NUM_IMAGES = 10


@torch.no_grad()
def save_pictures(
    run_dir: Path, step: int, net: DistillStep, part: Part, generator: torch.Generator
) -> Path | None:
    """Write gallery/step_N.png, and patches/step_N.png where patches are mixed.

    Args:    part: its first images are shown. generator: of the augmentor's noise.
    Returns: the gallery's path; None where the part holds no pictures to show.
    """
    group = net.augmentor.group
    if not part.is_picture or part.num < group:
        return None
    batch = next(part.batches(max(group, _NUM_IMAGES // group * group)), None)
    if batch is None:  # No picture of it can be read, which is said where they are counted.
        return None
    batch = Batch(*(value[: len(batch.label) // group * group] for value in batch))
    noise = net.augmentor.draw_noise(batch.image.shape, generator)
    name = f"step_{step:08d}.png"
    mixers = [module for module in net.augmentor.modules() if isinstance(module, PatchMix)]
    map_patches = partial(_map_patches, run_dir / "patches" / name)
    hooks = [mixer.register_forward_hook(map_patches) for mixer in mixers]
    # A look must not move BatchNorm statistics.
    was_training = net.augmentor.training
    net.augmentor.eval()
    try:
        made = net.make_view(Phase.AUGMENTOR, batch, noise).image
    finally:
        net.augmentor.train(was_training)
        for hook in hooks:
            hook.remove()
    path = run_dir / "gallery" / name
    # Where several images became one, the first of each group stands for it; of copies the first.
    made = made[: len(batch.image)]
    write_gallery(path, batch.image[:: len(batch.image) // len(made)], made)
    return path


def _map_patches(path: Path, mixer: nn.Module, inputs: tuple[View, Noise], made: View) -> None:
    """Show which image won each patch, with the images as they came to the mixer."""
    image, noise = inputs[0].image, inputs[1]
    write_patch_map(path, image, made.image, mixer.weigh(image, noise["query"]))
