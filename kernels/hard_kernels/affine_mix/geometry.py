"""Where pixels lie, for the Triton kernels: functions of coordinates that touch no image.

Letters: H rows, W columns, SIZE either; (x, y) a column and row of the input in pixels, whole at
pixel centres; (w, h) a column and row of the output, counted from the image's centre.
COUNT cells cut a SIZE without gaps, as evenly as they can. Each has LENGTH slots, at least as many
as the longest cell has rows (or columns); slots are numbered through, and the last may be unused.
"""

import triton
import triton.language as tl

from hard_kernels.affine_mix import reference

# A PADDING of None says that all four neighbours are known to exist.
ZEROS = tl.constexpr(reference.PADDING_CODES["zeros"])
REFLECTION = tl.constexpr(reference.PADDING_CODES["reflection"])


@triton.jit
def first(cell, SIZE: tl.constexpr, COUNT: tl.constexpr):
    """The first row (or column) of a cell: ceil(cell * SIZE / COUNT)."""
    if SIZE % COUNT == 0:
        return cell * (SIZE // COUNT)
    else:
        return ((cell * SIZE + (COUNT - 1)).to(tl.uint32) // COUNT).to(tl.int32)


@triton.jit
def place(
    slot, SIZE: tl.constexpr, COUNT: tl.constexpr, LENGTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The row (or column) that a slot holds, and whether it holds one.

    Where not, it is the last of its cell or of all: no pixel is ever outside the image.
    Args:    slot: one of those in as many blocks of BLOCK as hold all cells.
    """
    if SIZE == COUNT * LENGTH and SIZE % BLOCK == 0:
        return slot, slot == slot
    elif SIZE == COUNT * LENGTH:
        return tl.minimum(slot, SIZE - 1), slot < SIZE
    else:
        cell = tl.minimum(slot // LENGTH, COUNT - 1)
        last = first(cell + 1, SIZE, COUNT) - 1
        at = first(cell, SIZE, COUNT) + (slot - cell * LENGTH)
        return tl.minimum(at, last), at <= last


@triton.jit
def centred(at, SIZE: tl.constexpr):
    """A row (or column) counted from the centre, in fp32."""
    return at.to(tl.float32) + (0.5 - SIZE / 2)


@triton.jit
def span(
    slot, end, SIZE: tl.constexpr, COUNT: tl.constexpr, LENGTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The first and the last row (or column) that the slots before `end` hold, centred."""
    low, _ = place(slot, SIZE, COUNT, LENGTH, BLOCK)
    high, _ = place(end - 1, SIZE, COUNT, LENGTH, BLOCK)
    return centred(low, SIZE), centred(high, SIZE)


@triton.jit
def matrix(theta, is_known, H: tl.constexpr, W: tl.constexpr):
    """The rows (a, b, c) and (d, e, f) of x = a w + b h + c and y = d w + e h + f.

    They are NaN without an image: then so are its pixels, and none is read.
    Args:    theta: where the six numbers in normalised coordinates are.
    """
    hole = tl.where(is_known, 0.0, float("nan"))
    a = tl.load(theta)
    b = tl.load(theta + 1) * (W / H)
    c = tl.fma(tl.load(theta + 2), W / 2, W / 2 - 0.5) + hole
    d = tl.load(theta + 3) * (H / W)
    e = tl.load(theta + 4)
    f = tl.fma(tl.load(theta + 5), H / 2, H / 2 - 0.5) + hole
    return (a, b, c), (d, e, f)


@triton.jit
def along(row, w, h):
    """x (or y) at (w, h)."""
    return tl.fma(row[0], w, tl.fma(row[1], h, row[2]))


@triton.jit
def excess(row, left, right, top, bottom, SIZE: tl.constexpr):
    """How far x (or y) goes beyond the outermost pixels within a rectangle: negative, not at all.

    Two corners decide: they are rounded as every pixel is, and rounding keeps order.
    """
    w_low, w_high = tl.where(row[0] < 0, right, left), tl.where(row[0] < 0, left, right)
    h_low, h_high = tl.where(row[1] < 0, bottom, top), tl.where(row[1] < 0, top, bottom)
    low, high = along(row, w_low, h_low), along(row, w_high, h_high)
    return tl.maximum(-low, high - (SIZE - 1), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def is_inside(
    to_x, to_y, left, right, top, bottom, H: tl.constexpr, W: tl.constexpr
):  # fmt: skip
    """Whether everything within a rectangle comes from strictly between the outermost pixels."""
    beyond_x = excess(to_x, left, right, top, bottom, W)
    beyond_y = excess(to_y, left, right, top, bottom, H)
    return tl.maximum(beyond_x, beyond_y, propagate_nan=tl.PropagateNan.ALL) < 0


@triton.jit
def clip(x, SIZE: tl.constexpr, PADDING: tl.constexpr):
    """The coordinate that padding makes of x, and its derivative. NaN stays NaN.

    Source: PyTorch's ATen/native/GridSampler.h, clip_coordinates_set_grad and
            reflect_coordinates_set_grad; the reflection is written as one triangular wave.
    """
    if PADDING is None:
        return x, 1.0
    elif PADDING == ZEROS:
        # Two pixels out no neighbour exists; farther, a product of distances could overflow.
        return tl.clamp(x, -2.0, SIZE + 1.0, propagate_nan=tl.PropagateNan.ALL), 1.0
    else:
        slope = tl.full(x.shape, 1.0, tl.float32)
        if PADDING == REFLECTION:
            x += 0.5
            x = tl.fma(tl.floor(x * (0.5 / SIZE)), -2.0 * SIZE, x)
            slope = tl.where(x < SIZE, 1.0, -1.0)
            x = tl.where(x < SIZE, x, 2.0 * SIZE - x) - 0.5
        slope = tl.where((x > 0) & (x < SIZE - 1), slope, 0.0)
        return tl.clamp(x, 0.0, SIZE - 1.0, propagate_nan=tl.PropagateNan.ALL), slope


@triton.jit
def surround(x, y, H: tl.constexpr, W: tl.constexpr):
    """The upper left neighbour's number, the way from it to (x, y), and which of the four exist.

    Their order is upper left, upper right, lower left, lower right, here and everywhere.
    """
    x0, y0 = tl.floor(x), tl.floor(y)
    if H * W < 2**23:
        # Exact, and one conversion instead of two.
        pixel = tl.fma(y0, W, x0).to(tl.int32)
    else:
        pixel = y0.to(tl.int32) * W + x0.to(tl.int32)
    # NaN compares false, so it reaches no memory.
    is_left = (x0 >= 0) & (x0 <= W - 1)
    is_right = (x0 >= -1) & (x0 <= W - 2)
    is_upper = (y0 >= 0) & (y0 <= H - 1)
    is_lower = (y0 >= -1) & (y0 <= H - 2)
    exist = (is_upper & is_left, is_upper & is_right, is_lower & is_left, is_lower & is_right)
    return pixel.to(tl.int64), x - x0, y - y0, exist


@triton.jit
def share(weight, fx, fy, LIFT: tl.constexpr):
    """How much of `weight * LIFT` each of the four neighbours gets."""
    lower = weight * (fy * LIFT)
    upper = tl.fma(weight, LIFT, -lower)
    upper_right = upper * fx
    lower_right = lower * fx
    return upper - upper_right, upper_right, lower - lower_right, lower_right
