import time

import pytest
import torch

from hard_fast.data.waiting import DeviceWait, HostWait, WaitAdvice


def told(*windows: tuple[float, float]) -> list[str]:
    """What is said in a run of these windows: share of waiting, seconds of the run at the end."""
    advice = WaitAdvice()
    return [text for window in windows if (text := advice.after(*window))]


def test_a_run_that_waits_for_data_is_told_once():
    (text,) = told((0.9, 5.0), *((0.5, 5.0 + 8.0 * i) for i in range(1, 40)))
    assert text.startswith("50% of the last 32 s went in waiting for data")
    assert "data.threads" in text


def test_waiting_that_is_short_or_a_small_share_is_no_matter():
    # Filling the queues, half of a few seconds, and a fifth of an hour.
    assert told((0.9, 60.0)) == []
    assert told((0.0, 0.0), (0.5, 29.0)) == []
    assert told((0.0, 0.0), *((0.2, 60.0 * i) for i in range(1, 61))) == []


def test_a_disk_that_becomes_slow_after_hours_is_noticed_within_a_minute():
    (text,) = told(*((0.0, 10.0 * i) for i in range(1000)), (0.9, 10_015.0), (0.9, 10_030.0))
    assert "of the last 40 s" in text


def test_only_time_inside_the_blocks_counts():
    wait = HostWait()
    assert wait.seconds() == 0.0
    with wait:
        time.sleep(0.05)
    inside = wait.seconds()
    time.sleep(0.2)
    assert wait.seconds() == inside
    assert 0.05 <= inside < 0.2
    with wait:
        time.sleep(0.05)
    assert wait.seconds() >= inside + 0.05


def test_an_error_inside_a_block_passes_and_counts():
    wait = HostWait()
    with pytest.raises(KeyError), wait:
        time.sleep(0.02)
        raise KeyError
    assert wait.seconds() >= 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_busy_gpu_does_not_wait_for_its_host():
    device = torch.device("cuda", torch.cuda.current_device())
    matrix = torch.rand(8192, 8192, device=device)
    torch.cuda.synchronize()
    idle, busy = DeviceWait(device), DeviceWait(device)
    with idle:
        time.sleep(0.1)
    torch.cuda.synchronize()
    for _ in range(100):
        matrix = matrix @ matrix / 8192
    with busy:
        time.sleep(0.001)
    torch.cuda.synchronize()
    assert idle.seconds() >= 0.1
    assert busy.seconds() < 0.05
