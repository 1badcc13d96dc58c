"""What a suite is, what is asked of it, and what it is once it is loaded.

Letters: N samples of a part, S labels of a sample, G outputs of a class.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hard_fast.data.arrays import EvalPart
from hard_fast.evals.published import PAPER_ROWS


class Missing(Exception):
    """The data of a suite are not there. Its message is one line, ready for the person."""


class PictureFormat(NamedTuple):
    """What a network wants of pictures in files; sets of small images come as they are.

    size:      height and width, px.
    eval_crop: the shorter side becomes floor(size / eval_crop), and the centre is kept.
    """

    size: int
    eval_crop: float
    interpolation: Literal["bilinear", "bicubic"]


class Loaded(NamedTuple):
    """A suite ready to be evaluated.

    parts:       "test" alone, or one per corruption and severity: "fog/3" ("fog" in MNIST-C).
    num_classes: of the labels.
    columns:     the network's outputs that are these classes, in the order of the labels: [K] int64
                 picks one output per class; in [K,G], padded with -1, the probabilities of a row's
                 outputs are to be added. None: the outputs are the classes.
    label_sets:  [N,S] int64, padded with -1: all labels that are right. A batch's label is then the
                 row, and a row of only -1 does not count. None: the label is the class.
    """

    parts: dict[str, EvalPart]
    num_classes: int
    columns: Tensor | None = None
    label_sets: Tensor | None = None


class Request(NamedTuple):
    """One suite that is to be loaded.

    name:      as it was asked for; messages begin with it.
    detail:    what stands behind the colon of the name; empty without one.
    severity:  the one to load; None: all of them.
    label_map: file of the outputs of the network that are a class folder's.
    """

    suite: "Suite"
    name: str
    detail: str
    severity: int | None
    data_root: Path
    pictures: PictureFormat
    device: torch.device
    label_map: Path | None = None

    def missing(self) -> Missing:
        """What to raise where the data are not there."""
        suite = self.suite
        return Missing(f"no {suite.layout} in {self.data_root} (from {suite.source})")

    def find_home(self) -> Path:
        """The folder of the data below the root.

        Raises:  Missing if there is none.
        """
        for home in self.suite.homes:
            if (self.data_root / home).is_dir():
                return self.data_root / home
        raise self.missing()


@dataclass(frozen=True)
class Suite:
    """A set of test data as its authors ship it.

    title:       what a table calls it.
    source:      where it is published.
    layout:      the files or folders that are expected below the root, in one line.
    homes:       the folders below the root in which they are looked for, the usual one first.
    labels:      how labels become outputs of a network, in one line.
    num_classes: of the labels; None: as many as there are class folders.
    scores:      the ones it is known for.
    read:        how it is loaded.
    """

    name: str
    title: str
    source: str
    layout: str
    homes: tuple[str, ...]
    labels: str
    num_classes: int | None
    scores: tuple[str, ...]
    read: Callable[[Request], Loaded]

    @property
    def home(self) -> str:
        """The usual folder below the root."""
        return self.homes[0]

    @property
    def published(self) -> dict[str, dict[str, float]]:
        """The scores that the paper reports for it, by row and score."""
        return {row: suites[self.name] for row, suites in PAPER_ROWS.items() if self.name in suites}
