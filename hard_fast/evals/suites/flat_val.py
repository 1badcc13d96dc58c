"""ImageNet's validation pictures as its authors ship them: 50,000 files in one folder.

Their labels come from Kaggle's LOC_val_solution.csv, from a val.txt of names and labels, or from
the development kit, whose numbers of classes are not those of networks.
"""

import csv
import re
import zlib
from pathlib import Path

import numpy as np

from hard_fast.data.folders import is_picture
from hard_fast.data.sources import Listing, list_files
from hard_fast.evals.suites.imagenet_classes import read_wnids

_DEVKIT = "ILSVRC2012_devkit_t12/data"
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def list_flat(home: Path, folder: Path) -> Listing:
    """The pictures of the folder, sorted by name.

    Args:    home: where the file of labels is looked for.
    Raises:  ValueError if there is no such file, or it does not name every picture.
    """
    paths = sorted(path for path in folder.iterdir() if is_picture(path.name))
    source, label_of = _read_labels(home)
    lacking = [path.name for path in paths if path.stem not in label_of]
    if lacking:
        raise ValueError(
            f"{source}: no label for {len(lacking)} of the {len(paths)} pictures of {folder}, as "
            f"{lacking[0]}; fetch it again"
        )
    return list_files(
        home,
        [str(path.relative_to(home)) for path in paths],
        np.array([path.stat().st_size for path in paths], np.int64),
        np.array([label_of[path.stem] for path in paths], np.int64),
    )


def number_in(name: str) -> int:
    """The number of a validation picture, from 1, out of its name ILSVRC2012_val_00000001.JPEG.

    Raises:  ValueError if the name has none.
    """
    found = re.search(r"ILSVRC2012_val_(\d{8})\.[A-Za-z]+$", name)
    if found is None or not int(found[1]):
        raise ValueError(
            f"{name}: the labels of ReaL go by names as ILSVRC2012_val_00000001.JPEG; keep the "
            "names of the archive"
        )
    return int(found[1])


def _read_labels(home: Path) -> tuple[Path, dict[str, int]]:
    """The file of labels, and the label of each picture by its name without the suffix."""
    solution, listed, devkit = home / "LOC_val_solution.csv", home / "val.txt", home / _DEVKIT
    try:
        if solution.is_file():
            return solution, _read_solution(solution)
        if listed.is_file():
            return listed, _read_listed(listed)
        if (devkit / _TRUTH).is_file():
            return devkit / _TRUTH, _read_devkit(devkit)
    except (OSError, LookupError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{home}: its file of validation labels is damaged ({reason})") from None
    raise ValueError(
        f"{home}: validation pictures in one folder need LOC_val_solution.csv, val.txt or "
        f"{_DEVKIT}/ beside it; add one, or put them into val/<WordNet identifier>/"
    )


def _read_solution(path: Path) -> dict[str, int]:
    """Rows of ImageId and PredictionString: the class first, then its boxes."""
    number_of = {wnid: i for i, wnid in enumerate(read_wnids())}
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        # A row that is cut short has None for what it lacks.
        columns = ((row["ImageId"], (row["PredictionString"] or "").split()) for row in rows)
        return {name: number_of[words[0]] for name, words in columns}


def _read_listed(path: Path) -> dict[str, int]:
    """Lines of a file's name and its output, or its WordNet identifier."""
    number_of = {wnid: i for i, wnid in enumerate(read_wnids())}
    label_of = {}
    for line in path.read_text().splitlines():
        name, label = line.split()
        number = number_of[label] if label in number_of else int(label)
        if not 0 <= number < len(number_of):
            raise ValueError(f"{path.name}: label {label} is not from 0 to {len(number_of) - 1}")
        label_of[Path(name).stem] = number
    return label_of


def _read_devkit(devkit: Path) -> dict[str, int]:
    """Line i is picture i's class, numbered as in meta.mat."""
    # Of what other packages need anyhow, and used here alone.
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    number_of = {wnid: i for i, wnid in enumerate(read_wnids())}
    try:
        synsets = loadmat(devkit / "meta.mat", squeeze_me=True)["synsets"]
    except (MatReadError, TypeError, zlib.error) as error:
        raise ValueError(f"meta.mat: {error}") from None
    wnid_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    truth = (devkit / _TRUTH).read_text().split()
    return {
        f"ILSVRC2012_val_{i:08d}": number_of[wnid_of[int(text)]] for i, text in enumerate(truth, 1)
    }
