"""Disks that are full, read-only, damaged or moved: the same weights in the end, or one line."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

import hard_fast.checkpoint
from hard_fast.bank import AugmentorBank, BankConfig
from hard_fast.checkpoint import Checkpointer
from hard_fast.runtime.configfile import dump, merge
from hard_fast.train import main
from tests.faults.runs import RUN, Run, finish, last_step, outcome, saved_steps

CPU = torch.device("cpu")
STEPS, EVERY = 24, 6
CHANGES = {"train": {"steps": STEPS}, "checkpoint": {"every_steps": EVERY, "keep": 100}}
# One that damages each kind of file at least once.
NUM_FILES = 7


class Whole(NamedTuple):
    """A run that nothing happened to, all of its checkpoints kept."""

    config: Path
    run_dir: Path
    weights: dict[str, torch.Tensor]
    rows: list[dict]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    place = tmp_path_factory.mktemp("whole")
    config, run_dir = place / "run.toml", place / "run"
    config.write_text(dump(merge(RUN, CHANGES)))
    assert main(["--config", str(config), f"run_dir={run_dir}"]) == 0
    return Whole(config, run_dir, *outcome(run_dir))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A function that mounts a file system of its own with some options, or changes them."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        is_there = os.path.ismount(place)
        how = ["-o", f"remount,{options}"] if is_there else ["-t", "tmpfs", "-o", options, "tmpfs"]
        done = subprocess.run(["mount", *how, str(place)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"needs leave to mount a file system ({done.stderr.strip()})")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


def interrupted(whole: Whole, run_dir: Path, step: int = 3 * EVERY) -> Path:
    """A copy of the run as if it had been killed after this step."""
    shutil.copytree(whole.run_dir, run_dir)
    for name in ("summary.json", "student.safetensors", "report.html"):
        (run_dir / name).unlink()
    for path in (run_dir / "checkpoints").iterdir():
        if int(path.stem.removeprefix("step_")) > step:
            path.unlink()
    return run_dir


def attempt(whole: Whole, run_dir: Path, capsys: pytest.CaptureFixture) -> str | None:
    """Run the command: None if it came to the same end, else the one line that it said."""
    capsys.readouterr()
    code = main(["--config", str(whole.config), f"run_dir={run_dir}"])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    if code == 0:
        weights, rows = outcome(run_dir)
        assert rows == whole.rows and not lines
        assert weights.keys() == whole.weights.keys()
        assert all(torch.equal(weights[name], whole.weights[name]) for name in weights)
        return None
    assert code == 2 and len(lines) == 1
    return lines[0]


@pytest.mark.slow
def test_a_full_disk(request, whole, disk, faults, capsys):
    chance = random.Random(0)
    needed = sum(-(-p.stat().st_size // 4096) * 4 for p in whole.run_dir.rglob("*") if p.is_file())
    for number in range(max(2, request.config.getoption("--tries") // 3)):
        size = chance.randrange(16, needed - 8) // 4 * 4
        with faults.tried("disk full") as attempted:
            run_dir = disk(f"size={size}k") / f"run-{number}"
            said = attempt(whole, run_dir, capsys)
            assert said is not None and "No space left on device" in said and "/disk/run" in said
            disk("size=64m")
            saved = saved_steps(run_dir) if run_dir.is_dir() else []
            told = (run_dir / "metrics.jsonl").is_file()
            rows = (run_dir / "metrics.jsonl").read_text().splitlines() if told else []
            last = max((json.loads(row)["step"] for row in rows[:-1]), default=0)
            attempted.lost_steps = max(0, last - max(saved, default=0))
            assert attempted.lost_steps <= EVERY
            assert attempt(whole, run_dir, capsys) is None
            shutil.rmtree(run_dir)


@pytest.mark.slow
def test_a_full_disk_seen_from_outside(whole, disk, tmp_path, faults):
    place = disk("size=100k")
    command = ["--config", str(whole.config), f"run_dir={place / 'run'}"]
    with faults.tried("disk full, as a process of its own"):
        run = Run(command, tmp_path / "said")
        assert run.wait() == [2] and "Traceback" not in run.said()
        last = run.said().strip().splitlines()[-1]
        assert last.startswith("error: ") and last.endswith(": No space left on device")
        disk("size=64m")
        finish(command, tmp_path / "said again")
        weights, _ = outcome(place / "run")
        assert all(torch.equal(weights[name], whole.weights[name]) for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 16])
def test_a_full_disk_of_tensorboard(whole, disk, tmp_path, faults, size):
    """Its files are written by a thread, after the step that they tell of."""
    run_dir, place = tmp_path / "run", disk(f"size={size}k")
    run_dir.mkdir()
    (run_dir / "tensorboard").symlink_to(place)
    command = ["--config", str(whole.config), f"run_dir={run_dir}", "train.tensorboard=true"]
    with faults.tried("disk full, of TensorBoard") as attempted:
        run = Run(command, tmp_path / "said")
        try:
            assert run.wait() == [2], run.said()
        finally:
            run.end()
        assert "Traceback" not in run.said()
        lines = [line for line in run.said().splitlines() if line.startswith("error")]
        assert lines == [f"error: {run_dir / 'tensorboard'}: No space left on device"]
        attempted.lost_steps = max(0, last_step(run_dir) - max(saved_steps(run_dir), default=0))
        assert attempted.lost_steps <= EVERY
        disk("size=64m")
        finish(command, tmp_path / "said again")
        weights, rows = outcome(run_dir)
        assert rows == whole.rows
        assert all(torch.equal(weights[name], whole.weights[name]) for name in weights)


def test_a_read_only_disk(whole, disk, faults, capsys):
    with faults.tried("disk read-only"):
        run_dir = interrupted(whole, disk("size=64m") / "run")
        disk("ro")
        said = attempt(whole, run_dir, capsys)
        assert str(run_dir) in said and "cannot be used: Read-only file system" in said
        said = attempt(whole, run_dir.parent / "new", capsys)
        assert "Read-only file system" in said
        disk("rw")
        assert attempt(whole, run_dir, capsys) is None


def harm(chance: random.Random, path: Path) -> None:
    """Cut the file somewhere, or change some of its bits."""
    payload = bytearray(path.read_bytes() or b"?")
    if chance.random() < 0.4:
        del payload[chance.randrange(len(payload)) :]
    else:
        for _ in range(chance.choice((1, 1, 8))):
            payload[chance.randrange(len(payload))] ^= 1 << chance.randrange(8)
    path.write_bytes(payload)


@pytest.mark.slow
def test_damaged_files_of_a_run(request, whole, tmp_path, faults, capsys):
    chance = random.Random(1)
    for number in range(max(NUM_FILES, request.config.getoption("--tries"))):
        run_dir = interrupted(whole, tmp_path / f"run-{number}")
        files = [path for path in sorted(run_dir.rglob("*")) if path.is_file()]
        newest = run_dir / "checkpoints" / f"step_{3 * EVERY:09d}.pt"
        entry = chance.choice([path for path in files if path.parent.name == "bank"])
        named = [newest, newest.with_suffix(".json"), entry, run_dir / "config.toml"]
        path = (*named, run_dir / "metrics.jsonl", run_dir / ".launch", chance.choice(files))[
            number % NUM_FILES
        ]
        is_log = path.name == "metrics.jsonl"
        with faults.tried(f"damaged {path.suffix or path.name} of a run") as attempted:
            harm(chance, path)
            if is_log:
                # The rows that are lost are lost; the weights are not.
                code = main(["--config", str(whole.config), f"run_dir={run_dir}"])
                weights, _ = outcome(run_dir)
                assert code == 0
                assert all(torch.equal(weights[name], whole.weights[name]) for name in weights)
                continue
            said = attempt(whole, run_dir, capsys)
            assert said is None or path.name in said or path.name == "config.toml"
            assert said is None or path.suffix in (".toml", ".safetensors")
            attempted.lost_steps = EVERY if said is None and path.stem == newest.stem else 0
        shutil.rmtree(run_dir)


class Shift(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.full((5,), float(value)))


def test_every_kind_of_damage_to_a_checkpoint(request, tmp_path, faults):
    chance = random.Random(2)
    checkpointer = Checkpointer(tmp_path)
    for step in (1, 2):
        checkpointer.save(step, {"net": Shift(step)})
    newest = tmp_path / "step_000000002.pt"
    for number in range(max(50, request.config.getoption("--cases") // 50)):
        path = newest if number % 4 else newest.with_suffix(".json")
        payload = path.read_bytes()
        with faults.tried(f"damaged {path.suffix}") as attempted:
            harm(chance, path)
            net, step = Shift(0.0), checkpointer.to_resume()
            checkpointer.load(step, {"net": net}, CPU)
            assert torch.equal(net.value, Shift(step).value)
            attempted.lost_steps = 2 - step
            assert step == 1 or path.suffix == ".json"
        path.write_bytes(payload)


def test_every_kind_of_damage_to_the_bank(request, tmp_path, faults):
    chance, learner = random.Random(3), Shift(1.0)
    bank = AugmentorBank(learner, tmp_path, BankConfig(), seed=0)
    bank.save()
    path = tmp_path / "entry_000000.safetensors"
    payload, state = path.read_bytes(), bank.state_dict()
    for _ in range(max(50, request.config.getoption("--cases") // 50)):
        with faults.tried("damaged entry of the bank"):
            harm(chance, path)
            if path.read_bytes() == payload:
                continue
            again = AugmentorBank(learner, tmp_path, BankConfig(), seed=0)
            with pytest.raises(ValueError, match="entry_000000.safetensors: .* --resume never"):
                again.load_state_dict(state)
        path.write_bytes(payload)


def test_the_only_good_checkpoint_stays(tmp_path, faults):
    with faults.tried("older checkpoints, newer ones damaged"):
        checkpointer = Checkpointer(tmp_path, keep=2)
        for step in (1, 2, 3):
            checkpointer.save(step, {"net": Shift(step)})
        assert checkpointer.steps() == [3, 2]
        (tmp_path / "step_000000003.pt").write_bytes(b"torn")
        checkpointer.save(4, {"net": Shift(4)})
        # 3 is no checkpoint, so 2 is the second newest.
        assert checkpointer.steps() == [4, 3, 2]
        checkpointer.save(5, {"net": Shift(5)})
        assert checkpointer.steps() == [5, 4]


@pytest.mark.parametrize("num_writes", range(4))
def test_a_checkpoint_that_is_saved_again_and_not_finished(
    tmp_path, faults, num_writes, monkeypatch
):
    """A run that was stopped where an evaluation was due saves the same step once more."""
    write, done = hard_fast.checkpoint.write_atomic, []

    def fail_then(path: Path, payload: bytes | str) -> Path:
        if len(done) == num_writes:
            raise OSError(28, "No space left on device", str(path))
        done.append(path)
        return write(path, payload)

    with faults.tried("checkpoint saved again, not finished"):
        checkpointer = Checkpointer(tmp_path, keep=1)
        checkpointer.save(7, {"net": Shift(1.0)})
        monkeypatch.setattr(hard_fast.checkpoint, "write_atomic", fail_then)
        if num_writes < 3:
            with pytest.raises(OSError, match="No space left"):
                checkpointer.save(7, {"net": Shift(2.0)})
        else:
            checkpointer.save(7, {"net": Shift(2.0)})
        net = Shift(0.0)
        checkpointer.load(checkpointer.to_resume(), {"net": net}, CPU)
        assert net.value[0].item() == (1.0 if num_writes < 2 else 2.0)


def test_a_run_without_a_whole_checkpoint_does_not_begin_anew(whole, tmp_path, faults, capsys):
    with faults.tried("all checkpoints damaged"):
        run_dir = interrupted(whole, tmp_path / "run")
        for path in (run_dir / "checkpoints").glob("*.pt"):
            path.write_bytes(path.read_bytes()[:-1])
        before = {path: path.read_bytes() for path in run_dir.rglob("*.*") if path.is_file()}
        said = attempt(whole, run_dir, capsys)
        assert f"step_{3 * EVERY:09d}.pt: damaged or missing; restore it" in said
        after = {path: path.read_bytes() for path in before}
        assert all(after[path] == before[path] for path in before if path.name != ".lock")


@pytest.mark.parametrize("when", [0.0, 1e9, 4e9])
def test_a_clock_that_went_elsewhere(whole, tmp_path, faults, capsys, when):
    with faults.tried("clock set back or forth"):
        run_dir = interrupted(whole, tmp_path / "run")
        # The newest file is the oldest by its time, and all are from another age.
        for path in run_dir.rglob("*"):
            back = int(path.stem[-4:]) if path.stem[-4:].isdecimal() else 0
            os.utime(path, (when - back, when - back) if when else (back, back))
        assert attempt(whole, run_dir, capsys) is None


def test_a_run_that_was_moved(whole, tmp_path, faults, capsys):
    with faults.tried("run directory moved"):
        run_dir = interrupted(whole, tmp_path / "run")
        moved = shutil.move(run_dir, tmp_path / "elsewhere")
        assert attempt(whole, Path(moved), capsys) is None
        assert not run_dir.exists()


@pytest.mark.slow
def test_two_runs_in_one_directory(whole, tmp_path, faults):
    run_dir = tmp_path / "run"
    command = ["--config", str(whole.config), f"run_dir={run_dir}"]
    with faults.tried("two runs in one directory"):
        first = Run(command, tmp_path / "first")
        try:
            while not (run_dir / ".lock").is_file() or not (run_dir / ".lock").read_text():
                assert not first.is_over(), first.said()
                time.sleep(0.01)
            os.kill(first.pid(0), signal.SIGSTOP)
            second = Run(command, tmp_path / "second")
            assert second.wait() == [2] and "Traceback" not in second.said()
            assert f"is in use by process {first.pid(0)}; wait for it" in second.said()
            os.kill(first.pid(0), signal.SIGCONT)
            assert first.wait() == [0]
        finally:
            first.end()
        weights, rows = outcome(run_dir)
        assert rows == whole.rows
        assert all(torch.equal(weights[name], whole.weights[name]) for name in weights)
