"""Any .npz of images and labels.

A mistake in a file is one ValueError line: which file, what is wrong with it, what to do.
"""

import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from hard_fast.data.arrays import TEST_SEED, DataSet, SplitConfig, split_off
from hard_fast.data.readers import check_same_shape, checked
from hard_fast.runtime.archive import check_unpacked_size
from hard_fast.runtime.messages import printable

_CHANNELS = (1, 3, 4)
_NAMES = {"images": ("images", "image", "x"), "labels": ("labels", "label", "y")}


class NpzConfig(SplitConfig):
    """Any .npz of images and labels.

    Arrays are called images or x, and labels or y (also image, label; in any case), alone or with
    the part's name: x_train, test_images. Pictures are uint8; floating point is for data that are
    not pictures.
    """

    kind: Literal["npz"] = "npz"
    root: str | None = None
    """Folder that `train` and `test` are relative to; None = the current one."""
    train: str
    test: str | None = None
    """None = the test arrays inside the training file or, where it has none, a split of it."""
    test_share: float = Field(default=0.2, gt=0.0, lt=1.0)
    """Share of the images split off for the test where the files have no test part."""
    layout: Literal["auto", "nhwc", "nchw"] = "auto"
    """Order of a 4-dimensional image array; auto looks for the axis of 1, 3 or 4 channels."""
    num_classes: int | None = Field(default=None, ge=1)
    """None = the largest training label plus one."""


def read_npz(config: NpzConfig) -> DataSet:
    """The training and test arrays of one or two .npz files; a training label may be -1."""
    root = Path(config.root or "").expanduser()
    train_path, test_path = root / config.train, root / (config.test or config.train)
    arrays = _open_npz(train_path)
    image, label = _pick(arrays, "train", train_path, is_alone=True)
    image = _to_nchw(image, config.layout, train_path)
    train = checked(image, label, train_path, train_path, config.num_classes, lowest=-1)
    num_classes = config.num_classes or int(train.label.max()) + 1
    if num_classes < 1:
        raise ValueError(f"{train_path}: no image has a label; say how many with data.num_classes")

    if config.test is None and not any(_find(arrays, what, "test", False) for what in _NAMES):
        train, test = split_off(train, config.test_share, TEST_SEED, "test")
        if test.label.min() < 0:
            raise ValueError(f"{train_path}: test images need labels; give data.test")
        return DataSet(num_classes, train, None, {"test": test})
    is_other_file = test_path != train_path
    arrays = _open_npz(test_path) if is_other_file else arrays
    image, label = _pick(arrays, "test", test_path, is_alone=is_other_file)
    image = _to_nchw(image, config.layout, test_path)
    test = checked(image, label, test_path, test_path, num_classes)
    check_same_shape(train, test, test_path)
    return DataSet(num_classes, train, None, {"test": test})


def _open_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz that have a name we know, by that name in lower case."""
    write = "write it with numpy.savez(FILE, images=..., labels=...)"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; correct data.root, data.train or data.test")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not an .npz file; {write}")
    known = {name for part in ("train", "test") for what in _NAMES for name in _spell(what, part)}
    check_unpacked_size(path, path)
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [name for name in file.files if name.lower() in known]
            return {name.lower(): np.asarray(file[name]) for name in names}
    except Exception as error:
        # Damaged headers make numpy and zipfile raise almost anything.
        reason = printable(str(error)) or type(error).__name__
        raise ValueError(f"{path}: damaged, or no plain arrays ({reason}); {write}") from None


def _spell(what: str, part: str) -> list[str]:
    """Names of the images or labels of a part: first those that name the part."""
    stems = _NAMES[what]
    return [n for s in stems for n in (f"{s}_{part}", f"{part}_{s}")] + list(stems)


def _find(arrays: dict[str, np.ndarray], what: str, part: str, is_alone: bool) -> str | None:
    """The name under which a file holds the images or labels of a part.

    Args:    is_alone: the file holds no other part, so a name without the part's counts.
    """
    names = [n for n in _spell(what, part) if is_alone or part in n]
    return next((name for name in names if name in arrays), None)


def _pick(
    arrays: dict[str, np.ndarray], part: str, path: Path, is_alone: bool
) -> tuple[np.ndarray, np.ndarray]:
    found = [_find(arrays, what, part, is_alone) for what in _NAMES]
    for what, name in zip(_NAMES, found, strict=True):
        if name is None:
            raise ValueError(
                f"{path}: no array of the {part} {what}; call it "
                f"{' or '.join(n for n in _spell(what, part) if is_alone or part in n)}"
            )
    return arrays[found[0]], arrays[found[1]]


def _to_nchw(image: np.ndarray, layout: str, path: Path) -> np.ndarray:
    """[N,C,H,W] uint8 or float32 from [N,H,W], [N,H,W,C], [N,C,H,W] or, for floats, [N,C]."""
    is_float = image.dtype.kind == "f"
    if not is_float and image.dtype != np.uint8:
        raise ValueError(
            f"{path}: images are {image.dtype}; store pictures as uint8, other data as float32"
        )
    if is_float:
        image = image.astype(np.float32)
        if not np.isfinite(image).all():
            raise ValueError(f"{path}: images hold NaN or infinity; remove those samples")
    if image.ndim == 2 and is_float:
        return image[:, :, None, None]
    if image.ndim == 3:
        return image[:, None]
    if image.ndim != 4:
        raise ValueError(
            f"{path}: images of shape {image.shape}; use [N,H,W,C], [N,C,H,W], [N,H,W]"
        )
    if layout == "auto":
        is_first, is_last = image.shape[1] in _CHANNELS, image.shape[3] in _CHANNELS
        if is_first == is_last and image.shape[1:] != (1, 1, 1):
            raise ValueError(
                f"{path}: images of shape {image.shape}: cannot tell the channel axis; set "
                "data.layout to 'nhwc' or 'nchw'"
            )
        layout = "nchw" if is_first else "nhwc"
    return image if layout == "nchw" else image.transpose(0, 3, 1, 2)
