import numpy as np
import pytest
import torch
from pydantic import ValidationError

from hard_fast.data import load_data
from hard_fast.data.npz import NpzConfig

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
HWC = RNG.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(30) % 3


def load(folder, **keys):
    return load_data(
        NpzConfig(root=str(folder), **{"train": "a.npz", "val_share": 0.0} | keys), CPU
    )


@pytest.mark.parametrize(
    ("image", "shape"),
    [
        (HWC, (3, 6, 5)),
        (HWC.transpose(0, 3, 1, 2), (3, 6, 5)),
        (HWC[..., 0], (1, 6, 5)),
        (HWC[..., :1], (1, 6, 5)),
        (RNG.random((30, 1, 1, 1)), (1, 1, 1)),
        (RNG.random((30, 7), dtype=np.float32), (7, 1, 1)),
    ],
)
def test_every_layout_becomes_nchw(tmp_path, image, shape):
    np.savez(tmp_path / "a.npz", images=image, labels=LABELS)
    np.savez(tmp_path / "b.npz", images=image[:4], labels=LABELS[:4])
    data = load(tmp_path, test="b.npz")
    assert data.train.image.shape == (30, *shape)
    assert data.train.image.is_contiguous(memory_format=torch.channels_last)
    is_float = image.dtype.kind == "f"
    assert data.train.image.dtype == (torch.float32 if is_float else torch.uint8)
    assert data.num_classes == 3
    is_nhwc = image.ndim == 4 and not is_float and image.shape[-1] == shape[0]
    expected = image.transpose(0, 3, 1, 2) if is_nhwc else image.reshape(30, *shape)
    assert np.array_equal(data.train.image.numpy(), expected.astype(data.train.image.numpy().dtype))
    assert torch.equal(data.test["test"].image, data.train.image[:4])


@pytest.mark.parametrize(
    "names",
    [("images", "labels"), ("x", "y"), ("image", "label"), ("X", "Y"), ("x_train", "y_train")],
)
def test_the_usual_names_are_known_and_a_test_part_is_split_off(tmp_path, names):
    np.savez(tmp_path / "a.npz", **dict(zip(names, (HWC, LABELS), strict=True)), other=LABELS)
    data = load(tmp_path)
    assert (len(data.train.label), len(data.test["test"].label)) == (24, 6)
    # The test part is the same whatever the validation split.
    other = load(tmp_path, val_share=0.5, val_seed=1)
    assert torch.equal(other.test["test"].image, data.test["test"].image)


def test_one_file_with_both_parts_is_not_split(tmp_path):
    np.savez(
        tmp_path / "a.npz",
        x_train=HWC[:20],
        y_train=LABELS[:20],
        x_test=HWC[20:],
        y_test=LABELS[20:],
    )
    for keys in ({}, {"test": "a.npz"}):
        data = load(tmp_path, **keys)
        assert data.train.label.tolist() == LABELS[:20].tolist()
        assert data.test["test"].label.tolist() == LABELS[20:].tolist()


def test_the_training_file_is_never_its_own_test(tmp_path):
    np.savez(tmp_path / "a.npz", images=HWC, labels=LABELS)
    with pytest.raises(ValueError, match="no array of the test images; call it images_test or"):
        load(tmp_path, test="a.npz")


def test_layout_decides_where_the_shape_does_not(tmp_path):
    np.savez(tmp_path / "a.npz", images=HWC[:, :3], labels=LABELS)
    with pytest.raises(ValueError, match=r"cannot tell the channel axis; set data\.layout"):
        load(tmp_path)
    assert load(tmp_path, layout="nchw").train.image.shape[1:] == (3, 5, 3)
    assert load(tmp_path, layout="nhwc").train.image.shape[1:] == (3, 3, 5)


def test_unlabelled_training_images_are_allowed(tmp_path):
    np.savez(tmp_path / "a.npz", images=HWC, labels=np.full((30, 1), -1))
    np.savez(tmp_path / "b.npz", images=HWC, labels=LABELS)
    data = load(tmp_path, test="b.npz", num_classes=3)
    assert data.train.label.unique().tolist() == [-1]
    with pytest.raises(ValueError, match=r"data\.num_classes"):
        load(tmp_path, test="b.npz")
    with pytest.raises(ValueError, match="test images need labels"):
        load(tmp_path, num_classes=3)


def bad(**changes):
    return {"images": HWC, "labels": LABELS} | changes


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (bad(labels=LABELS.astype(np.float32)), "labels are float32"),
        (bad(labels=np.eye(3, dtype=int)[LABELS]), r"of shape \(30, 3\)"),
        (bad(labels=LABELS - 2), "label -2 is out of range"),
        (bad(labels=LABELS[:-1]), "29 labels for the 30 images"),
        (bad(images=HWC.astype(np.int64)), "images are int64; store pictures as uint8"),
        (bad(images=HWC[:0], labels=LABELS[:0]), "holds no images"),
        (bad(images=HWC[..., None]), "images of shape"),
        (bad(images=HWC.reshape(30, -1)), "images of shape"),
        (bad(images=np.full((30, 2, 2), np.nan)), "NaN or infinity"),
        (bad(images=np.array([None] * 30)), "no plain arrays"),
        ({"images": HWC}, "no array of the train labels"),
        ({"pictures": HWC, "labels": LABELS}, "no array of the train images"),
    ],
)
def test_a_wrong_array_is_one_line(tmp_path, arrays, said):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=said) as error:
        load(tmp_path)
    assert str(tmp_path / "a.npz") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ({"images": HWC, "labels": LABELS + 1}, "label 3 is out of range, classes go from 0 to 2"),
        ({"images": HWC, "labels": LABELS - 1}, "label -1 is out of range"),
        ({"images": HWC[:, 1:], "labels": LABELS}, "must be alike"),
        ({"images": HWC / 255, "labels": LABELS}, "must be alike"),
    ],
)
def test_a_test_file_of_another_set_is_refused(tmp_path, test, said):
    np.savez(tmp_path / "a.npz", images=HWC, labels=LABELS)
    np.savez(tmp_path / "b.npz", **test)
    with pytest.raises(ValueError, match=said):
        load(tmp_path, test="b.npz")


def test_files_that_are_no_npz_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"a\.npz: no such file; correct data\.root, data\.train"):
        load(tmp_path)
    np.save(tmp_path / "c.npy", HWC)
    (tmp_path / "c.npy").rename(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"a\.npz: not an \.npz file"):
        load(tmp_path)
    np.savez(tmp_path / "a.npz", images=HWC, labels=LABELS)
    payload = bytearray((tmp_path / "a.npz").read_bytes())
    payload[1000:1010] = b"\xff" * 10
    (tmp_path / "a.npz").write_bytes(payload)
    with pytest.raises(ValueError, match=r"a\.npz: damaged"):
        load(tmp_path)


def test_the_training_file_is_required():
    with pytest.raises(ValidationError):
        NpzConfig()
