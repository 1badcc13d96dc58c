import torch
from torch import nn

from hard_fast.augment.affine import Affine, AffineConfig
from hard_fast.augment.fixed import Identity
from hard_fast.batchnorm import recompute_batchnorm
from hard_fast.data.arrays import Arrays
from hard_fast.models.taps import Tapped
from hard_fast.objectives import build_objective
from hard_fast.objectives.ce import CeConfig
from hard_fast.runtime.dist import World
from hard_fast.step import DistillStep

WORLD = World(0, 1, torch.device("cpu"))


def make(augmentor, network=None):
    network = network or nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), nn.Flatten())
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
    recompute_batchnorm(net, images.loader(batch_size=4, seed=3), 3, WORLD, seed=3)
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
        recompute_batchnorm(net, part().loader(batch_size=4, seed=3), 2, WORLD, seed=3)
        found.append(net.student.network[0].running_mean.clone())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_student_without_batchnorm_sees_nothing():
    net = make(Identity(), nn.Flatten())
    loader = part().loader(batch_size=4, seed=3)
    recompute_batchnorm(net, loader, 3, WORLD, seed=3)
    assert loader.state_dict() == part().loader(batch_size=4, seed=3).state_dict()
