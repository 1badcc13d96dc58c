import math

import pytest
import torch

from hard_fast.objectives import build_objective
from hard_fast.objectives.ce import CeConfig
from hard_fast.types import Needs, Phase


def test_value_by_hand(seen):
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    found = build_objective(CeConfig()).student_loss(seen(logits, target=torch.eye(2).flip(0)))
    assert found.loss.item() == pytest.approx((math.log(2.0) + math.log(4 / 3)) / 2)
    # A tie counts as the first class, so the first sample is wrong and the second right.
    assert found.error.item() == 0.5


def test_needs_no_teacher():
    assert build_objective(CeConfig()).needs(Phase.STUDENT) == Needs()
