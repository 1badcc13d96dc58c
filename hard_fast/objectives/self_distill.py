"""Networks that teach themselves: by branches, by dropout, by leaving out layers.

Letters: B images of a batch, K classes, D features.
"""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hard_fast.models.branches import Branched
from hard_fast.models.taps import bare, nearest, try_out
from hard_fast.objectives.base import Objective, constant, terms
from hard_fast.objectives.terms import cross_entropy, disagreement, kd_kl
from hard_fast.runtime.configfile import Config
from hard_fast.types import LossTerms, Needs, Phase, Seen


class ByotConfig(Config):
    """(1 - a) CE + a T^2 KL(branch, final) + b |feature - final's|^2; the student has branches."""

    kind: Literal["byot"] = "byot"
    teacher_share: float = Field(default=0.1, ge=0.0, le=1.0)
    """a: the final classifier's share in what its branches learn."""
    temperature: float = Field(default=3.0, gt=0.0)
    feature_weight: float = Field(default=1.28e-4, ge=0.0)
    """b: of the sum over features and the mean over images. The published 1e-6 weighs the sum over
    a batch of 128."""


class Byot(Objective):
    """Be your own teacher: the last classifier teaches those of the branches.

    Source:  Zhang et al., arXiv:1905.08094; weights, and a teacher without gradient, as in
             luanyunteng/pytorch-be-your-own-teacher. Its cross-entropy with the teacher is a KL
             plus a constant.
    """

    def __init__(self, config: ByotConfig) -> None:
        super().__init__()
        self.config = config
        self.temperature = constant(config.temperature)

    def meet(self, student: nn.Module, teacher: nn.Module | None, image: Tensor) -> None:
        """See that the student has branches."""
        net = bare(student)
        if not isinstance(net, Branched) or not net.branches:
            raise ValueError(
                "objective.kind = 'byot': the student has no branches; use student.name = "
                "'python:hard_fast.models.branches:branched'"
            )

    def needs(self, phase: Phase) -> Needs:
        """The student alone, which shows its branches while it trains."""
        return Needs()

    def student_loss(self, seen: Seen) -> LossTerms:
        """Labels for every classifier; the final one's outputs and features for the branches."""
        student, target_BK, config = seen.student[0], seen.view.target_BK, self.config
        names = [name for name in student.taps if f"{name}_feature" in student.taps]
        final_BK, final_BD = student.logits_BK.detach(), student.taps["feature"].detach().float()
        label = cross_entropy(student.logits_BK, target_BK)
        taught = features = label.new_zeros(())
        for name in names:
            branch_BK, branch_BD = student.taps[name], student.taps[f"{name}_feature"].float()
            label = label + cross_entropy(branch_BK, target_BK)
            taught = taught + kd_kl(branch_BK, final_BK, self.temperature).mean()
            features = features + (branch_BD - final_BD).square().sum(1).mean()
        share = config.teacher_share
        loss = (1.0 - share) * label + share * taught + config.feature_weight * features
        logs = {f"{name}_error": disagreement(student.taps[name], target_BK) for name in names}
        return terms(
            loss,
            disagreement(student.logits_BK, target_BK),
            label_loss=label,
            teacher_loss=taught,
            feature_loss=features,
            **logs,
        )


class SdDropoutConfig(Config):
    """CE + a T^2 (KL(o1, o2) + KL(o2, o1)) of two dropouts of the last features."""

    kind: Literal["sd_dropout"] = "sd_dropout"
    feature: str
    """The student's layer whose output its classifier reads."""
    classifier: str
    """The student's last layer."""
    dropout: float = Field(default=0.5, gt=0.0, lt=1.0)
    weight: float = Field(default=1.0, ge=0.0)
    """a. The paper's values of a, T and the dropout are not known here: these are ours."""
    temperature: float = Field(default=3.0, gt=0.0)
    one_way: bool = False
    """Stop the gradient in the one that teaches, in both directions."""


