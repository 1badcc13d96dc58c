"""The terms that losses are made of, per sample and in fp32.

Letters: B samples, K classes (or regression outputs).
"""

import torch.nn.functional as F
from torch import Tensor


def kd_kl(student_BK: Tensor, teacher_BK: Tensor, temperature: Tensor) -> Tensor:
    """KL(teacher || student) per sample at a temperature, times temperature squared.

    Args:    student_BK, teacher_BK: [B,K] logits, any float dtype.
             temperature: [] fp32 > 0, a tensor so that schedules do not recompile.
    Returns: [B] fp32, nats. Differentiable in both logits.
    Source:  Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    student = F.log_softmax(student_BK.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_BK.float() / temperature, dim=1)
    return (teacher.exp() * (teacher - student)).sum(1) * temperature**2


def squared_error(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """[B] fp32 mean squared difference per sample, differentiable in both."""
    return (student_BK.float() - teacher_BK.float()).square().mean(1)


def cross_entropy(logits_BK: Tensor, target_BK: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """[] fp32 cross-entropy with soft targets, averaged over the samples that have one.

    Args:    target_BK: [B,K] fp32, rows that sum to one, or to zero where there is no label.
    """
    has_label = target_BK.sum(1, keepdim=True)
    smooth = target_BK * (1.0 - label_smoothing) + has_label * label_smoothing / target_BK.shape[1]
    loss = -(smooth * F.log_softmax(logits_BK.float(), dim=1)).sum(1)
    return loss.sum() / has_label.sum().clamp(min=1.0)


def disagreement(logits_BK: Tensor, reference_BK: Tensor) -> Tensor:
    """[] fp32 share of samples whose most likely class differs, detached; 0 to 1.

    Args:    reference_BK: logits, probabilities or one-hot labels; an all-zero row (no label) is
             left out.
    """
    differs = (logits_BK.argmax(1) != reference_BK.argmax(1)).float()
    is_known = (reference_BK != 0).any(1).float()
    return ((differs * is_known).sum() / is_known.sum().clamp(min=1.0)).detach()
