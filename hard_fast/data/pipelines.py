"""DALI's graphs from encoded pictures to batches, and the search for what it cannot decode.

One code for a GPU and for none. On a GPU a graph ends with finished pictures; without one it ends
with decoded ones, and `resizing` finishes them, for PyTorch resizes bytes on a CPU in a quarter of
the time that DALI takes, and to the same pixels as PIL.

Letters: B pictures of a batch, H rows, W columns.
"""

from types import ModuleType
from typing import Any

import numpy as np
import torch

from hard_fast.data.feed import Feed, read_encoded
from hard_fast.data.resizing import shorter_side
from hard_fast.data.sources import PicturesConfig, Samples

# Share of the JPEGs that the hardware decoder takes where there is one, the GPU's cores and the
# threads doing the rest. DALI's default: 0.75 was faster on an A100 (7,000 pictures/s; 1.0 gave
# 5,000), 0.9 had the longer tail in DALI's pull request 6366.
HW_DECODER_LOAD = 0.65
# Room for the largest pictures of ImageNet, set aside once, as in MLPerf's ResNet-50 for DALI.
WIDTH_HINT_PX, HEIGHT_HINT_PX = 5980, 6430
_ASPECT = (3 / 4, 4 / 3)
_NUM_ATTEMPTS = 100
# So few that DALI parses them in one thread, where an error is safe (see `_checked`).
_NUM_PROBED = 8


def import_dali() -> ModuleType:
    """The package `nvidia.dali`, loaded only when pictures are.

    Raises:  ValueError, one line with what to install, if it is missing, broken or built for
             another CUDA than PyTorch.
    """
    wanted = (torch.version.cuda or "13").partition(".")[0]
    extra = "cuda12" if wanted == "12" else "cuda13"
    remedy = f'pip install "hard-fast[{extra}]"'
    try:
        import nvidia.dali as dali
        import nvidia.dali.fn
        import nvidia.dali.types  # noqa: F401
    except (ImportError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"data.kind = 'pictures': NVIDIA DALI cannot be loaded ({reason}); {remedy}"
        ) from None
    # The number is the version without its dots: 13.4.92 gives 13492.
    built = str(dali.__cuda_version__)[:2]
    if torch.cuda.is_available() and built != wanted:
        raise ValueError(
            f"data.kind = 'pictures': NVIDIA DALI is built for CUDA {built} and PyTorch for CUDA "
            f"{wanted}; pip uninstall nvidia-dali-cuda{built}0, then {remedy}"
        )
    return dali


def train_pipeline(
    feed: Feed,
    config: PicturesConfig,
    batch_size: int,
    device: torch.device,
    num_threads: int,
    *,
    seed: int,
    checkpoint: bytes | None = None,
) -> Any:
    """A built pipeline of (random crops, [B] int32 positions).

    Returns: uint8 HWC: [B,size,size,3], mirrored where the plan says so, if the feed has a width;
             else each crop in its own size, for `resizing.TrainResizer`.
    """
    dali = import_dali()
    fn = dali.fn
    pipeline = _pipeline(
        batch_size, device, num_threads, config.prefetch, seed, True, checkpoint=checkpoint
    )
    with pipeline:
        encoded, _, index, *width = _checked(feed)
        image = fn.decoders.image_random_crop(
            encoded,
            **_decoder(device),
            random_area=[config.min_scale, 1.0],
            random_aspect_ratio=list(_ASPECT),
            num_attempts=_NUM_ATTEMPTS,
            name="crop",
        )
        if width:
            image = fn.resize(
                image,
                resize_x=width[0],
                resize_y=float(config.size),
                interp_type=_interpolation(config),
                antialias=True,
                name="resize",
            )
        pipeline.set_outputs(image, index)
    pipeline.build()
    return pipeline


