import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from hard_fast.runtime.memory import (
    free_bytes,
    peak_bytes,
    process_peak_bytes,
    saved_bytes,
    state_bytes,
    storage_bytes,
    used_bytes,
)

CPU = torch.device("cpu")
MIB = 2**20


def test_adamw_keeps_two_numbers_a_parameter_and_one_a_tensor():
    network = nn.Linear(10, 10)
    optimizer = torch.optim.AdamW(network.parameters())
    assert state_bytes(optimizer) == 0
    network(torch.ones(1, 10)).sum().backward()
    optimizer.step()
    assert state_bytes(optimizer) == 2 * 4 * 110 + 2 * 4


def test_state_that_parameters_share_counts_once():
    network = nn.Linear(10, 10)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    shared = torch.zeros(100)
    for number, parameter in enumerate(network.parameters()):
        optimizer.state[parameter] = {"step": number, "nested": {"moment": shared[number:]}}
    assert state_bytes(optimizer) == 400


def test_what_a_loss_keeps_counts_once_and_without_the_network():
    network = nn.Linear(8, 4, bias=False)
    image = torch.ones(2, 8)

    def make_loss():
        # The product keeps its input and the weight; the square keeps its input, 2 x 4 floats.
        return network(image).square().sum()

    assert saved_bytes(make_loss, network) == 4 * (2 * 8 + 2 * 4)
    with pytest.raises(AssertionError):
        saved_bytes(lambda: make_loss().detach(), network)


def test_what_tensors_share_counts_once_wherever_they_are():
    whole = torch.zeros(100)
    assert storage_bytes({"a": [whole, whole[3:]], "b": (whole.view(10, 10), 7)}) == 400
    assert storage_bytes(tensor for tensor in (whole, torch.zeros(5))) == 420


def test_a_peak_is_what_work_needs_at_once():
    def hold(num_mib):
        blocks = [torch.ones(MIB // 4) for _ in range(num_mib)]
        assert len(blocks) == num_mib

    least = peak_bytes(lambda: None, CPU)
    large, small = (peak_bytes(lambda num=num: hold(num), CPU) for num in (300, 100))
    # Pages that the interpreter had to spare count for neither.
    assert 270 * MIB < large - least < 330 * MIB
    assert 70 * MIB < small - least < 130 * MIB


def test_a_small_process_does_not_tell_the_peak_of_the_large_one_that_started_it():
    ballast = torch.ones(75 * MIB)
    code = "from hard_fast.runtime.memory import process_peak_bytes as peak; print(peak())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mine = process_peak_bytes()
    assert ballast.sum() > 0 and int(done.stdout) < mine - 200 * MIB


AGAIN = """
import resource, torch
from hard_fast.runtime.memory import keep_freed_memory, used_bytes
def cleared():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(9):
        blocks = [torch.ones(num << 18) for num in (3, 70, 9)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
keep_freed_memory(torch.device("cuda"))
given_back = cleared()
keep_freed_memory(torch.device("cpu"))
used = used_bytes(torch.device("cpu"))
cleared()
print(given_back, cleared(), used_bytes(torch.device("cpu")) - used)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
@pytest.mark.parametrize("settings", [{}, {"MALLOC_ARENA_MAX": "4"}])
def test_memory_that_is_freed_is_used_again_and_counts_as_free(settings):
    done = subprocess.run(
        [sys.executable, "-c", AGAIN], env=os.environ | settings, capture_output=True, check=True
    )
    given_back, kept, more = (int(number) for number in done.stdout.split())
    assert (10 * kept > given_back) if settings else (10 * kept < given_back)
    assert more < 8 * MIB


@pytest.fixture
def system(tmp_path):
    """A root whose process has 3 MiB, and the system 50 MiB to spare."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text(f"Name:\tx\nVmRSS:\t {3 * 1024} kB\n")
    available = 50 * 1024
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {available} kB\n")
    return tmp_path


def group(folder, names, limit, used, idle):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {idle}\n")


NEW, OLD = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")


def test_free_is_what_the_system_or_the_tightest_group_leaves(system):
    groups = system / "sys/fs/cgroup"
    (system / "proc/self/cgroup").write_text("0::/job/step\n")
    assert used_bytes(CPU, system) == 3 * MIB and free_bytes(CPU, system) == 50 * MIB
    group(groups / "job/step", NEW, "max", 9 * MIB, 0)
    assert free_bytes(CPU, system) == 50 * MIB
    # The limit of the job, of which 4 MiB are files that nobody reads.
    group(groups / "job", NEW, 40 * MIB, 20 * MIB, 4 * MIB)
    assert free_bytes(CPU, system) == 24 * MIB


def test_groups_of_the_older_kind_and_those_inside_a_container_count(system):
    (system / "proc/self/cgroup").write_text("5:cpu:/x\n4:memory:/gone/outside\n0::/\n")
    group(system / "sys/fs/cgroup/memory", OLD, 30 * MIB, 10 * MIB, 0)
    assert free_bytes(CPU, system) == 20 * MIB


def test_this_machine_has_something_to_spare():
    assert 64 * MIB < free_bytes(CPU) < 2**50 and 64 * MIB < used_bytes(CPU) < 2**50


@pytest.mark.gpu
def test_a_gpu_tells_its_peak_and_its_room():
    device = torch.device("cuda")
    before = free_bytes(device) + used_bytes(device)
    held = torch.cuda.memory_allocated(device)
    peak = peak_bytes(lambda: torch.zeros(64 * MIB, dtype=torch.uint8, device=device), device)
    assert 64 * MIB <= peak - held < 80 * MIB
    assert abs(free_bytes(device) + used_bytes(device) - before) < 32 * MIB
