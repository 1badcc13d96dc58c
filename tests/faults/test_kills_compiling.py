"""Runs that are killed while they compile: what is in the cache then harms no later start."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from hard_fast.runtime.configfile import dump
from tests.faults.runs import TREE, Run, finish, outcome

# One graph of the smallest network; most of the time goes to the compiler's own start.
TREE_OF_ONE = {key: TREE[key] for key in ("data", "student", "optim", "checkpoint")} | {
    "objective": {"kind": "ce"},
    "train": TREE["train"] | {"gallery": False},
    "compile": {"mode": "default"},
}
# Of all libraries that are made, one after which a case may strike.
NUM_LIBRARIES = 6


class Case(NamedTuple):
    """What is done to a run. is_writing: while a library is half written."""

    signal: signal.Signals
    ranks: int
    is_writing: bool


CASES = (
    Case(signal.SIGKILL, 1, True),
    Case(signal.SIGKILL, 2, False),
    Case(signal.SIGTERM, 1, False),
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        num = max(1, min(len(CASES), metafunc.config.getoption("--tries") // 10))
        names = [f"{c.signal.name}-{c.ranks}-{'writing' * c.is_writing}" for c in CASES[:num]]
        metafunc.parametrize("case", CASES[:num], ids=names)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "run.toml"
    path.write_text(dump(TREE_OF_ONE))
    return path


def arguments(config: Path, place: Path) -> list[str]:
    run_dir, cache = place / "run", place / "cache"
    return ["--config", str(config), f"run_dir={run_dir}", f"compile.cache={cache}"]


@pytest.fixture(scope="module")
def unbroken(
    config: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[int], tuple]]:
    """The outcome of a run with a cache of its own, by its ranks; both run meanwhile."""
    places = {ranks: tmp_path_factory.mktemp(f"unbroken-{ranks}") for ranks in (1, 2)}
    runs = {
        ranks: Run(arguments(config, place), place / "said", ranks=ranks)
        for ranks, place in places.items()
    }

    def wait(ranks: int) -> tuple:
        assert runs[ranks].wait(600) == [0] * ranks, runs[ranks].said()
        return outcome(places[ranks] / "run")

    yield wait
    for run in runs.values():
        run.end()


def is_half_written(cache: Path) -> bool:
    """Whether there is a library without its first bytes, which are written last."""
    return any(path.read_bytes()[:4] != b"\x7fELF" for path in cache.rglob("*.so"))


def wait_for(case: Case, run: Run, cache: Path, num_libraries: int) -> None:
    """Until so many libraries are made, or one of them half; all is left stopped then."""
    while len(list(cache.rglob("*.so"))) < num_libraries:
        assert not run.is_over(), run.said()
        time.sleep(0.01)
    while case.is_writing:
        assert not run.is_over(), run.said()
        if is_half_written(cache):
            # The compiler too.
            os.killpg(run.pid(0), signal.SIGSTOP)
            if is_half_written(cache):
                return
            os.killpg(run.pid(0), signal.SIGCONT)


@pytest.mark.slow
def test_a_run_killed_while_it_compiles_ends_like_one_that_was_not(
    case, config, unbroken, tmp_path, faults
):
    how = "killed" if case.signal is signal.SIGKILL else "asked to end"
    cache, run_dir = tmp_path / "cache", tmp_path / "run"
    with faults.tried(f"{how} while it compiles"):
        run = Run(arguments(config, tmp_path), tmp_path / "said", ranks=case.ranks)
        try:
            chance = random.Random(CASES.index(case))
            wait_for(case, run, cache, chance.randrange(1, NUM_LIBRARIES))
            assert not (run_dir / "metrics.jsonl").read_text(), "it trains already"
            for rank in range(case.ranks):
                # To the compiler too, as a terminal and Slurm do.
                os.killpg(run.pid(rank), case.signal)
            codes = run.wait(600)
        finally:
            run.end()
        is_killed = case.signal is signal.SIGKILL
        assert set(codes) == {-case.signal if is_killed else 128 + case.signal}, run.said()
        assert not case.is_writing or is_half_written(cache)
        finish(arguments(config, tmp_path), tmp_path / "said again", case.ranks)
        assert not is_half_written(cache)
        weights, rows = outcome(run_dir)
        whole_weights, whole_rows = unbroken(case.ranks)
        assert rows == whole_rows and weights.keys() == whole_weights.keys()
        assert all(torch.equal(weights[name], whole_weights[name]) for name in weights)
