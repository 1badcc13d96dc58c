"""T.stddev of augmentations: how much the teacher's mean probability varies from draw to draw.

Letters: B images of a batch, M images made, C channels, H rows, W columns, D draws, K classes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hard_fast.augment.base import Augmentor, to_float
from hard_fast.evals.scores import add_to_draws_, draw_spread
from hard_fast.runtime.seed import reseed
from hard_fast.types import Batch, Outputs, View

_TAIL = 0.025


class Contender(NamedTuple):
    """An augmentation to be ranked, on the device.

    keep, score:  the share of its images that count, those of the highest score.
    judge:        the network whose outputs are scored; None: the teacher.
    prepare:      called with the batch's number before its images are made; None: nothing to do.
    """

    name: str
    augmentor: Augmentor
    keep: float = 1.0
    score: Callable[[Outputs], Tensor] | None = None
    judge: nn.Module | None = None
    prepare: Callable[[int], None] | None = None


@torch.no_grad()
def measure(
    contenders: Sequence[Contender],
    teacher: nn.Module,
    batches: Iterable[Batch],
    *,
    num_draws: int,
    batches_per_draw: int,
    num_classes: int,
    seed: int,
) -> dict[str, Tensor]:
    """[D,K+1] fp64 sums of each contender's draws, as `add_to_draws_` leaves them.

    A draw holds the originals of its batches and what the contender makes of them. All contenders
    see the same batches in the same draws, each once, and noise of the same seeds.

    Args:    teacher: [B,C,H,W] images in [0,1] to Outputs; set to eval mode and left there.
             batches: at least num_draws * batches_per_draw of them.
    Source:  Wang et al. 2022, arXiv:2012.02909, A.3: five batches of 64 originals and as many
             copies in a draw, softmax at temperature 1.
    """
    teacher.eval()
    sums: dict[str, Tensor] = {}
    limit = range(num_draws * batches_per_draw)
    for step, batch in zip(limit, batches, strict=False):
        device = batch.image.device
        # Contenders share originals, and pools that they pick from: each is answered once.
        known: list[tuple[Tensor, Outputs]] = []

        def told(image: Tensor, known: list[tuple[Tensor, Outputs]] = known) -> Outputs:
            found = next((outputs for seen, outputs in known if torch.equal(seen, image)), None)
            if found is None:
                found = teacher(image)
                known.append((image, found))
            return found

        for contender in contenders:
            generator = reseed(torch.Generator(device), seed, "rank", step)
            logits = _answers(contender, told, batch, step, generator)
            if contender.name not in sums:
                size = (num_draws, num_classes + 1)
                sums[contender.name] = torch.zeros(size, dtype=torch.float64, device=device)
            draw = torch.full((len(logits),), step // batches_per_draw, device=device)
            add_to_draws_(sums[contender.name], logits, draw)
    return sums


def _answers(
    contender: Contender,
    told: Callable[[Tensor], Outputs],
    batch: Batch,
    step: int,
    generator: torch.Generator,
) -> Tensor:
    """[B+M,K] the teacher's logits of the originals and of what is kept of the images made."""
    if contender.prepare is not None:
        contender.prepare(step)
    noise = contender.augmentor.draw_noise(batch.image.shape, generator)
    view = contender.augmentor(View(batch.image, None), noise)
    original = told(to_float(batch.image) if view.original is None else view.original)
    made = told(view.image)
    logits = made.logits_BK
    if contender.keep < 1.0:
        assert contender.score is not None
        judged = made if contender.judge is None else contender.judge(view.image)
        score = contender.score(judged)
        logits = logits[score.topk(max(1, round(contender.keep * len(score)))).indices]
    return torch.cat([original.logits_BK, logits])


def rank(sums: Mapping[str, Tensor], *, num_resamples: int, seed: int) -> dict[str, Any]:
    """T.stddev of each contender, lowest first, and of each pair the difference.

    Each has `low` and `high`, the ends of its 95 % interval: percentiles over draws that are drawn
    again with replacement, the same ones for all contenders. Resampled standard deviations are
    widened by sqrt(D / (D - 1)), by which repeated draws shrink them.

    Args:    sums: as `measure` returns them, two draws or more.
    """
    num_draws = len(next(iter(sums.values())))
    generator = torch.Generator().manual_seed(seed)
    widen = (num_draws / (num_draws - 1)) ** 0.5
    again: dict[str, list[float]] = {name: [] for name in sums}
    drawn = {name: one.cpu() for name, one in sums.items()}
    for _ in range(num_resamples):
        index = torch.randint(num_draws, (num_draws,), generator=generator)
        for name, sums_DK in drawn.items():
            again[name].append(widen * draw_spread(sums_DK[index]))
    values = {name: draw_spread(sums_DK) for name, sums_DK in drawn.items()}
    resampled = {name: torch.tensor(found, dtype=torch.float64) for name, found in again.items()}
    order = sorted(values, key=values.__getitem__)
    rows = {name: {"t_stddev": values[name], **_ends(resampled[name])} for name in order}
    differences = [
        {"of": worse, "from": better, "difference": values[worse] - values[better]}
        | _ends(resampled[worse] - resampled[better])
        for better, worse in combinations(order, 2)
    ]
    return {"rows": rows, "differences": differences}


def _ends(values: Tensor) -> dict[str, float]:
    low, high = values.quantile(values.new_tensor([_TAIL, 1.0 - _TAIL])).tolist()
    return {"low": low, "high": high}
