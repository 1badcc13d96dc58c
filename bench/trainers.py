"""Real runs that are measured: a pair of networks, and a Trainer of it held in one phase."""

from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from hard_fast.augment.base import draw_share
from hard_fast.config import RunConfig
from hard_fast.metrics import Meter
from hard_fast.models.zoo import save_weights
from hard_fast.runtime import dist
from hard_fast.runtime.configfile import Source, merge, parse
from hard_fast.trainer import Trainer
from hard_fast.types import Batch, Phase

TEMPERATURE = 4.0
CE_SHARE = 0.1
OPTIM = {"kind": "adamw", "lr": 1e-4}
"""Of every implementation that is compared, built by hard_fast."""

PHASES = {
    "KD": Phase.STUDENT,
    "HARD student phase": Phase.STUDENT,
    "HARD augmentor phase": Phase.AUGMENTOR,
    "HARD joint phase": Phase.JOINT,
}
"""What is stepped, by the name that the rows' cases have."""

_ENDLESS = 10**9
_NUM_COUNTED = 2


class Pair(NamedTuple):
    """A teacher and a student of timm, and the batches that they see."""

    teacher: str
    student: str
    size_px: int
    batch_size: int
    precision: str = "fp32"
    num_classes: int = 10

    @property
    def name(self) -> str:
        """What the rows' cases begin with."""
        sizes = f"{self.size_px} px, batch {self.batch_size}, {self.precision}"
        return f"{self.teacher} -> {self.student}, {sizes}"


class Networks(NamedTuple):
    """Teacher and student as timm makes them, on the CPU, and their weights in files."""

    teacher: nn.Module
    student: nn.Module
    folder: Path


class SameBatch:
    """A loader that has one batch, on the device, and gives it at every step."""

    num_steps_per_epoch = 1000
    num_bad = 0
    wait_s = 0.0

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def next_batch(self) -> Batch:
        """The batch."""
        return self._batch


def draw_networks(pair: Pair, folder: Path) -> Networks:
    """Random networks, the same at every call; their weights are written to the folder.

    The teacher's BatchNorm gets statistics and weights that leave no layer without effect: timm
    starts the last of each block at zero, and folding a zero proves nothing.
    """
    torch.manual_seed(0)
    teacher = timm.create_model(pair.teacher, num_classes=pair.num_classes)
    student = timm.create_model(pair.student, num_classes=pair.num_classes)
    with torch.no_grad():
        for module in teacher.modules():
            if isinstance(module, _BatchNorm):
                module.weight.uniform_(0.5, 1.0)
                module.bias.normal_(std=0.1)
        # Fitting statistics keep the logits of a deep network in range.
        for module in teacher.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = None
        teacher.train()(torch.randn(8, 3, pair.size_px, pair.size_px))
    for name, network in (("teacher", teacher), ("student", student)):
        save_weights(network, folder / f"{name}.safetensors")
    return Networks(teacher.eval(), student, folder)


def draw_batch(pair: Pair, device: torch.device) -> Batch:
    """Bytes and labels, the same at every call, laid out as our loaders do."""
    generator = torch.Generator().manual_seed(0)
    shape = (pair.batch_size, 3, pair.size_px, pair.size_px)
    image = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    label = torch.randint(pair.num_classes, (pair.batch_size,), generator=generator)
    image = image.to(device).contiguous(memory_format=torch.channels_last)
    return Batch(image, label.to(device))


