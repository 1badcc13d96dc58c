import pytest

from hard_fast.evals.corruptions import CORRUPTIONS
from hard_fast.evals.published import ALEXNET_ERRORS, PAPER_ROWS, paper_row

# The means over severities, percent, as get_ce_alexnet of bethgelab/game-of-noise has them.
MEANS = {
    "gaussian_noise": 88.6428,
    "shot_noise": 89.4468,
    "impulse_noise": 92.2640,
    "defocus_blur": 81.9880,
    "glass_blur": 82.6268,
    "motion_blur": 78.5948,
    "zoom_blur": 79.8360,
    "snow": 86.6816,
    "frost": 82.6572,
    "fog": 81.9324,
    "brightness": 56.4592,
    "contrast": 85.3204,
    "elastic_transform": 64.6056,
    "pixelate": 71.7840,
    "jpeg_compression": 60.6500,
}


def test_the_errors_of_alexnet_have_the_published_means():
    assert tuple(ALEXNET_ERRORS) == CORRUPTIONS
    means = {name: sum(errors) / 5 for name, errors in ALEXNET_ERRORS.items()}
    assert means == pytest.approx(MEANS, abs=1e-9)
    assert all(len(errors) == 5 for errors in ALEXNET_ERRORS.values())


def test_rows_of_the_paper_go_by_suite_and_score():
    row = paper_row("r18 hard-affine")
    assert row["imagenet"] == {"top1": 71.6} and row["imagenet_real"] == {"real": 79.5}
    assert row["imagenet_c"] == {"mce": 73.1} and row["imagenet_stylized"] == {"top1": 10.4}
    assert paper_row("MNIST CNN->MLP HARD-Affine")["mnist_shifted"] == {"top1": 68.9}
    assert PAPER_ROWS["CIFAR R101->R18 HARD-VAE-Affine"] == {"cifar10": {"top1": 94.0}}
    assert len(PAPER_ROWS) == 15 + 14 + 27


def test_an_unknown_row_names_the_nearest():
    with pytest.raises(ValueError, match="--paper 'R18 HARD-Affin'.*'R18 HARD-Affine'"):
        paper_row("R18 HARD-Affin")
