import copy

import pytest
import torch
from torch import nn

from hard_fast.guard import Diverged, Guard, GuardConfig, is_finite
from hard_fast.types import Phase


def guard(*, is_fp16=False, **settings):
    return Guard(GuardConfig(**settings), is_fp16=is_fp16)


def see(one, pattern, phase=Phase.STUDENT, **looks):
    """Observe a step for each letter, x where it was skipped; the steps after which it gave up."""
    found = []
    for step, letter in enumerate(pattern):
        logs = {name: torch.tensor(value) for name, value in looks.items()}
        one.observe(step, phase, torch.tensor(letter == "x"), logs)
        if one.back:
            found.append(step)
            one.back = None
    return found


def test_verdicts_count_two_steps_later_and_a_row_of_them_sends_back():
    one = guard(max_in_a_row=3)
    # The third in a row is step 6, which is read after step 8.
    assert see(one, "oxooxxxoo") == [8]
    assert one.counts["skipped"] == 4 and one.has_skipped


def test_a_finite_step_begins_the_count_anew():
    assert see(guard(max_in_a_row=3), "xxoxxoxxooo") == []


@pytest.mark.parametrize(("is_fp16", "wanted"), [(False, [3]), (True, [])])
def test_rollback_goes_back_after_the_first_but_for_a_loss_scale_that_is_found(is_fp16, wanted):
    assert see(guard(on_nonfinite="rollback", is_fp16=is_fp16), "oxooo") == wanted


def test_stop_ends_with_a_line_that_says_what_to_do():
    with pytest.raises(Diverged, match=r"^step 4: a step had .*lower learning rate") as caught:
        see(guard(on_nonfinite="stop"), "oxoo")
    assert "\n" not in str(caught.value) and isinstance(caught.value, ValueError)


def test_after_its_last_return_a_run_ends():
    one = guard(max_in_a_row=1, max_rollbacks=2)
    one.counts["rollbacks"] = 2
    with pytest.raises(Diverged, match="also after 2 returns"):
        see(one, "xoo")


def test_an_augmentor_in_its_turn_goes_back_alone_but_only_once():
    one, phases = guard(max_in_a_row=2), []
    for step in range(9):
        one.observe(step, Phase.AUGMENTOR, torch.tensor(True), {})
        if one.back:
            phases.append(one.back.phase)
            one.back = None
    assert phases == [Phase.AUGMENTOR, Phase.STUDENT, Phase.STUDENT]


@pytest.mark.parametrize(
    ("looks", "words"),
    [
        ({"contrast": 0.01, "sure": 0.9}, "of one colour"),
        ({"contrast": 0.8, "sure": 0.02}, "mean nothing to the teacher"),
        ({"contrast": 0.2, "sure": 0.2}, None),
        ({"contrast": torch.nan}, None),
        ({}, None),
    ],
)
def test_pictures_that_are_lost_are_named_once(looks, words):
    one = guard()
    see(one, "ooo", Phase.AUGMENTOR, **looks)
    one.judge(3)
    found = one.lost()
    assert words in found if words else found is None
    assert one.lost() is None


@pytest.mark.parametrize("cut", range(9))
def test_counting_continues_from_a_saved_state(cut):
    pattern, whole = "oxoxxxoxx", guard(max_in_a_row=3)
    wanted = see(whole, pattern)
    first, second = guard(max_in_a_row=3), guard(max_in_a_row=3)
    found = see(first, pattern[:cut], contrast=0.5)
    state = copy.deepcopy(first.state_dict())
    assert first.is_calm() == (cut == 0 or pattern[cut - 1] == "o")
    second.load_state_dict(state)
    assert second.state_dict() == state
    found += [cut + step for step in see(second, pattern[cut:])]
    assert found == wanted and second.counts == whole.counts


def test_a_module_with_one_infinite_weight_is_not_finite():
    layer = nn.Linear(3, 3)
    assert is_finite(layer)
    layer.bias.data[1] = -torch.inf
    assert not is_finite(layer)
