"""Bad configurations and bad files: a run, or one clear line, and never anything else."""

import gzip
import io
import itertools
import random
import signal
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hard_fast.config import RunConfig
from hard_fast.data.npz import NpzConfig, read_npz
from hard_fast.data.readers import read_idx
from hard_fast.data.shards import read_index
from hard_fast.data.tar import read_members
from hard_fast.evals.suites.stored import open_images, open_labels
from hard_fast.runtime.configfile import Source, dump, merge, parse
from hard_fast.runtime.dist import World
from hard_fast.study_plan import StudyConfig, load_study
from hard_fast.train import load_config
from hard_fast.trainer import Trainer
from tests.faults.damage import damage, with_checksums
from tests.faults.trees import as_toml, change_one, draw_tree

RUN_SCHEMA, STUDY_SCHEMA = RunConfig.model_json_schema(), StudyConfig.model_json_schema()
ALONE = World(0, 1, torch.device("cpu"))
# Of all cases; a trainer and a drawn configuration cost more than a few bytes.
SHARES = {"drawn": 20, "changed": 40, "text": 20, "trainer": 500, "reader": 6}


def is_one_clear_line(error: ValueError) -> bool:
    said = str(error)
    return bool(said) and said.isprintable() and len(said) < 20_000


def num_cases(config: pytest.Config, kind: str) -> int:
    return max(3, config.getoption("--cases") // SHARES[kind])


@pytest.fixture
def in_time() -> Iterator[Callable[[int], None]]:
    """A function that gives what follows so many seconds; a reader must not hang."""

    def give(seconds: int) -> None:
        signal.alarm(seconds)

    def stop(*_: object) -> None:
        raise AssertionError("hangs")

    before = signal.signal(signal.SIGALRM, stop)
    yield give
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def attempt_config(path: Path, tree: dict) -> RunConfig | None:
    """The run of a tree, or None after one clear line."""
    path.write_text(dump(as_toml(tree)), encoding="utf-8", errors="surrogatepass")
    try:
        config = load_config(str(path), [])
    except ValueError as error:
        assert is_one_clear_line(error), str(error)
        return None
    # What a run writes down must be the same run when it goes on.
    path.write_text(dump(config.model_dump(mode="json")), encoding="utf-8")
    assert load_config(str(path), []).fingerprint == config.fingerprint
    return config


def test_configurations_along_the_schema(request, tiny_run, tmp_path, faults):
    path, num_runs = tmp_path / "a.toml", itertools.count()
    sections = sorted(RUN_SCHEMA["properties"])

    @settings(
        max_examples=num_cases(request.config, "drawn"),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=True), st.sampled_from((0.0, 0.01, 0.05, 0.3)))
    def check(chance: random.Random, mischief: float) -> None:
        with faults.tried("configuration drawn along the schema"):
            drawn = draw_tree(chance, RUN_SCHEMA, mischief, whole=True)
            chosen = chance.sample(sections, chance.choice((1, 2, 2, len(sections))))
            own = {key: value for key, value in drawn.items() if key in chosen}
            # Mostly a run of today with other sections: few that are other in all are valid.
            tree = own if len(own) == len(drawn) else {**tiny_run, **own}
            if attempt_config(path, tree):
                next(num_runs)

    check()
    assert next(num_runs)


def test_configurations_with_one_change(request, tiny_run, tmp_path, faults):
    chance, num_valid = random.Random(0), 0
    growing = {"resolution": {"start_px": 8, "stage_px": 4, "end": 0.5}, "profile_steps": 2}
    whole = merge(tiny_run, {"train": growing})
    for _ in range(num_cases(request.config, "changed")):
        with faults.tried("configuration with a change"):
            tree = change_one(chance, whole)
            num_valid += attempt_config(tmp_path / "a.toml", tree) is not None
    assert num_valid


def test_studies(request, tiny_run, tmp_path, faults):
    chance, path = random.Random(1), tmp_path / "study.toml"
    common = {key: value for key, value in tiny_run.items() if key != "run_dir"}
    for _ in range(num_cases(request.config, "changed")):
        with faults.tried("study drawn along the schema"):
            study = draw_tree(chance, STUDY_SCHEMA, chance.choice((0.0, 0.1)))
            row = {"run": change_one(chance, common), "seeds": [1, 2]}
            rows = {chance.choice(("a", "..", "../b", "a/b", "", "\n")): row}
            tree = {**common, "study": study, "rows": rows}
            path.write_text(dump(as_toml(tree)), errors="surrogatepass")
            try:
                _, runs, study_dir = load_study(str(path), [])
            except ValueError as error:
                assert is_one_clear_line(error), str(error)
            else:
                for run in runs:
                    place = run.run_dir.resolve()
                    assert place.parent.parent == study_dir.resolve(), place


