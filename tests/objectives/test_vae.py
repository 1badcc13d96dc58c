import pytest
import torch

from hard_fast.objectives.vae import Vae, VaeConfig
from hard_fast.types import Needs, Outputs, Phase, Seen


def test_by_hand():
    parts = torch.tensor([[2.0, 0.5], [4.0, 1.5]], requires_grad=True)
    seen = Seen(None, None, {}, (Outputs(parts, {}),), None, None, None)
    objective = Vae(VaeConfig(beta=0.5))
    found = objective.student_loss(seen)
    assert found.loss.item() == pytest.approx(3.0 + 0.5 * 1.0)
    assert found.error.item() == 3.0 and found.logs["rate"].item() == 1.0
    found.loss.backward()
    assert parts.grad.tolist() == [[0.5, 0.25], [0.5, 0.25]]
    assert objective.needs(Phase.STUDENT) == Needs()
