"""python -m hard_fast.evals.robustness --run DIR --suite NAME --outside A,B --data-root DIR

Scores that ask more of a network than test sets do: does it tell images of another kind by its
confidence, and does it stand an attack on its pixels. Letters: B images, C channels, H rows, W
columns, K classes, N and M samples.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hard_fast.augment.base import to_float
from hard_fast.data.arrays import EvalPart
from hard_fast.evals.own import OWN, load_own, one_part, open_with_own
from hard_fast.evals.subject import open_run
from hard_fast.evals.suites import Loaded, split_names
from hard_fast.evals.suites.corrupted import number
from hard_fast.runtime import dist
from hard_fast.runtime.arguments import at_least
from hard_fast.runtime.dist import World
from hard_fast.runtime.files import write_atomic
from hard_fast.runtime.messages import say
from hard_fast.runtime.seed import reseed

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
        total += confidence_sums(logits_of(network, adapted(batch.image, shape)))
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
            loss = F.cross_entropy(logits_of(network, found).float(), label_B, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, found)
        found = torch.clamp(found.detach() + step * gradient.sign(), low, high)
    return found.detach()


def start_noise(place_B: Tensor, shape: torch.Size) -> Tensor:
    """[B,C,H,W] uniform in [-1,1]: that of a sample depends on its place in the set alone."""
    # On the CPU, so that the attack does not depend on the device.
    generator, noise = torch.Generator(), torch.empty(len(place_B), *shape)
    for row, place in zip(noise, place_B.tolist(), strict=True):
        row.uniform_(-1.0, 1.0, generator=reseed(generator, 0, "attack", place))
    return noise.to(place_B.device)


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
    numbered = number(part, world.device)
    for batch in numbered.part.batches(_BATCH, world.rank, world.size):
        label = numbered.label[batch.label]
        is_known = label >= 0
        image, label = to_float(batch.image)[is_known], label[is_known]
        noise = start_noise(batch.label[is_known], part.image_shape)
        hostile = attacked(network, image, label, noise, **settings)
        with torch.no_grad():
            right = (logits_of(network, hostile).argmax(1) == label).sum()
        total += torch.stack([right.double(), is_known.sum().double()])
    right, num = dist.sum_(total).tolist()
    return 100.0 * right / num if num else math.nan


def main(arguments: list[str] | None = None) -> int:
    """Print the scores as JSON; the exit code is 0, or 2 after a line about a mistake."""
    parser = parser_of("hard_fast.evals.robustness", __doc__)
    parser.add_argument("--outside", default="", metavar="A,B", help="suites of other images")
    parser.add_argument("--radius", type=float, default=8 / 255, help="of pixels in [0,1]")
    parser.add_argument("--step", type=float, default=2 / 255)
    parser.add_argument("--steps", type=at_least(1), default=10)
    return report(parser.parse_intermixed_args(arguments), measure)


def report(
    options: argparse.Namespace, measure: Callable[[argparse.Namespace, World], dict[str, Any]]
) -> int:
    """Print what `measure` finds as JSON, and write it where asked; the exit code."""
    try:
        world = dist.join(options.device)
        found = measure(options, world)
    except (ValueError, OSError) as error:
        say(f"error{dist.who()}: {error}")
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
    outside = split_names(options.outside)
    network, part, theirs = open_all(options, world, outside)
    settings = {"radius": options.radius, "step": options.step, "num_steps": options.steps}
    found = {"pgd_top1": attacked_top1(network, part, world, **settings)}
    inside = confidences(network, part, part.image_shape, world)
    for name, loaded in theirs.items():
        for key, other in loaded.parts.items():
            label = name if key == "test" else f"{name}_{key}"
            there = confidences(network, other, part.image_shape, world)
            found[f"{label}_auroc"] = auroc(inside, there)
    return found


def open_all(
    options: argparse.Namespace, world: World, outside: Sequence[str] = (), *, frozen: bool = True
) -> tuple[nn.Module, EvalPart, Mapping[str, Loaded]]:
    """The run's network, the one set of its suite, and other suites by name.

    Raises:  ValueError, one line, for what cannot be opened or is not the network's.
    """
    subject = open_run(options.run, None, options.overrides, "none", options.data_root)
    place = (options.data_root, subject.pictures, world.device)
    selected = {"data": load_own([options.suite, *outside], subject.own, world.device)}
    selected["limit"] = options.limit
    ours, theirs = (
        open_with_own(names, *place, **selected) for names in ([options.suite], outside)
    )
    for name, why in (ours.gaps | theirs.gaps).items():
        raise ValueError(f"{name}: {why}")
    part = one_part(options.suite, ours)
    (loaded,) = ours.suites.values()
    if loaded.columns is not None or loaded.label_sets is not None:
        raise ValueError(f"--suite {options.suite}: needs one set whose labels are the outputs")
    return subject.build_for(ours, world, frozen=frozen)[0], part, theirs.suites


def parser_of(program: str, text: str) -> argparse.ArgumentParser:
    """What every score of a run's network on one suite is asked with."""
    parser = argparse.ArgumentParser(prog=program, description=text)
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="of a finished run")
    parser.add_argument("--suite", required=True, metavar="NAME", help=f"or {OWN}, {OWN}:PART")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="where suites lie")
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="samples of each set")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser


def logits_of(network: nn.Module, image: Tensor) -> Tensor:
    """[B,K] a network's logits, whether it returns them or Outputs."""
    result = network(image)
    return result if isinstance(result, Tensor) else result.logits_BK


if __name__ == "__main__":
    dist.end(main())
