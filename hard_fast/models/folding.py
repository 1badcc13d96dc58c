"""BatchNorm folded into the layer before it, where nothing else can see the difference."""

import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from hard_fast.models.taps import bare

# Of the largest output. Rounding moves it by 1e-6 in 100 layers, a wrong fold by far more.
_TOLERANCE = 1e-4
_log = logging.getLogger(__name__)

_TRANSPOSED = {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}
_LAYERS = {F.linear, torch.conv1d, torch.conv2d, torch.conv3d} | _TRANSPOSED
_BATCH_NORM = inspect.signature(F.batch_norm)
# What asks a tensor only for what folding keeps: its shape and layout, dtype and place.
_GETTERS = {Tensor.dim, Tensor.size, Tensor.numel, Tensor.stride, Tensor.__len__, torch.numel}
_GETTERS |= {Tensor.is_contiguous, Tensor.is_floating_point, Tensor.get_device, Tensor.ndimension}
_GETTERS |= {
    getattr(Tensor, name).__get__
    for name in ("shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_cuda")
}
_PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# timm's classes, told by name since importing timm takes seconds.
_ACTIVE_NORMS = (
    ("timm.layers.norm_act", "BatchNormAct2d"),
    ("timm.layers.norm_act", "SyncBatchNormAct"),
)


class _Pair(NamedTuple):
    """A layer whose output went into a BatchNorm."""

    layer: nn.Module
    norm: nn.Module
    output: Tensor
    is_transposed: bool


def fold_batchnorm(
    network: nn.Module, image_shape: tuple[int, int, int], keep: Iterable[str] = ()
) -> int:
    """Fold BatchNorm layers of a network in eval mode into the layers before; return how many.

    One run on a random image tells which: a convolution or linear layer that ran once, whose output
    one function alone read, and that a BatchNorm which ran once. Such a BatchNorm becomes an
    identity, or what timm's does beside (dropout and activation), under its old name. A folded
    network that fails or gives other outputs on random images is put back as it was, with a
    warning. Its statistics are gone: it must not train again.

    Args:    image_shape: [C,H,W] of an image that the network takes.
             keep: names of the bare network's modules whose outputs stay what they are, too.
                   Modules with hooks are kept as well.
    """
    assert not network.training, "BatchNorm is exact to fold in eval mode only"
    norms = [
        m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None
    ]
    if not norms:
        return 0
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, *image_shape, generator=generator).to(norms[0].running_mean.device)
    undo: list[Callable[[], None]] = []
    try:
        with torch.no_grad():
            pairs = _foldable(network, images[:1], set(keep))
            expected = network(images)
            for pair in pairs:
                _fold(network, pair, undo)
            found = network(images)
        error = _distance(found, expected)
        failure = "" if error <= _TOLERANCE else f"outputs would move by {error:.1e} of the largest"
    except Exception as exception:
        # A network of any origin may raise anything; what it cannot run here it may run elsewhere.
        failure = f"{type(exception).__name__}: {str(exception).partition(chr(10))[0]}"
    if failure:
        for put_back in reversed(undo):
            put_back()
        _log.warning("BatchNorm layers stay as they are, not folded: %s", failure)
        return 0
    return len(pairs)


