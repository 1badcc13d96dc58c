"""What a loop of one's own brings: modules, the tables of a configuration's file, batches.

Letters: B images of a batch, C channels, H rows, W columns, K classes.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hard_fast.augment.base import Augmentor
from hard_fast.bank import AugmentorBank
from hard_fast.config import RunConfig
from hard_fast.models.own import PREFIX, count_outputs
from hard_fast.models.taps import nearest
from hard_fast.models.zoo import Dressed, NetworkConfig, dress_network
from hard_fast.runtime.configfile import Config, Source, dotted, parse
from hard_fast.train_config import TrainConfig
from hard_fast.types import Batch

# What messages begin with, as those of a configuration do with its file.
WHO = "Distiller"
# Tables, and the keys of [train], that a loop of one's own has a use for.
_TABLES = ("augmentor", "objective", "schedule", "bank", "optim", "augmentor_optim", "average")
_TABLES += ("guard", "compile", "distributed", "train", "seed")
_TRAIN_KEYS = ("device", "precision", "accumulate", "augmentor_batch_size")


@dataclasses.dataclass(frozen=True)
class Network:
    """A module, and what a Distiller should know of it: the keys are those of [teacher].

    mean, std:   per channel, of images in [0,1], that it was trained with; None: it reads them as
                 they are.
    precision:   of a teacher: auto, fp32, bf16 or fp16.
    num_classes: of a teacher whose classes are not the student's: how many it has.
    weight:      of one teacher among several.
    """

    module: nn.Module
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    precision: str = "auto"
    num_classes: int | None = None
    weight: float = 1.0

    def table(self) -> dict[str, Any]:
        """The table of a configuration that says the same."""
        kind, keys = type(self.module), dataclasses.fields(self)[1:]
        given = {key.name: getattr(self, key.name) for key in keys}
        told = {key.name: given[key.name] for key in keys if given[key.name] is not key.default}
        return {"name": f"{PREFIX}{kind.__module__}:{kind.__qualname__}", **told}


class OwnBatches(Config):
    """What the other tables are checked against, where batches come from the caller."""

    kind: Literal["own"] = "own"
    image_shape: list[int] = []
    """[C,H,W] of the first batch; none before it."""
    # Whoever chooses by validation is refused by name in `read_tables`.
    val_share: float = 1.0
    train_zeros: int | None = None


class OwnRun(RunConfig):
    """A run without a file, a data set or a directory."""

    data: OwnBatches = OwnBatches()

    def fitted(self, batch_size: int, image_shape: Sequence[int]) -> "OwnRun":
        """The same, of such batches.

        Args:    batch_size: images over all processes together. image_shape: [C,H,W].
        """
        train = self.train.model_copy(update={"batch_size": batch_size})
        data = OwnBatches(image_shape=list(image_shape))
        return self.model_copy(update={"train": train, "data": data})


class HeldBank(AugmentorBank):
    """A bank whose entries are part of its state, and of no files."""

    def __init__(self, augmentor: Augmentor, config: OwnRun) -> None:
        super().__init__(augmentor, Path(), config.bank, seed=config.seed, is_main=False)

    def state_dict(self) -> dict[str, Any]:
        """Numbers of the entries and the entries themselves; how many were ever saved."""
        tensors = [tensors for _, tensors in self._entries]
        return {"entries": self.numbers, "tensors": tensors, "num_seen": self._num_seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self._num_seen = state["num_seen"]
        self._entries = list(zip(state["entries"], state["tensors"], strict=True))

    def _write(self, number: int, tensors: dict[str, Tensor]) -> None:
        """Nothing: there is no file."""


def as_network(given: object, role: str) -> Network:
    """A module with what is known of it.

    Raises:  ValueError if it is none.
    """
    network = given if isinstance(given, Network) else Network(given)
    if not isinstance(network.module, nn.Module):
        raise ValueError(f"{WHO}: {role}: a {type(network.module).__name__}, not an nn.Module")
    return network


def count_classes(student: Network, image_shape: Sequence[int]) -> int:
    """How many outputs the student has for an image of shape [C,H,W].

    Raises:  ValueError, one line, if it has none.
    """
    try:
        return count_outputs(student.module, image_shape)
    except ValueError as error:
        raise ValueError(f"{WHO}: student: {error}") from error


def read_tables(
    student: Network, teachers: Sequence[Network], steps: int, tables: Mapping[str, Any]
) -> OwnRun:
    """The run that tables describe, as those of a file are read.

    Raises:  ValueError, one line, for the first mistake.
    """
    train = tables["train"] if "train" in tables else {}
    _refuse_unfit(tables, RunConfig, _TABLES)
    if isinstance(train, Mapping):
        _refuse_unfit(train, TrainConfig, _TRAIN_KEYS, "train.")
    tree = {**tables, "student": student.table()}
    tree["train"] = {**train, "steps": steps} if isinstance(train, Mapping) else train
    if teachers:
        first, *rest = (teacher.table() for teacher in teachers)
        tree["teacher"] = {**first, "also": rest} if rest else first
    config = parse(OwnRun, Source(tree, dict.fromkeys(dotted(tree), WHO)))
    if config.optim.rate.kind == "plateau":
        raise ValueError(f"{WHO}: optim.rate.kind = 'plateau': needs a validation score")
    if config.average is not None and config.average.batchnorm_batches:
        raise ValueError(f"{WHO}: average.batchnorm_batches: needs batches of its own; remove it")
    if config.guard.on_nonfinite == "rollback":
        raise ValueError(
            f"{WHO}: guard.on_nonfinite = 'rollback': there are no checkpoints here; use 'skip', "
            "or 'stop' and load what state_dict() gave"
        )
    return config


def _refuse_unfit(
    given: Mapping[str, Any], model: type[Config], fit: Sequence[str], prefix: str = ""
) -> None:
    """Raise ValueError for the first name that is not fit, be it one of the model's or none."""
    for name in given:
        if name in fit:
            continue
        said = f" = {given[name]!r:.60}: unknown key{nearest(str(name), fit)}"
        if name in model.model_fields:
            said = ": a loop of one's own has no use for it"
            said += "; give Distiller steps=" if name in ("steps", "epochs") else ""
        raise ValueError(f"{WHO}: {prefix}{name}{said} (choices: {', '.join(fit)})")


