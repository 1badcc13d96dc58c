"""The augmentations that a configuration asks to rank, ready to make images."""

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from hard_fast.augment import AugmentorConfig, build_augmentor, learns
from hard_fast.augment.copies import Copies, CopiesConfig
from hard_fast.augment.fixed import StandardConfig
from hard_fast.bank import AugmentorBank
from hard_fast.checkpoint import Checkpointer
from hard_fast.config import RunConfig, is_own_phase
from hard_fast.data import DataSet
from hard_fast.evals.stddev import Contender
from hard_fast.models.taps import Tapped
from hard_fast.models.zoo import NetworkConfig, build_network
from hard_fast.objectives import ObjectiveConfig, build_objective
from hard_fast.objectives.cutmixpick import CutmixpickConfig
from hard_fast.runtime.compile import amp_dtype
from hard_fast.runtime.configfile import parse, read
from hard_fast.runtime.seed import derive_seed
from hard_fast.smoke import shrink
from hard_fast.types import Phase

_log = logging.getLogger(__name__)

_FLIP: dict[str, Any] = {"kind": "standard", "rotation_deg": 0.0, "crop_px": 0}
_PUBLISHED: dict[str, dict[str, Any]] = {
    "identity": {"kind": "identity"},
    "flip": _FLIP,
    "crop_flip": {**_FLIP, "crop_px": 4},
    # Half the picture's side, the paper's 16 px of 32, on all data; on CIFAR-100 the authors' code
    # (helper/loops.py) cuts 8 px: side = 0.25.
    "cutout": {"kind": "cutout", "side": 0.5},
    "autoaugment": {"kind": "autoaugment"},
    "mixup": {"kind": "mixup"},
    "cutmix": {"kind": "cutmix"},
}


def published_rows(config: RunConfig) -> dict[str, RunConfig]:
    """The run with each augmentation of the paper in turn; originals are cropped and flipped.

    Source:  Wang et al. 2022, arXiv:2012.02909, table 4.
    """
    base = config.augmentor.base if isinstance(config.augmentor, CopiesConfig) else None
    found = {}
    for name, part in _PUBLISHED.items():
        maker = _copies(base, TypeAdapter(AugmentorConfig).validate_python(part), num=1)
        found[name] = _with(config, maker, CutmixpickConfig(keep=1.0))
    maker = _copies(base, TypeAdapter(AugmentorConfig).validate_python({"kind": "cutmix"}), num=2)
    for judge in ("student", "teacher"):
        found[f"pick_{judge}"] = _with(config, maker, CutmixpickConfig(entropy_of=judge))
    return found


def build_contender(
    name: str, config: RunConfig, data: DataSet, device: torch.device
) -> Contender | None:
    """What a run's student would see; None, with a warning, where a part of it is not there yet.

    A learned augmentor is that of the finished run in config.run_dir.

    Raises:  ValueError, one line, if something is there and cannot be used.
    """
    if learns(config.augmentor):
        is_there = Checkpointer(Path(config.run_dir) / "checkpoints").steps()
        if is_there:
            return _learned(name, config, data, device)
        _log.warning("%s: left out, %s has no checkpoint", name, config.run_dir)
        return None
    train = data.train
    augmentor = build_augmentor(config.augmentor, train.image_shape, train.is_picture).to(device)
    objective = build_objective(config.objective)
    needs = objective.needs(Phase.STUDENT)
    judge = None
    if needs.keep_by_student and needs.keep < 1.0:
        judge = _student(config, data, device)
        if judge is None:
            _log.warning("%s: left out, its student has no weights yet", name)
            return None
    return Contender(name, augmentor, needs.keep, objective.keep_score, judge)


def open_learned(run_dir: Path, data: DataSet, device: torch.device) -> Contender:
    """The learned augmentors of a run as one contender: for each batch the bank draws one.

    Raises:  ValueError, one line, for a directory without them.
    """
    file = run_dir / "config.toml"
    if not file.is_file():
        raise ValueError(f"--run {run_dir}: no config.toml in it; give the directory of a run")
    config = parse(RunConfig, shrink(read(str(file), [])))
    if not learns(config.augmentor):
        raise ValueError(f"--run {run_dir}: its augmentor learns nothing; rank it with --config")
    here = config.model_copy(update={"run_dir": str(run_dir)})
    return _learned(run_dir.name or str(run_dir), here, data, device)