class _Watch(TorchFunctionMode):
    """Sees every function of a run: who made what BatchNorm reads, and how often things are read.

    Counted are the network's own tensors and the outputs of its layers, which are kept alive so
    that no later tensor takes their id.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.pairs: list[_Pair] = []
        self.num_reads = Counter()
        self._made: dict[int, tuple[nn.Module, Tensor, bool]] = {}
        self._layers: dict[int, nn.Module] = {}
        self._norms: dict[int, nn.Module] = {}
        owners = Counter()
        for module in network.modules():
            own = dict(module.named_parameters(recurse=False))
            own |= dict(module.named_buffers(recurse=False))
            owners.update(map(id, own.values()))
            if isinstance(module, (nn.Linear, _ConvNd)) and "weight" in own:
                self._layers[id(own["weight"])] = module
            elif isinstance(module, _BatchNorm) and "running_mean" in own:
                self._norms[id(own["running_mean"])] = module
        self._shared = {key for key, count in owners.items() if count > 1}
        self.num_reads.update(dict.fromkeys(owners, 0))

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _GETTERS:
            self.read((args, kwargs))
        result = func(*args, **kwargs)
        if func in _LAYERS and len(args) > 2:
            self._note_layer(args[1], args[2], result, func in _TRANSPOSED)
        elif func is F.batch_norm:
            self._note_norm(**_BATCH_NORM.bind(*args, **kwargs).arguments)
        return result

    def read(self, values: Any) -> None:
        """Count one reading of every tensor within."""
        for value in tree_leaves(values):
            if isinstance(value, Tensor) and id(value) in self.num_reads:
                self.num_reads[id(value)] += 1

    def is_private(self, pair: _Pair) -> bool:
        """Whether each part of a pair was read once and belongs to nothing else."""
        own = (pair.layer.weight, pair.layer.bias, pair.norm.running_mean, pair.norm.running_var)
        return all(
            self.num_reads[id(tensor)] == 1 and id(tensor) not in self._shared
            for tensor in (pair.output, *own)
            if tensor is not None
        )

    def _note_layer(
        self, weight: Tensor, bias: Tensor | None, output: Tensor, is_transposed: bool
    ) -> None:
        layer = self._layers.get(id(weight))
        # BatchNorm's channels are a layer's outputs only where there is a batch and no more.
        if layer is not None and bias is layer.bias and output.dim() == weight.dim():
            self._made[id(output)] = layer, output, is_transposed
            self.num_reads[id(output)] = 0

    def _note_norm(self, input: Tensor, running_mean: Tensor | None, **call: Any) -> None:
        norm = self._norms.get(id(running_mean))
        is_whole = norm is not None and all(
            call[key] is getattr(norm, key) for key in ("running_var", "weight", "bias")
        )
        if is_whole and not call["training"] and id(input) in self._made:
            layer, output, is_transposed = self._made[id(input)]
            self.pairs.append(_Pair(layer, norm, output, is_transposed))


def _foldable(network: nn.Module, image: Tensor, keep: set[str]) -> list[_Pair]:
    """The pairs of which nothing else reads any part."""
    watch = _Watch(network)
    kept = [module for name, module in bare(network).named_modules() if name in keep]
    kept += [
        module
        for module in network.modules()
        if module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ]

    def seen(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        watch.read((args, kwargs, output))

    hooks = [module.register_forward_hook(seen, with_kwargs=True) for module in kept]
    try:
        with watch:
            output = network(image)
    finally:
        for hook in hooks:
            hook.remove()
    watch.read(output)
    return [p for p in watch.pairs if watch.is_private(p) and _remainder(p.norm) is not None]


def _fold(network: nn.Module, pair: _Pair, undo: list[Callable[[], None]]) -> None:
    """Give the layer the BatchNorm's scale and shift, and note how to take them back."""
    layer, norm = pair.layer, pair.norm
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double()
    if layer.bias is not None:
        shift += layer.bias.double()
    if norm.weight is not None:
        scale *= norm.weight.double()
    shift *= scale
    if norm.bias is not None:
        shift += norm.bias.double()
    weight = layer.weight.double()
    ones = (1,) * (weight.dim() - 2)
    if pair.is_transposed:
        # [inputs, outputs of a group, ...], where inputs go by groups.
        weight = weight.unflatten(0, (layer.groups, -1)) * scale.view(layer.groups, 1, -1, *ones)
        weight = weight.flatten(0, 1)
    else:
        weight *= scale.view(-1, 1, *ones)
    for key, value in (("weight", weight), ("bias", shift)):
        undo.append(partial(setattr, layer, key, getattr(layer, key)))
        value = value.to(layer.weight.dtype)
        setattr(layer, key, nn.Parameter(value, layer.weight.requires_grad))
    names = [n for n, m in network.named_modules(remove_duplicate=False) if m is norm]
    for name in names:
        undo.append(partial(network.set_submodule, name, norm))
        network.set_submodule(name, _remainder(norm))


def _remainder(norm: nn.Module) -> nn.Module | None:
    """What a BatchNorm layer does beside normalising; None where that is not known."""
    if type(norm) in _PLAIN_NORMS:
        return nn.Identity().eval()
    if (type(norm).__module__, type(norm).__name__) not in _ACTIVE_NORMS:
        return None
    remainder = nn.Sequential()
    remainder.add_module("drop", norm.drop)
    remainder.add_module("act", norm.act)
    return remainder.eval()


def _distance(found: Any, expected: Any) -> float:
    """The largest difference of two outputs as a share of the largest expected value, or NaN."""
    errors = [torch.zeros(())]
    for one, other in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        difference = (one - other).abs().max().cpu()
        errors.append(difference / other.abs().max().cpu() if difference else difference)
    # Unlike Python's, this maximum is NaN where one of them is.
    return float(torch.stack(errors).max())
