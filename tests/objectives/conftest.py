"""A `Seen` from logits, for losses worked out by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hard_fast.augment.fixed import Identity
from hard_fast.models.taps import Tapped
from hard_fast.objectives.base import Objective
from hard_fast.step import DistillStep
from hard_fast.types import Batch, Outputs, Phase, Seen, View


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


@pytest.fixture
def whole_step() -> Callable[..., DistillStep]:
    """A step of an objective that has met its networks, on images that nothing augments."""

    def build(
        objective: Objective,
        student: nn.Module,
        teacher: nn.Module | None = None,
        shape: tuple[int, int, int] = (3, 16, 16),
        num_classes: int = 4,
    ) -> DistillStep:
        needs = objective.needs(Phase.STUDENT)
        learner = Tapped(student, needs.student_taps)
        judge = None if teacher is None else Tapped(teacher.eval(), needs.teacher_taps)
        objective.meet(learner, judge, torch.zeros(1, *shape))
        return DistillStep(Identity(), learner, judge, objective, num_classes)

    return build


@pytest.fixture
def student_gradients() -> Callable[[DistillStep, Batch], set[str]]:
    """Names of all parameters of a step that one student's loss gives a gradient other than 0."""

    def find(step: DistillStep, batch: Batch) -> set[str]:
        step(Phase.STUDENT, batch, {}).loss.backward()
        named = step.named_parameters()
        return {name for name, p in named if p.grad is not None and p.grad.abs().max() > 0}

    return find


@pytest.fixture
def same_compiled() -> Callable[[DistillStep, Batch], None]:
    """One graph, without recompiling, gives the loss and the gradients of the eager step."""

    def check(step: DistillStep, batch: Batch) -> None:
        found = []
        torch._dynamo.reset()
        for run in (step, torch.compile(step, fullgraph=True, dynamic=False, backend="aot_eager")):
            state = {key: value.clone() for key, value in step.state_dict().items()}
            for _ in range(2):
                step.load_state_dict(state)
                step.zero_grad()
                torch.manual_seed(5)
                terms = run(Phase.STUDENT, batch, {})
                terms.loss.backward()
            grads = {name: p.grad for name, p in step.named_parameters() if p.grad is not None}
            found.append((terms, {name: grad.clone() for name, grad in grads.items()}))
            step.load_state_dict(state)
        (eager, eager_grads), (compiled, compiled_grads) = found
        torch.testing.assert_close(compiled.loss, eager.loss)
        torch.testing.assert_close(compiled.logs, eager.logs)
        torch.testing.assert_close(compiled_grads, eager_grads)

    return check


@pytest.fixture
def pictures() -> Batch:
    """Four random images of four classes, 16 px."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return Batch(image.contiguous(memory_format=torch.channels_last), torch.arange(4))
