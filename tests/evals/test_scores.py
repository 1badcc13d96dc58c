import math

import pytest
import torch

from hard_fast.evals.scores import (
    bound_scores,
    bound_sums,
    classification_scores,
    classification_sums,
    regression_scores,
    regression_sums,
)


def test_top1_and_nll_by_hand_and_added_up_over_batches():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0], [0.0, math.log(3.0)]])
    label = torch.tensor([0, 1, 0])
    whole = classification_scores(classification_sums(logits, label))
    assert whole["top1"] == pytest.approx(100 / 3)
    assert whole["nll"] == pytest.approx((math.log(4 / 3) + math.log(2) + math.log(4)) / 3)
    parts = classification_sums(logits[:1], label[:1]) + classification_sums(logits[1:], label[1:])
    assert classification_scores(parts) == pytest.approx(whole)


def test_samples_without_a_label_do_not_count():
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    scores = classification_scores(classification_sums(logits, torch.tensor([0, 1, -1])))
    assert scores["top1"] == 50.0
    none = classification_scores(classification_sums(logits, torch.full((3,), -1)))
    assert math.isnan(none["top1"])


def test_mse_by_hand():
    sums = regression_sums(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [4.0]]))
    assert regression_scores(sums) == {"mse": 2.5}


def test_bound_by_hand_over_two_batches():
    batches = torch.tensor([[1.0, 0.5], [3.0, 1.5]]), torch.tensor([[2.0, 4.0]])
    found = bound_scores(sum(bound_sums(batch) for batch in batches))
    assert found == {"distortion": 2.0, "rate": 2.0, "bound": 4.0}
