"""A Trainer of a small run, and what it leaves."""

import torch

from hard_fast.config import RunConfig
from hard_fast.runtime.configfile import Source, merge, parse
from hard_fast.runtime.dist import World
from hard_fast.runtime.rows import read_rows
from hard_fast.trainer import Trainer

WORLD = World(0, 1, torch.device("cpu"))


def build(tree, **changes):
    return Trainer(parse(RunConfig, Source(merge(tree, changes), {})), WORLD)


def rows(trainer, *kinds):
    """Rows of some kinds, without what depends on the clock."""
    return [
        {key: value for key, value in row.items() if key != "timing"}
        for row in read_rows(trainer.run_dir / "metrics.jsonl")
        if row["kind"] in kinds
    ]


def weights(trainer):
    # The drawn copy is left out: the bank overwrites it before each use.
    state = trainer.net.state_dict().items()
    return {name: value.clone() for name, value in state if not name.startswith("drawn.")}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
