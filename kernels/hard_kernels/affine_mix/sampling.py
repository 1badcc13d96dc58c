"""How the Triton kernels read images, and what a gradient says of them.

Letters: N images given, G images mixed into one, k = m * G + g one of those mixed into image m,
C channels, CHUNK of them at a time, H rows, W columns, HP x WP patches; PIXEL, CHANNEL and ROW are
the steps from one to the next. The rest is in `geometry`.
"""

import triton
import triton.language as tl

from hard_kernels.affine_mix import geometry

# The bits of a byte, read as a float, are byte * 2^-149: a conversion that costs nothing. Factors
# are lifted by 2^80 so that no product is denormal; the 2^69 left go with the division by 255.
LIFT = tl.constexpr(2.0**80)
BYTE_UNIT = tl.constexpr(2.0**69 / 255)
# 2^69 / 255 in 16 bits and a rest: byte * UNIT_HIGH is exact, so their sum is byte / 255 rounded.
UNIT_HIGH = tl.constexpr(32897 * 2.0**46)
UNIT_LOW = tl.constexpr(2.0**69 / 255 - 32897 * 2.0**46)


@triton.jit
def find(index, k, num_images):
    """The number of the image that is mixed in, and whether there is one: 0 stands in where not."""
    n = k if index is None else tl.load(index + k)
    is_known = (n >= 0) & (n < num_images)
    return tl.where(is_known, n, 0), is_known


@triton.jit
def weigh(
    weight, k, h, w, H: tl.constexpr, W: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr
):  # fmt: skip
    """The weight of each pixel's patch, or 1."""
    if weight is None:
        return 1.0
    elif HP * WP == 1:
        return tl.load(weight + k)
    else:
        row = (h * HP).to(tl.uint32) // H
        column = (w * WP).to(tl.uint32) // W
        return tl.load(weight + k * (HP * WP) + (row * WP + column).to(tl.int32))


