"""DALI's graphs from encoded pictures to batches, and the search for what it cannot decode.

One code for a GPU and for none. On a GPU a graph ends with finished pictures; without one it ends
with decoded ones, and `resizing` finishes them, for PyTorch resizes bytes on a CPU in a quarter of
the time that DALI takes, and to the same pixels as PIL.

Letters: B pictures of a batch, H rows, W columns, T tries to fit a crop into a picture.
"""

import re
from types import ModuleType
from typing import Any

import numpy as np
import torch

from hard_fast.data.feed import Feed, read_encoded
from hard_fast.data.order import MAX_RATIO, NUM_TRIES, Work
from hard_fast.data.resizing import shorter_side
from hard_fast.data.sources import PicturesConfig, Samples

# Share of the JPEGs that the hardware decoder takes where there is one, the GPU's cores and the
# threads doing the rest. DALI's default: 0.75 was faster on an A100 (7,000 pictures/s; 1.0 gave
# 5,000), 0.9 had the longer tail in DALI's pull request 6366.
HW_DECODER_LOAD = 0.65
# Room for the largest pictures of ImageNet, set aside once, as in MLPerf's ResNet-50 for DALI.
WIDTH_HINT_PX, HEIGHT_HINT_PX = 5980, 6430
# So few that DALI parses them in one thread, where an error is safe (see `_decoded`).
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
) -> Any:
    """A built pipeline of (crops, [B] int32 positions).

    Returns: uint8 HWC: square ones, mirrored where the plan says so, if the feed has a width;
             else each crop in its own size, for `resizing.Resizer`.
    """
    dali = import_dali()
    fn = dali.fn
    pipeline = _pipeline(batch_size, device, num_threads, config.prefetch)
    with pipeline:
        encoded, index, crop, *width = _inputs(feed, 3 if feed.width_at is None else 4)
        image, _ = _decoded(encoded, device, crop)
        if width:
            image = fn.resize(
                image,
                resize_x=width[0],
                resize_y=dali.math.abs(width[0]),
                interp_type=_interpolation(config),
                antialias=True,
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
    pipeline = _pipeline(batch_size, device, num_threads, config.prefetch)
    with pipeline:
        encoded, index = _inputs(feed, 2)
        image, shape_HWC = _decoded(encoded, device)
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
    samples: Samples, work: Work, device: torch.device, num_threads: int
) -> dict[int, str]:
    """Which pictures of a batch the device's decoder refuses, and why.

    They are decoded as the batch was, some together and, where that fails, in halves.
    """
    found: dict[int, str] = {}
    num = len(work.index)
    pieces = np.split(np.arange(num), range(_NUM_PROBED, num, _NUM_PROBED))
    pipeline = None
    while pieces:
        piece = pieces.pop()
        # DALI calls a pipeline that failed no longer valid, so each one fails once.
        pipeline = pipeline or _probe(samples, work.crop is not None, device, num_threads)
        given = {} if work.crop is None else {"crop": work.crop[piece]}
        try:
            pipeline.run(encoded=read_encoded(samples, work.index[piece]), **given)
        except RuntimeError as error:
            pipeline = None
            if len(piece) == 1:
                found[int(work.index[piece[0]])] = _reason(error)
            else:
                pieces += np.array_split(piece, 2)
    return found


def _probe(samples: Samples, has_crops: bool, device: torch.device, num_threads: int) -> Any:
    fn = import_dali().fn
    pipeline = _pipeline(_NUM_PROBED, device, num_threads, 1)
    with pipeline:
        encoded = fn.external_source(name="encoded")
        if not samples.offset.any():
            encoded = fn.io.file.read(encoded, dont_use_mmap=True)
        crop = fn.external_source(name="crop") if has_crops else None
        pipeline.set_outputs(_decoded(encoded, device, crop)[0])
    pipeline.build()
    return pipeline