def dress(
    networks: Sequence[Network],
    config: NetworkConfig,
    num_classes: int,
    image_shape: tuple[int, int, int],
    *,
    frozen: bool,
    taps: tuple[str, ...],
) -> Dressed:
    """The modules, on the CPU, as the networks of a run: they read images in [0,1].

    Args:    config: what `read_tables` made of them. num_classes: of the student.
             frozen, taps: as for `build_network`; what is frozen is a copy.
    Raises:  ValueError, one line, for a module that does not take such images or has other classes.
    """
    modules = iter(networks)

    def bare(member: NetworkConfig) -> nn.Module:
        module = next(modules).module
        module = (_copied(module) if frozen else module).cpu()
        num = count_outputs(module, image_shape)
        if num != (member.num_classes or num_classes):
            raise ValueError(
                f"{type(module).__name__} has {num} outputs, and the student {num_classes}; a "
                "teacher of other classes is hard_fast.Network(teacher, num_classes=...)"
            )
        return module

    return dress_network(config, bare, num_classes, image_shape, frozen=frozen, taps=taps)


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:
        # A module of any origin may hold anything.
        said = next(iter(str(error).splitlines()), "")
        raise ValueError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {said}); detach "
            "tensors that it keeps as attributes"
        ) from error


def check_batch(image: object, label: object) -> None:
    """See that images and labels are a batch, as far as can be told without looking at values.

    Raises:  ValueError, one line.
    """
    if not isinstance(image, Tensor) or image.ndim != 4 or not len(image):
        raise ValueError(f"{WHO}: image: {_told(image)}; must be a tensor [B,C,H,W]")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ValueError(f"{WHO}: image: {_told(image)}; must be uint8, or float in [0,1]")
    if label is None:
        return
    is_whole = isinstance(label, Tensor) and not (label.is_floating_point() or label.is_complex())
    if not is_whole or label.shape != image.shape[:1]:
        wanted = f"[{len(image)}] whole numbers, or None where there are no labels"
        raise ValueError(f"{WHO}: label: {_told(label)}; must be {wanted}")


def check_values(image: Tensor, label: Tensor | None, num_classes: int) -> None:
    """See that pixels lie in [0,1] and labels among the classes; waits for the device.

    Raises:  ValueError, one line.
    """
    low, high = (float(value) for value in image.aminmax())
    if image.dtype != torch.uint8 and not 0.0 <= low <= high <= 1.0:
        raise ValueError(
            f"{WHO}: image: from {low:.3g} to {high:.3g}; floats must be in [0,1]: leave "
            "normalization to hard_fast.Network(module, mean=..., std=...)"
        )
    if label is not None and not -1 <= int(label.min()) <= int(label.max()) < num_classes:
        raise ValueError(
            f"{WHO}: label: from {int(label.min())} to {int(label.max())}; the student has "
            f"{num_classes} outputs, so 0 to {num_classes - 1}, or -1 for none"
        )


def as_batch(image: Tensor, label: Tensor | None, device: torch.device) -> Batch:
    """The batch on the device, in the memory layout of a run's own."""
    if label is None:
        label = torch.full((len(image),), -1)
    image = image.to(device, non_blocking=True)
    image = image.float() if image.is_floating_point() else image
    # Rows of channels, also where there is one: .contiguous(channels_last) would leave strides.
    image = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return Batch(image, label.to(device, torch.int64, non_blocking=True))


def _told(given: object) -> str:
    is_tensor = isinstance(given, Tensor)
    return f"{given.dtype} {list(given.shape)}" if is_tensor else f"a {type(given).__name__}"
