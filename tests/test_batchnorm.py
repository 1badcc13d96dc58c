import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from hard_fast.augment import build_augmentor
from hard_fast.augment.affine import Affine, AffineConfig
from hard_fast.augment.copies import CopiesConfig
from hard_fast.augment.fixed import Identity, IdentityConfig
from hard_fast.bank import AugmentorBank, BankConfig
from hard_fast.batchnorm import recompute_batchnorm
from hard_fast.data.arrays import Arrays
from hard_fast.models.branches import branched
from hard_fast.models.taps import Tapped
from hard_fast.objectives import build_objective
from hard_fast.objectives.ce import CeConfig
from hard_fast.objectives.cutmixpick import CutmixpickConfig
from hard_fast.objectives.self_distill import ByotConfig
from hard_fast.runtime import dist
from hard_fast.runtime.dist import World
from hard_fast.step import DistillStep
from hard_fast.types import Phase

WORLD = World(0, 1, torch.device("cpu"))


def make(augmentor, network=None):
    network = network or small_net()
    return DistillStep(augmentor, Tapped(network, ()), None, build_objective(CeConfig()), 4)


def part():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (12, 1, 6, 6), generator=generator).byte()
    return Arrays(image, torch.zeros(12, dtype=torch.int64))


def test_statistics_are_the_mean_over_the_batches_and_nothing_else_moves():
    net = make(Identity())
    norm = net.student.network[0]
    norm.running_mean.fill_(70.0)
    before = [module.training for module in net.modules()]
    images = part()
    recompute_batchnorm(net, Phase.STUDENT, images.loader(batch_size=4, seed=3), 3, WORLD, seed=3)
    # Three batches of four are an epoch, so the mean is that of all pictures.
    wanted = images.image.float() / 255
    torch.testing.assert_close(norm.running_mean, wanted.mean().view(1))
    loader = images.loader(batch_size=4, seed=3)
    own = [(loader.next_batch().image / 255.0).var() for _ in range(3)]
    torch.testing.assert_close(norm.running_var, torch.stack(own).mean().view(1))
    assert norm.momentum == 0.1
    assert [module.training for module in net.modules()] == before


def test_pictures_are_augmented_alike_each_time():
    found = []
    for std in (0.5, 0.5, 0.0):
        net = make(Affine(AffineConfig(std=std)))
        recompute_batchnorm(
            net, Phase.STUDENT, part().loader(batch_size=4, seed=3), 2, WORLD, seed=3
        )
        found.append(net.student.network[0].running_mean.clone())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_student_without_batchnorm_sees_nothing():
    net = make(Identity(), nn.Sequential(nn.Flatten(), nn.Linear(36, 4)))
    loader = part().loader(batch_size=4, seed=3)
    recompute_batchnorm(net, Phase.STUDENT, loader, 3, WORLD, seed=3)
    assert loader.state_dict() == part().loader(batch_size=4, seed=3).state_dict()


def whole_step(augmentor, student, objective):
    """A step whose teacher is a student's twin, with the taps that its objective asks for."""
    needs = objective.needs(Phase.STUDENT)
    twin = Tapped(copy.deepcopy(student), needs.teacher_taps).eval().requires_grad_(False)
    teacher = twin if needs.teacher else None
    return DistillStep(augmentor, Tapped(student, needs.student_taps), teacher, objective, 4)


def small_net():
    return nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), nn.Flatten(), nn.Linear(36, 4))


def test_branches_that_only_training_runs_have_statistics_too():
    options = {"widths": [4, 8], "num_blocks": 1}
    student = branched(
        num_classes=4, in_channels=1, image_size=6, options=options, after=["layer1"]
    )
    net = whole_step(Identity(), student, build_objective(ByotConfig()))
    recompute_batchnorm(net, Phase.STUDENT, part().loader(batch_size=4, seed=3), 2, WORLD, seed=3)
    norms = [m for m in student.branches.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(norm.num_batches_tracked == 2 for norm in norms)
    assert all(norm.running_mean.abs().max() > 0 for norm in norms)


def test_originals_count_beside_the_copies_that_are_kept():
    copies = CopiesConfig(base=IdentityConfig(), part=IdentityConfig(), num=2)
    augmentor = build_augmentor(copies, torch.Size([1, 6, 6]), True)
    net = whole_step(augmentor, small_net(), build_objective(CutmixpickConfig(keep=0.5)))
    seen = []
    net.student.network[0].register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    recompute_batchnorm(net, Phase.STUDENT, part().loader(batch_size=4, seed=3), 1, WORLD, seed=3)
    assert seen == [4, 4], "half of the eight copies, and the four originals"


def test_pictures_are_those_of_the_phase_and_of_the_bank(tmp_path):
    augmentor = Affine(AffineConfig(std=0.0))
    net = make(augmentor)
    net.learn(Phase.JOINT)
    bank = AugmentorBank(augmentor, tmp_path, BankConfig(), seed=3)
    with torch.no_grad():
        # The learner has moved away from the copy that the student phase shows.
        augmentor.mean[2] = 100.0
    bank.save()
    found = {}
    for name, phase, its_bank in (
        ("untouched", Phase.STUDENT, None),
        ("joint", Phase.JOINT, None),
        ("bank", Phase.STUDENT, bank),
    ):
        loader = part().loader(batch_size=4, seed=3)
        recompute_batchnorm(net, phase, loader, 2, WORLD, seed=3, bank=its_bank)
        found[name] = net.student.network[0].running_mean.clone()
    assert torch.equal(found["joint"], found["bank"])
    assert not torch.equal(found["untouched"], found["bank"])


@pytest.mark.slow
def test_processes_that_saw_half_of_the_pictures_each_have_the_statistics_of_all():
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *torchrun, __file__]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr


def check_one_of_two_processes():
    world = dist.join("cpu", timeout_s=60)
    net, images = make(Identity()), part()
    loader = images.loader(batch_size=4, seed=3, rank=world.rank, world_size=2)
    recompute_batchnorm(net, Phase.STUDENT, loader, 3, world, seed=3)
    wanted = (images.image.float() / 255).mean().view(1)
    torch.testing.assert_close(net.student.network[0].running_mean, wanted)
    dist.barrier()
    dist.end(0)


if __name__ == "__main__":
    check_one_of_two_processes()
