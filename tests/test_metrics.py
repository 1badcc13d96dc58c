import pytest
import torch

from hard_fast.metrics import Meter
from hard_fast.types import Phase


def logs(**values):
    return {name: torch.tensor(value) for name, value in values.items()}


def test_meter_averages_per_phase_and_starts_anew():
    meter = Meter()
    meter.add(Phase.STUDENT, logs(loss=1.0, error=0.5))
    meter.add(Phase.STUDENT, logs(loss=3.0, error=0.0))
    meter.add(Phase.AUGMENTOR, logs(loss=-1.0))
    assert meter.take().means() == {
        "student": {"steps": 2, "loss": 2.0, "error": 0.25},
        "augmentor": {"steps": 1, "loss": -1.0},
    }
    assert meter.take().means() == {}


def test_meter_resumes_in_the_middle_of_a_window():
    meter, resumed = Meter(), Meter()
    meter.add(Phase.STUDENT, logs(loss=1.0))
    resumed.load_state_dict(meter.state_dict())
    resumed.add(Phase.STUDENT, logs(loss=2.0))
    assert resumed.take().means() == {"student": {"steps": 2, "loss": 1.5}}


@pytest.mark.gpu
def test_adding_does_not_wait_for_the_device():
    meter = Meter()
    values = {"loss": torch.ones((), device="cuda")}
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            meter.add(Phase.STUDENT, values)
        reading = meter.take()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert reading.means() == {"student": {"steps": 3, "loss": 1.0}}


def test_a_reading_keeps_what_was_taken_while_the_meter_goes_on():
    meter = Meter()
    meter.add(Phase.STUDENT, logs(loss=1.0))
    reading = meter.take()
    meter.add(Phase.STUDENT, logs(loss=5.0))
    assert reading.means() == {"student": {"steps": 1, "loss": 1.0}}


def test_steps_that_were_skipped_count_for_no_mean_and_are_told():
    meter, resumed = Meter(), Meter()
    meter.add(Phase.STUDENT, logs(loss=1.0), torch.tensor(False))
    meter.add(Phase.STUDENT, logs(loss=torch.nan), torch.tensor(True))
    resumed.load_state_dict(meter.state_dict())
    resumed.add(Phase.STUDENT, logs(loss=4.0), torch.tensor(False))
    resumed.add(Phase.AUGMENTOR, logs(loss=torch.inf), torch.tensor(True))
    found = resumed.take().means()
    assert found["student"] == {"steps": 3, "skipped": 1, "loss": 2.5}
    assert found["augmentor"].pop("loss") != 0.0
    assert found["augmentor"] == {"steps": 1, "skipped": 1}
