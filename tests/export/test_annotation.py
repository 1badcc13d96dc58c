import torch
from torch import nn
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from hard_fast.export.annotation import Int8Quantizer
from hard_fast.export.formats import capture
from hard_fast.models.binary import BinaryConv2d


def _annotated(net, shape=(1, 8, 8)):
    quantizer = Int8Quantizer(learns=False)
    graph = quantizer.annotate(capture(net, shape).module()).graph
    notes = {
        str(node.target): node.meta[Q_ANNOTATION_KEY]
        for node in graph.nodes
        if Q_ANNOTATION_KEY in node.meta
    }
    return quantizer, notes


def test_layers_sums_and_pools_are_rounded_and_a_relu_belongs_to_what_it_follows(small_net):
    quantizer, notes = _annotated(small_net)
    assert quantizer.num_layers == 3
    assert set(notes) == {
        "aten.conv2d.default",
        "aten.relu.default",
        "aten.max_pool2d.default",
        "aten.add.Tensor",
        "aten.linear.default",
    }
    # The sum's output is rounded behind its ReLU, that of the last layer at once.
    assert notes["aten.add.Tensor"].output_qspec is None
    assert notes["aten.relu.default"].output_qspec.dtype == torch.uint8
    assert notes["aten.linear.default"].output_qspec.dtype == torch.uint8
    linear = notes["aten.linear.default"].input_qspec_map.values()
    assert [spec.dtype for spec in linear] == [torch.uint8, torch.int8]


def test_a_sum_with_a_constant_or_of_other_shapes_stays_as_it_is():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(64, 3)
            self.shift = nn.Buffer(torch.ones(3))

        def forward(self, x):
            y = self.head(x.flatten(1))
            return (y + self.shift) + y.mean(1, keepdim=True)

    _, notes = _annotated(Shifted().eval())
    assert set(notes) == {"aten.linear.default"}


def test_a_convolution_of_signs_stays_as_it_is():
    net = nn.Sequential(BinaryConv2d(1, 2, 3), nn.Flatten(), nn.Linear(128, 3))
    quantizer, notes = _annotated(net.eval().requires_grad_(False))
    assert quantizer.num_layers == 1 and set(notes) == {"aten.linear.default"}
