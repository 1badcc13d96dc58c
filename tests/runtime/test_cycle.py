from typing import Annotated

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from hard_fast.runtime.cycle import Cycle, Held, closeness, within


def test_closeness_by_hand():
    assert [closeness(step, 5, 2.0) for step in range(5)] == [1.0, 0.5, 0.0, 0.5, 1.0]
    # A factor of 4: down in a quarter of the run, up in the rest.
    four = [closeness(step, 9, 4.0) for step in range(9)]
    assert four == pytest.approx([1.0, 0.5, 0.0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1.0])
    assert [closeness(step, 3, 1.0) for step in range(3)] == [1.0, 0.5, 0.0]
    assert closeness(0, 1, 2.0) == 1.0


def test_a_cycle_goes_from_its_ends_to_its_peak():
    cycle = Cycle(ends=0.5, peak=2.0)
    assert [cycle.at(step, 5) for step in range(5)] == [0.5, 1.25, 2.0, 1.25, 0.5]
    twice = cycle.times(2.0)
    assert [twice.at(step, 5) for step in range(5)] == [1.0, 2.5, 4.0, 2.5, 1.0]
    with pytest.raises(ValidationError):
        Cycle(ends=-0.5, peak=1.0)


def test_numbers_and_both_ends_of_cycles_are_within_bounds():
    share = TypeAdapter(Annotated[float | Cycle, within(above=0.0, most=1.0)])
    for right in (0.5, 1.0, {"ends": 0.1, "peak": 1.0}):
        share.validate_python(right)
    wrong = (0.0, 1.5, float("nan"), {"ends": 0.0, "peak": 1.0}, {"ends": 0.5, "peak": 2.0})
    for value in wrong:
        with pytest.raises(ValidationError, match="must be above 0 and at most 1"):
            share.validate_python(value)
    count = TypeAdapter(Annotated[int | Cycle, within(least=1)])
    assert count.validate_python(3) == 3
    for value in (0, 1.5, {"ends": 0.5, "peak": 2.0}):
        with pytest.raises(ValidationError):
            count.validate_python(value)


def test_what_a_module_holds_goes_its_course_in_place_and_is_not_saved():
    held = Held()
    held.hold(fixed=3.0, course=Cycle(ends=0.0, peak=4.0))
    buffer = held.course
    assert buffer.dtype == torch.float32 and buffer.ndim == 0 and not held.state_dict()
    for step, wanted in ((1, 2.0), (4, 0.0), (2, 4.0), (1, 2.0)):
        held.advance(step, num_steps=5, num_steps_per_epoch=1)
        assert held.course is buffer and buffer.item() == wanted and held.fixed.item() == 3.0
