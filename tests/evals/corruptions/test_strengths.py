import numpy as np
import pytest

from hard_fast.evals.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS
from hard_fast.evals.corruptions.strengths import CIFAR, IMAGENET, is_small, strength


@pytest.mark.parametrize("table", [CIFAR, IMAGENET], ids=["cifar", "imagenet"])
def test_every_corruption_has_five_severities(table):
    assert set(table) == set(CORRUPTIONS + EXTRA_CORRUPTIONS)
    assert all(len(values) == 5 for values in table.values())


def test_zooms_are_as_many_as_the_scripts_ranges_hold():
    # np.arange's own count, which rounding makes one larger than it looks at 1.06 and 1.11.
    cifar = [(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)]
    imagenet = [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)]
    for table, ranges in ((CIFAR, cifar), (IMAGENET, imagenet)):
        found = [(len(np.arange(1, stop, step)), step) for stop, step in ranges]
        assert table["zoom_blur"] == found


def test_the_shorter_side_picks_the_table():
    assert is_small(63, 500) and not is_small(64, 64)
    assert strength("gaussian_noise", 5, 32, 32) == 0.10
    assert strength("gaussian_noise", 5, 224, 224) == 0.38
