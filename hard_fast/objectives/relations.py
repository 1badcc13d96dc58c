"""What inner layers hold: relations between tokens, and features behind a projection.

Letters: B images of a batch, N tokens, E = 3 H D values of a token's query, key and value, H heads,
D channels, R and S rows and columns of a map, K classes.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hard_fast.models.taps import bare, try_out
from hard_fast.objectives.base import Objective, constant, terms
from hard_fast.objectives.terms import cross_entropy, disagreement, kd_kl
from hard_fast.runtime.configfile import Config
from hard_fast.types import LossTerms, Needs, Phase, Seen

_Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class InnerConfig(Config):
    """What the answers weigh beside the inner layers; shared by every objective of such layers."""

    ce_weight: _Weight = 0.0
    """Of the cross-entropy with the labels."""
    kd_weight: _Weight = 0.0
    """Of T^2 KL between the answers."""
    temperature: float = Field(default=4.0, gt=0.0)
    """T."""


class Inner(Objective):
    """The answers' part of a loss whose other part is of inner layers."""

    def __init__(self, config: InnerConfig) -> None:
        super().__init__()
        self.ce_weight, self.kd_weight = config.ce_weight, config.kd_weight
        self.temperature = constant(config.temperature)

    def inner_terms(self, seen: Seen) -> dict[str, Tensor]:
        """The weighted losses of inner layers, by the name that logs give them."""
        raise NotImplementedError

    def student_loss(self, seen: Seen) -> LossTerms:
        """The sum of all parts; without a weight an answer's part is not computed."""
        student_BK, teacher_BK = seen.student[0].logits_BK, seen.teacher.logits_BK
        parts = self.inner_terms(seen)
        if self.ce_weight:
            parts["label_loss"] = self.ce_weight * cross_entropy(student_BK, seen.view.target_BK)
        if self.kd_weight:
            apart = kd_kl(student_BK, teacher_BK, self.temperature).mean()
            parts["teacher_loss"] = self.kd_weight * apart
        # A teacher of other classes says nothing about which of these is right.
        reference_BK = teacher_BK if self.shares_classes else seen.view.target_BK
        return terms(sum(parts.values()), disagreement(student_BK, reference_BK), **parts)


class RelationsConfig(InnerConfig):
    """KL between the relations of tokens in one attention layer of each network."""

    kind: Literal["relations"] = "relations"
    student_layer: str
    """The layer that makes queries, keys and values at once, such as "blocks.11.attn.qkv"."""
    teacher_layer: str
    qk: _Weight = 1.0
    """Weight of softmax(q k^T / sqrt d)."""
    vv: _Weight = 1.0
    """Weight of softmax(v v^T / sqrt d)."""


class Relations(Inner):
    """The student's tokens relate to each other as the teacher's do, head by head.

    Source:  TinyMIM, Ren et al., arXiv:2301.01296. There the student's last block has as many heads
             as the teacher's; here its attention keeps its own heads, and the loss cuts its
             queries, keys and values into as many as the teacher's.
    """

    def __init__(self, config: RelationsConfig) -> None:
        super().__init__(config)
        self.config = config
        self._num_heads = 0

    def needs(self, phase: Phase) -> Needs:
        """One layer of each network."""
        layers = {"student_taps": (self.config.student_layer,)}
        return Needs(teacher=True, teacher_taps=(self.config.teacher_layer,), **layers)

    def meet(self, student: nn.Module, teacher: nn.Module | None, image: Tensor) -> None:
        """Take the number of heads from the teacher, and see that the tokens are as many."""
        config = self.config
        self._num_heads = num_heads(teacher, config.teacher_layer)
        own = try_out(student, image).taps[config.student_layer].shape
        wanted = try_out(teacher, image).taps[config.teacher_layer].shape
        if len(own) != 3 or len(wanted) != 3 or own[1] != wanted[1]:
            raise ValueError(
                f"objective.student_layer = {config.student_layer!r}: gives {list(own)[1:]}, and "
                f"the teacher's {config.teacher_layer!r} {list(wanted)[1:]}; both must be [tokens, "
                "channels] of as many tokens"
            )
        if own[2] % (3 * self._num_heads):
            raise ValueError(
                f"objective.student_layer = {config.student_layer!r}: {own[2]} channels are no "
                f"whole number of queries, keys and values for the teacher's {self._num_heads} "
                "heads"
            )

    def inner_terms(self, seen: Seen) -> dict[str, Tensor]:
        """Both relations' divergences."""
        config = self.config
        own_BNE = seen.student[0].taps[config.student_layer]
        qk, vv = relation_kl(own_BNE, seen.teacher.taps[config.teacher_layer], self._num_heads)
        return {"qk_loss": config.qk * qk, "vv_loss": config.vv * vv}


