"""Where a network's graph is rounded to 8 bits: the places whose int8 kernels runtimes have.

Activations are uint8 with one scale per tensor, weights int8 with one per output channel: what
onnxruntime and torch compute on CPUs. A convolution or linear layer is rounded on both sides, with
the ReLU behind it as part of it; so is a sum of two activations, which joins the branches of a
residual block. Everything else stays in floating point.
"""

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

_aten = torch.ops.aten
_LAYERS = (_aten.conv1d.default, _aten.conv2d.default, _aten.linear.default)
_SUMS = (_aten.add.Tensor, _aten.add_.Tensor)
_POOLS = (_aten.max_pool2d.default,)
# What clamps from below at zero costs nothing: an unsigned number does so by itself.
_CLAMPS = tuple(
    getattr(_aten, name).default
    for name in ("relu", "relu_", "relu6", "relu6_", "hardtanh", "hardtanh_")
)
# A scale must not vanish where an activation is constant.
_SMALLEST_SCALE = 2.0**-12


class Int8Quantizer:
    """Tells torchao's `prepare_pt2e` and `prepare_qat_pt2e` what to round, and to what.

    Args:    learns: for training with rounding in the loop; else for calibration alone.
    """

    def __init__(self, *, learns: bool) -> None:
        self._activation, self._weight = _specs(learns)
        self.num_layers = 0

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """The graph as it is."""
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark the inputs, weights and outputs that are to be rounded."""
        from torchao.quantization.pt2e.quantizer import SharedQuantizationSpec

        for node in model.graph.nodes:
            if node.target in _LAYERS:
                image, weight = node.args[:2]
                if weight.op != "get_attr":
                    # Computed, as signs are: what it is made from would be rounded.
                    continue
                self.num_layers += 1
                self._mark(node, {image: self._activation, weight: self._weight})
            elif node.target in _SUMS and _is_sum_of_activations(node):
                self._mark(node, dict.fromkeys(node.args[:2], self._activation))
            elif node.target in _POOLS:
                source = node.args[0]
                same = SharedQuantizationSpec((source, node))
                _note(node, {source: self._activation}, same)
        return model

    def validate(self, model: GraphModule) -> None:
        """See that there was something to round.

        Raises:  ValueError if there was not.
        """
        if not self.num_layers:
            raise ValueError("int8: the network has no convolution or linear layer to quantise")

    def prepare_obs_or_fq_callback(self, model: GraphModule, found: dict) -> None:
        """Nothing to adjust."""

    def _mark(self, node: Node, inputs: dict) -> None:
        users = list(node.users)
        has_clamp = len(users) == 1 and users[0].target in _CLAMPS
        _note(node, inputs, None if has_clamp else self._activation)
        if has_clamp:
            _note(users[0], {}, self._activation)


def _specs(learns: bool) -> tuple:
    from torchao.quantization.pt2e import (
        FusedMovingAvgObsFakeQuantize,
        HistogramObserver,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
        PerChannelMinMaxObserver,
    )
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    activation = {"dtype": torch.uint8, "quant_min": 0, "quant_max": 255}
    activation["qscheme"] = torch.per_tensor_affine
    weight = {"dtype": torch.int8, "quant_min": -127, "quant_max": 127, "ch_axis": 0}
    weight["qscheme"] = torch.per_channel_symmetric
    eps = {"eps": _SMALLEST_SCALE}
    if not learns:
        see_activation = HistogramObserver.with_args(**eps)
        see_weight = PerChannelMinMaxObserver.with_args()
    else:
        fake = FusedMovingAvgObsFakeQuantize
        see_activation = fake.with_args(observer=MovingAverageMinMaxObserver, **eps)
        # The weights' own range at each step, not that of steps ago.
        latest = {"observer": MovingAveragePerChannelMinMaxObserver, "averaging_constant": 1.0}
        see_weight = fake.with_args(**latest)
    return (
        QuantizationSpec(observer_or_fake_quant_ctr=see_activation, **activation),
        QuantizationSpec(observer_or_fake_quant_ctr=see_weight, **weight),
    )


def _note(node: Node, inputs: dict, output: object) -> None:
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    annotation = QuantizationAnnotation(inputs, output, _annotated=True)
    node.meta[Q_ANNOTATION_KEY] = annotation


def _is_sum_of_activations(node: Node) -> bool:
    """Whether both terms are computed from the image and alike in shape."""
    terms = node.args[:2]
    if not all(isinstance(term, Node) and term.op == "call_function" for term in terms):
        return False
    values = [term.meta["val"] for term in terms]
    return all(isinstance(value, Tensor) and value.is_floating_point() for value in values) and (
        values[0].shape[1:] == values[1].shape[1:] and node.args[0] is not node.args[1]
    )
