"""The networks of a run and their turns, with whoever makes the batches and keeps the bank."""

import pytest
import torch

from hard_fast.bank import AugmentorBank
from hard_fast.build import build_step
from hard_fast.config import RunConfig
from hard_fast.data import load_data
from hard_fast.learning import Learning
from hard_fast.runtime.configfile import Source, parse
from hard_fast.runtime.dist import World
from hard_fast.types import Batch, Phase

WORLD = World(0, 1, torch.device("cpu"))


@pytest.fixture
def begin(tiny_run, tmp_path):
    """A function that builds the learning of the tiny run with some tables changed."""

    def build(**tables):
        config = parse(RunConfig, Source(tiny_run | tables, {}))
        net = build_step(config, load_data(config.data, WORLD.device), WORLD)
        learning = Learning(
            config,
            net,
            WORLD,
            num_steps=12,
            num_steps_per_epoch=4,
            make_bank=lambda maker: AugmentorBank(maker, tmp_path, config.bank, seed=0),
            warn=warnings.append,
        )
        learning.begin()
        net.learn(learning.controller.phase)
        return learning

    warnings = []
    return build


def steps(learning, num):
    """The phase of each of some steps, and the turns that ended."""
    phases, turns = [], []
    image = torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8)
    batch = Batch(image, torch.arange(8))
    for step in range(num):
        phases.append(learning.controller.phase)
        _, switch = learning.learn(step, batch, learning.draw(step, batch))
        if switch is not None:
            turns.append((switch.before, learning.end_turn(step + 1, switch)))
    return phases, turns


def test_turns_change_what_learns_and_fill_the_bank(begin):
    learning = begin(schedule={"kind": "alternate", "student_steps": 2, "augmentor_steps": 1})
    assert len(learning.bank) == 1
    phases, turns = steps(learning, 6)
    turn = [Phase.STUDENT, Phase.STUDENT, Phase.AUGMENTOR]
    assert phases == turn * 2 and len(learning.bank) == 3
    assert [phase for phase, _ in turns] == [Phase.STUDENT, Phase.AUGMENTOR] * 2
    changes = [change for _, change in turns]
    assert changes[0] is changes[2] is None and 0.0 <= changes[1] <= 1.0 and changes[3] is not None
    assert learning.net.student.training and not learning.net.augmentor.training


def test_an_augmentor_that_ran_out_of_steps_is_dealt_with(begin):
    timing_out = {"kind": "threshold", "l_min": 0.9989, "l_max": 0.999, "lag": 0}
    timing_out |= {"consecutive": 1, "max_augmentor_steps": 1, "on_timeout": "identity"}
    learning = begin(schedule=timing_out)
    untouched = learning.net.augmentor.mean.clone()
    _, turns = steps(learning, 8)
    assert Phase.AUGMENTOR in [phase for phase, _ in turns]
    assert len(learning.bank) == 1 and torch.equal(learning.net.augmentor.mean, untouched)


def test_without_an_augmentor_that_learns_there_is_no_bank(begin, tiny_run):
    del tiny_run["augmentor_optim"]
    learning = begin(augmentor={"kind": "shifts"}, schedule={"kind": "student_only"})
    phases, turns = steps(learning, 3)
    assert learning.bank is None and set(phases) == {Phase.STUDENT} and not turns
    assert learning.parts().keys() == {
        "student", "objective", "augmentor", "controller", "phase_meter", "learner", "guard",
    }  # fmt: skip