def num_heads(network: nn.Module, layer: str) -> int:
    """How many heads the attention has that a layer of queries, keys and values belongs to.

    Raises:  ValueError if the module around the layer does not say.
    """
    parent = bare(network).get_submodule(layer.rpartition(".")[0])
    # timm's word, and the one of the small nets.
    for word in ("num_heads", "heads"):
        if word in vars(parent):
            return int(vars(parent)[word])
    raise ValueError(
        f"objective.teacher_layer = {layer!r}: {type(parent).__name__} around it does not say how "
        "many heads there are; name the layer that makes queries, keys and values of an attention"
    )


def relation_kl(student_BNE: Tensor, teacher_BNE: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """[] fp32 KL(teacher || student) of the tokens' relations by query and key, and by value.

    Args:    student_BNE, teacher_BNE: [B,N,3 H D] queries, keys and values, D of each its own.
    Returns: means over images, heads and tokens, in nats.
    """
    student, teacher = _split(student_BNE, heads), _split(teacher_BNE, heads)
    found = []
    for one, other in ((0, 1), (2, 2)):
        own = _log_relation(student[one], student[other])
        wanted = _log_relation(teacher[one], teacher[other])
        found.append((wanted.exp() * (wanted - own)).sum(-1).mean())
    return found[0], found[1]


def _split(qkv_BNE: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Queries, keys and values, each [B,H,N,D] fp32."""
    return qkv_BNE.float().unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def _log_relation(one_BHND: Tensor, other_BHND: Tensor) -> Tensor:
    scale = one_BHND.shape[-1] ** -0.5
    return F.log_softmax(one_BHND @ other_BHND.mT * scale, dim=-1)


class FeaturesConfig(InnerConfig):
    """Mean squared error between projected features of the student and features of the teacher."""

    kind: Literal["features"] = "features"
    layers: tuple[tuple[str, str], ...] = Field(min_length=1)
    """Pairs of names: the student's layer, the teacher's."""
    weight: _Weight = 1.0
    """Of the sum over the pairs."""
    normalize: bool = False
    """Bring the teacher's features to mean 0 and variance 1 over the channels first."""
    batch_norm: bool = False
    """BatchNorm and ReLU behind the projections of maps. Without it large weights diverge."""


class Features(Inner):
    """Layers of the student, through a linear projection each, match layers of the teacher.

    Maps [B,D,R,S] are averaged down to the smaller of both sizes; tokens [B,N,D] and vectors [B,D]
    must be as many. The projections train with the student and are no part of it.

    Source:  FitNets, Romero et al., arXiv:1412.6550; `normalize` from Wei et al., arXiv:2205.14141.
    """

    def __init__(self, config: FeaturesConfig) -> None:
        super().__init__(config)
        self.config = config
        self.projections = nn.ModuleList()

    def needs(self, phase: Phase) -> Needs:
        """The layers of both networks."""
        own, wanted = zip(*self.config.layers, strict=True)
        unique = {"student_taps": tuple(dict.fromkeys(own))}
        return Needs(teacher=True, teacher_taps=tuple(dict.fromkeys(wanted)), **unique)

    def meet(self, student: nn.Module, teacher: nn.Module | None, image: Tensor) -> None:
        """Make the projections, as wide as the networks' layers are."""
        own, wanted = try_out(student, image).taps, try_out(teacher, image).taps
        for mine, theirs in self.config.layers:
            one, other = own[mine].shape, wanted[theirs].shape
            if len(one) != len(other) or (len(one) == 3 and one[1] != other[1]):
                raise ValueError(
                    f"objective.layers: the student's {mine!r} gives {list(one)[1:]}, and the "
                    f"teacher's {theirs!r} {list(other)[1:]}; both must be maps, or tokens that "
                    "are as many, or vectors"
                )
            is_map = len(one) == 4
            layer = nn.Conv2d(one[1], other[1], 1) if is_map else nn.Linear(one[-1], other[-1])
            if is_map and self.config.batch_norm:
                layer = nn.Sequential(layer, nn.BatchNorm2d(other[1]), nn.ReLU())
            self.projections.append(layer)

    def inner_terms(self, seen: Seen) -> dict[str, Tensor]:
        """The weighted sum of the pairs' errors."""
        own, wanted = seen.student[0].taps, seen.teacher.taps
        total = seen.teacher.logits_BK.new_zeros((), dtype=torch.float32)
        for (mine, theirs), projection in zip(self.config.layers, self.projections, strict=True):
            one, other = own[mine].float(), wanted[theirs].float()
            if one.ndim == 4:
                size = [min(pair) for pair in zip(one.shape[2:], other.shape[2:], strict=True)]
                one, other = (F.adaptive_avg_pool2d(x, size) for x in (one, other))
            if self.config.normalize:
                other = _normalized(other)
            total = total + F.mse_loss(projection(one), other)
        return {"feature_loss": self.config.weight * total}


def _normalized(features: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the channels: the second dimension of maps, else the last."""
    if features.ndim != 4:
        return F.layer_norm(features, features.shape[-1:])
    return F.layer_norm(features.movedim(1, -1), features.shape[1:2]).movedim(-1, 1)