def run_tree(
    pair: Pair, kind: str, networks: Networks, device: torch.device, **changes: Any
) -> dict[str, Any]:
    """The configuration of a run that stays in one of PHASES for ever.

    The augmentor's rate is next to nothing: one that learned for hundreds of steps on one batch
    would move its images out of the picture, where warping is cheaper.
    """
    files = {role: str(networks.folder / f"{role}.safetensors") for role in ("teacher", "student")}
    tree: dict[str, Any] = {
        "run_dir": str(networks.folder / kind.replace(" ", "_")),
        "data": {
            "kind": "synthetic",
            "size": pair.size_px,
            "num_classes": pair.num_classes,
            "num_train": pair.batch_size,
            "num_test": 1,
            "val_share": 0.0,
        },
        "teacher": {"name": pair.teacher, "checkpoint": files["teacher"]},
        "student": {"name": pair.student, "checkpoint": files["student"]},
        "objective": {"kind": "kd", "temperature": TEMPERATURE, "ce_share": CE_SHARE},
        "optim": OPTIM,
        "train": {
            "steps": _ENDLESS,
            "batch_size": pair.batch_size,
            "device": device.type,
            "precision": pair.precision,
            "tensorboard": False,
        },
    }
    if kind != "KD":
        turns = {"student_steps": _ENDLESS, "augmentor_steps": _ENDLESS}
        is_joint = PHASES[kind] is Phase.JOINT
        tree |= {
            "augmentor": {"kind": "affine"},
            "objective": {"kind": "hard", "temperature": TEMPERATURE},
            "schedule": {"kind": "joint"} if is_joint else {"kind": "alternate", **turns},
            "augmentor_optim": {"kind": "adam", "lr": 1e-9},
        }
    return merge(tree, changes)


def build_trainer(tree: dict[str, Any], kind: str, batch: Batch | None = None) -> Trainer:
    """A Trainer of the tree in its phase, fed one batch for ever or, without it, its own data."""
    config = parse(RunConfig, Source(tree, {}))
    trainer = Trainer(config, dist.join(config.train.device), resume=False)
    if batch is not None:
        trainer.loader = SameBatch(batch)
    trainer.controller.phase = PHASES[kind]
    trainer.net.learn(PHASES[kind])
    return trainer


def step_loss(trainer: Trainer) -> float:
    """Make one step, and return its loss."""
    trainer.meter = Meter()
    trainer.train_step()
    state, key = trainer.meter.state_dict(), trainer.last_phase.value
    return float(state["sums"][key][state["names"][key].index("loss")])


def phase_loss(trainer: Trainer, kind: str, batch: Batch) -> Tensor:
    """[] the loss of a phase, ready for its backward pass; not compiled, nothing is updated."""
    generator = torch.Generator(batch.image.device).manual_seed(0)
    noise = draw_share(trainer.net.augmentor, batch.image.shape, generator, 0, 1)
    return trainer.net(PHASES[kind], batch, noise).loss


def forget_gradients(trainer: Trainer) -> None:
    """Free what a backward pass left behind."""
    for parameter in trainer.net.parameters():
        parameter.grad = None


def count_phase(trainer: Trainer, kind: str, batch: Batch) -> int:
    """Floating-point operations of a phase's forward and backward passes, as PyTorch counts them.

    Convolutions and matrix products, a multiplication and an addition apart; nothing else counts.
    They grow with the images, so those of a few tell those of the batch.
    """
    few = Batch(*(values[:_NUM_COUNTED] for values in batch))
    with FlopCounterMode(display=False) as counter:
        phase_loss(trainer, kind, few).backward()
    forget_gradients(trainer)
    return counter.get_total_flops() * len(batch.label) // len(few.label)


def bound_of(kind: str, networks: Networks, pair: Pair) -> int:
    """The fewest operations of a phase: r + 3, 3 r + 2 or 2 r + 3 forward passes of the student.

    A backward pass costs one forward pass for the inputs' gradients and one for the weights'; r
    is the teacher's forward pass over the student's. The student's first layer, which needs no
    gradient of its input while only the student learns, makes a count slightly smaller. The joint
    loss does not look at the teacher's clean logits, which would cost another r.
    """
    teacher, student = (_count_forward(network, pair) for network in networks[:2])
    match PHASES[kind]:
        case Phase.STUDENT:
            return teacher + 3 * student
        case Phase.AUGMENTOR:
            return 3 * teacher + 2 * student
        case Phase.JOINT:
            return 2 * teacher + 3 * student


def _count_forward(network: nn.Module, pair: Pair) -> int:
    """Operations of one forward pass of a batch; one image is enough to know."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 3, pair.size_px, pair.size_px))
    return pair.batch_size * counter.get_total_flops()
