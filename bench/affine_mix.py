"""What `bench.kernels` compares: the cases of `affine_mix`, and each way to compute them.

Letters: N images given, M images made, G images mixed into one, C channels, H rows, W columns,
K = M * G warps.
"""

import functools
import math
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

import torch
import torch.nn.functional as F
from hard_kernels import affine_mix
from torch import Tensor

from bench.timing import note

SIZES = {
    "cpu": (((256, 3, 32, 32), 4), ((64, 3, 224, 224), 16)),
    "cuda": (((512, 3, 224, 224), 16),),
}
"""Per kind of device: [N,C,H,W], and the side of a patch in pixels."""
DTYPES = {
    "cpu": ((torch.float32, torch.float32), (torch.uint8, torch.float32)),
    "cuda": ((torch.uint8, torch.bfloat16), (torch.bfloat16, torch.bfloat16)),
}
"""Per kind of device: of the images given, and of the images made."""
KINDS = {"warp": 1, "mix": 4, "mixup": 2}
"""Kinds of work and their G: a warp alone, warped patches mixed as in HARD-Mix, mixup alone."""
GRADIENTS = {
    "forward": (),
    "forward_backward": ("theta", "weight"),
    "forward_backward_image": ("image", "theta", "weight"),
}
"""Metrics, and which gradients are computed in them where the case has such a tensor."""
_NAMES = {torch.uint8: "uint8", torch.float32: "fp32", torch.bfloat16: "bf16"}


class Case(NamedTuple):
    """A kind of work on images of one shape and dtype."""

    kind: str
    shape: tuple[int, int, int, int]
    patch_px: int
    in_dtype: torch.dtype
    out_dtype: torch.dtype

    @property
    def name(self) -> str:
        """As it stands in the rows."""
        dtypes = f"{_NAMES[self.in_dtype]}->{_NAMES[self.out_dtype]}"
        return f"{self.kind} G={KINDS[self.kind]} {'x'.join(map(str, self.shape))} {dtypes}"

    @property
    def metrics(self) -> list[str]:
        """What can be timed of it: bytes have no gradient."""
        has_gradient = self.in_dtype.is_floating_point
        return [name for name, of in GRADIENTS.items() if has_gradient or "image" not in of]


class Problem(NamedTuple):
    """The tensors of a case, contiguous; `grad` is the gradient of the images made."""

    image: Tensor
    theta: Tensor | None
    weight: Tensor | None
    index: Tensor | None
    grad: Tensor

    def wanted(self, metric: str) -> list[str]:
        """The names of the tensors whose gradients a metric computes here."""
        return [name for name in GRADIENTS[metric] if getattr(self, name) is not None]

    def num_bytes(self, metric: str) -> int:
        """The least to move: images given and made, a gradient of the latter, gradients found."""
        one_pass = self.image.nbytes + self.grad.nbytes
        if metric == "forward":
            return one_pass
        return 2 * one_pass + sum(getattr(self, name).nbytes for name in self.wanted(metric))


class Impl(NamedTuple):
    """A way to compute a case, and what it likes to be fed."""

    call: Callable[..., Tensor]
    """(image, matrix, weight, index, out_dtype) to the images made."""
    layout: torch.memory_format = torch.contiguous_format
    """Of the images given and of the gradient of those made."""
    to_matrix: Callable[[Tensor, torch.Size], Tensor] = lambda theta, size: theta
    """theta and H, W to the matrices that it takes, whose gradient is the one that is timed."""
    kinds: tuple[str, ...] = tuple(KINDS)
    metrics: tuple[str, ...] = tuple(GRADIENTS)
    version: str | None = None


def cases_on(device: torch.device) -> list[Case]:
    """Every case that is timed on this kind of device."""
    return [
        Case(kind, shape, patch_px, *dtypes)
        for shape, patch_px in SIZES[device.type]
        for dtypes in DTYPES[device.type]
        for kind in KINDS
    ]


def draw_problem(case: Case, device: torch.device, off_grid: bool = False) -> Problem:
    """Noise as images, warps near the identity, weights that sum to 1; the same at every call.

    Args:    off_grid: keep samples off the lines between pixels, where theta's gradient jumps;
                       few warps of large images do.
    """
    generator = torch.Generator(device).manual_seed(0)
    rand = functools.partial(torch.rand, generator=generator, device=device)
    num_given, channels, *size = case.shape
    num_mixed = KINDS[case.kind]
    num_made = num_given // num_mixed if case.kind == "mix" else num_given
    image = rand(case.shape)
    is_bytes = case.in_dtype == torch.uint8
    image = (image * 256 if is_bytes else image).to(case.in_dtype)
    grad = (rand(num_made, channels, *size) - 0.5).to(case.out_dtype)
    theta = weight = index = None
    if case.kind != "mixup":
        num_warps = num_made * num_mixed
        theta = _near_identity(2 * rand(4 * num_warps if off_grid else num_warps, 4) - 1)
        theta = theta[_is_off_grid(theta, size)] if off_grid else theta
        theta = theta[:num_warps].unflatten(0, (num_made, num_mixed))
    if case.kind == "mix":
        rows, columns = size[0] // case.patch_px, size[1] // case.patch_px
        weight = rand(num_made, num_mixed, rows, columns).mul(4).softmax(1)
        index = torch.randperm(num_given, generator=generator, device=device).view(num_made, -1)
    if case.kind == "mixup":
        share = rand(num_made, 1, 1, 1)
        weight = torch.cat([share, 1 - share], 1)
        own = torch.arange(num_given, device=device)
        index = torch.stack([own, own ^ 1], 1)
    return Problem(image, theta, weight, index, grad)