def _reason(error: RuntimeError) -> str:
    """The line of DALI's message that says what happened."""
    text = str(error).partition("encountered:")[2] or str(error)
    reason = next((line.strip(" :") for line in text.splitlines() if line.strip()), "")
    # The number is that in the probe, not in the data set.
    reason = re.sub(r" sample #\d+", "", reason)
    return reason.replace("nvImageCodec failure", "no known picture format, nvImageCodec failure")


def _pipeline(batch_size: int, device: torch.device, num_threads: int, prefetch: int) -> Any:
    device_id = device.index if device.type == "cuda" else None
    return import_dali().Pipeline(batch_size, num_threads, device_id, prefetch_queue_depth=prefetch)


def _inputs(feed: Feed, num: int) -> list[Any]:
    """Nodes of encoded pictures, and of all else that the feed gives."""
    fn = import_dali().fn
    encoded, *rest = fn.external_source(feed, num_outputs=num, batch_info=True)
    if feed.has_paths:
        # A mapped file that shrinks or fails to be read would kill the process.
        encoded = fn.io.file.read(encoded, dont_use_mmap=True)
    return [encoded, *rest]


def _decoded(encoded: Any, device: torch.device, crop: Any = None) -> tuple[Any, Any]:
    """Nodes of pictures, whole or cropped as in `Work.crop`, and of the shapes of the whole ones.

    Where a header is not sound, the batch fails before it is decoded: DALI 2.4's decoders throw
    while their threads still work on the batch, which ends the process.
    """
    dali = import_dali()
    fn, types = dali.fn, dali.types
    shape_HWC = fn.peek_image_shape(encoded, adjust_orientation=False, dtype=types.INT32)
    if crop is not None:
        start, shape = _window(shape_HWC, crop)
        window = {"start": start, "shape": shape, "axes": [0, 1]}
        return fn.decoders.image_slice(encoded, **window, **_decoder(device)), shape_HWC
    # Nothing is changed or copied, but the decoder now has to wait for the shapes.
    nothing = 0 * fn.slice(shape_HWC, start=[0], shape=[1], axes=[0])
    encoded = fn.reshape(encoded, shape=encoded.shape(dtype=types.INT32) + nothing)
    return fn.decoders.image(encoded, **_decoder(device)), shape_HWC


def _window(shape_HWC: Any, crop: Any) -> tuple[Any, Any]:
    """Nodes of the first row and column, and of the height and width, of crops as in `Work.crop`.

    The first sides that fit count. Where none do, the crop is as large as its ratio allows.
    """
    dali = import_dali()
    fn, math, types = dali.fn, dali.math, dali.types
    old_HW = fn.slice(shape_HWC, start=[0], shape=[2], axes=[0])
    old_HW = fn.cast(old_HW, dtype=types.FLOAT)
    tries_2T = fn.slice(crop, start=[0], shape=[NUM_TRIES], axes=[1])
    side_2T = math.floor(tries_2T * math.sqrt(old_HW[0] * old_HW[1]) + 0.5)
    does_fit = fn.cast(side_2T <= fn.expand_dims(old_HW, axes=[1]), dtype=types.FLOAT)
    precedence_T = types.Constant(np.arange(NUM_TRIES, 0, -1, dtype=np.float32))
    score_T = fn.reductions.min(does_fit, axes=[0]) * precedence_T
    is_chosen = fn.cast(score_T == fn.reductions.max(score_T), dtype=types.FLOAT)
    # With no fit all are chosen, and their sum is beyond the limit.
    side_HW = fn.reductions.sum(side_2T * is_chosen, axes=[1])
    limit_HW = math.min(old_HW, math.floor(MAX_RATIO * fn.reductions.min(old_HW) + 0.5))
    side_HW = math.max(math.min(side_HW, limit_HW), 1.0)
    place_HW = fn.squeeze(fn.slice(crop, start=[NUM_TRIES], shape=[1], axes=[1]), axes=[1])
    # Rounding may take a place just below 1 to 1.
    start_HW = math.min(math.floor(place_HW * (old_HW - side_HW + 1)), old_HW - side_HW)
    return fn.cast(start_HW, dtype=types.INT32), fn.cast(side_HW, dtype=types.INT32)


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
