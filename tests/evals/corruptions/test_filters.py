import numpy as np
import pytest
import torch
from scipy import ndimage

from hard_fast.evals.corruptions import filters

PLANES = torch.rand(2, 3, 17, 23, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("edge", ["nearest", "reflect", "mirror"])
@pytest.mark.parametrize(("sigma", "truncate"), [(0.05, 4.0), (0.4, 4.0), (2.5, 4.0), (40.0, 3.0)])
def test_gaussian_blur_is_scipys(edge, sigma, truncate):
    found = filters.gaussian_blur(PLANES, sigma, edge=edge, truncate=truncate)
    wanted = ndimage.gaussian_filter(
        PLANES.double().numpy(), (0, 0, sigma, sigma), mode=edge, truncate=truncate
    )
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("edge", ["nearest", "reflect", "mirror"])
def test_places_fold_as_numpy_pads(edge):
    mode = {"nearest": "edge", "reflect": "symmetric", "mirror": "reflect"}[edge]
    found = filters.folded(torch.arange(-11, 16), 5, edge)
    assert found.tolist() == np.pad(np.arange(5), 11, mode=mode).tolist()


def test_box_blur_is_the_mean_of_nine():
    wanted = ndimage.uniform_filter(PLANES.double().numpy(), (0, 0, 3, 3), mode="mirror")
    np.testing.assert_allclose(filters.box_blur(PLANES), wanted, atol=1e-6)


@pytest.mark.parametrize("size", [28, 32, 33, 224])
@pytest.mark.parametrize("factor", [1.0, 1.01, 1.11, 1.25, 1.75, 2.5, 4.5])
def test_zoom_matrix_is_scipys_zoom_cut_to_size(size, factor):
    row = np.random.default_rng(0).random(size)
    crop = int(np.ceil(size / factor))
    top = (size - crop) // 2
    wide = ndimage.zoom(row[top : top + crop], factor, order=1)
    top = (len(wide) - size) // 2
    matrix = filters.zoom_matrix(size, factor, torch.device("cpu"))
    np.testing.assert_allclose(matrix.double().numpy() @ row, wide[top : top + size], atol=1e-5)


def test_separable_filters_rows_and_columns():
    rows, columns = torch.rand(17, 17), torch.rand(23, 23)
    found = filters.separable(PLANES, rows, columns)
    torch.testing.assert_close(found, torch.einsum("ij,bcjk,lk->bcil", rows, PLANES, columns))
