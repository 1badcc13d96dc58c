"""python -m hard_fast.evals.watermark --run DIR --part train --key N --frequency F --label K

Has a network learned from marked answers? The owner of the mark projects images as the mark does,
and looks in the network's probability of the marked class for a wave along the projection. Letters:
B images, C channels, H rows, W columns, K classes, N samples, F frequencies, D directions.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from hard_fast.augment.base import to_float
from hard_fast.config import RunConfig
from hard_fast.data import load_data
from hard_fast.data.arrays import EvalPart
from hard_fast.evals.own import load_own, one_part, open_with_own
from hard_fast.evals.robustness import report
from hard_fast.evals.subject import Subject, open_model, open_run
from hard_fast.models.watermark import draw_directions
from hard_fast.runtime import dist
from hard_fast.runtime.arguments import at_least
from hard_fast.runtime.configfile import parse, read
from hard_fast.runtime.dist import World
from hard_fast.smoke import shrink

DETECTED_BELOW = 0.01
"""A p-value up to this is a detection: one network in a hundred that never saw the mark."""
_NUM_FREQUENCIES = 2000
_BATCH = 250
_CHUNK = 2**22


def lomb_scargle(x_ND: Tensor, y_N: Tensor, frequency_F: Tensor) -> Tensor:
    """[D,F] fp64 power of a cosine of each angular frequency in y, along D lists of places x.

    Args:    y_N: of mean 0. The power of white noise is its variance times an exponential variable
             of mean 1.
    Source:  Scargle 1982, doi:10.1086/160554, equation 10.
    """
    x_ND, y_N, frequency_F = x_ND.double(), y_N.double(), frequency_F.double()
    size = max(1, _CHUNK // max(1, x_ND.numel()))
    parts = [_power(x_ND, y_N, chunk_F) for chunk_F in frequency_F.split(size)]
    return torch.cat(parts, 1)


def _power(x_ND: Tensor, y_N: Tensor, frequency_F: Tensor) -> Tensor:
    angle = x_ND[..., None] * frequency_F
    # The shift that makes the sine and the cosine independent of each other.
    twice = (2.0 * angle).sin().sum(0), (2.0 * angle).cos().sum(0)
    angle = angle - torch.atan2(*twice) / 2.0
    power = torch.zeros_like(twice[0])
    for wave in (angle.cos(), angle.sin()):
        length = wave.square().sum(0).clamp(min=1e-12)
        power += torch.einsum("n,ndf->df", y_N, wave).square() / length / 2.0
    return power


def deviations(p_N: Tensor, threshold: float, *, high_only: bool) -> tuple[Tensor, Tensor]:
    """[N] which samples count, and of those, fp64, how far the probability is from their mean.

    Samples count where the network is sure that they are of the class, or that they are not; each
    of the two has a mean of its own.

    Args:    threshold: the lowest probability that is sure, above a half; below one minus it the
             network is as sure of other classes.
             high_only: only those of the class, as published.
    """
    is_high = p_N >= threshold
    is_low = (p_N <= 1.0 - threshold) & (not high_only)
    centred = p_N.double()
    for side in (is_high, is_low):
        centred = torch.where(side, centred - centred[side].mean(), centred)
    counts = is_high | is_low
    return counts, centred[counts]


@torch.no_grad()
def observe(
    network: nn.Module, part: EvalPart, directions_DCHW: Tensor, label: int, world: World
) -> tuple[Tensor, Tensor]:
    """[N,D] projections of a set's images, and [N] the network's probability of the class.

    Raises:  ValueError if the network has no such class.
    """
    found: list[tuple[Tensor, Tensor]] = []
    flat = directions_DCHW.flatten(1).to(world.device).T
    for batch in part.batches(_BATCH):
        image = to_float(batch.image)
        result = network(image)
        logits = result if isinstance(result, Tensor) else result.logits_BK
        if label >= logits.shape[1]:
            raise ValueError(f"--label {label}: the network has {logits.shape[1]} outputs")
        p = logits.float().softmax(1)[:, label]
        found.append(((image.contiguous().flatten(1) @ flat).cpu(), p.cpu()))
    projections, p = zip(*found, strict=True)
    return torch.cat(projections), torch.cat(p)


def detect(
    x_ND: Tensor, p_N: Tensor, frequency: float, *, threshold: float, high_only: bool
) -> dict[str, float | int | bool]:
    """How the wave along the first direction stands out, and whether that is a detection.

    snr: the power at the mark's frequency over the mean power of all frequencies up to eight times
    it. p_value: the share of directions, the key's own included, whose power there is as high. A
    network that does not know the key treats its direction as one like the others.

    Args:    x_ND: projections on the key's direction, and then on others.
    Raises:  ValueError where fewer than ten samples count.
    """
    counts, y = deviations(p_N, threshold, high_only=high_only)
    if len(y) < 10:
        raise ValueError(
            f"--threshold {threshold}: only {len(y)} samples whose probability is sure enough; "
            "lower it, or give more images"
        )
    x_ND = x_ND[counts]
    at = torch.tensor([frequency], dtype=torch.float64)
    power_D = torch.cat([lomb_scargle(some, y, at)[:, 0] for some in x_ND.split(64, dim=1)])
    grid = torch.linspace(0.0, 8.0 * frequency, _NUM_FREQUENCIES + 1, dtype=torch.float64)[1:]
    # A network whose answers are all alike has no noise either.
    noise = lomb_scargle(x_ND[:, :1], y, grid).mean().clamp(min=1e-30)
    p_value = (power_D >= power_D[0]).double().mean().item()
    return {
        "snr": (power_D[0] / noise).item(),
        "p_value": p_value,
        "is_detected": p_value <= DETECTED_BELOW,
        "num_samples": len(y),
        "num_directions": len(power_D),
    }


def main(arguments: list[str] | None = None) -> int:
    """Print what was found as JSON; the exit code is 0, or 2 after a line about a mistake."""
    return report(_parser().parse_intermixed_args(arguments), measure)


def measure(options: argparse.Namespace, world: World) -> dict[str, float | int | bool]:
    """What `detect` finds in a network's answers to a suite, or to a part of its run's own data.

    Raises:  ValueError, one line, for what cannot be opened or does not belong together.
    """
    if world.size > 1:
        raise ValueError("torchrun: this is one process's work; start it with python")
    if not 0.0 < options.frequency < math.inf:
        raise ValueError(f"--frequency {options.frequency}: must be above 0")
    if not 0.5 < options.threshold < 1.0:
        raise ValueError(f"--threshold {options.threshold}: must be above a half and below 1")
    network, part = _open(options, world)
    directions = torch.cat(
        [
            draw_directions(options.key, 1, tuple(part.image_shape)),
            draw_directions(options.key, options.directions, tuple(part.image_shape), "others"),
        ]
    )
    x_ND, p_N = observe(network, part, directions, options.label, world)
    settings = {"threshold": options.threshold, "high_only": options.high_only}
    return detect(x_ND, p_N, options.frequency, **settings)


def _open(options: argparse.Namespace, world: World) -> tuple[nn.Module, EvalPart]:
    """The suspect on the device, and the images it is asked about."""
    if (options.run is None) == (options.model is None):
        raise ValueError("--run, --model: give one of them")
    if (options.part is None) == (options.suite is None):
        raise ValueError("--part, --suite: give one of them")
    own = (options.checkpoint, options.overrides, "none", options.data_root)
    if options.part is not None:
        if options.run is None or options.limit is not None:
            raise ValueError("--part: is of a run's own data, all of it; give --run, no --limit")
        return _open_part(options, open_run(options.run, *own), world)
    given = open_run(options.run, *own) if options.run else open_model(options.model, *own)
    place = (options.data_root, given.pictures, world.device)
    data = load_own([options.suite], given.own, world.device)
    opened = open_with_own([options.suite], *place, data=data, limit=options.limit)
    for name, why in opened.gaps.items():
        raise ValueError(f"{name}: {why}")
    network, _ = given.build_for(opened, world)
    return network, one_part(options.suite, opened)


def _open_part(
    options: argparse.Namespace, subject: Subject, world: World
) -> tuple[nn.Module, EvalPart]:
    file = str(options.run / "config.toml")
    config = parse(RunConfig, shrink(read(file, options.overrides)))
    data = load_data(config.data, world.device)
    parts = {"train": data.train, "val": data.val, **data.test}
    part = parts[options.part] if options.part in parts else None
    if part is None:
        known = ", ".join(name for name, one in parts.items() if one is not None)
        raise ValueError(f"--part {options.part}: the run's data have {known}")
    return subject.build(part.image_shape, data.num_classes, world)[0], part


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hard_fast.evals.watermark", description=__doc__)
    parser.add_argument("--run", type=Path, metavar="DIR", help="of a finished run")
    parser.add_argument("--model", metavar="NAME", help="a network instead of a run's student")
    parser.add_argument("--checkpoint", metavar="FILE")
    parser.add_argument("--part", metavar="NAME", help="of the run's own data: train, val, test")
    parser.add_argument("--suite", metavar="NAME", help="instead of the run's own data")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="where suites lie")
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="samples of the suite")
    parser.add_argument("--key", required=True, type=at_least(0), metavar="N")
    parser.add_argument("--frequency", type=float, default=30.0, metavar="F")
    parser.add_argument("--label", type=at_least(0), default=0, metavar="K")
    parser.add_argument("--threshold", type=float, default=0.6, help="a sure probability")
    parser.add_argument("--high-only", action="store_true", help="samples of the class alone")
    parser.add_argument("--directions", type=at_least(99), default=999, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser


if __name__ == "__main__":
    dist.end(main())
