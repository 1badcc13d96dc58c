"""`affine_mix` on a GPU, in Triton: a kernel for each direction, nothing kept between them.

Letters: N images given, M images made, G images mixed into one, k = m * G + g one of those mixed,
C channels, CHUNK of them at a time, H rows, W columns, HP x WP patches; PIXEL and CHANNEL are the
steps from one to the next. `geometry` says what cells are, `sampling` how images are read.
"""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hard_kernels import _backend
from hard_kernels.affine_mix import geometry, reference, sampling

# A thread does four pixels at a time, or eight. Given a limit of registers, the assembler uses it
# to have all loads of a tile under way at once; without one it often waits for each pixel's.
FORWARD_CONFIGS = [
    triton.Config({"TILE_H": 8}, num_warps=2, maxnreg=112),
    triton.Config({"TILE_H": 4}, num_warps=1, maxnreg=112),
    triton.Config({"TILE_H": 8}, num_warps=1, maxnreg=224),
    triton.Config({"TILE_H": 16}, num_warps=4, maxnreg=96),
]
BACKWARD_CONFIGS = [
    triton.Config({"TILE_H": 4}, num_warps=1, maxnreg=160),
    triton.Config({"TILE_H": 8}, num_warps=2, maxnreg=128),
    triton.Config({"TILE_H": 8}, num_warps=1, maxnreg=240),
    triton.Config({"TILE_H": 16}, num_warps=4, maxnreg=128),
]
# The interpreter cannot time; the largest tile takes it the fewest steps.
TRIED = slice(-1, None) if _backend.is_interpreted() else slice(None)


