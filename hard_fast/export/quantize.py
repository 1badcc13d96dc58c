"""A network in 8 bits: ranges found on images it has seen, or learned under its teacher's eyes."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from hard_fast.augment import build_augmentor
from hard_fast.augment.base import Augmentor, is_learned, to_float
from hard_fast.augment.fixed import IdentityConfig
from hard_fast.bank import AugmentorBank
from hard_fast.config import RunConfig
from hard_fast.data import DataConfig, Part
from hard_fast.export.annotation import Int8Quantizer
from hard_fast.export.formats import Graph, Program, capture, import_torchao, quiet
from hard_fast.objectives import build_objective
from hard_fast.objectives.kd import Distillation, KdConfig
from hard_fast.runtime.configfile import Config
from hard_fast.runtime.seed import derive_seed, reseed
from hard_fast.step import DistillStep
from hard_fast.types import Phase

Method = Literal["ptq", "qat"]


class Int8Config(Config):
    """How a network is brought to 8 bits."""

    data: DataConfig | None = None
    """Where its training images are; None: where the run had them."""
    num_images: int = Field(default=512, ge=1)
    """Training images on which `ptq` finds the ranges of activations."""
    steps: int = Field(default=300, ge=1)
    """Updates of `qat`; the ranges stand still in the second half."""
    batch_size: int = Field(default=64, ge=1)
    lr: float = Field(default=1e-4, gt=0.0)
    """Of AdamW, falling to zero as a cosine."""
    temperature: float = Field(default=5.0, gt=0.0)
    """Of the KL with the teacher, for a network that no run had distilled."""
    seed: int = Field(default=0, ge=0)


class Lessons(NamedTuple):
    """What a network in 8 bits learns from: images, who changes them, and who is to be followed.

    bank: the augmentors of the run, one of which makes the inputs of each step; None: it had none.
    """

    train: Part
    num_classes: int
    teacher: nn.Module
    objective: Distillation
    augmentor: Augmentor
    bank: AugmentorBank | None


def build_lessons(
    train: Part,
    num_classes: int,
    teacher: nn.Module,
    config: Int8Config,
    run: RunConfig | None,
) -> Lessons:
    """The loss, the augmentor and the bank of a run, or KL on untouched images without a run.

    Args:    teacher: called with images in [0,1], returns Outputs.
    Raises:  ValueError, one line, if what the run left is not whole.
    """
    objective, maker, bank = Distillation(KdConfig(temperature=config.temperature)), None, None
    if run is not None:
        maker = build_augmentor(run.augmentor, train.image_shape, train.is_picture)
        its_own = build_objective(run.objective)
        # What learns from labels alone has no distance that a smaller copy could close.
        objective = its_own if isinstance(its_own, Distillation) else objective
        if is_learned(maker):
            bank = _open_bank(maker, Path(run.run_dir) / "bank", run)
            # What a joint run ended with is in its checkpoints only.
            maker = maker if bank is not None else None
    if maker is None:
        maker = build_augmentor(IdentityConfig(), train.image_shape, train.is_picture)
    return Lessons(train, num_classes, teacher, objective, maker, bank)


def calibrate(
    program: ExportedProgram, train: Part, image_shape: tuple[int, int, int], config: Int8Config
) -> ExportedProgram:
    """The network in 8 bits, with ranges of activations that some training images had."""
    import_torchao()
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    with torch.no_grad(), quiet():
        prepared = prepare_pt2e(_copy(program), Int8Quantizer(learns=False))
        for image in training_images(train, config.num_images, config.seed):
            prepared(image)
    return _convert(prepared, image_shape)


def fine_tune(
    program: ExportedProgram,
    lessons: Lessons,
    image_shape: tuple[int, int, int],
    config: Int8Config,
) -> tuple[ExportedProgram, list[float]]:
    """The network in 8 bits, trained with its rounding in the loop, and the loss of each step.

    The gradient passes a rounding as if it were not there, and stops where a value is clipped.

    Source:  Jacob et al. 2018, arXiv:1712.05877, section 3.
    """
    import_torchao()
    from torchao.quantization.pt2e import disable_observer
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    model = _copy(program)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    with quiet():
        prepared = prepare_qat_pt2e(model, Int8Quantizer(learns=True))
    step = DistillStep(
        lessons.augmentor, Program(prepared), lessons.teacher, lessons.objective,
        lessons.num_classes,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(step.student.parameters(), lr=config.lr, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    size = min(config.batch_size, lessons.train.num)
    loader = lessons.train.loader(batch_size=size, seed=config.seed)
    generator = torch.Generator()
    losses = []
    for number in range(config.steps):
        if number == config.steps // 2:
            prepared.apply(disable_observer)
        batch = loader.next_batch()
        reseed(generator, config.seed, "int8-noise", number)
        noise = lessons.augmentor.draw_noise(batch.image.shape, generator)
        if lessons.bank is not None:
            lessons.bank.draw_into(step.drawn, number)
        loss = step(Phase.STUDENT, batch, noise).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        losses.append(loss.item())
    return _convert(prepared, image_shape), losses


def training_images(train: Part, num: int, seed: int) -> Iterator[Tensor]:
    """Batches of [B,C,H,W] training images in [0,1], `num` in all, in a fixed random order."""
    num = min(num, train.num)
    size = min(num, 64)
    loader = train.loader(batch_size=size, seed=derive_seed(seed, "int8-images"))
    for start in range(0, num, size):
        yield to_float(loader.next_batch().image[: num - start])


def _copy(program: ExportedProgram) -> nn.Module:
    """The graph with weights of its own: those of a program are the network's."""
    return copy.deepcopy(program).module()


def _open_bank(augmentor: Augmentor, folder: Path, run: RunConfig) -> AugmentorBank | None:
    numbers = sorted(int(p.stem.removeprefix("entry_")) for p in folder.glob("entry_*.safetensors"))
    if not numbers:
        return None
    bank = AugmentorBank(augmentor, folder, run.bank, seed=run.seed, is_main=False)
    bank.load_state_dict({"entries": numbers, "num_seen": len(numbers)})
    return bank


def _convert(prepared: GraphModule, image_shape: tuple[int, int, int]) -> ExportedProgram:
    """The graph with its roundings made final and its weights stored as int8."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    with quiet():
        model = convert_pt2e(prepared)
    _drop_unused(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return capture(Graph(model).eval(), image_shape)


def _drop_unused(model: GraphModule) -> None:
    """Take off the fp32 weights, which the int8 ones have replaced."""
    used = {node.target for node in model.graph.nodes if node.op == "get_attr"}
    for name in [*dict(model.named_parameters()), *dict(model.named_buffers())]:
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(model.get_submodule(owner), attribute)
