"""The op on a CPU in one pass: a native library, built with the package where a compiler is.

`cpu.cpp` knows nothing of PyTorch: it is given raw pointers and sizes, so one build serves every
version of torch.
"""

import ctypes
import importlib.util
import warnings
from functools import cache

import torch
from torch import Tensor

from hard_kernels.affine_mix import reference

LIBRARY = "hard_kernels.affine_mix._cpu"
MAX_CHANNELS = 4
# Tests set it, to see the path of a processor without AVX2.
IS_PLAIN = False
# Codes of cpu.cpp. Half-precision floats go through fp32.
TYPES = {torch.uint8: 0, torch.float32: 1, torch.bfloat16: 2}


class _Pictures(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("type", ctypes.c_int64), ("is_packed", ctypes.c_int64)]


class _Problem(ctypes.Structure):
    _fields_ = [
        *((name, _Pictures) for name in ("image", "out", "grad", "grad_image")),
        *((name, ctypes.c_void_p) for name in ("theta", "weight", "index")),
        *((name, ctypes.c_void_p) for name in ("grad_theta", "grad_weight")),
        *((name, ctypes.c_int64) for name in ("N", "M", "G", "C", "H", "W", "P", "Q")),
        *((name, ctypes.c_int64) for name in ("padding", "num_threads", "is_plain")),
    ]


# The last digits are a number to raise whenever the meaning of a field changes.
LAYOUT = 1000 * ctypes.sizeof(_Problem) + 1


def has_kernel(image: Tensor) -> bool:
    """Whether the native library is there and takes such images."""
    is_taken = image.dtype != torch.float64 and image.shape[1] <= MAX_CHANNELS
    # Coordinates are fp32 and places in an image int32.
    is_small = max(image.shape[2:]) < 2**22 and image.shape[2] * image.shape[3] < 2**28
    return is_taken and is_small and _library() is not None


def forward(
    image: Tensor,
    theta: Tensor | None,
    weight: Tensor | None,
    index: Tensor | None,
    padding: str,
    out_dtype: torch.dtype,
) -> Tensor:
    """See `op.affine_mix`; arguments are taken as checked."""
    out = reference.new_output(image, index, out_dtype if out_dtype in TYPES else torch.float32)
    image, inputs = _dense(image), _contiguous(theta, weight, index)
    problem = _describe(image, *inputs, padding, num_made=out.shape[0])
    problem.out = _pictures(out)
    _call(_library().hard_kernels_affine_mix_forward, problem)
    return out.to(out_dtype)


def backward(
    grad: Tensor,
    image: Tensor,
    theta: Tensor | None,
    weight: Tensor | None,
    index: Tensor | None,
    padding: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of image, theta and weight; one that is not needed comes back empty."""
    given, image, grad = image, _dense(image), _dense(grad)
    inputs = _contiguous(theta, weight, index)
    problem = _describe(image, *inputs, padding, num_made=grad.shape[0])
    problem.grad = _pictures(grad)
    found = reference.new_gradients(given, *inputs[:2], needs)
    # Of fp32 where the library does not know the image's own dtype.
    sink = found[0] if given.dtype in TYPES else reference.new_output(image, None, image.dtype)
    if needs[0]:
        problem.grad_image = _pictures(sink)
    if needs[1]:
        problem.grad_theta = found[1].data_ptr()
    if needs[2]:
        problem.grad_weight = found[2].data_ptr()
    _call(_library().hard_kernels_affine_mix_backward, problem)
    if needs[0] and sink is not found[0]:
        found[0].copy_(sink)
    return found


@cache
def _library() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec(LIBRARY)
    if spec is None:
        reason = "it was not built; reinstall with GCC 12 or newer"
    else:
        try:
            # PyTorch's own OpenMP serves it too: two pools of threads would fight for cores.
            if not hasattr(ctypes.CDLL(None), "GOMP_parallel"):
                ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
            library = ctypes.CDLL(spec.origin)
            if library.hard_kernels_affine_mix_layout() == LAYOUT:
                return library
            reason = "it is of another version; reinstall with GCC 12 or newer"
        except (OSError, AttributeError) as error:
            reason = str(error)
    warnings.warn(f"affine_mix runs in plain PyTorch, several times slower: {reason}", stacklevel=2)
    return None


def _dense(pictures: Tensor) -> Tensor:
    """Them with a dtype and a layout that the library reads, copied only where they lack it."""
    if pictures.dtype not in TYPES:
        pictures = pictures.float()
    if pictures.is_contiguous() or pictures.is_contiguous(memory_format=torch.channels_last):
        return pictures
    return pictures.contiguous(memory_format=torch.channels_last)


def _contiguous(*values: Tensor | None) -> list[Tensor | None]:
    return [None if value is None else value.contiguous() for value in values]


def _pictures(value: Tensor) -> _Pictures:
    is_packed = value.is_contiguous(memory_format=torch.channels_last)
    return _Pictures(value.data_ptr(), TYPES[value.dtype], is_packed)


def _describe(
    image: Tensor,
    theta: Tensor | None,
    weight: Tensor | None,
    index: Tensor | None,
    padding: str,
    num_made: int,
) -> _Problem:
    problem = _Problem(image=_pictures(image), M=num_made, padding=reference.PADDING_CODES[padding])
    problem.N, problem.C, problem.H, problem.W = image.shape
    problem.G = 1 if index is None else index.shape[1]
    problem.P, problem.Q = (1, 1) if weight is None else weight.shape[2:]
    problem.theta = None if theta is None else theta.data_ptr()
    problem.weight = None if weight is None else weight.data_ptr()
    problem.index = None if index is None else index.data_ptr()
    problem.num_threads, problem.is_plain = torch.get_num_threads(), IS_PLAIN
    return problem


def _call(function, problem: _Problem) -> None:
    if function(ctypes.byref(problem)) != 0:
        raise MemoryError("affine_mix: not enough memory for one unpacked image per thread")