@triton.jit
def read(
    image, exist, CHUNK: tl.constexpr, ROW: tl.constexpr, PIXEL: tl.constexpr,
    CHANNEL: tl.constexpr, IS_MASKED: tl.constexpr,
):  # fmt: skip
    """All neighbours of the first channel, of the second and so on, in fp32; bytes as denormals.

    There are as many neighbours as `exist` says something of: four, or the pixel alone.
    """
    found = ()
    for c in tl.static_range(CHUNK):
        for i in tl.static_range(len(exist)):
            at = image + (c * CHANNEL + i // 2 * ROW + i % 2 * PIXEL)
            value = tl.load(at, mask=exist[i], other=0) if IS_MASKED else tl.load(at)
            if value.dtype == tl.uint8:
                found += (value.to(tl.int32).to(tl.float32, bitcast=True),)
            else:
                found += (value.to(tl.float32),)
    return found


@triton.jit
def mix(sums, shares, values):
    """`sums`, one for each channel, with the neighbours' shares added."""
    found = ()
    for c in tl.static_range(len(sums)):
        total = sums[c]
        for i in tl.static_range(len(shares)):
            total = tl.fma(shares[i], values[c * len(shares) + i], total)
        found += (total,)
    return found


@triton.jit
def copy(
    sums, image, h, w, weight, is_known, H: tl.constexpr, W: tl.constexpr,
    PIXEL: tl.constexpr, CHANNEL: tl.constexpr,
):  # fmt: skip
    """`sums`, one for each channel, with the image's weighted pixels in the same places added."""
    weight *= LIFT if image.dtype.element_ty == tl.uint8 else 1.0
    weight = tl.where(is_known, weight, float("nan"))
    exist = (h < tl.where(is_known, H, 0),)
    values = read(image + (h * W + w).to(tl.int64) * PIXEL, exist, len(sums), 0, 0, CHANNEL, True)
    return mix(sums, (weight,), values)


@triton.jit
def warp(
    sums, image, x, y, weight, H: tl.constexpr, W: tl.constexpr,
    PIXEL: tl.constexpr, CHANNEL: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    """`sums`, one for each channel, with the image's weighted pixels around (x, y) added."""
    x, _ = geometry.clip(x, W, PADDING)
    y, _ = geometry.clip(y, H, PADDING)
    pixel, fx, fy, exist = geometry.surround(x, y, H, W)
    # Lifted here and not before the loads, or they would wait for the weight.
    shares = geometry.share(weight, fx, fy, LIFT if image.dtype.element_ty == tl.uint8 else 1.0)
    image += pixel * PIXEL
    values = read(image, exist, len(sums), W * PIXEL, PIXEL, CHANNEL, PADDING is not None)
    return mix(sums, shares, values)


@triton.jit
def store(out, sums, is_live, image):
    """Stores a pixel's channels, and divides by 255 what came from bytes."""
    for c in tl.static_range(len(sums)):
        value = sums[c]
        if image.dtype.element_ty == tl.uint8:
            value = tl.fma(value, UNIT_HIGH, value * UNIT_LOW)
        tl.store(out + c, value.to(out.dtype.element_ty), is_live)


@triton.jit
def contract(
    sink, grad, image, shares, exist, is_live,
    C: tl.constexpr, CHUNK: tl.constexpr, W: tl.constexpr, PIXEL: tl.constexpr,
    CHANNEL: tl.constexpr, GRAD_CHANNEL: tl.constexpr, IS_MASKED: tl.constexpr,
):  # fmt: skip
    """For each neighbour the output's gradient times its value, summed over channels.

    The image's own gradient is added to `sink`, where there is one.
    """
    pull = ()
    for c in tl.static_range(CHUNK):
        value = tl.load(grad + c * GRAD_CHANNEL, mask=is_live, other=0).to(tl.float32)
        pull += (value * (LIFT if image.dtype.element_ty == tl.uint8 else 1.0),)
    values = read(image, exist, CHUNK, W * PIXEL, PIXEL, CHANNEL, IS_MASKED)
    found = ()
    for i in tl.static_range(len(exist)):
        total = pull[0] * values[i]
        for c in tl.static_range(1, CHUNK):
            total = tl.fma(pull[c], values[c * len(exist) + i], total)
        found += (total,)
        if sink is not None:
            mask = exist[i] & is_live if IS_MASKED else is_live
            for c in tl.static_range(CHUNK):
                at = sink + (i // 2 * (W * C) + i % 2 * C + c)
                tl.atomic_add(at, pull[c] * shares[i], mask=mask, sem="relaxed")
    return found


@triton.jit
def unwarp(
    sink, grad, image, x, y, weight, is_live,
    C: tl.constexpr, CHUNK: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PIXEL: tl.constexpr,
    CHANNEL: tl.constexpr, GRAD_CHANNEL: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    """The gradients of x, of y and of the weight at each pixel; those of x and y unweighted."""
    x, slope_x = geometry.clip(x, W, PADDING)
    y, slope_y = geometry.clip(y, H, PADDING)
    pixel, fx, fy, exist = geometry.surround(x, y, H, W)
    # Summed over channels first: what follows is done once for a pixel.
    found = contract(
        None if sink is None else sink + pixel * C, grad, image + pixel * PIXEL,
        geometry.share(weight, fx, fy, 1.0), exist, is_live,
        C, CHUNK, W, PIXEL, CHANNEL, GRAD_CHANNEL, PADDING is not None,
    )  # fmt: skip
    rise_x = found[1] - found[0]
    twist = found[3] - found[2] - rise_x
    by_x = tl.fma(fy, twist, rise_x)
    by_y = tl.fma(fx, twist, found[2] - found[0])
    return by_x * slope_x, by_y * slope_y, tl.fma(fy, by_y, tl.fma(fx, rise_x, found[0]))


@triton.jit
def differentiate(
    sink, grad, image, rows, weight, h, w, left, right, top, bottom, is_live, is_known,
    C: tl.constexpr, CHUNK: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PADDING: tl.constexpr,
    PIXEL: tl.constexpr, CHANNEL: tl.constexpr,
    GRAD_PIXEL: tl.constexpr, GRAD_CHANNEL: tl.constexpr,
):  # fmt: skip
    """The gradients of x, of y and of the weight at each pixel of a tile; the image's to `sink`."""
    spot = (h * W + w).to(tl.int64)
    grad += spot * GRAD_PIXEL
    if rows is None:
        zero = tl.zeros(h.shape, tl.float32)
        found = contract(
            None if sink is None else sink + spot * C, grad, image + spot * PIXEL,
            (weight,), (h < tl.where(is_known, H, 0),), is_live,
            C, CHUNK, W, PIXEL, CHANNEL, GRAD_CHANNEL, True,
        )  # fmt: skip
        return zero, zero, tl.where(is_known, found[0], float("nan"))
    else:
        to_x, to_y = rows
        x = geometry.along(to_x, geometry.centred(w, W), geometry.centred(h, H))
        y = geometry.along(to_y, geometry.centred(w, W), geometry.centred(h, H))
        if geometry.is_inside(to_x, to_y, left, right, top, bottom, H, W):
            by_x, by_y, value = unwarp(
                sink, grad, image, x, y, weight, is_live,
                C, CHUNK, H, W, PIXEL, CHANNEL, GRAD_CHANNEL, None,
            )  # fmt: skip
        else:
            by_x, by_y, value = unwarp(
                sink, grad, image, x, y, weight, is_live,
                C, CHUNK, H, W, PIXEL, CHANNEL, GRAD_CHANNEL, PADDING,
            )  # fmt: skip
        return by_x * weight, by_y * weight, value


@triton.jit
def store_theta(parts, sums, w, UNIT: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    """Stores what one program adds to the gradient of a matrix."""
    w = geometry.centred(w, W)
    tl.store(parts, tl.sum(sums[0] * w) * UNIT)
    tl.store(parts + 1, tl.sum(sums[1]) * (W / H * UNIT))
    tl.store(parts + 2, tl.sum(sums[0]) * (W / 2 * UNIT))
    tl.store(parts + 3, tl.sum(sums[2] * w) * (H / W * UNIT))
    tl.store(parts + 4, tl.sum(sums[3]) * UNIT)
    tl.store(parts + 5, tl.sum(sums[2]) * (H / 2 * UNIT))


@triton.jit
def store_weight(
    parts, values, slot, strip, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CELL_H: tl.constexpr, CELL_W: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Stores the sum over each cell of a tile."""
    WIDE: tl.constexpr = TILE_W // CELL_W
    COUNT: tl.constexpr = WIDE * (TILE_H // CELL_H if TILE_H > CELL_H else 1)
    cell = tl.arange(0, COUNT)
    row = slot // CELL_H + cell // WIDE
    column = strip // CELL_W + cell % WIDE
    total = tl.sum(tl.reshape(values, (COUNT, TILE_H * TILE_W // COUNT)), axis=1) * UNIT
    tl.store(parts + (row * COLUMNS + column), total, (row < ROWS) & (column < COLUMNS))
