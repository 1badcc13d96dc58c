"""A network over test sets: every sample once over all ranks."""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from hard_fast.augment.base import to_float
from hard_fast.data.arrays import EvalPart
from hard_fast.evals import scores
from hard_fast.evals.suites import Loaded
from hard_fast.runtime import dist, parallel, signals
from hard_fast.runtime.dist import World
from hard_fast.types import Batch

# A thousand small images at once, or as many large ones as keep memory in bounds.
_MAX_BATCH = 1000
_MAX_PIXELS = 2**23
# With fewer classes nobody asks whether the right one is among five, while a network learns.
_TOP5_FROM = 100
_DRAW_SIZE = 640
_DRAW_SEED = 0


Answer = Literal["classes", "values", "bound"]
"""What outputs are: logits of classes, values to match, or both parts of a VAE's bound."""

_NUM_SUMS = {"classes": scores.NUM_LABEL_SUMS, "values": 2, "bound": 3}


class _Classes(NamedTuple):
    """A suite's classes among a network's outputs, on the device."""

    num: int
    outputs_KS: Tensor | None
    last_output: int


class Compared(NamedTuple):
    """Scores of a student and of its teacher on the parts of a suite: by part, by score."""

    student: dict[str, dict[str, float]]
    teacher: dict[str, dict[str, float]] | None


@torch.no_grad()
def evaluate(
    network: nn.Module,
    test: Mapping[str, EvalPart],
    world: World,
    *,
    answer: Answer = "classes",
    truth: nn.Module | None = None,
) -> dict[str, float]:
    """Scores of the network on each test set, `<set>_<score>`; the set named `test` has no prefix.

    Args:    network: [B,C,H,W] images in [0,1] to Outputs; set to eval mode and left there.
             truth: for values: the network whose outputs are the right ones.
    """
    network.eval()
    metrics: dict[str, float] = {}
    for name, part in test.items():
        total = torch.zeros(_NUM_SUMS[answer], dtype=torch.float64, device=world.device)
        for batch, is_own in _batches(part, world, network, truth):
            found = _sums(network, truth, answer, batch)
            if is_own:
                total += found
        prefix = "" if name == "test" else f"{name}_"
        named = _named(answer, dist.sum_(total))
        metrics |= {f"{prefix}{score}": value for score, value in named.items()}
    return metrics


def score(
    network: nn.Module, loaded: Loaded, world: World, *, teacher: nn.Module | None = None
) -> dict[str, dict[str, float]]:
    """Scores of a network on each part of a suite: top1, top5 (six classes and more), nll, ece; or
    real where samples have sets of labels.

    With a teacher also agreement and teacher_kl, over all samples, and t_stddev of the teacher
    where there are 1,280 samples or more.

    Args:    network, teacher: [B,C,H,W] images in [0,1] to logits [B,K] or Outputs; set to eval
             mode and left there.
    Raises:  ValueError if the network's outputs are not the suite's classes.
    """
    return compare(network, teacher, loaded, world).student


@torch.no_grad()
def compare(
    student: nn.Module, teacher: nn.Module | None, loaded: Loaded, world: World
) -> Compared:
    """The scores of a student, as `score` returns them, and its teacher's, from one pass."""
    networks = [student] if teacher is None else [student, teacher]
    for network in networks:
        network.eval()
    sets = None if loaded.label_sets is None else loaded.label_sets.to(world.device)
    classes = _classes(loaded, world.device)
    found = {
        name: _score_part(networks, part, classes, sets, world)
        for name, part in loaded.parts.items()
    }
    teachers = None if teacher is None else {name: pair[1] for name, pair in found.items()}
    return Compared({name: pair[0] for name, pair in found.items()}, teachers)


