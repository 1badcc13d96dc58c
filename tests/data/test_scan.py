import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from hard_fast.data import scan
from hard_fast.data.probe import Finding, Place
from hard_fast.data.scan import Scan

HOME = Path("set")


@pytest.fixture
def places(tmp_path, encode) -> list:
    """Seven good pictures with their keys."""
    found = []
    for i in range(7):
        path = tmp_path / f"{i}.jpg"
        path.write_bytes(encode(seed=i))
        found.append(((HOME, path.name), Place(str(path), 0, path.stat().st_size)))
    return found


def test_every_picture_is_answered_for_once(monkeypatch, places, tmp_path):
    monkeypatch.setattr(scan, "CHUNK", 2)
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"<html>")
    places.insert(3, ((HOME, "bad.jpg"), Place(str(bad), 0, 6)))
    work = Scan(places, 2)
    found = list(work.findings())
    assert sorted(key for key, _ in found) == sorted(key for key, _ in places)
    assert [key for key, finding in found if finding.reason] == [(HOME, "bad.jpg")]
    assert work.decoder.startswith(("DALI", "Pillow"))
    assert not multiprocessing.active_children()


def test_a_killed_process_costs_nothing(places):
    findings = Scan(places, 1).findings()
    first = next(findings)
    (process,) = multiprocessing.active_children()
    os.kill(process.pid, signal.SIGKILL)
    found = dict([first, *findings])
    assert found == dict.fromkeys((key for key, _ in places), Finding(None))


def test_a_picture_that_hangs_is_found(monkeypatch, places, tmp_path):
    monkeypatch.setattr(scan, "_PATIENCE_S", 1.0)
    # Nobody ever writes into this pipe, so that reading it does not end.
    os.mkfifo(tmp_path / "stuck.jpg")
    places.insert(2, ((HOME, "stuck.jpg"), Place(f"{tmp_path}/stuck.jpg", 0, 9)))
    found = dict(Scan(places, 1).findings())
    assert found.pop((HOME, "stuck.jpg")).reason == "ends or hangs the decoder (exit code -9)"
    assert len(found) == 7 and all(finding.reason is None for finding in found.values())


def test_processes_end_with_the_iteration(places):
    findings = Scan(places, 2).findings()
    next(findings)
    findings.close()
    assert not multiprocessing.active_children()


def test_nothing_to_do_is_no_error():
    assert list(Scan([], 1).findings()) == []
