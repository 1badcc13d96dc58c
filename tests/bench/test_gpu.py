"""bench/gpu.sh, gone through on a CPU."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from bench.timing import read_rows

ROOT = Path(__file__).resolve().parent.parent.parent


def run(wheels: Path, out: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DEVICE": "cpu", "SECONDS_IN_ALL": str(seconds)}
    environment |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "bench" / "gpu.sh"), str(wheels), str(out), "memory"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def cut_wheel(folder: Path) -> None:
    """A wheel of one module, in two parts."""
    whole = folder / "carried-1.0-py3-none-any.whl"
    about = "carried-1.0.dist-info"
    with zipfile.ZipFile(whole, "w") as file:
        file.writestr("carried.py", "WEIGHT = 3\n")
        file.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n")
        file.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{about}/RECORD", f"carried.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n")
    payload = whole.read_bytes()
    whole.with_name(f"{whole.name}.part-aa").write_bytes(payload[:200])
    whole.with_name(f"{whole.name}.part-ab").write_bytes(payload[200:])
    whole.unlink()


@pytest.mark.slow
def test_parts_become_a_wheel_and_an_archive_is_left(tmp_path):
    # The wheels lie where the results go, and stay there.
    wheels, out = tmp_path / "out" / "wheels", tmp_path / "out"
    wheels.mkdir(parents=True)
    cut_wheel(wheels)
    done = run(wheels, out, seconds=540)
    assert done.returncode == 0, done.stdout
    with tarfile.open(out / "gpu.tar.gz") as archive:
        archive.extractall(tmp_path / "found", filter="data")
    found = tmp_path / "found" / "gpu"
    steps = (found / "steps.txt").read_text().splitlines()
    assert [line.partition(" after")[0] for line in steps] == [
        f"{step}: exit code 0" for step in ("install", "describe", "tests", "bench")
    ]
    rows = read_rows(found / "results.jsonl")
    assert rows and all(row["bench"] == "memory" for row in rows)
    assert (out / "site" / "carried.py").read_text() == "WEIGHT = 3\n"
    assert done.stdout.strip().endswith("gpu.tar.gz") and len(list(wheels.iterdir())) == 2


def test_a_folder_without_wheels_ends_before_anything_is_timed(tmp_path):
    done = run(tmp_path, tmp_path / "out", seconds=60)
    assert done.returncode == 1 and f"{tmp_path}: no wheels" in done.stdout
    assert "tests:" not in done.stdout and (tmp_path / "out" / "gpu.tar.gz").is_file()
