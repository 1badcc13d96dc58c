"""MNIST's own test set, MNIST-C and USPS: handwritten digits, in 28x28 pixels of one channel."""

import bz2
import importlib
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from hard_fast.data.arrays import TEST_SEED, Arrays
from hard_fast.data.readers import checked, find_file, read_idx
from hard_fast.data.shifted import shift_corners
from hard_fast.evals.suites.names import MNIST_CORRUPTIONS, pick
from hard_fast.evals.suites.stored import Stored, open_images, open_labels, store
from hard_fast.evals.suites.suite import Loaded, Request

_SIZE = 28
_USPS_SIZE = 16
# Severity 3 of the five, the one of the published files.
_SHIFT_PX = 3


def read_mnist(request: Request) -> Loaded:
    """The 10,000 test images of the official idx files, as they are."""
    return Loaded({"test": store(_read_test(request), request.device)}, 10)


def read_mnist_shifted(request: Request) -> Loaded:
    """The same images, each moved 3 px towards a random corner.

    Source:  MNIST-C `translate`; see `shift_corners`.
    """
    test = _read_test(request)
    image = shift_corners(test.image, _SHIFT_PX, TEST_SEED)
    return Loaded({"test": store(Arrays(image, test.label), request.device)}, 10)


def _read_test(request: Request) -> Arrays:
    stems = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    homes = request.suite.homes
    paths = [find_file(request.data_root, homes, (s, f"{s}.gz")) for s in stems]
    if paths[0] is None or paths[1] is None:
        raise request.missing()
    image, label = read_idx(paths[0], ndim=3), read_idx(paths[1], ndim=1)
    return checked(image[:, None], label, paths[0], paths[1], num_classes=10)


def read_mnist_c(request: Request) -> Loaded:
    """The test images of each corruption; the authors ship one severity of each."""
    home = request.find_home()
    if request.severity is not None:
        raise ValueError(f"{request.name}: MNIST-C has one severity; leave out @{request.severity}")

    def find(name: str) -> Path | None:
        path = home / name / "test_images.npy"
        return path if path.is_file() else None

    parts = {}
    for name, path in pick(request, home, find, MNIST_CORRUPTIONS, ("identity",)).items():
        image = open_images(path, (_SIZE, _SIZE, 1))
        label = open_labels(path.with_name("test_labels.npy"), len(image), 10, path)
        parts[name] = Stored(image, label, request.device)
    return Loaded(parts, 10)


def read_usps(request: Request) -> Loaded:
    """The 2,007 test images, enlarged bilinearly from 16x16 to the 28x28 of MNIST."""
    path = find_file(request.data_root, request.suite.homes, ("usps.h5", "usps.t", "usps.t.bz2"))
    if path is None:
        raise request.missing()
    light, label = _read_h5(path) if path.suffix == ".h5" else _read_libsvm(path)
    if light.ndim != 2 or light.shape[1] != _USPS_SIZE**2:
        raise ValueError(
            f"{path}: images of shape {light.shape}, expected (N, {_USPS_SIZE**2}); fetch it again"
        )
    if not (light >= 0).all() or not (light <= 1).all():
        raise ValueError(f"{path}: brightness outside the published range; fetch it again")
    image = torch.from_numpy(light.astype(np.float32)).view(-1, 1, _USPS_SIZE, _USPS_SIZE)
    image = F.interpolate(image, size=(_SIZE, _SIZE), mode="bilinear", align_corners=False)
    image = (255 * image).round().byte().numpy()
    return Loaded({"test": store(checked(image, label, path, path, 10), request.device)}, 10)


def _read_h5(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """[N,256] brightness in [0,1] and [N] digits of the test group."""
    try:
        h5py = importlib.import_module("h5py")
    except ImportError:
        raise ValueError(f"{path}: needs h5py: pip install 'hard-fast[usps]'") from None
    try:
        with h5py.File(path, "r") as file:
            return np.asarray(file["test/data"]), np.asarray(file["test/target"])
    except KeyError as error:
        raise ValueError(f"{path}: expected test/data and test/target ({error})") from None
    except OSError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: truncated, or no HDF5 file ({reason})") from None


def _read_libsvm(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """[N,256] brightness in [0,1] and [N] digits; the file has -1 to 1, and 1 to 10."""
    try:
        payload = path.read_bytes()
        text = (bz2.decompress(payload) if path.suffix == ".bz2" else payload).decode("ascii")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: truncated or damaged ({error}); fetch it again") from None
    lines = text.splitlines()
    light, label = np.zeros((len(lines), _USPS_SIZE**2)), np.zeros(len(lines), np.int64)
    for i, line in enumerate(lines):
        try:
            first, *pairs = line.split()
            label[i] = int(float(first)) - 1
            for pair in pairs:
                index, value = pair.split(":")
                # Counted from 1; a negative one would count from the end.
                light[i, int(index) - 1 if int(index) >= 1 else len(light[i])] = float(value)
        except (ValueError, IndexError):
            raise ValueError(
                f"{path}: line {i + 1} is not LABEL INDEX:VALUE ... with indices from 1 to "
                f"{_USPS_SIZE**2}; fetch it again"
            ) from None
    # The published values are exact to six digits only.
    return ((light + 1) / 2).round(5), label
