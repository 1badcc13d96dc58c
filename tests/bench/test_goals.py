import pytest

from bench.goals import Goal, step_goals


def rows(times, flops):
    found = [
        {"case": f"pair: {kind}", "impl": impl, "unit": "ms", "of_kd": value}
        for (kind, impl), value in times.items()
    ]
    found += [
        {"case": f"pair: {kind}", "impl": "hard_fast", "unit": "flops", "p50": value}
        for kind, value in flops.items()
    ]
    return found


TIMES = {
    ("KD", "hard_fast"): 1.0,
    ("KD", "eager"): 0.97,
    ("KD", "timm"): 1.3,
    ("KD", "timm_compiled"): 1.2,
    ("HARD student phase", "hard_fast"): 1.09,
    ("HARD augmentor phase", "hard_fast"): 1.575,
}
FLOPS = {"KD": 4.0, "HARD augmentor phase": 6.0}


def test_a_goal_is_a_floor_or_a_ceiling():
    assert Goal("a", 1.0, 1.0).is_met and Goal("a", 1.0, 1.0, is_ceiling=False).is_met
    assert not Goal("a", 1.1, 1.0).is_met and not Goal("a", 0.9, 1.0, is_ceiling=False).is_met
    assert str(Goal("a", 1.1, 1.0)) == "a: 1.100 (goal <= 1.0): NOT MET"


def test_on_a_cpu_every_peer_counts_and_flops_weigh_the_augmentor():
    kd, student, augmentor = step_goals(rows(TIMES, FLOPS), is_gpu=False)
    assert kd == Goal("KD: eager / hard_fast", 0.97, 0.98, is_ceiling=False) and not kd.is_met
    assert (student.value, student.limit, student.is_met) == (1.09, 1.10, True)
    assert augmentor.value == pytest.approx(1.05) and augmentor.limit == 1.05


def test_compiled_peers_count_beside_ours_compiled():
    times = TIMES | {("KD", "compiled"): 0.6, ("KD", "hard_fast_compiled"): 0.75}
    plain, compiled, *_ = step_goals(rows(times, FLOPS), is_gpu=False)
    assert plain.text == "KD: eager / hard_fast"
    assert compiled.text == "KD: compiled / hard_fast_compiled"
    assert compiled.value == pytest.approx(0.8) and not compiled.is_met


def test_on_a_gpu_timm_at_its_best_counts():
    kd, student = step_goals(rows(TIMES, FLOPS), is_gpu=True)
    assert kd == Goal("KD: timm_compiled / hard_fast", 1.2, 1.15, is_ceiling=False) and kd.is_met
    assert (student.limit, student.is_met) == (1.08, False)
    alone = {key: value for key, value in TIMES.items() if key[1] == "hard_fast"}
    assert [goal.limit for goal in step_goals(rows(alone, FLOPS), is_gpu=True)] == [1.08]
