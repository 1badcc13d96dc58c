import pytest
import torch
from torch import nn

from hard_fast.export.parity import INT8_TOLERANCE, NUM_IMAGES, compare_outputs


class Times(nn.Module):
    """The first two pixels, times a number."""

    def __init__(self, factor, num=2):
        super().__init__()
        self.factor, self.num = factor, num

    def forward(self, x):
        return self.factor * x.flatten(1)[:, : self.num]


IMAGES = torch.rand(NUM_IMAGES, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def test_the_difference_is_a_share_of_the_largest_output():
    found = compare_outputs(Times(1.01), Times(1.0), IMAGES, 0.04)
    assert found["worst"] == pytest.approx(0.01, rel=1e-3)
    assert found["same_class"] == 1.0 and found["batches"] == [1, 3, 32]
    assert compare_outputs(Times(-1.0), Times(1.0), IMAGES)["same_class"] == 0.0


@pytest.mark.parametrize(
    ("factor", "num", "said"),
    [(1.1, 2, "off by 0.1 "), (float("nan"), 2, "off by nan"), (1.0, 3, "are [1, 3]")],
)
def test_what_disagrees_is_refused(factor, num, said):
    with pytest.raises(ValueError, match="its outputs") as caught:
        compare_outputs(Times(factor, num), Times(1.0), IMAGES, 0.02)
    assert said in str(caught.value)


def test_many_small_differences_are_refused_where_one_would_do():
    with pytest.raises(ValueError, match="off by 0.2 of their root mean square, more than 0.1"):
        compare_outputs(Times(1.2), Times(1.0), IMAGES, INT8_TOLERANCE)


def test_a_runtime_that_fails_says_on_how_many_images():
    class Picky(Times):
        def forward(self, x):
            if len(x) == 3:
                raise KeyError("no 3\nat all")
            return super().forward(x)

    said = "^its runtime fails on a batch of 3: KeyError: 'no 3.*$"
    with pytest.raises(ValueError, match=said) as caught:
        compare_outputs(Picky(1.0), Times(1.0), IMAGES)
    assert "\n" not in str(caught.value)