class SdDropout(Objective):
    """Two dropouts of the features teach each other; the labels are for the features as they are.

    The classifier is the student's own and is trained with it.

    Source:  Lee et al., arXiv:2208.05642.
    """

    def __init__(self, config: SdDropoutConfig) -> None:
        super().__init__()
        self.config = config
        self.temperature = constant(config.temperature)
        # In a tuple, so that it is not a part of the objective too.
        self._classifier: tuple[nn.Module, ...] = ()

    def meet(self, student: nn.Module, teacher: nn.Module | None, image: Tensor) -> None:
        """Find the student's classifier, and see that the features are what it reads."""
        name, modules = self.config.classifier, dict(bare(student).named_modules())
        if name not in modules:
            raise ValueError(
                f"objective.classifier = {name!r}: no such module{nearest(name, modules)}"
            )
        self._classifier = (modules[name],)
        found = try_out(student, image)
        try:
            again_BK = modules[name](found.taps[self.config.feature].float())
        except RuntimeError:
            again_BK = None
        # A lower precision rounds; another layer's output is far off.
        if again_BK is None or not _is_close(again_BK, found.logits_BK):
            raise ValueError(
                f"objective.feature = {self.config.feature!r}: is not what the classifier {name!r} "
                "makes the student's answer from"
            )

    def needs(self, phase: Phase) -> Needs:
        """The student's logits and its last features."""
        return Needs(student_taps=(self.config.feature,))

    def student_loss(self, seen: Seen) -> LossTerms:
        """Cross-entropy without dropout, and the divergence of the two with it."""
        student, target_BK, config = seen.student[0], seen.view.target_BK, self.config
        (classifier,) = self._classifier
        feature_BD = student.taps[config.feature].float()
        one, other = (classifier(F.dropout(feature_BD, config.dropout)) for _ in range(2))
        first, second = (one.detach(), other.detach()) if config.one_way else (one, other)
        apart_B = kd_kl(one, second, self.temperature) + kd_kl(other, first, self.temperature)
        apart = apart_B.mean()
        label = cross_entropy(student.logits_BK, target_BK)
        error = disagreement(student.logits_BK, target_BK)
        return terms(label + config.weight * apart, error, label_loss=label, apart=apart)


class CosubConfig(Config):
    """The mean of both submodels' cross-entropies with the label and with each other."""

    kind: Literal["cosub"] = "cosub"
    label_share: float = Field(default=0.5, ge=0.0, le=1.0)
    """Of the labels, against what the other submodel says."""
    loss: Literal["bce", "ce"] = "bce"
    """bce: classes are independent, sigmoids; ce: softmaxes."""
    binary_labels: bool = True
    """With bce: a mixed picture has every class that is in it, in full."""


class Cosub(Objective):
    """Two passes with different layers left out; each learns from the other's outputs.

    Source:  Touvron et al., arXiv:2212.04884; facebookresearch/deit `engine.py`, where a batch
             twice as long makes one pass. Which layers are left out is drawn for each image.
    """

    def __init__(self, config: CosubConfig) -> None:
        super().__init__()
        self.config = config

    def meet(self, student: nn.Module, teacher: nn.Module | None, image: Tensor) -> None:
        """See that the student has something to leave out."""
        # timm's class, told by name since importing timm takes seconds.
        kinds = {type(module).__name__ for module in student.modules()}
        drops = [m for m in student.modules() if isinstance(m, nn.Dropout) and m.p > 0.0]
        if "DropPath" not in kinds and not drops:
            raise ValueError(
                "objective.kind = 'cosub': the student leaves out nothing, so both submodels would "
                "be the same; set student.options.drop_path_rate"
            )

    def needs(self, phase: Phase) -> Needs:
        """The student twice."""
        return Needs(student_copies=2)

    def student_loss(self, seen: Seen) -> LossTerms:
        """Labels for both, and each for the other."""
        one_BK, other_BK = (copy.logits_BK.float() for copy in seen.student)
        target_BK = seen.view.target_BK
        label = (self._label_loss(one_BK, target_BK) + self._label_loss(other_BK, target_BK)) / 2
        mutual = (self._mutual_loss(one_BK, other_BK) + self._mutual_loss(other_BK, one_BK)) / 2
        share = self.config.label_share
        loss = share * label + (1.0 - share) * mutual
        return terms(loss, disagreement(one_BK, target_BK), label_loss=label, mutual_loss=mutual)

    def _label_loss(self, logits_BK: Tensor, target_BK: Tensor) -> Tensor:
        if self.config.loss == "ce":
            return cross_entropy(logits_BK, target_BK)
        wanted_BK = (target_BK > 0).float() if self.config.binary_labels else target_BK
        has_label_B = target_BK.sum(1).clamp(max=1.0)
        each_BK = F.binary_cross_entropy_with_logits(logits_BK, wanted_BK, reduction="none")
        return (each_BK.mean(1) * has_label_B).sum() / has_label_B.sum().clamp(min=1.0)

    def _mutual_loss(self, logits_BK: Tensor, other_BK: Tensor) -> Tensor:
        other_BK = other_BK.detach()
        if self.config.loss == "ce":
            return F.cross_entropy(logits_BK, other_BK.softmax(1))
        return F.binary_cross_entropy_with_logits(logits_BK, other_BK.sigmoid())


def _is_close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    size = other.float().abs().max().clamp(min=1e-6)
    return bool((one.float() - other.float()).abs().max() <= 0.05 * size)
