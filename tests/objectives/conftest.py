"""A `Seen` from logits, for losses worked out by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hard_fast.types import Batch, Outputs, Seen, View


@pytest.fixture
def seen() -> Callable[..., Seen]:
    def build(
        student: Tensor,
        teacher: Tensor | None = None,
        clean_teacher: Tensor | None = None,
        target: Tensor | None = None,
    ) -> Seen:
        def out(logits: Tensor | None) -> Outputs | None:
            return None if logits is None else Outputs(logits, {})

        num = len(student)
        batch = Batch(torch.zeros(num, 1, 1, 1), torch.full((num,), -1))
        if target is None:
            target = torch.zeros_like(student)
        view = View(batch.image, target)
        return Seen(batch, view, {}, (out(student),), out(teacher), None, out(clean_teacher))

    return build
