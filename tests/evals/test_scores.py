import math

import pytest
import torch

from hard_fast.evals import scores
from hard_fast.evals.scores import (
    NUM_LABEL_SUMS,
    bound_scores,
    bound_sums,
    class_logits,
    classification_scores,
    classification_sums,
    draw_spread,
    is_less_better,
    label_set_scores,
    label_set_sums,
    regression_scores,
    regression_sums,
    teacher_scores,
    teacher_sums,
)
from hard_fast.evals.suites.catalogue import SUITES
from hard_fast.evals.suites.summary import summarise


def test_top1_and_nll_by_hand_and_added_up_over_batches():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0], [0.0, math.log(3.0)]])
    label = torch.tensor([0, 1, 0])
    whole = classification_scores(classification_sums(logits, label))
    assert whole["top1"] == pytest.approx(100 / 3)
    assert whole["nll"] == pytest.approx((math.log(4 / 3) + math.log(2) + math.log(4)) / 3)
    parts = classification_sums(logits[:1], label[:1]) + classification_sums(logits[1:], label[1:])
    assert classification_scores(parts) == pytest.approx(whole)


def test_every_score_has_a_direction():
    part = {"top1": 50.0, "nll": 1.0, "ece": 2.0}
    found = {
        *classification_scores(torch.ones(NUM_LABEL_SUMS), top5_from=1),
        *label_set_scores(torch.ones(2)),
        *teacher_scores(torch.ones(3)),
        *regression_scores(torch.ones(2)),
        *bound_scores(torch.ones(3)),
        *summarise("mnist_c", {"blur/1": part, "snow/1": part}),
        *(name for suite in SUITES.values() for name in suite.scores),
        "t_stddev",
    }
    assert {name for name in found if not is_less_better(name)} == {
        *("top1", "top5", "real", "agreement")
    }
    assert {"mce", "corruption_error", "snow_error", "bound", "rate", "teacher_kl"} <= found
    assert is_less_better("val_nll") and not is_less_better("imagenet_v2_top1")
    # A name ends with a score's only where a word begins.
    assert not is_less_better("generate")


def test_samples_without_a_label_do_not_count():
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    label = torch.tensor([0, 1, -1])
    found = classification_scores(classification_sums(logits, label))
    assert found["top1"] == 50.0
    assert found == classification_scores(classification_sums(logits[:2], label[:2]))
    none = classification_scores(classification_sums(logits, torch.full((3,), -1)))
    assert all(math.isnan(value) for value in none.values())


def test_calibration_error_by_hand():
    # Confidences 0.9 (twice, one right), 0.6 (right): bins (13/15, 14/15] and (8/15, 9/15].
    logits = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]]).log()
    found = classification_scores(classification_sums(logits, torch.tensor([0, 1, 1])))
    assert found["ece"] == pytest.approx(100 * (abs(1.8 - 1) + abs(0.6 - 1)) / 3)
    # A bin holds its upper end: 0.6 and 0.55 are in one, where over- and underconfidence cancel.
    logits = torch.tensor([[0.6, 0.4], [0.55, 0.45]]).double().log()
    sums = classification_sums(logits, torch.tensor([0, 1]))
    assert sums[4:].view(3, scores.NUM_BINS)[0].tolist() == [0.0] * 8 + [2.0] + [0.0] * 6
    assert classification_scores(sums)["ece"] == pytest.approx(100 * abs(1.15 - 1) / 2)


def test_outputs_that_are_no_number_neither_stop_nor_look_good():
    found = classification_scores(
        classification_sums(torch.full((2, 3), math.nan), torch.ones(2).long())
    )
    assert math.isnan(found["nll"]) and math.isnan(found["ece"])


def test_top5_where_there_are_more_than_five_classes():
    logits = torch.arange(7.0).repeat(4, 1)
    sums = classification_sums(logits, torch.tensor([6, 2, 1, -1]))
    assert classification_scores(sums)["top5"] == pytest.approx(200 / 3)
    assert "top5" not in classification_scores(sums, top5_from=8)
    assert "top5" not in classification_scores(
        classification_sums(logits[:, :5], torch.zeros(4).long())
    )


def test_probabilities_of_outputs_add_up_to_a_class():
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    outputs = torch.tensor([[0, 2], [3, -1]])
    # 0.1 + 0.3 beside 0.4, over both classes alone.
    torch.testing.assert_close(class_logits(logits, outputs).softmax(1), torch.tensor([[0.5, 0.5]]))
    picked = class_logits(logits, torch.tensor([[3], [0]])).softmax(1)
    torch.testing.assert_close(picked, torch.tensor([[0.8, 0.2]]))
    assert class_logits(logits.double(), None).dtype == torch.float32


def test_real_counts_any_of_the_labels_and_leaves_out_samples_without():
    logits = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    labels = torch.tensor([[0, 2], [2, 1], [1, -1], [-1, -1]])
    found = label_set_scores(label_set_sums(logits, labels))
    assert found == {"real": pytest.approx(200 / 3)}
    assert math.isnan(label_set_scores(label_set_sums(logits[3:], labels[3:]))["real"])


def test_agreement_and_divergence_by_hand():
    student = torch.tensor([[0.5, 0.5], [0.1, 0.9]]).log()
    teacher = torch.tensor([[0.75, 0.25], [0.8, 0.2]]).log()
    sums = sum(teacher_sums(student[i : i + 1], teacher[i : i + 1]) for i in range(2))
    found = teacher_scores(sums)
    first = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    second = 0.8 * math.log(0.8 / 0.1) + 0.2 * math.log(0.2 / 0.9)
    assert found["teacher_kl"] == pytest.approx((first + second) / 2)
    assert found["agreement"] == 50.0


def test_the_spread_of_draws_by_hand():
    # Two draws: means 0.7 and 0.4 of the first class.
    draws = torch.zeros(2, 3, dtype=torch.float64)
    probability = torch.tensor([[0.8, 0.2], [0.4, 0.6], [0.6, 0.4]])
    scores.add_to_draws_(draws, probability.log(), torch.tensor([0, 1, 0]))
    # Either class has the standard deviation |0.7 - 0.4| / sqrt(2).
    assert draw_spread(draws) == pytest.approx(0.3 / math.sqrt(2), abs=1e-7)


def test_mse_by_hand():
    sums = regression_sums(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [4.0]]))
    assert regression_scores(sums) == {"mse": 2.5}


def test_bound_by_hand_over_two_batches():
    batches = torch.tensor([[1.0, 0.5], [3.0, 1.5]]), torch.tensor([[2.0, 4.0]])
    found = bound_scores(sum(bound_sums(batch) for batch in batches))
    assert found == {"distortion": 2.0, "rate": 2.0, "bound": 4.0}
