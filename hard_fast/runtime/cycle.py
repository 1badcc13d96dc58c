"""A setting that goes from easy to hard and back over a run: general cyclical training."""

from pydantic import Field

from hard_fast.runtime.configfile import Config


class Cycle(Config):
    """A setting's value over a run, in place of one number: `{ ends = 0.5, peak = 2.0 }`."""

    ends: float = Field(gt=0.0, allow_inf_nan=False)
    """At the first and at the last step."""
    peak: float = Field(gt=0.0, allow_inf_nan=False)
    """In between; the way there and the way back are straight lines."""
    factor: float = Field(default=2.0, ge=1.0)
    """The peak is where 1 / factor of the run is done; 1: at its end, with no way back."""

    def at(self, step: int, num_steps: int) -> float:
        """The value of a 0-based step."""
        share = closeness(step, num_steps, self.factor)
        return share * self.ends + (1.0 - share) * self.peak


def closeness(step: int, num_steps: int, factor: float) -> float:
    """How close a 0-based step is to an end of its run rather than to the peak, 1 to 0.

    Source:  eta of Smith 2022, arXiv:2202.08835 and arXiv:2202.08978 (lnsmith54/CFL@954caef); per
             step, where that code counts epochs.
    """
    place = factor * step / max(1, num_steps - 1)
    if place <= 1.0:
        return 1.0 - place
    return min(1.0, (place - 1.0) / (factor - 1.0)) if factor > 1.0 else 0.0