def _near_identity(draw_K4: Tensor) -> Tensor:
    """[K,2,3]: +-29 degrees, scale 0.8 to 1.2, shifts of +-0.1, from draws in -1..1."""
    turn, stretch, right, down = draw_K4.unbind(1)
    angle, scale = math.radians(29) * turn, 1 + 0.2 * stretch
    cos, sin = scale * angle.cos(), scale * angle.sin()
    return torch.stack([cos, -sin, 0.1 * right, sin, cos, 0.1 * down], 1).view(-1, 2, 3)


def _is_off_grid(theta_K23: Tensor, size: list[int]) -> Tensor:
    """[K] bool: no sample lies within 1e-4 px of a row or column of pixel centres."""
    grid = F.affine_grid(theta_K23.double(), [len(theta_K23), 1, *size], align_corners=False)
    place = ((grid + 1) * grid.new_tensor(size[::-1]) - 1) / 2
    return ((place - place.round()).abs() > 1e-4).flatten(1).all(1)


def _ours(image, theta, weight, index, out_dtype):
    return affine_mix(image, theta, weight, index, out_dtype=out_dtype)


OURS = {"hard_fast": Impl(_ours, torch.channels_last), "hard_fast_nchw": Impl(_ours)}
"""The op, fed channels_last as the engine does, and fed contiguous images."""


def peers(device: torch.device, full: bool) -> dict[str, Impl]:
    """Every other implementation that can run here; stderr says what is left out, and why."""
    eager = functools.partial(_plain, _grid_sample)
    found = {"eager": Impl(eager)}
    if device.type == "cuda" or full:
        found["compiled"] = Impl(torch.compile(eager, fullgraph=True, dynamic=False))
    else:
        note("compiled: left out on a CPU, where it takes minutes to warm up; --full has it")
    for name, build in (("kornia", _kornia), ("torchtransform", _torchtransform)):
        try:
            found[name] = build()._replace(version=metadata.version(name))
        except ImportError as error:
            note(f"{name}: left out, not installed ({error})")
    return found


def _plain(warp, image, matrix, weight, index, out_dtype):
    """PyTorch alone, given how to warp [K,C,H,W]: of five formulations tried none was faster.

    Gathering comes first, in the narrowest dtype. Coordinates are fp32, so the warped images too:
    a half-precision grid is up to 0.84 px off at 224 px, and would compute something else.
    """
    if matrix is None:
        # In mixup the first of each pair is the image itself, so only its partner is gathered.
        own, partner = _to_float(image), _to_float(image[index[:, 1]])
        return (own * weight[:, 0, None] + partner * weight[:, 1, None]).to(out_dtype)
    layers = _to_float(image if index is None else image[index.flatten()])
    layers = warp(layers, matrix.flatten(0, 1))
    if weight is None:
        return layers.to(out_dtype)
    for dim in (2, 3):
        weight = weight.repeat_interleave(layers.shape[dim] // weight.shape[dim], dim)
    layers = layers.unflatten(0, weight.shape[:2])
    return (layers * weight[:, :, None]).sum(1).to(out_dtype)


def _to_float(image: Tensor) -> Tensor:
    return image / 255 if image.dtype == torch.uint8 else image.float()


def _grid_sample(image_KCHW: Tensor, theta_K23: Tensor) -> Tensor:
    grid = F.affine_grid(theta_K23, list(image_KCHW.shape), align_corners=False)
    return F.grid_sample(image_KCHW, grid, align_corners=False)


def _kornia() -> Impl:
    """Its warp takes the inverse, in pixels counted from the centre of the first."""
    from kornia.geometry.transform import warp_affine

    def warp(image: Tensor, matrix: Tensor) -> Tensor:
        return warp_affine(image, matrix, image.shape[2:], align_corners=False)

    def to_matrix(theta: Tensor, size: torch.Size) -> Tensor:
        corner = [0.5 - 0.5 * length for length in (size[1], size[0])]
        return _inverse_in_pixels(theta, size, corner)[:, :, :2].to(theta.dtype)

    call = functools.partial(_plain, warp)
    return Impl(call, to_matrix=to_matrix, kinds=("warp", "mix"))


def _torchtransform() -> Impl:
    """Its own transforms draw their matrices; one derived as its pages say takes ours.

    It takes the inverse, in pixels from the centre of the image, as float64 on the CPU.
    """
    import torchtransform

    class Given(torchtransform.MatrixTransform):
        def get_matrices(self, context):
            return self.matrices

    given = Given()

    def warp(image: Tensor, matrix: Tensor) -> Tensor:
        given.matrices = matrix
        return given(torchtransform.Image(image, antialias=False))

    def to_matrix(theta: Tensor, size: torch.Size) -> Tensor:
        return _inverse_in_pixels(theta, size, [0.0, 0.0]).cpu()

    call = functools.partial(_plain, warp)
    return Impl(call, to_matrix=to_matrix, kinds=("warp", "mix"), metrics=("forward",))


def _inverse_in_pixels(theta: Tensor, size: torch.Size, origin: list[float]) -> Tensor:
    """[M,G,3,3] float64: input to output, in pixels.

    Args:    origin: x and y of the place that is 0, in pixels from the centre of the image.
    """
    theta = theta.double()
    last = theta.new_tensor([0.0, 0.0, 1.0]).expand(*theta.shape[:2], 1, 3)
    pixel = theta.new_tensor(
        [[size[1] / 2, 0.0, -origin[0]], [0.0, size[0] / 2, -origin[1]], [0.0, 0.0, 1.0]]
    )
    return pixel @ torch.linalg.inv(torch.cat([theta, last], 2)) @ torch.linalg.inv(pixel)
