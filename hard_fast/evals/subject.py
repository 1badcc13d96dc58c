"""What is evaluated: the networks of a run, or a network by name, and the pictures they want."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import Field
from torch import nn

from hard_fast.config import RunConfig
from hard_fast.data import DataConfig, PicturesConfig, load_data
from hard_fast.data.folders import list_class_names
from hard_fast.data.readers import Cifar10Config, MnistConfig
from hard_fast.evals.suites import PictureFormat
from hard_fast.evals.survey import Opened, check_suites, picture_format
from hard_fast.models.small import SMALL_NETS
from hard_fast.models.taps import Tapped
from hard_fast.models.zoo import NetworkConfig, TeacherConfig, build_network
from hard_fast.runtime.compile import Precision, amp_dtype
from hard_fast.runtime.configfile import (
    COMMAND_LINE,
    Config,
    Source,
    dotted,
    merge,
    parse,
    read,
    read_overrides,
)
from hard_fast.runtime.dist import World
from hard_fast.smoke import shrink

Interpolation = Literal["bilinear", "bicubic"]
_PICTURES = PicturesConfig(root="")


class InputConfig(Config):
    """What a network reads and answers. None: timm's own for its networks, else the first suite's,
    and for pictures in files what `data.kind = "pictures"` has by default."""

    size: int | None = Field(default=None, ge=1)
    """Height and width, px."""
    channels: int | None = Field(default=None, ge=1)
    num_classes: int | None = Field(default=None, ge=1)
    """Outputs of the network."""
    eval_crop: float | None = Field(default=None, gt=0.0, le=1.0)
    """The shorter side of a picture becomes floor(size / eval_crop), and the centre is kept."""
    interpolation: Interpolation | None = None
    precision: Precision = "auto"
    """Of the arithmetic; auto: bf16 on a GPU that has it, else fp32."""


class ModelConfig(Config):
    """A network by name, its teacher, and what both read."""

    model: NetworkConfig
    teacher: TeacherConfig | None = None
    data: InputConfig = InputConfig()


@dataclass(frozen=True)
class Subject:
    """A student and its teacher, not yet built.

    name, teacher_name: what a table calls them; None: there is no teacher.
    own: the data of the run that made the student; None: no run did.
    """

    name: str
    student: NetworkConfig
    data: InputConfig
    teacher: NetworkConfig | None = None
    teacher_name: str | None = None
    own: DataConfig | None = None

    @property
    def pictures(self) -> PictureFormat:
        """How pictures in files become what the networks read."""
        return PictureFormat(
            self.data.size or _PICTURES.size,
            self.data.eval_crop or _PICTURES.eval_crop,
            self.data.interpolation or _PICTURES.interpolation,
        )

    def build_for(
        self, opened: Opened, world: World, *, frozen: bool = True
    ) -> tuple[nn.Module, nn.Module | None]:
        """The student and the teacher on the device, for these suites, of which there is one.

        Raises:  ValueError, one line, for a network that cannot be built or does not read the
                 images of a suite.
        """
        first = next(iter(opened.suites.values()))
        shape = next(iter(first.parts.values())).image_shape
        channels, size = self.data.channels or shape[0], self.data.size or shape[-1]
        num_outputs = self.data.num_classes or first.num_classes
        check_suites(opened, (channels, size, size), num_outputs)
        return self.build(shape, num_outputs, world, frozen=frozen)

    def build(
        self, image_shape: Sequence[int], num_classes: int, world: World, *, frozen: bool = True
    ) -> tuple[nn.Module, nn.Module | None]:
        """The student and the teacher on the device, for evaluation only.

        Args:    image_shape, num_classes: what the networks read and answer where the subject
                 leaves it open. frozen: without gradients of weights, BatchNorm folded.
        Raises:  ValueError, one line, that names the network which cannot be built.
        """
        channels = self.data.channels or image_shape[0]
        sizes = {"in_channels": channels, "image_size": self.data.size or image_shape[-1]}
        sizes["num_classes"] = self.data.num_classes or num_classes
        built = []
        for name, config in ((self.name, self.student), (self.teacher_name, self.teacher)):
            if config is None:
                built.append(None)
                continue
            try:
                bare = config.each(lambda one: one.model_copy(update={"checkpointing": False}))
                network = build_network(bare, frozen=frozen, **sizes)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            precision = self.data.precision if config.uses_autocast else "fp32"
            network = Tapped(network, (), amp_dtype(precision, world.device))
            built.append(network.to(world.device, memory_format=torch.channels_last).eval())
        return built[0], built[1]


def open_model(
    name: str,
    checkpoint: str | None,
    overrides: Sequence[str],
    teacher: str | None = None,
    data_root: Path | None = None,
) -> Subject:
    """The subject that a network's name describes.

    Args:    checkpoint: file of its weights; None: as `model.checkpoint` or `.pretrained` say.
             overrides: `model.`, `teacher.` and `data.key=value`.
             teacher: a network's name or the directory of a run; None, `none`: no teacher.
             data_root: its weights/ may hold those of `cifar_resnet` nets as they are published.
    Raises:  ConfigError, one line, for a key or a value that is wrong; ValueError for a network
             without weights.
    """
    own, told = _split(overrides, teacher)
    given = {"name": name} if checkpoint is None else {"name": name, "checkpoint": checkpoint}
    config = _read_model({"model": given}, own)
    data = config.data.model_copy(update=_left_open(config.data, _own_input(config.model.name)))
    student = _with_weights(config.model, "model", data_root)
    if teacher is not None:
        return Subject(student.name, student, data, *_teacher(teacher, told, data_root))
    if config.teacher is None:
        return Subject(student.name, student, data)
    teaches = config.teacher.each(lambda one: _with_weights(one, "teacher", data_root))
    return Subject(student.name, student, data, teaches, teaches.title)


def open_run(
    run_dir: Path,
    checkpoint: str | None,
    overrides: Sequence[str],
    teacher: str | None = None,
    data_root: Path | None = None,
) -> Subject:
    """The subject that a run left behind: its student, and the teacher it had of its classes.

    Args:    checkpoint: file of the student's weights; None: the run's student.safetensors.
             overrides: of the run's configuration.
             teacher: a network's name or the directory of another run, instead of its own teacher;
             `none`: no teacher.
             data_root: as in `open_model`.
    Raises:  ValueError, one line, if the run is no classifier or what it left is not whole.
    """
    file = run_dir / "config.toml"
    if not file.is_file():
        raise ValueError(f"--run {run_dir}: no config.toml in it; give the directory of a run")
    own, told = _split(overrides, teacher)
    config = parse(RunConfig, shrink(read(str(file), own)))
    if config.answer != "classes":
        raise ValueError(f"--run {run_dir}: its student is no classifier")
    weights = Path(checkpoint) if checkpoint else run_dir / "student.safetensors"
    if not weights.is_file():
        hint = "" if checkpoint else "; the run is not finished, give --checkpoint FILE"
        raise ValueError(f"{weights}: no such file{hint}")
    given = {"checkpoint": str(weights), "pretrained": False, "new_head": False}
    teaches = config.teacher if config.shares_classes else None
    name = teaches and teaches.title
    if teacher is not None:
        teaches, name = _teacher(teacher, told, data_root)
    student = config.student.model_copy(update=given)
    data = _input_of(config.data).model_copy(update={"precision": config.train.precision})
    title = str(run_dir) if checkpoint is None else f"{run_dir}: {checkpoint}"
    return Subject(title, student, data, teaches, name, config.data)


def _is_run(name: str | None) -> bool:
    return name is not None and (Path(name) / "config.toml").is_file()


def _split(overrides: Sequence[str], teacher: str | None) -> tuple[list[str], list[str]]:
    """The overrides, and apart from them those of the teacher that `--teacher` names."""
    told = [o for o in overrides if teacher is not None and o.startswith("teacher.")]
    return [o for o in overrides if o not in told], told


def _read_model(tree: dict[str, Any], overrides: Sequence[str]) -> ModelConfig:
    tree = merge(tree, read_overrides(overrides).tree)
    return parse(ModelConfig, Source(tree, dict.fromkeys(dotted(tree), COMMAND_LINE)))


def _teacher(
    name: str, overrides: Sequence[str], data_root: Path | None
) -> tuple[NetworkConfig | None, str | None]:
    """The network that `--teacher` names, and what a table calls it.

    Raises:  ValueError for overrides of what is no network by name, or for one without weights.
    """
    if name != "none" and not _is_run(name):
        config = _read_model({"model": {"name": name}, "teacher": {"name": name}}, overrides)
        assert config.teacher is not None
        return config.teacher.each(lambda one: _with_weights(one, "teacher", data_root)), name
    if overrides:
        raise ValueError(f"{overrides[0]}: --teacher {name} is no network by name; remove one")
    return (None, None) if name == "none" else (open_run(Path(name), None, ()).student, name)


def _with_weights(config: NetworkConfig, section: str, data_root: Path | None) -> NetworkConfig:
    """The network with the file of its weights.

    Raises:  ValueError if nobody said where they are.
    """
    name = config.name
    if config.checkpoint is not None or config.pretrained or name.startswith("python:"):
        return config
    # As github.com/akamaster/pytorch_resnet_cifar10 names them: resnet56-4bfd9763.th.
    pattern = f"weights/{name.removeprefix('cifar_')}-*.th"
    is_published = name.startswith("cifar_resnet") and data_root is not None
    found = sorted(data_root.glob(pattern)) if is_published else []
    if not found:
        looked = f" and no {pattern} in {data_root}" if is_published else ""
        given = "--checkpoint FILE" if section == "model" else "teacher.checkpoint=FILE"
        raise ValueError(f"{section} {name!r}: no weights are given{looked}; give {given}")
    return config.model_copy(update={"checkpoint": str(found[0])})


def _left_open(data: InputConfig, known: InputConfig) -> dict[str, Any]:
    """What is known of the keys that nobody has set."""
    return {key: value for key, value in known if getattr(data, key) is None}


def _own_input(name: str) -> InputConfig:
    """What a network reads by its own account: CIFAR's as published, and timm's."""
    if name.startswith("cifar_resnet"):
        return InputConfig(size=32, channels=3, num_classes=10)
    if name in SMALL_NETS or name.startswith("python:"):
        return InputConfig()
    import timm

    try:
        own = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except (RuntimeError, ValueError):
        return InputConfig()
    if own is None:
        return InputConfig()
    is_known = own.interpolation in get_args(Interpolation)
    return InputConfig(
        size=own.input_size[-1],
        channels=own.input_size[0],
        num_classes=own.num_classes,
        eval_crop=own.crop_pct,
        interpolation=own.interpolation if is_known else None,
    )


def _input_of(data: DataConfig) -> InputConfig:
    """What the networks of a run read."""
    match data:
        case MnistConfig():
            return InputConfig(size=28, channels=1, num_classes=10)
        case Cifar10Config():
            return InputConfig(size=32, channels=3, num_classes=10)
        case PicturesConfig():
            # Not listed, which takes minutes where there are a million.
            (channels, size), num_classes = (3, data.size), _count_classes(data)
        case _:
            found = load_data(data, torch.device("cpu"))
            channels, _, size = found.train.image_shape
            num_classes = found.num_classes
    pictures = picture_format(data, size)._asdict()
    return InputConfig(channels=channels, num_classes=num_classes, **pictures)


def _count_classes(data: PicturesConfig) -> int | None:
    """How many classes a run told apart; None where its pictures are not there."""
    if data.num_classes is not None or not isinstance(data.root, str):
        return data.num_classes
    folder = Path(data.root).expanduser() / "train"
    return len(list_class_names(folder)) if folder.is_dir() else None
