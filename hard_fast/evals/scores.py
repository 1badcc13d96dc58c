"""Scores of a network's outputs, as sums that add up over batches and ranks.

Letters: B samples, K classes (or regression outputs), S outputs or labels that count as one,
D draws.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_BINS = 15
"""Of the confidence, equally wide, for the expected calibration error."""
NUM_LABEL_SUMS = 4 + 3 * NUM_BINS
NUM_SET_SUMS = 2
NUM_TEACHER_SUMS = 3
# Those of suites with corruptions among them: evals/suites/summary.py.
_LESS_IS_BETTER = ("nll", "ece", "teacher_kl", "t_stddev", "mse", "distortion", "rate", "bound")
_LESS_IS_BETTER += ("error", "mce")


def is_less_better(metric: str) -> bool:
    """Whether a smaller value of a score is the better one.

    Args:    metric: the score's name, or one that ends with it: `val_nll`, `mnist_c_blur_error`.
    """
    return any(f"_{metric}".endswith(f"_{name}") for name in _LESS_IS_BETTER)


def class_logits(logits_BK: Tensor, outputs_KS: Tensor | None) -> Tensor:
    """[B,K] fp32 logits of a suite's classes; their softmax is over these classes alone.

    Args:    logits_BK: of all the network's outputs.
             outputs_KS: the outputs whose probabilities add up to each class, padded with -1; None:
             every output is a class.
    """
    logits_BK = logits_BK.float()
    if outputs_KS is None:
        return logits_BK
    if outputs_KS.shape[1] == 1:
        return logits_BK[:, outputs_KS[:, 0]]
    picked_BKS = logits_BK[:, outputs_KS.clamp(min=0)]
    return picked_BKS.masked_fill(outputs_KS < 0, -math.inf).logsumexp(2)


def classification_sums(logits_BK: Tensor, label_B: Tensor) -> Tensor:
    """[4 + 3 bins] fp64: right answers, right in five, nll in nats, classes; then per bin of
    confidence the samples, the right ones and the confidence.

    Args:    label_B: class, or -1 for a sample without one, which does not count.
    """
    logits_BK = logits_BK.float()
    has_label = (label_B >= 0).double()
    nll = F.cross_entropy(logits_BK, label_B, ignore_index=-1, reduction="sum")
    right = (logits_BK.argmax(1) == label_B).double()
    num_classes = logits_BK.shape[1]
    five = logits_BK.topk(min(5, num_classes)).indices
    confidence = logits_BK.softmax(1).amax(1)
    # Bins hold their upper end; outputs that are no number fall into the lowest.
    place = (confidence.nan_to_num() * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
    bins = torch.zeros(3, NUM_BINS, dtype=torch.float64, device=logits_BK.device)
    bins.index_add_(1, place, torch.stack([has_label, right, confidence.double() * has_label]))
    right_in_five = (five == label_B[:, None]).any(1).sum()
    whole = [right.sum(), right_in_five.double(), nll.double(), has_label.sum() * num_classes]
    return torch.cat([torch.stack(whole), bins.flatten()])


def classification_scores(sums: Tensor, *, top5_from: int = 6) -> dict[str, float]:
    """top1, ece (both percent) and nll in nats per sample, from added-up sums; NaN without a label.

    Args:    top5_from: the number of classes from which on there is a top5 too.
    """
    right, right_in_five, nll, classes = sums[:4].tolist()
    count, hits, confidence = sums[4:].view(3, NUM_BINS)
    num = count.sum().item() or math.nan
    found = {"top1": 100.0 * right / num, "nll": nll / num}
    if classes / num >= top5_from:
        found["top5"] = 100.0 * right_in_five / num
    return found | {"ece": 100.0 * (confidence - hits).abs().sum().item() / num}


def label_set_sums(logits_BK: Tensor, labels_BS: Tensor) -> Tensor:
    """[2] fp64: samples with any label, and those whose top answer is one of theirs.

    Args:    labels_BS: every label that is right, padded with -1.
    """
    is_right = (logits_BK.argmax(1, keepdim=True) == labels_BS).any(1)
    return torch.stack([(labels_BS >= 0).any(1).sum(), is_right.sum()]).double()


def label_set_scores(sums: Tensor) -> dict[str, float]:
    """real, in percent, from added-up sums; NaN without a label.

    Source:  Beyer et al. 2020, arXiv:2006.07159: images without a label are left out.
    """
    num, right = sums.tolist()
    return {"real": 100.0 * right / num if num else math.nan}


def teacher_sums(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """[3] fp64: samples, those on which both choose the same, KL(teacher || student) in nats."""
    log_s, log_t = (logits.float().log_softmax(1) for logits in (student_BK, teacher_BK))
    kl = F.kl_div(log_s, log_t, reduction="sum", log_target=True).double()
    same = (student_BK.argmax(1) == teacher_BK.argmax(1)).sum().double()
    return torch.stack([same.new_tensor(len(student_BK)), same, kl])


def teacher_scores(sums: Tensor) -> dict[str, float]:
    """agreement in percent and teacher_kl in nats per sample, from added-up sums."""
    num, same, kl = sums.tolist()
    num = num or math.nan
    return {"agreement": 100.0 * same / num, "teacher_kl": kl / num}


def add_to_draws_(sums_DK: Tensor, logits_BK: Tensor, draw_B: Tensor) -> None:
    """Add samples, and their probabilities, to the sums of their draws.

    Args:    sums_DK: [D,K+1] fp64: probabilities per class, then samples.
             draw_B: which draw each sample belongs to.
    """
    sums_DK.index_add_(0, draw_B, F.pad(logits_BK.double().softmax(1), (0, 1), value=1.0))


def draw_spread(sums_DK: Tensor) -> float:
    """T.stddev: how much a teacher's mean probability varies from draw to draw, mean over classes.

    Args:    sums_DK: as `add_to_draws_` left them, at least two draws, none of them empty.
    Source:  Wang et al. 2022, arXiv:2012.02909, A.3: softmax at temperature 1, 640 samples a draw:
             there five batches of training, here a share of a test set.
    """
    return (sums_DK[:, :-1] / sums_DK[:, -1:]).std(0).mean().item()


def regression_sums(output_BK: Tensor, target_BK: Tensor) -> Tensor:
    """[2] fp64: values, squared error."""
    squared = (output_BK.double() - target_BK.double()).square()
    return torch.stack([squared.new_tensor(squared.numel()), squared.sum()])


def regression_scores(sums: Tensor) -> dict[str, float]:
    """mse, from added-up sums; NaN without a value."""
    num, squared = sums.tolist()
    return {"mse": squared / num if num else math.nan}


def bound_sums(parts_B2: Tensor) -> Tensor:
    """[3] fp64: samples, distortion, rate.

    Args:    parts_B2: both parts of a VAE's bound, nats per value.
    """
    sums_2 = parts_B2.double().sum(0)
    return torch.cat([sums_2.new_tensor([len(parts_B2)]), sums_2])


def bound_scores(sums: Tensor) -> dict[str, float]:
    """distortion and rate in nats per value, and bound, their sum, from added-up sums."""
    num, distortion, rate = sums.tolist()
    num = num or math.nan
    parts = {"distortion": distortion / num, "rate": rate / num}
    return {**parts, "bound": sum(parts.values())}
