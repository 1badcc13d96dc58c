"""A loop of one's own in several processes: what one would learn, and who is missing."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from tests.own_loops import distiller, with_differences


@pytest.fixture
def run(tiny_run):
    return with_differences(tiny_run)


def test_a_group_of_the_callers_own_is_joined(run, tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1
    )
    try:
        own = distiller(run)
        own.step(torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8))
        assert torch.distributed.is_initialized()
    finally:
        torch.distributed.destroy_process_group()


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def start(arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


OWN_GROUP = """
    import atexit, os, torch, hard_fast
    from torch import nn

    # One write a process: what print writes in two parts, two processes mix.
    atexit.register(lambda: os.write(1, b"%d\\n" % torch.distributed.is_initialized()))
    if {has_group}:
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    own = hard_fast.Distiller(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), steps=9, objective={{"kind": "ce"}},
        optim={{"lr": 1e-2}}, train={{"device": "cpu"}},
    )
    own.step(torch.zeros(4, 1, 8, 8), torch.arange(4))
"""


@pytest.mark.slow
@pytest.mark.parametrize("has_group", [True, False])
def test_who_made_a_group_ends_it(tmp_path, has_group):
    script = tmp_path / "loop.py"
    script.write_text(textwrap.dedent(OWN_GROUP.format(has_group=has_group)))
    launcher = [] if has_group else TORCHRUN
    done = start([*launcher, str(script)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == (["1"] if has_group else ["0", "0"])


LOOP = """
    import os, sys, torch, hard_fast
    from torch import nn

    def net(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

    rank, num = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    student = net(rank)  # Rank 0's weights are everyone's.
    own = hard_fast.Distiller(
        student, net(9), steps=8, objective={"kind": "hard"}, optim={"lr": 1e-2},
        augmentor={"kind": "affine", "std": 0.1}, augmentor_optim={"lr": 0.01},
        schedule={"kind": "alternate", "student_steps": 2}, train={"device": "cpu"},
    )
    images = torch.randint(256, (8, 8, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    for step, image in enumerate(images.to(torch.uint8)):
        report = own.step(image.tensor_split(num)[rank])
    state = own.state_dict()
    if rank == 0:
        torch.save([report.loss, student.state_dict()], sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    script = tmp_path / "loop.py"
    script.write_text(textwrap.dedent(LOOP))
    found = []
    for name, launcher in (("one", []), ("two", TORCHRUN)):
        done = start([*launcher, str(script), str(tmp_path / name)])
        assert done.returncode == 0, done.stderr
        found.append(torch.load(tmp_path / name, weights_only=True))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-5)


MISSING = """
    import os, time, torch, hard_fast
    from torch import nn

    own = hard_fast.Distiller(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), steps=9, objective={"kind": "ce"},
        optim={"lr": 1e-2}, train={"device": "cpu"}, distributed={"timeout_s": 5.0},
    )
    batch = torch.zeros(4, 1, 8, 8), torch.arange(4)
    for step in range(3):
        own.step(*batch)
    if os.environ["RANK"] == "1":
        time.sleep(20)
        os._exit(0)
    try:
        own.step(*batch)
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
"""


@pytest.mark.slow
def test_a_process_that_does_not_come_is_named(tmp_path):
    script = tmp_path / "loop.py"
    script.write_text(textwrap.dedent(MISSING))
    done = start([*TORCHRUN, str(script)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rank 1 did not answer at step 3 (student): it hangs or is gone")
    assert done.stdout.count("\n") == 1
