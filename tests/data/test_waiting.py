import time

import pytest
import torch

from hard_fast.data.waiting import DeviceWait, HostWait


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
