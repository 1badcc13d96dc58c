"""What every test shares: where real data are, one thread, and a run that takes a second."""

import copy
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import TREE

if not torch.cuda.is_available():
    # Triton reads it when it is imported: its kernels then run in its interpreter, on CPU tensors.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-golden", action="store_true", help="store the curves found now")
    parser.addoption("--tries", type=int, default=4, help="runs to kill; the campaign has 50")
    parser.addoption("--cases", type=int, default=500, help="bad inputs; the campaign has 100000")
    parser.addoption("--real-data", default=None, help="folder with mnist/, cifar10/ and weights/")


def pytest_configure() -> None:
    # A shell starts what shall run in its background with ctrl-C ignored, as would all below it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Tiny tensors gain nothing from threads, and sums in a fixed order are the same everywhere.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data(request: pytest.FixtureRequest) -> Path:
    """The folder given as --real-data; without it the test is skipped."""
    folder = request.config.getoption("--real-data")
    if folder is None:
        pytest.skip("needs --real-data DIR with mnist/, cifar10/ and weights/")
    return Path(folder)


@pytest.fixture
def tiny_run(tmp_path: Path) -> dict[str, Any]:
    """The tree of a HARD run of 12 steps on synthetic digits; every phase happens in it."""
    return {"run_dir": str(tmp_path / "run"), **copy.deepcopy(TREE)}


@pytest.fixture
def study(tiny_run, tmp_path):
    """A study's tree: a teacher of one seed, and two rows of two seeds that learn from it."""
    common = {key: tiny_run[key] for key in ("data", "optim", "train")} | {
        "run_dir": str(tmp_path / "study"),
        "student": {"name": "mlp", "options": {"hidden": [8]}},
    }
    hard = {k: tiny_run[k] for k in ("augmentor", "objective", "schedule", "augmentor_optim")}
    return common | {
        "study": {
            "title": "tiny",
            "seeds": [0, 1],
            "metrics": ["top1"],
            "reach": "kd",
            "paper": {"hard": {"top1": 68.9}},
        },
        "rows": {
            "teacher": {
                "seeds": [5],
                "run": {"student": tiny_run["teacher"], "objective": {"kind": "ce"}},
            },
            "kd": {"teacher_row": "teacher", "run": {"objective": {"kind": "kd"}}},
            "hard": {"teacher_row": "teacher", "run": hard},
        },
    }