def build_teacher(config: RunConfig, data: DataSet, device: torch.device) -> nn.Module:
    """The teacher of a run on the device, frozen."""
    assert config.teacher is not None
    # As in the run itself: a network without weights is the same each time.
    torch.manual_seed(derive_seed(config.seed, "teacher"))
    return _network(config.teacher, config, data, device)


def check_alike(rows: Mapping[str, RunConfig]) -> RunConfig:
    """The first row with a teacher; all others have the same one and the same data.

    Raises:  ValueError that names a row which differs.
    """
    taught = {name: row for name, row in rows.items() if row.teacher is not None}
    if not taught:
        raise ValueError("teacher: T.stddev is of a teacher, and there is none; add [teacher]")
    if strangers := [name for name, row in taught.items() if not row.shares_classes]:
        raise ValueError(f"rows.{strangers[0]}: teacher.num_classes: T.stddev is of data's classes")
    first = next(iter(taught.values()))
    for name, row in taught.items():
        if row.teacher != first.teacher or row.data != first.data:
            raise ValueError(f"rows.{name}: has another teacher or other data than the first row")
    return first


def build_contenders(
    rows: Mapping[str, RunConfig], runs: Iterable[Path], data: DataSet, device: torch.device
) -> list[Contender]:
    """The contenders of all rows that have a teacher, and of finished runs."""
    found = [
        build_contender(name, row, data, device)
        for name, row in rows.items()
        if row.teacher is not None
    ]
    found += [open_learned(run_dir, data, device) for run_dir in runs]
    return [one for one in found if one is not None]


def _learned(name: str, config: RunConfig, data: DataSet, device: torch.device) -> Contender:
    train, folder = data.train, Path(config.run_dir) / "checkpoints"
    own = build_augmentor(config.augmentor, train.image_shape, train.is_picture).to(device).eval()
    base = build_augmentor(StandardConfig(rotation_deg=0.0), train.image_shape, train.is_picture)
    step = Checkpointer(folder).newest()
    if step is None:
        raise ValueError(f"{folder}: no whole checkpoint; the run is not finished")
    path = folder / f"step_{step:09d}.pt"
    state = torch.load(path, map_location=device, weights_only=True)
    try:
        own.load_state_dict(state["augmentor"])
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: holds no augmentor for these data ({reason})") from error
    prepare = None
    if is_own_phase(config.schedule):
        bank_dir = Path(config.run_dir) / "bank"
        bank = AugmentorBank(own, bank_dir, config.bank, seed=config.seed, is_main=False)
        bank.load_state_dict(state["bank"])
        prepare = partial(bank.draw_into, own)
    return Contender(name, Copies(base, own, 1).to(device), prepare=prepare)


def _student(config: RunConfig, data: DataSet, device: torch.device) -> nn.Module | None:
    """The run's student where it has weights, be it the finished run's or those it starts from."""
    file = Path(config.run_dir) / "student.safetensors"
    network = config.student
    if file.is_file():
        given = {"checkpoint": str(file), "pretrained": False, "new_head": False}
        network = network.model_copy(update=given)
    if network.checkpoint is None and not network.pretrained:
        return None
    return _network(network, config, data, device)


def _network(
    network: NetworkConfig, config: RunConfig, data: DataSet, device: torch.device
) -> nn.Module:
    channels, _, size = data.train.image_shape
    sizes = {"num_classes": data.num_classes, "in_channels": channels, "image_size": size}
    built = build_network(network, **sizes, frozen=True)
    amp = amp_dtype(config.train.precision, device) if network.uses_autocast else None
    return Tapped(built, (), amp).to(device, memory_format=torch.channels_last).eval()


def _copies(base: AugmentorConfig | None, part: AugmentorConfig, num: int) -> CopiesConfig:
    return (
        CopiesConfig(part=part, num=num)
        if base is None
        else CopiesConfig(base=base, part=part, num=num)
    )


def _with(config: RunConfig, maker: CopiesConfig, objective: ObjectiveConfig) -> RunConfig:
    return config.model_copy(update={"augmentor": maker, "objective": objective})
