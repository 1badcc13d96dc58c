import numpy as np
import pytest
from scipy.io import savemat

from hard_fast.evals.suites.flat_val import list_flat, number_in
from hard_fast.evals.suites.imagenet_classes import read_wnids

NAMES = [f"ILSVRC2012_val_{i:08d}" for i in (1, 2, 3)]
LABELS = [65, 970, 230]


@pytest.fixture
def home(tmp_path, picture):
    home = tmp_path / "imagenet"
    (home / "val").mkdir(parents=True)
    for i, name in enumerate(NAMES):
        (home / "val" / f"{name}.JPEG").write_bytes(picture(i))
    return home


def write_solution(home, labels=LABELS):
    wnids = read_wnids()
    rows = [f"{n},{wnids[k]} 1 2 3 4 " for n, k in zip(NAMES, labels, strict=False)]
    # Kaggle's rows are in no order.
    text = "\n".join(["ImageId,PredictionString", *reversed(rows)])
    (home / "LOC_val_solution.csv").write_text(f"{text}\n")


def write_listed(home):
    wnids = read_wnids()
    lines = [f"{NAMES[0]}.JPEG 65", f"{NAMES[1]}.JPEG {wnids[970]}", f"{NAMES[2]}.JPEG 230"]
    (home / "val.txt").write_text("\n".join(lines))


def write_devkit(home):
    folder = home / "ILSVRC2012_devkit_t12/data"
    folder.mkdir(parents=True)
    # Its own numbers, from 1, in an order that is not the sorted one.
    wnids = read_wnids()
    order = [*reversed(range(1000))]
    synsets = np.zeros((1000, 1), [("ILSVRC2012_ID", object), ("WNID", object)])
    for row, k in enumerate(order):
        synsets[row, 0] = (row + 1, wnids[k])
    savemat(folder / "meta.mat", {"synsets": synsets})
    truth = "".join(f"{order.index(k) + 1}\n" for k in LABELS)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)


@pytest.mark.parametrize("write", [write_solution, write_listed, write_devkit])
def test_each_published_file_of_labels(home, load, see, write):
    write(home)
    listing = list_flat(home, home / "val")
    assert listing.names == [f"val/{name}.JPEG" for name in NAMES]
    assert listing.samples.label.tolist() == LABELS
    image, label = see(load("imagenet"))
    assert label.tolist() == LABELS and image[:, 0, 8, 8].tolist() == [0, 1, 2]


def test_without_labels_it_says_what_to_add(home, refused):
    assert "need LOC_val_solution.csv, val.txt or ILSVRC2012_devkit_t12/data/ beside it" in (
        refused("imagenet")
    )


def test_wrong_labels_end_with_one_line(home, refused):
    write_solution(home, LABELS[:2])
    assert "no label for 1 of the 3 pictures" in refused("imagenet")
    (home / "LOC_val_solution.csv").write_text("a,b\n1,2\n")
    assert "its file of validation labels is damaged" in refused("imagenet")
    (home / "LOC_val_solution.csv").unlink()
    for text in ("a.JPEG 1000", "a.JPEG", "a.JPEG dog", "a.JPEG -1"):
        (home / "val.txt").write_text(text)
        assert "its file of validation labels is damaged" in refused("imagenet")
    (home / "val.txt").unlink()
    write_devkit(home)
    (home / "ILSVRC2012_devkit_t12/data/meta.mat").write_bytes(b"no")
    assert "its file of validation labels is damaged" in refused("imagenet")


def test_numbers_are_in_the_names():
    assert number_in("val/n01440764/ILSVRC2012_val_00000293.JPEG") == 293
    for name in ("val/a/293.JPEG", "ILSVRC2012_val_00000000.JPEG", "ILSVRC2012_val_293.JPEG"):
        with pytest.raises(ValueError, match="ILSVRC2012_val_00000001.JPEG"):
            number_in(name)
