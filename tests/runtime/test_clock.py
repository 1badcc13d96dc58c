import time

import pytest

from hard_fast.runtime.clock import Clock


def test_window_counts_only_what_came_since_the_last_one():
    clock = Clock()
    clock.count(100, 0.0)
    clock.window()
    time.sleep(0.02)
    clock.count(10, 0.01)
    clock.count_averaging(0.005)
    row = clock.window()
    assert row["images_per_s"] == pytest.approx(10 / 0.02, rel=0.5)
    assert 0.2 < row["data_wait"] <= 0.55
    assert row["averaging"] == pytest.approx(row["data_wait"] / 2)


def test_resume_continues_the_totals_without_the_pause():
    clock = Clock()
    clock.count(100, 0.5)
    clock.count_averaging(1.0)
    state = clock.state_dict() | {"seconds": 10.0}
    time.sleep(0.05)
    resumed = Clock()
    resumed.load_state_dict(state)
    totals = resumed.totals()
    assert totals["seconds"] == pytest.approx(10.0, abs=0.04)
    assert totals["images_per_s"] == pytest.approx(10.0, rel=0.01)
    assert totals["data_wait_share"] == pytest.approx(0.05, rel=0.01)
    assert totals["averaging_share"] == pytest.approx(0.1, rel=0.01)
