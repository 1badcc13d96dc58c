from hard_fast.types import Needs, Phase


def test_by_default_a_loss_needs_one_forward_of_the_student():
    assert Needs() == Needs(False, False, False, 1, (), (), 1.0, False)


def test_phases_have_the_names_that_rows_and_checkpoints_use():
    assert [phase.value for phase in Phase] == ["student", "augmentor", "joint"]
