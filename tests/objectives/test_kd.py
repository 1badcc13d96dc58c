import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hard_fast.objectives import build_objective
from hard_fast.objectives.kd import KdConfig


class Fixed(nn.Module):
    """A network that returns given logits, for libraries that insist on calling one."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.num_classes, self.in_chans = logits.shape[1], 3
        self.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.logits


@pytest.mark.parametrize(("share", "temperature"), [(0.0, 5.0), (0.1, 4.0), (1.0, 1.0)])
def test_equals_the_published_convention(seen, share, temperature):
    student, teacher = torch.randn(8, 10), torch.randn(8, 10)
    label = torch.randint(10, (8,))
    kl = F.kl_div(
        F.log_softmax(student / temperature, 1),
        F.softmax(teacher / temperature, 1),
        reduction="batchmean",
    )
    want = share * F.cross_entropy(student, label) + (1 - share) * temperature**2 * kl
    objective = build_objective(KdConfig(temperature=temperature, ce_share=share))
    got = objective.student_loss(seen(student, teacher, target=torch.eye(10)[label]))
    torch.testing.assert_close(got.loss, want)


def test_equals_timms_task_on_the_same_logits(seen):
    from timm.task import LogitDistillationTask

    student, teacher, label = torch.randn(8, 10), torch.randn(8, 10), torch.randint(10, (8,))
    task = LogitDistillationTask(
        student_model=Fixed(student),
        teacher_model=Fixed(teacher),
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=0.1,
        temperature=4.0,
        device=torch.device("cpu"),
        verbose=False,
    )
    want = task(torch.zeros(8, 3, 8, 8), label)["loss"]
    objective = build_objective(KdConfig(temperature=4.0, ce_share=0.1))
    got = objective.student_loss(seen(student, teacher, target=torch.eye(10)[label]))
    torch.testing.assert_close(got.loss, want.detach(), rtol=1e-5, atol=1e-6)


def test_equals_torchdistills_kd_loss_on_the_same_logits(seen):
    losses = pytest.importorskip("torchdistill.losses.mid_level", reason="torchdistill is absent")
    student, teacher, label = torch.randn(8, 10), torch.randn(8, 10), torch.randint(10, (8,))
    paths = {f"{who}_module_path": "." for who in ("student", "teacher")}
    kinds = {f"{who}_module_io": "output" for who in ("student", "teacher")}
    loss = losses.KDLoss(temperature=4.0, alpha=0.1, reduction="batchmean", **paths, **kinds)
    want = loss({".": {"output": student}}, {".": {"output": teacher}}, label)
    objective = build_objective(KdConfig(temperature=4.0, ce_share=0.1))
    got = objective.student_loss(seen(student, teacher, target=torch.eye(10)[label]))
    torch.testing.assert_close(got.loss, want, rtol=1e-5, atol=1e-6)


def test_error_is_disagreement_with_the_teacher_or_the_squared_error(seen):
    student, teacher = (
        torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
        torch.tensor([[3.0, 0.0], [0.0, 1.0]]),
    )
    assert build_objective(KdConfig()).student_loss(seen(student, teacher)).error.item() == 0.5
    found = build_objective(KdConfig(distance="mse")).student_loss(seen(student, teacher))
    assert found.error.item() == found.loss.item() == 1.5