def test_damaged_text(request, tiny_run, tmp_path, faults):
    chance, whole = random.Random(2), dump(tiny_run).encode()
    path = tmp_path / "a.toml"
    for number in range(num_cases(request.config, "text")):
        with faults.tried("configuration with damaged bytes"):
            path.write_bytes(damage(chance, whole) if number else b"a = " + b"[" * 5000)
            try:
                load_config(
                    str(path), [chance.choice(("seed=1", "a=" + "9" * 5000, "a.b=[[", "="))]
                )
            except ValueError as error:
                assert is_one_clear_line(error), str(error)


SMALL = (0, 1, 2, 3, 4, 5, 8, 12, 16, -1, 0.0, 0.25, 0.5, 1.0, True, False, "", "a", [], [1], {})


def test_what_is_valid_is_built_or_refused(request, tiny_run, tmp_path, faults):
    chance = random.Random(3)
    places = [(s, k) for s, table in tiny_run.items() if isinstance(table, dict) for k in table]
    for _ in range(num_cases(request.config, "trainer")):
        with faults.tried("run built from a changed configuration"):
            section, key = chance.choice(places)
            tree = merge(tiny_run, {section: {key: chance.choice(SMALL)}})
            try:
                Trainer(parse(RunConfig, Source(tree, {})), ALONE, resume=False)
            except ValueError as error:
                assert is_one_clear_line(error), str(error)


def idx_files() -> list[bytes]:
    image = b"\0\0\x08\3" + (3).to_bytes(4, "big") + (2).to_bytes(4, "big") * 2 + bytes(12)
    return [image, gzip.compress(image, 1)]


def npy_files() -> list[bytes]:
    files = []
    for array in (np.zeros((3, 4, 4, 3), np.uint8), np.arange(3), np.zeros((3, 4), np.float32)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        files.append(buffer.getvalue())
    return files


def npz_files() -> list[bytes]:
    files = []
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, images=np.zeros((6, 4, 4, 3), np.uint8), labels=np.arange(6) % 3)
        files.append(buffer.getvalue())
    return files


def tar_files() -> list[bytes]:
    files = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            for name, payload in (
                ("0.jpg", b"j" * 700),
                ("0.cls", b"1"),
                ("x/" * 60 + "1.jpg", b""),
            ):
                member = tarfile.TarInfo(
                    "\N{SNOWMAN}" + name if form == tarfile.PAX_FORMAT else name
                )
                member.size = len(payload)
                tar.addfile(member, io.BytesIO(payload))
        files.append(buffer.getvalue()[:6144])
    return files


def read_tar(path: Path) -> None:
    """The members, and now and then the index that is kept of them, which waits for the disk."""
    for member in read_members(path):
        if member is not None:
            end = member.offset + member.num_bytes
            assert 0 < member.offset <= end <= path.stat().st_size
    if path.stat().st_size % 16 == 1:
        path.with_name(f"{path.name}.index.json").unlink(missing_ok=True)
        index = read_index(path)
        assert read_index(path) == index


READERS = {
    "idx": (idx_files(), lambda path: read_idx(path, ndim=3)),
    "npz": (npz_files(), lambda path: read_npz(NpzConfig(root="/", train=str(path)))),
    "npy, images": (npy_files(), lambda path: np.array(open_images(path, (4, 4, 3))[:2])),
    "npy, labels": (npy_files(), lambda path: open_labels(path, 3, 9, path)),
    "tar": (tar_files(), read_tar),
}


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name, request, tmp_path, faults, in_time):
    wholes, read = READERS[name]
    chance, path = random.Random(name), tmp_path / "a"
    num = num_cases(request.config, "reader")
    for number in range(num):
        payload = damage(chance, chance.choice(wholes))
        if name == "tar" and number % 2:
            payload = with_checksums(payload)
        # Not over the old one: an array that is mapped must not change beneath.
        path.unlink(missing_ok=True)
        path.write_bytes(payload)
        with faults.tried(f"damaged {name}"):
            in_time(20)
            try:
                read(path)
            except ValueError as error:
                assert is_one_clear_line(error), str(error)
                assert str(path) in str(error)
