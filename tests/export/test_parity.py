import pytest
import torch
from torch import nn

from hard_fast.export.parity import NUM_IMAGES, compare_outputs


class Times(nn.Module):
    """The first two pixels, times a number."""

    def __init__(self, factor, num=2):
        super().__init__()
        self.factor, self.num = factor, num

    def forward(self, x):
        return self.factor * x.flatten(1)[:, : self.num]


IMAGES = torch.rand(NUM_IMAGES, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def test_the_difference_is_a_share_of_the_largest_output():
    found = compare_outputs(Times(1.01), Times(1.0), IMAGES, 0.02)
    assert found["worst"] == pytest.approx(0.01, rel=1e-3)
    assert found["same_class"] == 1.0 and found["batches"] == [1, 3, 32]
    assert compare_outputs(Times(-1.0), Times(1.0), IMAGES, 9.0)["same_class"] == 0.0


@pytest.mark.parametrize(
    ("factor", "num", "said"),
    [(1.1, 2, "off by 0.1 "), (float("nan"), 2, "off by nan"), (1.0, 3, "are [1, 3]")],
)
def test_what_disagrees_is_refused(factor, num, said):
    with pytest.raises(ValueError, match="its outputs") as caught:
        compare_outputs(Times(factor, num), Times(1.0), IMAGES, 0.02)
    assert said in str(caught.value)
