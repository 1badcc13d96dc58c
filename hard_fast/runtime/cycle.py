"""A setting that goes from easy to hard and back over a run: general cyclical training."""

import math

import torch
from pydantic import AfterValidator, Field
from torch import nn

from hard_fast.runtime.configfile import Config


class Cycle(Config):
    """A setting's value over a run, in place of one number: `{ ends = 0.5, peak = 2.0 }`."""

    ends: float = Field(ge=0.0, allow_inf_nan=False)
    """At the first and at the last step."""
    peak: float = Field(ge=0.0, allow_inf_nan=False)
    """In between; the way there and the way back are straight lines."""
    factor: float = Field(default=2.0, ge=1.0)
    """The peak is where 1 / factor of the run is done; 1: at its end, with no way back."""

    def at(self, step: int, num_steps: int) -> float:
        """The value of a 0-based step."""
        share = closeness(step, num_steps, self.factor)
        return share * self.ends + (1.0 - share) * self.peak

    def times(self, factor: float) -> "Cycle":
        """The same course in another unit."""
        return Cycle(ends=factor * self.ends, peak=factor * self.peak, factor=self.factor)


class Held(nn.Module):
    """A module with numbers that change over a run: 0-dim buffers, which are not saved."""

    def __init__(self) -> None:
        super().__init__()
        self._cycles: dict[str, Cycle] = {}

    def hold(self, **values: float | Cycle) -> None:
        """Keep each value as a 0-dim buffer of its name; `advance` leads it through its cycle."""
        for name, value in values.items():
            if isinstance(value, Cycle):
                self._cycles[name] = value
            setattr(self, name, constant(value.ends if isinstance(value, Cycle) else value))

    def advance(self, step: int, *, num_steps: int, num_steps_per_epoch: int) -> None:
        """Set what changes over a run, before its 0-based step, in place.

        Nothing here may depend on earlier calls, so a run that resumes needs no memory of them.
        """
        for name, cycle in self._cycles.items():
            getattr(self, name).fill_(cycle.at(step, num_steps))


def constant(value: float) -> nn.Buffer:
    """A number that a schedule may change between steps without a recompile."""
    return nn.Buffer(torch.tensor(value, dtype=torch.float32), persistent=False)


def within(
    *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf
) -> AfterValidator:
    """The check that a number, or both ends of a cycle, are finite and within bounds.

    Args:    above: itself not allowed. least, most: allowed.
    """
    sides = (("above", above), ("at least", least), ("at most", most))
    wanted = " and ".join(f"{word} {bound:g}" for word, bound in sides if math.isfinite(bound))

    def check(value: float | Cycle) -> float | Cycle:
        for number in (value.ends, value.peak) if isinstance(value, Cycle) else (value,):
            if not (above < number and least <= number <= most and math.isfinite(number)):
                raise ValueError(f"{number:g}: must be {wanted}")
        return value

    return AfterValidator(check)


def closeness(step: int, num_steps: int, factor: float) -> float:
    """How close a 0-based step is to an end of its run rather than to the peak, 1 to 0.

    Source:  eta of Smith 2022, arXiv:2202.08835 and arXiv:2202.08978 (lnsmith54/CFL@954caef); per
             step, where that code counts epochs.
    """
    place = factor * step / max(1, num_steps - 1)
    if place <= 1.0:
        return 1.0 - place
    return min(1.0, (place - 1.0) / (factor - 1.0)) if factor > 1.0 else 0.0
