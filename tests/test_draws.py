"""Noise, the bank's augmentor and dropout: the same for a step, whatever came before it."""

import torch

from hard_fast.config import RunConfig
from hard_fast.draws import Draws
from hard_fast.runtime.configfile import Source, parse
from hard_fast.runtime.dist import World
from hard_fast.trainer import Trainer
from hard_fast.types import Phase

WORLD = World(0, 1, torch.device("cpu"))


def build(tiny_run):
    return Trainer(parse(RunConfig, Source(tiny_run, {})), WORLD)


def test_a_step_draws_the_same_in_any_order(tiny_run):
    trainer = build(tiny_run)
    draws, shape = Draws(trainer.net, trainer.bank, 3, WORLD), torch.Size((16, 1, 16, 16))

    def all_of(step):
        noise = draws.draw(step, Phase.STUDENT, shape)
        return noise["theta"], torch.rand(4)

    first, second = all_of(0), all_of(1)
    assert not torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])
    assert all(torch.equal(a, b) for a, b in zip(all_of(0), first, strict=True))
    other = Draws(trainer.net, trainer.bank, 4, WORLD).draw(0, Phase.STUDENT, shape)
    assert not torch.equal(other["theta"], first[0])


def test_only_the_student_draws_from_the_bank(tiny_run):
    trainer = build(tiny_run)
    draws, shape = Draws(trainer.net, trainer.bank, 0, WORLD), torch.Size((16, 1, 16, 16))
    with torch.no_grad():
        trainer.net.drawn.mean.fill_(7.0)
    draws.draw(0, Phase.AUGMENTOR, shape)
    assert (trainer.net.drawn.mean == 7.0).all()
    draws.draw(0, Phase.STUDENT, shape)
    assert torch.equal(trainer.net.drawn.mean, trainer.net.augmentor.mean)


def test_two_processes_share_the_noise_of_one(tiny_run):
    net = build(tiny_run).net
    whole = Draws(net, None, 0, WORLD).draw(5, Phase.AUGMENTOR, torch.Size((16, 1, 16, 16)))
    parts = [
        Draws(net, None, 0, World(rank, 2, WORLD.device)).draw(
            5, Phase.AUGMENTOR, torch.Size((8, 1, 16, 16))
        )
        for rank in range(2)
    ]
    assert torch.equal(torch.cat([part["theta"] for part in parts]), whole["theta"])
