import math

import pytest
import torch

from hard_fast.optim.standstill import Standstill, StandstillConfig


def drive(rate, losses):
    """The factor of each step, of which these are the losses."""
    found = []
    for loss in losses:
        rate.settle()
        found.append(rate.factor)
        rate.learned(torch.tensor(loss))
    return found


def test_the_rate_falls_after_an_epoch_whose_mean_loss_stood_still():
    rate = Standstill(StandstillConfig(factor=0.5), num_steps_per_epoch=2)
    # Means 2, 1.5 (a fall that is enough), 1.49 (not), 1.48 (not).
    found = drive(rate, [1.0, 3.0, 1.0, 2.0, 1.48, 1.5, 1.5, 1.46, 0.0])
    assert found == [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25]


@pytest.mark.parametrize(
    ("first", "second", "falls"),
    [
        (2.0, 1.985, True),
        (2.0, 1.97, False),  # more than 0.02, though less than 2 %
        (0.5, 0.485, False),  # more than 2 %, though less than 0.02
        (2.0, 2.03, True),
        (2.0, 2.05, False),  # a rise by more than 2 %, as in the code
        (2.0, math.nan, False),
    ],
)
def test_what_a_standstill_is(first, second, falls):
    rate = Standstill(StandstillConfig(), num_steps_per_epoch=1)
    assert drive(rate, [first, second, 0.0])[2] == (0.9 if falls else 1.0)


def test_after_a_restart_the_next_epoch_has_nothing_to_be_compared_with():
    rate = Standstill(StandstillConfig(), num_steps_per_epoch=2)
    drive(rate, [1.0] * 5)
    assert rate.factor == 0.9
    rate.restart()
    assert rate.factor == 1.0
    # The fifth loss is forgotten, too: an epoch is two steps of this turn.
    assert drive(rate, [1.0] * 5) == [1.0, 1.0, 1.0, 1.0, 0.9]


def test_it_continues_inside_an_epoch_as_if_nothing_had_happened():
    losses = [0.3, 0.7, 0.31, 0.69, 0.1, 0.2, 0.15, 0.15]
    want = drive(Standstill(StandstillConfig(), 2), losses)
    assert want[-1] < 1.0
    for cut in range(len(losses)):
        first, second = (Standstill(StandstillConfig(), 2) for _ in range(2))
        before = drive(first, losses[:cut])
        second.load_state_dict(first.state_dict())
        assert before + drive(second, losses[cut:]) == want
