"""What the places of a picture look like to a teacher of other classes, as prototypes.

Letters: B images of a batch, N places of a map or tokens, D channels of the teacher, E of the
student, P prototypes, K classes of the student, R and S rows and columns of a map.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hard_fast.models.taps import try_out
from hard_fast.objectives.base import Objective, constant, terms
from hard_fast.objectives.terms import cross_entropy, disagreement
from hard_fast.runtime.configfile import Config
from hard_fast.types import LossTerms, Needs, Phase, Seen


class PrototypesConfig(Config):
    """Local features of the student follow prototypes of the teacher's; classes may differ."""

    kind: Literal["prototypes"] = "prototypes"
    student_layer: str
    teacher_layer: str
    """Both give maps, or tokens that are as many."""
    num_prototypes: int = Field(default=64, ge=2)
    temperature: float = Field(default=0.1, gt=0.0)
    """Of the softmax over the prototypes, of cosines between -1 and 1."""
    ce_share: float = Field(default=0.5, ge=0.0, le=1.0)
    """Of the cross-entropy with the labels; the rest is of the prototypes."""
    augmented_weight: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1.0
    """Of the second cross-entropy, of features with prototypes added, beside the student's own."""


class Prototypes(Objective):
    """Prototypes learn to stand for the teacher's local features, and the student's follow them.

    The teacher's features, at mean 0 and variance 1 over the channels, and the student's behind a
    linear projection each belong to the prototypes by a softmax of cosines. Three losses beside
    the student's own: prototypes weighted so reproduce the teacher's features (squared error, the
    only one that moves them); the student's features match that reproduction (squared error); and
    the student's features plus its own weighted prototypes, averaged over the places, tell its
    classes behind a linear head. Prototypes, projection and head are no part of the student.

    Source:  ProC-KD, Li et al., arXiv:2212.13180, whose abstract has the two modules: prototypes
             learned from the teacher's features, and student features augmented with them. The
             form of the weights and of the losses is ours.
    """

    def __init__(self, config: PrototypesConfig) -> None:
        super().__init__()
        self.config = config
        self.temperature = constant(config.temperature)

    def needs(self, phase: Phase) -> Needs:
        """One layer of each network."""
        taps = {"student_taps": (self.config.student_layer,)}
        return Needs(teacher=True, teacher_taps=(self.config.teacher_layer,), **taps)

    def meet(self, student: nn.Module, teacher: nn.Module | None, image: Tensor) -> None:
        """Make prototypes as wide as the teacher's features, and a head of the student's classes.

        Raises:  ValueError if the layers do not give the same kind of local features.
        """
        config, answer = self.config, try_out(student, image)
        own = answer.taps[config.student_layer]
        wanted = try_out(teacher, image).taps[config.teacher_layer]
        are_tokens = own.ndim == 3 and wanted.ndim == 3 and own.shape[1] == wanted.shape[1]
        if not are_tokens and (own.ndim != 4 or wanted.ndim != 4):
            raise ValueError(
                f"objective.student_layer = {config.student_layer!r}: gives {list(own.shape)[1:]}, "
                f"and the teacher's {config.teacher_layer!r} {list(wanted.shape)[1:]}; both must "
                "be maps, or tokens that are as many"
            )
        channels = 1 if own.ndim == 4 else 2
        width = wanted.shape[channels]
        self.prototypes_PD = nn.Parameter(torch.randn(config.num_prototypes, width))
        self.projection = nn.Linear(own.shape[channels], width)
        if config.augmented_weight:
            self.head = nn.Linear(width, answer.logits_BK.shape[1])

    def student_loss(self, seen: Seen) -> LossTerms:
        """The labels' part and the prototypes', by their shares."""
        config, student = self.config, seen.student[0]
        own, wanted = local_features(
            student.taps[config.student_layer], seen.teacher.taps[config.teacher_layer]
        )
        wanted_BND = F.layer_norm(wanted.detach(), wanted.shape[-1:])
        own_BND = self.projection(own)
        prototypes_PD = self.prototypes_PD.float()
        made_BND = assign(wanted_BND, prototypes_PD, self.temperature) @ prototypes_PD
        parts = {
            "prototype_loss": F.mse_loss(made_BND, wanted_BND),
            "match_loss": F.mse_loss(own_BND, made_BND.detach()),
        }
        inner = sum(parts.values())
        target_BK = seen.view.target_BK
        parts["label_loss"] = cross_entropy(student.logits_BK, target_BK)
        labels = parts["label_loss"]
        if config.augmented_weight:
            fixed_PD = prototypes_PD.detach()
            added_BND = assign(own_BND, fixed_PD, self.temperature) @ fixed_PD
            answer_BK = self.head((own_BND + added_BND).mean(1))
            parts["augmented_loss"] = cross_entropy(answer_BK, target_BK)
            labels = labels + config.augmented_weight * parts["augmented_loss"]
        loss = config.ce_share * labels + (1.0 - config.ce_share) * inner
        return terms(loss, disagreement(student.logits_BK, target_BK), **parts)


def local_features(own: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """[B,N,E] and [B,N,D] fp32: both layers at the same places.

    Args:    own, wanted: maps [B,E,R,S] and [B,D,R,S], averaged down to the smaller of both sizes,
             or tokens, which stay as they are.
    """
    own, wanted = own.float(), wanted.float()
    if own.ndim == 3:
        return own, wanted
    size = [min(pair) for pair in zip(own.shape[2:], wanted.shape[2:], strict=True)]
    one, other = (F.adaptive_avg_pool2d(x, size).flatten(2).mT for x in (own, wanted))
    return one, other


def assign(features_BND: Tensor, prototypes_PD: Tensor, temperature: Tensor) -> Tensor:
    """[B,N,P] fp32 how much each place belongs to each prototype: a softmax of their cosines."""
    cosine_BNP = F.normalize(features_BND, dim=-1) @ F.normalize(prototypes_PD, dim=-1).mT
    return (cosine_BNP / temperature).softmax(-1)
