import numpy as np
import pytest
import torch
from scipy import ndimage

from bench import liquid
from bench.evaluate import differences, draw_images
from hard_fast.evals.corruptions import spatter


@pytest.mark.parametrize("size_px", [32, 72])
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_values_are_those_of_numpy_from_the_same_numbers(severity, size_px):
    found = differences("spatter", severity, draw_images(3, size_px, torch.device("cpu")))
    assert found.max() <= 1


def drops(size: int) -> torch.Tensor:
    generator = np.random.default_rng(1)
    field = [ndimage.gaussian_filter(generator.normal(0.65, 0.3, (size, size)), 2)] * 2
    field[1] = np.flipud(field[1]) * 0.9
    return torch.from_numpy(np.where(np.stack(field) < 0.6, 0, np.stack(field) * 255)).byte()


def test_edges_are_those_of_canny_followed_to_their_ends():
    levels_BHW = drops(60)
    found = spatter.edges(levels_BHW).numpy()
    wanted = np.stack([liquid.canny(levels) for levels in levels_BHW.numpy()])
    assert wanted.any() and (found == wanted).all()


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.05])
def test_distances_are_euclidean_and_end_at_20(share):
    is_edge = np.random.default_rng(0).random((2, 50, 70)) < share
    found = spatter.distances(torch.from_numpy(is_edge))
    for edge, distance in zip(is_edge, found.numpy(), strict=True):
        wanted = ndimage.distance_transform_edt(~edge) if edge.any() else np.full(edge.shape, 99)
        np.testing.assert_allclose(distance, np.minimum(wanted, 20), atol=1e-4)


def test_levels_are_spread_so_that_each_is_as_frequent():
    levels = torch.tensor([[[2, 2, 3, 3], [3, 3, 7, 7]], [[5, 5, 5, 5]] * 2])
    found = spatter.equalized(levels)
    # Two of the lowest level, then 4 and 6 of the other 6.
    assert found[0].tolist() == [[0, 0, 170, 170], [170, 170, 255, 255]]
    assert (found[1] == 5).all()
