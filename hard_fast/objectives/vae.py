"""Learning to make one's own data anew: the bound of a variational autoencoder."""

from typing import Literal

from pydantic import Field

from hard_fast.objectives.base import Objective, constant, terms
from hard_fast.runtime.configfile import Config
from hard_fast.types import LossTerms, Needs, Phase, Seen


class VaeConfig(Config):
    """distortion + beta rate, nats per value; the student is an autoencoder such as `tiny_vae`."""

    kind: Literal["vae"] = "vae"
    beta: float = Field(default=1.0, ge=0.0)
    """Weight of the rate. Below 1 pictures come out sharper, and draws from the prior worse."""


class Vae(Objective):
    """No teacher and no labels; the error is the distortion.

    Source:  Kingma and Welling, arXiv:1312.6114; beta as in Higgins et al., ICLR 2017.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.beta = constant(config.beta)

    def needs(self, phase: Phase) -> Needs:
        """Only the student's outputs, [B,2]: distortion and rate."""
        return Needs()

    def student_loss(self, seen: Seen) -> LossTerms:
        """The bound's two parts, averaged over the images."""
        distortion, rate = seen.student[0].logits_BK.float().mean(0).unbind()
        return terms(distortion + self.beta * rate, distortion, rate=rate)
