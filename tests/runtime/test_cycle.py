import pytest
from pydantic import ValidationError

from hard_fast.runtime.cycle import Cycle, closeness


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
    with pytest.raises(ValidationError):
        Cycle(ends=0.0, peak=1.0)
