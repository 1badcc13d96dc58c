import pytest
import torch
from pydantic import ValidationError

from hard_fast.phases import (
    AlternateConfig,
    EpochsConfig,
    JointConfig,
    PhaseController,
    StudentOnlyConfig,
    Switch,
    ThresholdConfig,
    advice,
)
from hard_fast.types import Phase

STUDENT, AUGMENTOR = Phase.STUDENT, Phase.AUGMENTOR


def drive(controller, errors, first=0):
    """The switches, by step, that a sequence of errors causes."""
    found = {}
    for step, error in enumerate(errors, first):
        switch = controller.observe(step, torch.tensor(error))
        if switch:
            found[step] = switch
    return found


def threshold(**changes):
    base = {"l_min": 0.1, "l_max": 0.5, "consecutive": 2, "lag": 0, "max_augmentor_steps": 1000}
    return ThresholdConfig(**base | changes)


def test_switches_after_the_threshold_was_passed_in_a_row():
    controller = PhaseController(threshold())
    found = drive(controller, [0.05, 0.2, 0.05, 0.05, 0.6, 0.4, 0.6, 0.6, 0.3])
    assert {step: s.after for step, s in found.items()} == {3: AUGMENTOR, 7: STUDENT}
    assert found[3].before is STUDENT and "below l_min 0.1 for 2 steps" in found[3].reason
    assert "above l_max 0.5" in found[7].reason and found[7].error == pytest.approx(0.6)
    assert not found[3].has_timed_out


def test_a_fixed_lag_delays_the_decision_and_old_errors_die_with_their_phase():
    controller = PhaseController(threshold(consecutive=1, lag=2))
    # The error of step 0 is read at step 2. The 0.9 of steps 1 and 2 belong to the student's turn
    # and must not end the augmentor's.
    found = drive(controller, [0.05, 0.9, 0.9, 0.3, 0.3, 0.3, 0.9, 0.3, 0.3])
    assert {step: s.after for step, s in found.items()} == {2: AUGMENTOR, 8: STUDENT}


def test_a_phase_has_a_maximum_length_and_the_reason_says_so():
    controller = PhaseController(threshold(max_augmentor_steps=3, max_student_steps=4))
    found = drive(controller, [0.3] * 8)
    assert {step: s.after for step, s in found.items()} == {3: AUGMENTOR, 6: STUDENT}
    assert all(s.has_timed_out for s in found.values())
    assert "l_max 0.5 not reached in 3 steps (error 0.3)" in found[6].reason


def test_the_students_turn_has_a_minimum_length():
    controller = PhaseController(threshold(min_student_steps=6))
    found = drive(controller, [0.05] * 6 + [0.6] * 2)
    assert {step: s.after for step, s in found.items()} == {5: AUGMENTOR, 7: STUDENT}


def test_resume_in_the_middle_decides_as_if_nothing_had_happened():
    errors = [0.05, 0.05, 0.3, 0.05, 0.05, 0.6, 0.2, 0.6, 0.6, 0.6, 0.02, 0.02, 0.02]
    config = threshold(lag=2, max_augmentor_steps=5)
    want = drive(PhaseController(config), errors)
    assert len(want) >= 2
    for cut in range(len(errors)):
        first = PhaseController(config)
        before = drive(first, errors[:cut])
        second = PhaseController(config)
        second.load_state_dict(first.state_dict())
        assert before | drive(second, errors[cut:], first=cut) == want


def test_alternate_counts_steps():
    controller = PhaseController(AlternateConfig(student_steps=3, augmentor_steps=1))
    found = drive(controller, [0.0] * 9)
    assert {step: s.after for step, s in found.items()} == {
        2: AUGMENTOR,
        3: STUDENT,
        6: AUGMENTOR,
        7: STUDENT,
    }


def test_epochs_gives_the_augmentor_the_last_ones_of_every_few():
    config = EpochsConfig(every=3, augmentor_epochs=1)
    found = drive(PhaseController(config, num_steps_per_epoch=2), [0.0] * 12)
    assert {step: s.after for step, s in found.items()} == {
        3: AUGMENTOR,
        5: STUDENT,
        9: AUGMENTOR,
        11: STUDENT,
    }


def test_student_only_and_joint_never_switch():
    assert PhaseController(StudentOnlyConfig()).phase is STUDENT
    assert PhaseController(JointConfig()).phase is Phase.JOINT
    for config in (StudentOnlyConfig(), JointConfig()):
        assert not drive(PhaseController(config), [0.0, 1.0] * 50)


def test_impossible_settings_are_refused():
    with pytest.raises(ValidationError, match="must be below l_max"):
        threshold(l_min=0.5)
    with pytest.raises(ValidationError, match="is above max_student_steps"):
        threshold(min_student_steps=5, max_student_steps=4)
    with pytest.raises(ValidationError, match="leaves the student none"):
        EpochsConfig(every=5, augmentor_epochs=5)


def test_advice_is_given_where_something_went_wrong():
    intended = Switch(9, AUGMENTOR, STUDENT, "error above", 0.6)
    assert advice(intended, 0.1) is None
    assert "not invariant" in advice(intended, 0.5)
    late = Switch(9, AUGMENTOR, STUDENT, "l_max 0.4 not reached in 200 steps", 0.1, True)
    assert "200 steps" in advice(late, 0.02) and "2%" in advice(late, 0.02)
    stuck = Switch(9, STUDENT, AUGMENTOR, "l_min 0.05 not reached", 0.2, True)
    assert "student may be too small" in advice(stuck, None)


@pytest.mark.gpu
def test_observing_on_a_gpu_does_not_wait_for_it():
    controller = PhaseController(threshold(lag=2))
    errors = torch.full((20,), 0.3, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(20):
            controller.observe(step, errors[step])
    finally:
        torch.cuda.set_sync_debug_mode("default")