def eval_pipeline(
    feed: Feed,
    config: PicturesConfig,
    batch_size: int,
    device: torch.device,
    num_threads: int,
    *,
    resize: bool,
) -> Any:
    """A built pipeline of (pictures, [B] int32 positions), the last batch perhaps smaller.

    Sizes and corners are those of torchvision's Resize and CenterCrop, which timm uses: the longer
    side rounded down, half a pixel rounded to the even one.

    Returns: uint8 HWC: [B,size,size,3] if `resize`; else as decoded, for `resizing.EvalResizer`.
    """
    dali = import_dali()
    fn, types = dali.fn, dali.types
    pipeline = _pipeline(batch_size, device, num_threads, config.prefetch, 0, False)
    with pipeline:
        encoded, shape_HWC, index = _checked(feed)
        image = fn.decoders.image(encoded, **_decoder(device))
        if resize:
            old_HW = fn.slice(shape_HWC, start=[0], shape=[2], axes=[0])
            new_HW = old_HW * shorter_side(config) // fn.reductions.min(old_HW)
            image = fn.resize(
                image,
                size=fn.cast(new_HW, dtype=types.FLOAT),
                interp_type=_interpolation(config),
                antialias=True,
                subpixel_scale=False,
            )
            margin_HW = new_HW - config.size
            corner_HW = (margin_HW + ((margin_HW // 2) & 1)) // 2
            image = fn.slice(image, start=corner_HW, shape=[config.size] * 2, axes=[0, 1])
        pipeline.set_outputs(image, index)
    pipeline.build()
    return pipeline


def find_unreadable(
    samples: Samples, index: np.ndarray, device: torch.device, num_threads: int
) -> dict[int, str]:
    """Which of some pictures the device's decoder refuses, and why.

    They are decoded together and, where that fails, in halves.
    """
    found: dict[int, str] = {}
    pieces = [index[i : i + _NUM_PROBED] for i in range(0, len(index), _NUM_PROBED)]
    pipeline = None
    while pieces:
        piece = pieces.pop()
        # DALI calls a pipeline that failed no longer valid, so each one fails once.
        pipeline = pipeline or _probe(samples, device, num_threads)
        try:
            pipeline.run(encoded=read_encoded(samples, piece))
        except RuntimeError as error:
            pipeline = None
            if len(piece) == 1:
                found[int(piece[0])] = _reason(error)
            else:
                pieces += np.array_split(piece, 2)
    return found


def _probe(samples: Samples, device: torch.device, num_threads: int) -> Any:
    fn = import_dali().fn
    pipeline = _pipeline(_NUM_PROBED, device, num_threads, 1, 0, False)
    with pipeline:
        encoded = fn.external_source(name="encoded")
        if not samples.offset.any():
            encoded = fn.io.file.read(encoded, dont_use_mmap=True)
        pipeline.set_outputs(fn.decoders.image(encoded, **_decoder(device)))
    pipeline.build()
    return pipeline


def _reason(error: RuntimeError) -> str:
    """The line of DALI's message that says what happened."""
    text = str(error).partition("encountered:")[2] or str(error)
    reason = next((line.strip(" :") for line in text.splitlines() if line.strip()), "")
    return reason.replace("nvImageCodec failure", "no known picture format, nvImageCodec failure")


def _pipeline(
    batch_size: int,
    device: torch.device,
    num_threads: int,
    prefetch: int,
    seed: int,
    is_resumable: bool,
    **options: Any,
) -> Any:
    return import_dali().Pipeline(
        batch_size,
        num_threads,
        device.index if device.type == "cuda" else None,
        seed=seed,
        prefetch_queue_depth=prefetch,
        enable_checkpointing=is_resumable,
        **options,
    )


def _checked(feed: Feed) -> Any:
    """Nodes of encoded pictures whose headers are sound, their shapes, and the feed's other nodes.

    Where a header is not, the batch fails here: DALI 2.4's decoders throw while their threads still
    work on the batch, which ends the process.
    """
    dali = import_dali()
    fn, types = dali.fn, dali.types
    num = 2 if feed.width_px is None else 3
    encoded, *rest = fn.external_source(feed, num_outputs=num, batch_info=True)
    if feed.has_paths:
        # A mapped file that shrinks or fails to be read would kill the process.
        encoded = fn.io.file.read(encoded, dont_use_mmap=True, name="read")
    shape_HWC = fn.peek_image_shape(encoded, adjust_orientation=False, dtype=types.INT32)
    # Nothing is changed or copied, but the decoder now has to wait for the shapes.
    nothing = 0 * fn.slice(shape_HWC, start=[0], shape=[1], axes=[0])
    encoded = fn.reshape(encoded, shape=encoded.shape(dtype=types.INT32) + nothing)
    return encoded, shape_HWC, *rest


def _decoder(device: torch.device) -> dict[str, Any]:
    # EXIF orientation is not applied, as in timm. A CPU does not look at the last three.
    return {
        "device": "mixed" if device.type == "cuda" else "cpu",
        "adjust_orientation": False,
        "hw_decoder_load": HW_DECODER_LOAD,
        "preallocate_width_hint": WIDTH_HINT_PX,
        "preallocate_height_hint": HEIGHT_HINT_PX,
    }


def _interpolation(config: PicturesConfig) -> Any:
    types = import_dali().types
    return {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}[config.interpolation]
