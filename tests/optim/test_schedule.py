import io
import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from hard_fast.optim.schedule import (
    ConstantRateConfig,
    CosineRateConfig,
    PlateauRateConfig,
    RateConfig,
    StepsRateConfig,
    SwaRateConfig,
    Verdict,
    build_rate,
    set_rate,
)

GO_ON, NEW_BEST = Verdict.GO_ON, Verdict.NEW_BEST
RESTORE_BEST, STOP = Verdict.RESTORE_BEST, Verdict.STOP


def test_constant_with_warmup():
    rate = build_rate(ConstantRateConfig(warmup_epochs=0.5), num_steps=100, num_steps_per_epoch=8)
    assert [rate.factor(step) for step in (0, 1, 2, 3, 4, 99)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert not rate.needs_score


def test_constant_without_warmup_is_one_from_the_first_step():
    rate = build_rate(ConstantRateConfig(), num_steps=1, num_steps_per_epoch=1)
    assert rate.factor(0) == 1.0


def test_steps_by_hand():
    config = StepsRateConfig(warmup_epochs=1.0, epochs=[1.5, 3], factor=0.5)
    rate = build_rate(config, num_steps=8, num_steps_per_epoch=2)
    assert [rate.factor(step) for step in range(8)] == [0.5, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_the_tail_of_swa_by_hand():
    # The tail begins at step 10: full up to 5, down a line up to 9, then two steps a cycle.
    tail = {"start": 0.5, "high": 0.4, "cycle_epochs": 0.5}
    length = {"num_steps": 20, "num_steps_per_epoch": 4}
    falls = [1.0, 0.85, 0.7, 0.55, 0.4]
    constant = build_rate(SwaRateConfig(**tail), **length)
    found = [constant.factor(step) for step in range(20)]
    assert found == pytest.approx([*[1.0] * 5, *falls, *[0.4] * 10])
    cyclic = build_rate(SwaRateConfig(**tail, low=0.1), **length)
    # (1 - 1/2) 0.4 + 1/2 0.1, and 0.1 at the cycle's end.
    found = [cyclic.factor(step) for step in range(20)]
    assert found == pytest.approx([*[1.0] * 5, *falls, *[0.25, 0.1] * 5])
    warm = build_rate(SwaRateConfig(**tail, warmup_epochs=0.5), **length)
    assert warm.factor(0) == 0.5 and warm.factor(1) == 1.0
    with pytest.raises(ValidationError, match="low = 0.5"):
        SwaRateConfig(**tail, low=0.5)


def test_cosine_by_hand():
    # 2 warm-up steps, then 6 of cosine: 1/3 done is cos(60 deg), 2/3 done is cos(120 deg).
    config = CosineRateConfig(warmup_epochs=1.0, final=0.2)
    rate = build_rate(config, num_steps=8, num_steps_per_epoch=2)
    assert [rate.factor(step) for step in (0, 1, 2, 4, 5, 6, 8, 20)] == pytest.approx(
        [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2]
    )
    assert not rate.needs_score


def test_cosine_to_zero_still_learns_at_the_last_step():
    rate = build_rate(CosineRateConfig(), num_steps=10, num_steps_per_epoch=5)
    assert rate.factor(5) == pytest.approx(0.5)
    assert 0 < rate.factor(9) < 0.03
    assert rate.factor(10) == pytest.approx(0.0)


def test_warmup_longer_than_the_run_warns(caplog):
    for config in (ConstantRateConfig(warmup_epochs=3), CosineRateConfig(warmup_epochs=3)):
        caplog.clear()
        rate = build_rate(config, num_steps=4, num_steps_per_epoch=2)
        assert "rate.warmup_epochs = 3: the run has only 2 epochs" in caplog.text
        assert [rate.factor(step) for step in range(4)] == pytest.approx(
            [1 / 6, 2 / 6, 3 / 6, 4 / 6]
        )


@pytest.mark.parametrize("config", [ConstantRateConfig(), CosineRateConfig()])
def test_score_only_finds_the_best_without_plateau(config):
    rate = build_rate(config, num_steps=10, num_steps_per_epoch=1)
    scores = [math.nan, 0.5, 0.5, 0.4, math.nan, 0.6] + [0.1] * 30
    expected = [GO_ON, NEW_BEST, GO_ON, GO_ON, GO_ON, NEW_BEST] + [GO_ON] * 30
    assert [rate.observe(score) for score in scores] == expected
    assert rate.best == 0.6
    assert rate.factor(0) == 1.0


PLATEAU = PlateauRateConfig(warmup_epochs=2.0, factor=0.5, patience=2, max_decays=2)
# score, verdict, and the rate after it at a step beyond the warm-up
PLATEAU_COURSE = [
    (0.10, NEW_BEST, 1.0),
    (0.30, NEW_BEST, 1.0),
    (0.30, GO_ON, 1.0),  # equal is not better: 1 flat
    (0.40, NEW_BEST, 1.0),  # flat counter starts anew
    (math.nan, GO_ON, 1.0),  # 1 flat
    (0.39, RESTORE_BEST, 0.5),  # 2 flat: first decay
    (0.35, GO_ON, 0.5),  # 1 flat: the best is still 0.40
    (0.41, NEW_BEST, 0.5),
    (0.20, GO_ON, 0.5),
    (0.41, STOP, 0.25),  # second decay
    (0.99, STOP, 0.25),  # stopped for good
]


def test_plateau_course_by_hand():
    rate = build_rate(PLATEAU, num_steps=100, num_steps_per_epoch=2)
    assert rate.needs_score
    assert [rate.factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    for number, (score, verdict, factor) in enumerate(PLATEAU_COURSE):
        assert rate.observe(score) is verdict, number
        assert rate.factor(50) == factor, number
    assert rate.best == 0.41
    assert rate.factor(0) == 0.25 * 0.25


def test_plateau_restores_only_what_exists():
    rate = build_rate(PLATEAU, num_steps=100, num_steps_per_epoch=2)
    assert [rate.observe(math.nan) for _ in range(5)] == [GO_ON] * 5
    assert rate.factor(50) == 1.0
    assert rate.observe(-3.0) is NEW_BEST


def test_papers_defaults():
    rate = build_rate(PlateauRateConfig(), num_steps=10**6, num_steps_per_epoch=10)
    assert [rate.factor(step) for step in (0, 9, 199, 200)] == [1 / 200, 0.05, 1.0, 1.0]
    verdicts = [rate.observe(0.5) for _ in range(101)]
    decays = [number for number, verdict in enumerate(verdicts) if verdict is RESTORE_BEST]
    assert decays == [20, 40, 60, 80]
    assert verdicts[100] is STOP
    assert rate.factor(10**5) == pytest.approx(0.8**5)


@pytest.mark.parametrize("cut", range(len(PLATEAU_COURSE)))
def test_state_round_trip_continues_the_course(cut):
    rate = build_rate(PLATEAU, num_steps=100, num_steps_per_epoch=2)
    for score, _, _ in PLATEAU_COURSE[:cut]:
        rate.observe(score)
    assert all(type(value) in (int, float) for value in rate.state_dict().values())
    file = io.BytesIO()
    torch.save(rate.state_dict(), file)
    file.seek(0)
    resumed = build_rate(PLATEAU, num_steps=100, num_steps_per_epoch=2)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for score, verdict, factor in PLATEAU_COURSE[cut:]:
        assert resumed.observe(score) is verdict
        assert resumed.factor(50) == factor


def test_best_survives_the_round_trip_without_plateau():
    rate = build_rate(ConstantRateConfig(), num_steps=10, num_steps_per_epoch=1)
    rate.observe(0.7)
    resumed = build_rate(ConstantRateConfig(), num_steps=10, num_steps_per_epoch=1)
    resumed.load_state_dict(rate.state_dict())
    assert resumed.observe(0.6) is GO_ON


@pytest.mark.parametrize(
    "table",
    [
        {"kind": "linear"},
        {"warmup_epochs": 1.0},
        {"kind": "constant", "warmup_epochs": -1.0},
        {"kind": "constant", "final": 0.1},
        {"kind": "constant", "warmup_epochs": math.inf},
        {"kind": "cosine", "final": 1.5},
        {"kind": "plateau", "factor": 1.0},
        {"kind": "plateau", "patience": 0},
        {"kind": "plateau", "max_decays": 0},
        {"kind": "plateau", "patience": 2.5},
    ],
)
def test_invalid_configs(table):
    with pytest.raises(ValidationError):
        TypeAdapter(RateConfig).validate_python(table)


def test_set_rate_reaches_every_group_as_a_float():
    groups = [{"params": [nn.Parameter(torch.ones(1))]}, {"params": [nn.Parameter(torch.ones(1))]}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    set_rate(optimizer, 0.3 * 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.15, 0.15]