@triton.autotune(
    FORWARD_CONFIGS[TRIED],
    key=["G", "C", "H", "W", "HP", "WP", "PADDING", "PIXEL"],
    cache_results=True,
)
@triton.jit(do_not_specialize=["num_images"])
def _forward(
    out, image, theta, weight, index, num_images,
    G: tl.constexpr, C: tl.constexpr, CHUNK: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    HP: tl.constexpr, WP: tl.constexpr, PADDING: tl.constexpr, PIXEL: tl.constexpr,
    CHANNEL: tl.constexpr, BLOCKS: tl.constexpr, BLOCK_H: tl.constexpr,
    STRIPS: tl.constexpr, TILE_W: tl.constexpr, TILE_H: tl.constexpr,
):  # fmt: skip
    """CHUNK channels of a block, TILE_W wide and BLOCK_H high, of an image made."""
    part = tl.program_id(0)
    channel = part % (C // CHUNK) * CHUNK
    strip = part // (C // CHUNK) % STRIPS * TILE_W
    block = part // (C // CHUNK * STRIPS) % BLOCKS * BLOCK_H
    m = (part // (C // CHUNK * STRIPS * BLOCKS)).to(tl.int64)
    image += channel * CHANNEL
    out += m * (C * H * W) + channel

    # A warp is eight pixels wide and four high: few lines of memory, also where they are turned.
    lane = tl.arange(0, TILE_H * TILE_W)
    w, is_column = geometry.place(strip + lane % 8 + lane // (8 * TILE_H) * 8, W, 1, W, TILE_W)
    left, right = geometry.span(strip, strip + TILE_W, W, 1, W, TILE_W)
    for step in range(BLOCK_H // TILE_H):
        slot = block + step * TILE_H
        h, is_row = geometry.place(slot + lane // 8 % TILE_H, H, 1, H, BLOCK_H)
        top, bottom = geometry.span(slot, slot + TILE_H, H, 1, H, BLOCK_H)
        sums = ()
        for _ in tl.static_range(CHUNK):
            sums += (tl.zeros([TILE_H * TILE_W], tl.float32),)
        for g in range(G):
            k = m * G + g
            n, is_known = sampling.find(index, k, num_images)
            source = image + n * (C * H * W)
            weights = sampling.weigh(weight, k, h, w, H, W, HP, WP)
            if theta is None:
                sums = sampling.copy(sums, source, h, w, weights, is_known, H, W, PIXEL, CHANNEL)
            else:
                to_x, to_y = geometry.matrix(theta + k * 6, is_known, H, W)
                x = geometry.along(to_x, geometry.centred(w, W), geometry.centred(h, H))
                y = geometry.along(to_y, geometry.centred(w, W), geometry.centred(h, H))
                # Most tiles lie inside, and need no masks.
                if geometry.is_inside(to_x, to_y, left, right, top, bottom, H, W):
                    sums = sampling.warp(sums, source, x, y, weights, H, W, PIXEL, CHANNEL, None)
                else:
                    sums = sampling.warp(sums, source, x, y, weights, H, W, PIXEL, CHANNEL, PADDING)
        sampling.store(out + (h * W + w) * C, sums, is_row & is_column, image)


@triton.autotune(
    BACKWARD_CONFIGS[TRIED],
    key=["G", "C", "H", "W", "HP", "WP", "PADDING", "PIXEL", "GRAD_PIXEL", "CELL_H", "CELL_W"],
    reset_to_zero=["sink"],
    cache_results=True,
)
@triton.jit(do_not_specialize=["num_images"])
def _backward(
    sink, theta_parts, weight_parts, grad, image, theta, weight, index, num_images,
    G: tl.constexpr, C: tl.constexpr, CHUNK: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    HP: tl.constexpr, WP: tl.constexpr, PADDING: tl.constexpr, PIXEL: tl.constexpr,
    CHANNEL: tl.constexpr, GRAD_PIXEL: tl.constexpr, GRAD_CHANNEL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CELL_H: tl.constexpr, CELL_W: tl.constexpr,
    BLOCKS: tl.constexpr, BLOCK_H: tl.constexpr, STRIPS: tl.constexpr, TILE_W: tl.constexpr,
    TILE_H: tl.constexpr,
):  # fmt: skip
    """CHUNK channels of a block, TILE_W wide and BLOCK_H high, of one image that is mixed in.

    Sums for theta stay in registers down the block, each cell's is stored when it is complete.
    """
    UNIT: tl.constexpr = sampling.BYTE_UNIT if image.dtype.element_ty == tl.uint8 else 1.0
    LANES: tl.constexpr = 8 if CELL_W > 8 else CELL_W
    WIDE: tl.constexpr = TILE_W // CELL_W
    PART_H: tl.constexpr = CELL_H if CELL_H < TILE_H else TILE_H
    part = tl.program_id(0)
    chunk = part % (C // CHUNK)
    strip = part // (C // CHUNK) % STRIPS * TILE_W
    block = part // (C // CHUNK * STRIPS) % BLOCKS * BLOCK_H
    k = (part // (C // CHUNK * STRIPS * BLOCKS)).to(tl.int64)
    n, is_known = sampling.find(index, k, num_images)
    rows = None if theta is None else geometry.matrix(theta + k * 6, is_known, H, W)
    image += n * (C * H * W) + chunk * (CHUNK * CHANNEL)
    grad += k // G * (C * H * W) + chunk * (CHUNK * GRAD_CHANNEL)
    sink = None if sink is None else sink + (n * (C * H * W) + chunk * CHUNK)

    # A cell's pixels are neighbours in `lane`, and a warp is eight of them wide where it can be.
    lane = tl.arange(0, TILE_H * TILE_W)
    cell, inside = lane // (PART_H * CELL_W), lane % (PART_H * CELL_W)
    column = cell % WIDE * CELL_W + inside % LANES + inside // (LANES * PART_H) * LANES
    row = cell // WIDE * CELL_H + inside // LANES % PART_H
    w, is_column = geometry.place(strip + column, W, COLUMNS, CELL_W, TILE_W)
    left, right = geometry.span(strip, strip + TILE_W, W, COLUMNS, CELL_W, TILE_W)
    zero = tl.zeros([TILE_H * TILE_W], tl.float32)
    sums, values = (zero, zero, zero, zero), zero
    for step in range(BLOCK_H // TILE_H):
        slot = block + step * TILE_H
        h, is_row = geometry.place(slot + row, H, ROWS, CELL_H, BLOCK_H)
        top, bottom = geometry.span(slot, slot + TILE_H, H, ROWS, CELL_H, BLOCK_H)
        weights = sampling.weigh(weight, k, h, w, H, W, HP, WP)
        by_x, by_y, value = sampling.differentiate(
            sink, grad, image, rows, weights, h, w, left, right, top, bottom,
            is_row & is_column, is_known,
            C, CHUNK, H, W, PADDING, PIXEL, CHANNEL, GRAD_PIXEL, GRAD_CHANNEL,
        )  # fmt: skip
        high = geometry.centred(h, H)
        by_xh, by_yh = tl.fma(by_x, high, sums[1]), tl.fma(by_y, high, sums[3])
        sums = (sums[0] + by_x, by_xh, sums[2] + by_y, by_yh)
        if weight_parts is not None:
            values += value
            if (slot + TILE_H) % CELL_H == 0:
                sampling.store_weight(
                    weight_parts + (k * (C // CHUNK) + chunk) * (ROWS * COLUMNS), values, slot,
                    strip, ROWS, COLUMNS, CELL_H, CELL_W, TILE_H, TILE_W, UNIT,
                )  # fmt: skip
                values = zero
    if theta_parts is not None:
        sampling.store_theta(theta_parts + part.to(tl.int64) * 6, sums, w, UNIT, H, W)


def forward(
    image: Tensor,
    theta: Tensor | None,
    weight: Tensor | None,
    index: Tensor | None,
    padding: str,
    out_dtype: torch.dtype,
) -> Tensor:
    """See `op.affine_mix`; arguments are taken as checked."""
    out = reference.new_output(image, index, out_dtype)
    image, shape = _describe(image, weight, index, padding)
    block_h, tile_w = _snuggest(shape["H"], (32, 16)), _snuggest(shape["W"], (32, 16))
    blocks, strips = triton.cdiv(shape["H"], block_h), triton.cdiv(shape["W"], tile_w)
    shape |= {"BLOCKS": blocks, "BLOCK_H": block_h, "STRIPS": strips, "TILE_W": tile_w}
    num_programs = out.shape[0] * blocks * strips * (shape["C"] // shape["CHUNK"])
    _launch(_forward, num_programs, [out], image, [theta, weight, index], shape)
    return out


def backward(
    grad: Tensor,
    image: Tensor,
    theta: Tensor | None,
    weight: Tensor | None,
    index: Tensor | None,
    padding: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.backward`.

    Raises:  RuntimeError under `torch.use_deterministic_algorithms`, if the image's is wanted.
    """
    grad_image, grad_theta, grad_weight = reference.new_gradients(image, theta, weight, needs)
    sink = theta_parts = weight_parts = None
    if needs[0]:
        _refuse_if_deterministic()
        is_single = image.dtype == torch.float32
        sink = grad_image if is_single else reference.new_output(image, None, torch.float32)
        sink.zero_()
    image, shape = _describe(image, weight, index, padding)
    grad, shape["GRAD_PIXEL"], shape["GRAD_CHANNEL"] = _lay_out(grad)
    rows, cell_h = _cut(shape["H"], shape["HP"] if needs[2] else 1)
    columns, cell_w = _cut(shape["W"], shape["WP"] if needs[2] else 1)
    block_h = _snuggest(rows * cell_h, range(128, 0, -16))
    tile_w = _snuggest(columns * cell_w, (32, 16))
    blocks, strips = triton.cdiv(rows * cell_h, block_h), triton.cdiv(columns * cell_w, tile_w)
    shape |= {"ROWS": rows, "COLUMNS": columns, "CELL_H": cell_h, "CELL_W": cell_w}
    shape |= {"BLOCKS": blocks, "BLOCK_H": block_h, "STRIPS": strips, "TILE_W": tile_w}
    num_mixed, num_chunks = grad.shape[0] * shape["G"], shape["C"] // shape["CHUNK"]
    num_parts = blocks * strips * num_chunks
    if needs[1]:
        theta_parts = theta.new_empty(num_mixed, num_parts, 6)
    if needs[2]:
        weight_parts = weight.new_empty(num_mixed, num_chunks, rows, columns)
    tensors = [sink, theta_parts, weight_parts, grad]
    _launch(_backward, num_mixed * num_parts, tensors, image, [theta, weight, index], shape)
    if needs[0] and sink is not grad_image:
        grad_image.copy_(sink)
    if needs[1]:
        torch.sum(theta_parts, 1, out=grad_theta.view(num_mixed, 6))
    if needs[2]:
        split = (shape["HP"], rows // shape["HP"], shape["WP"], columns // shape["WP"])
        parts = weight_parts.view(num_mixed, num_chunks, *split)
        torch.sum(parts, (1, 3, 5), out=grad_weight.view(num_mixed, *weight.shape[2:]))
    return grad_image, grad_theta, grad_weight


def _describe(
    image: Tensor, weight: Tensor | None, index: Tensor | None, padding: str
) -> tuple[Tensor, dict[str, Any]]:
    """The image in a layout that the kernels know, and what they are compiled for."""
    image, pixel, channel = _lay_out(image)
    channels, height, width = image.shape[1:]
    patches = (1, 1) if weight is None else weight.shape[2:]
    if max(channels * height * width, height * patches[0], width * patches[1]) >= 2**31:
        raise ValueError(f"image: too large for 32-bit positions: {list(image.shape)}")
    chunk = next(size for size in (4, 3, 2, 1) if channels % size == 0)
    shape = {"G": 1 if index is None else index.shape[1], "C": channels, "CHUNK": chunk}
    shape |= {"H": height, "W": width, "HP": patches[0], "WP": patches[1]}
    shape |= {"PADDING": reference.PADDING_CODES[padding], "PIXEL": pixel, "CHANNEL": channel}
    return image, shape


def _lay_out(image: Tensor) -> tuple[Tensor, int, int]:
    """The tensor, contiguous or channels_last, and the steps between its pixels and channels."""
    if image.is_contiguous(memory_format=torch.channels_last):
        return image, image.shape[1], 1
    if image.is_contiguous():
        return image, 1, image.shape[2] * image.shape[3]
    return image.contiguous(memory_format=torch.channels_last), image.shape[1], 1


def _cut(size: int, num_patches: int) -> tuple[int, int]:
    """How many cells, each in one patch, cut a size, and the power of two that the longest fits."""
    longest = triton.cdiv(size, num_patches)
    if longest <= 8:
        return num_patches, triton.next_power_of_2(longest)
    length = _snuggest(longest, (16, 8))
    return num_patches * triton.cdiv(longest, length), length


def _snuggest(size: int, lengths: Iterable[int]) -> int:
    """The first of the lengths whose multiples exceed the size by the least."""
    return min(lengths, key=lambda length: triton.cdiv(size, length) * length)


def _launch(
    kernel: Any,
    num_programs: int,
    tensors: list[Tensor | None],
    image: Tensor,
    mixture: list[Tensor | None],
    constants: dict[str, Any],
) -> None:
    if num_programs == 0:
        return
    if torch.are_deterministic_algorithms_enabled():
        # Another config sums in another order, and not every machine finds the same one fastest.
        constants = constants | kernel.configs[0].all_kwargs()
        kernel = kernel.fn
    mixture = [None if tensor is None else tensor.contiguous() for tensor in mixture]
    with torch.cuda.device_of(image):
        kernel[(num_programs,)](
            *tensors, image, *mixture, image.shape[0], **constants, enable_fp_fusion=True
        )


def _refuse_if_deterministic() -> None:
    if not torch.are_deterministic_algorithms_enabled():
        return
    message = "affine_mix: the image's gradient is summed by atomics, in no fixed order"
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)
