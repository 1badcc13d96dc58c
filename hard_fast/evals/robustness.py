"""python -m hard_fast.evals.robustness --run DIR --suite NAME --outside A,B --data-root DIR

Scores that ask more of a network than test sets do: does it tell images of another kind by its
confidence, and does it stand an attack on its pixels. Letters: B images, C channels, H rows, W
columns, K classes, N and M samples.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hard_fast.augment.base import to_float
from hard_fast.data.arrays import EvalPart
from hard_fast.evals.subject import open_run
from hard_fast.evals.survey import open_suites
from hard_fast.runtime import dist
from hard_fast.runtime.arguments import at_least
from hard_fast.runtime.dist import World
from hard_fast.runtime.files import write_atomic

NUM_BINS = 8192
"""Of the confidence, each 1/256 wide: the last holds 1 - p below e^-32."""
_BINS_PER_NAT = 256.0
_BATCH = 250


def confidence(logits_BK: Tensor) -> Tensor:
    """[B] fp32 -log(1 - p) of the highest probability p: its order, without its rounding to 1."""
    log_p = logits_BK.float().log_softmax(1)
    return -log_p.scatter(1, log_p.argmax(1, keepdim=True), -math.inf).logsumexp(1)


def confidence_sums(logits_BK: Tensor) -> Tensor:
    """[bins] fp64: how many samples have a confidence in each bin."""
    place = (confidence(logits_BK) * _BINS_PER_NAT).nan_to_num(0.0).clamp(0, NUM_BINS - 1).long()
    return torch.bincount(place, minlength=NUM_BINS).double()


def auroc(inside_N: Tensor, outside_N: Tensor) -> float:
    """How often, in percent, a sample from inside is surer than one from outside; ties count half.

    Args:    inside_N, outside_N: counts per bin of rising confidence. NaN if either has none.
    Source:  Hendrycks and Gimpel, arXiv:1610.02136: the area under the curve of the highest softmax
             probability.
    """
    below_N = outside_N.cumsum(0) - outside_N / 2
    pairs = inside_N.sum() * outside_N.sum()
    return (100.0 * (inside_N * below_N).sum() / pairs).item()


def adapted(image_BCHW: Tensor, shape: torch.Size) -> Tensor:
    """Float images of another set in the shape [C,H,W] that a network reads: grey becomes equal
    channels, colours their mean, and sizes follow by bilinear interpolation."""
    image = to_float(image_BCHW)
    if image.shape[1] != shape[0]:
        image = image.mean(1, keepdim=True).expand(-1, shape[0], -1, -1)
    if image.shape[2:] != shape[1:]:
        image = F.interpolate(image, shape[1:], mode="bilinear", antialias=True)
    return image.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def confidences(network: nn.Module, part: EvalPart, shape: torch.Size, world: World) -> Tensor:
    """[bins] counts of all processes, of a network in eval mode on one set.

    Args:    shape: [C,H,W] that the network reads.
    """
    total = torch.zeros(NUM_BINS, dtype=torch.float64, device=world.device)
    for batch in part.batches(_BATCH, world.rank, world.size):
        total += confidence_sums(_logits(network, adapted(batch.image, shape)))
    return dist.sum_(total)


def attacked(
    network: nn.Module,
    image_BCHW: Tensor,
    label_B: Tensor,
    noise_BCHW: Tensor,
    *,
    radius: float,
    step: float,
    num_steps: int,
) -> Tensor:
    """Images, each pixel at most `radius` away, on which the cross-entropy with the label is high.

    Args:    image_BCHW: float in [0,1].
             noise_BCHW: uniform in [-1,1]: where within the radius the attack begins.
             radius, step: of pixels in [0,1].
    Source:  Madry et al., arXiv:1706.06083: projected gradient descent, maximum norm.
    """
    low, high = (image_BCHW - radius).clamp(min=0.0), (image_BCHW + radius).clamp(max=1.0)
    found = torch.clamp(image_BCHW + radius * noise_BCHW, low, high)
    for _ in range(num_steps):
        found = found.detach().requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(_logits(network, found).float(), label_B, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, found)
        found = torch.clamp(found.detach() + step * gradient.sign(), low, high)
    return found.detach()


def attacked_top1(
    network: nn.Module,
    part: EvalPart,
    world: World,
    *,
    radius: float = 8 / 255,
    step: float = 2 / 255,
    num_steps: int = 10,
) -> float:
    """Percent of labelled samples that a network in eval mode still gets right under attack."""
    total = torch.zeros(2, dtype=torch.float64, device=world.device)
    settings = {"radius": radius, "step": step, "num_steps": num_steps}
    generator = torch.Generator().manual_seed(world.rank)
    for batch in part.batches(_BATCH, world.rank, world.size):
        is_known = batch.label >= 0
        image, label = to_float(batch.image)[is_known], batch.label[is_known]
        # On the CPU, so that the attack does not depend on the device.
        noise = (2.0 * torch.rand(image.shape, generator=generator) - 1.0).to(image.device)
        hostile = attacked(network, image, label, noise, **settings)
        with torch.no_grad():
            right = (_logits(network, hostile).argmax(1) == label).sum()
        total += torch.stack([right.double(), is_known.sum().double()])
    right, num = dist.sum_(total).tolist()
    return 100.0 * right / num if num else math.nan


def main(arguments: list[str] | None = None) -> int:
    """Print the scores as JSON; the exit code is 0, or 2 after a line about a mistake."""
    options = _parser().parse_intermixed_args(arguments)
    try:
        world = dist.join(options.device)
        found = measure(options, world)
    except (ValueError, OSError) as error:
        print(f"error{dist.who()}: {error}", file=sys.stderr)
        return 2
    finally:
        dist.leave()
    if world.is_main:
        text = json.dumps(found, indent=2) + "\n"
        print(text, end="")
        if options.json is not None:
            write_atomic(options.json, text)
    return 0


def measure(options: argparse.Namespace, world: World) -> dict[str, float]:
    """pgd_top1 of the suite, and <set>_auroc against each set from outside, in percent.

    Raises:  ValueError, one line, for what cannot be opened or is not the network's.
    """
    subject = open_run(options.run, None, options.overrides, "none", options.data_root)
    outside = [name for name in options.outside.split(",") if name]
    open_all = (options.data_root, subject.pictures, world.device)
    ours = open_suites([options.suite], *open_all, limit=options.limit)
    theirs = open_suites(outside, *open_all, limit=options.limit)
    for name, why in (ours.gaps | theirs.gaps).items():
        raise ValueError(f"{name}: {why}")
    loaded = ours.suites[options.suite]
    if len(loaded.parts) > 1 or loaded.columns is not None or loaded.label_sets is not None:
        raise ValueError(f"--suite {options.suite}: needs one set whose labels are the outputs")
    (part,) = loaded.parts.values()
    network, _ = subject.build_for(ours, world)
    settings = {"radius": options.radius, "step": options.step, "num_steps": options.steps}
    found = {"pgd_top1": attacked_top1(network, part, world, **settings)}
    inside = confidences(network, part, part.image_shape, world)
    for name, loaded in theirs.suites.items():
        for key, other in loaded.parts.items():
            label = name if key == "test" else f"{name}_{key}"
            there = confidences(network, other, part.image_shape, world)
            found[f"{label}_auroc"] = auroc(inside, there)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hard_fast.evals.robustness", description=__doc__)
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="of a finished run")
    parser.add_argument("--suite", required=True, metavar="NAME", help="what the network answers")
    parser.add_argument("--outside", default="", metavar="A,B", help="suites of other images")
    parser.add_argument("--data-root", required=True, type=Path, metavar="DIR")
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="samples of each set")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--radius", type=float, default=8 / 255, help="of pixels in [0,1]")
    parser.add_argument("--step", type=float, default=2 / 255)
    parser.add_argument("--steps", type=at_least(1), default=10)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser


def _logits(network: nn.Module, image: Tensor) -> Tensor:
    result = network(image)
    return result if isinstance(result, Tensor) else result.logits_BK


if __name__ == "__main__":
    dist.end(main())
