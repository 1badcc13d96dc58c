"""CIFAR-10's own test set, CIFAR-10.1 and CIFAR-10-C."""

from pathlib import Path

from hard_fast.data.readers import find_file, read_cifar_file
from hard_fast.evals.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS
from hard_fast.evals.published import SEVERITIES
from hard_fast.evals.suites.names import pick
from hard_fast.evals.suites.stored import Stored, open_images, open_labels, store
from hard_fast.evals.suites.suite import Loaded, Request

_SHAPE = (32, 32, 3)


def read_cifar10(request: Request) -> Loaded:
    """The 10,000 test images of the official binary layout."""
    path = find_file(request.data_root, request.suite.homes, ("test_batch.bin",))
    if path is None:
        raise request.missing()
    return Loaded({"test": store(read_cifar_file(path), request.device)}, 10)


def read_cifar10_1(request: Request) -> Loaded:
    """The 2,000 images of CIFAR-10.1 v6, or the 2,021 of v4."""
    version = "v4" if request.suite.name.endswith("v4") else "v6"
    path = find_file(request.data_root, request.suite.homes, (f"cifar10.1_{version}_data.npy",))
    if path is None:
        raise request.missing()
    image = open_images(path, _SHAPE)
    label = open_labels(path.with_name(f"cifar10.1_{version}_labels.npy"), len(image), 10, path)
    return Loaded({"test": Stored(image, label, request.device)}, 10)


def read_cifar10_c(request: Request) -> Loaded:
    """Each corruption's file holds the severities one after another, the same images in each."""
    home = request.find_home()

    def find(name: str) -> Path | None:
        path = home / f"{name}.npy"
        return path if path.is_file() else None

    parts = {}
    for name, path in pick(request, home, find, CORRUPTIONS, EXTRA_CORRUPTIONS).items():
        image = open_images(path, _SHAPE)
        label = open_labels(home / "labels.npy", len(image), 10, path)
        num, rest = divmod(len(image), len(SEVERITIES))
        if rest:
            raise ValueError(
                f"{path}: {len(image)} images do not divide by the {len(SEVERITIES)} severities; "
                "fetch it again"
            )
        for severity in SEVERITIES if request.severity is None else (request.severity,):
            part = slice((severity - 1) * num, severity * num)
            parts[f"{name}/{severity}"] = Stored(image[part], label[part], request.device)
    return Loaded(parts, 10)