def _score_part(
    networks: list[nn.Module],
    part: EvalPart,
    classes: _Classes,
    sets: Tensor | None,
    world: World,
) -> list[dict[str, float]]:
    """Scores of each network on one part."""
    size = scores.NUM_LABEL_SUMS if sets is None else scores.NUM_SET_SUMS
    sizes = [size] * len(networks) + [scores.NUM_TEACHER_SUMS] * (len(networks) == 2)
    total = torch.zeros(sum(sizes), dtype=torch.float64, device=world.device)
    draw = _draws(part.num, world.device)
    num_draws = part.num // _DRAW_SIZE
    # What is left over forms a last, smaller draw, which does not count.
    drawn = total.new_zeros(num_draws + 1, classes.num + 1)
    position = part.num * world.rank // world.size
    for batch, is_own in _batches(part, world, *networks):
        image = to_float(batch.image)
        answers = [_class_logits(network, image, classes) for network in networks]
        if not is_own:
            continue
        truth = batch.label if sets is None else sets[batch.label]
        judge = scores.classification_sums if sets is None else scores.label_set_sums
        found = [judge(logits, truth) for logits in answers]
        if len(networks) == 2:
            found.append(scores.teacher_sums(*answers))
            here = draw[position : position + len(truth)]
            scores.add_to_draws_(drawn, answers[1], here)
        position += len(truth)
        total += torch.cat(found)
    sums = dist.sum_(total).split(sizes)
    name = scores.classification_scores if sets is None else scores.label_set_scores
    named = [name(own) for own, _ in zip(sums, networks, strict=False)]
    if len(networks) == 2:
        named[0] |= scores.teacher_scores(sums[2])
        if num_draws >= 2:
            named[0]["t_stddev"] = scores.draw_spread(dist.sum_(drawn)[:num_draws])
    return named


def _classes(loaded: Loaded, device: torch.device) -> _Classes:
    columns = loaded.columns
    if columns is None:
        return _Classes(loaded.num_classes, None, 0)
    outputs = columns[:, None] if columns.dim() == 1 else columns
    return _Classes(loaded.num_classes, outputs.to(device), int(columns.max()))


def _class_logits(network: nn.Module, image: Tensor, classes: _Classes) -> Tensor:
    result = network(image)
    logits_BK = result if isinstance(result, Tensor) else result.logits_BK
    num_outputs = logits_BK.shape[1]
    if classes.outputs_KS is None and num_outputs != classes.num:
        raise ValueError(
            f"the network has {num_outputs} outputs, and these data {classes.num} classes; give a "
            "network of these classes, or a label map"
        )
    if num_outputs <= classes.last_output:
        raise ValueError(
            f"the network has {num_outputs} outputs, and these data are its outputs up to "
            f"{classes.last_output}; give a network of those classes, or another label map"
        )
    return scores.class_logits(logits_BK, classes.outputs_KS)


def _draws(num: int, device: torch.device) -> Tensor:
    """[num] which draw of 640 each sample belongs to, at random and always the same."""
    # On the CPU, so that the draws do not depend on the device.
    order = torch.randperm(num, generator=torch.Generator().manual_seed(_DRAW_SEED))
    return (order // _DRAW_SIZE).to(device)


def _batches(
    part: EvalPart, world: World, *networks: nn.Module | None
) -> Iterator[tuple[Batch, bool]]:
    """This process's batches, and made-up ones, told apart, while the others need its weights.

    Raises:  Stopped between two batches, where a signal has asked for it.
    """
    num_pixels = part.image_shape[1] * part.image_shape[2]
    batch_size = max(1, min(_MAX_BATCH, _MAX_PIXELS // num_pixels))
    batches = part.batches(batch_size, world.rank, world.size)
    if not any(parallel.is_sharded(network) for network in networks if network is not None):
        for batch in batches:
            _stop_if_asked()
            yield batch, True
        return
    for batch in dist.in_step(batches):
        _stop_if_asked()
        if batch is not None:
            yield batch, True
            continue
        image = torch.zeros(1, *part.image_shape, device=world.device)
        yield Batch(image, torch.zeros(1, dtype=torch.int64, device=world.device)), False


def _stop_if_asked() -> None:
    # Rank 0 saves by itself. Another that left the others here would keep it from that.
    if dist.is_main_process():
        signals.stop_if_asked()


def _sums(network: nn.Module, truth: nn.Module | None, answer: Answer, batch: Batch) -> Tensor:
    image = to_float(batch.image)
    output = network(image).logits_BK
    match answer:
        case "classes":
            return scores.classification_sums(output, batch.label)
        case "values":
            return scores.regression_sums(output, truth(image).logits_BK)
        case "bound":
            return scores.bound_sums(output)


def _named(answer: Answer, sums: Tensor) -> dict[str, float]:
    match answer:
        case "classes":
            return scores.classification_scores(sums, top5_from=_TOP5_FROM)
        case "values":
            return scores.regression_scores(sums)
        case "bound":
            return scores.bound_scores(sums)
