"""What `bench.step` compares: ways to make the same KD step with the same networks and bytes."""

import contextlib
import copy
import importlib.util
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.timing import note
from bench.trainers import (
    CE_SHARE,
    OPTIM,
    TEMPERATURE,
    Networks,
    Pair,
    build_trainer,
    run_tree,
    step_loss,
)
from hard_fast.optim.build import OptimConfig, build_optimizer
from hard_fast.types import Batch

Update = Callable[[Tensor, Tensor], Tensor]
"""Images and labels to updated weights; returns the loss."""


class Distiller(NamedTuple):
    """One implementation, at work on one batch."""

    step: Callable[[], object]
    """Bytes to updated weights, once. Nothing waits for the device."""
    loss: Callable[[], float]
    """The same, and the loss that it had."""
    version: str | None = None


class Problem(NamedTuple):
    """What every implementation gets."""

    pair: Pair
    networks: Networks
    batch: Batch

    @property
    def device(self) -> torch.device:
        """Where the batch is."""
        return self.batch.image.device


def plain(problem: Problem, *, is_compiled: bool = False) -> Distiller:
    """A loop as one writes it: the loss, `backward`, the optimizer."""
    teacher, student = _copies(problem.networks, problem.device)
    normalise = _normaliser(problem)

    def loss_of(image: Tensor, label: Tensor) -> Tensor:
        image = normalise(image)
        with torch.no_grad():
            target = F.log_softmax(teacher(image).float() / TEMPERATURE, dim=1)
        logits = student(image).float()
        found = F.log_softmax(logits / TEMPERATURE, dim=1)
        soft = F.kl_div(found, target, reduction="batchmean", log_target=True) * TEMPERATURE**2
        return CE_SHARE * F.cross_entropy(logits, label) + (1 - CE_SHARE) * soft

    update = _updating(problem.pair, student, torch.compile(loss_of) if is_compiled else loss_of)
    return Distiller(lambda: update(*problem.batch), lambda: float(update(*problem.batch)))


def timm_loop(
    pair: Pair, networks: Networks, device: torch.device, *, is_compiled: bool = False
) -> Update:
    """timm's `LogitDistillationTask` in a loop, compiled by itself as its training script does.

    It takes normalised images.
    """
    from timm.task import LogitDistillationTask

    teacher, student = _copies(networks, device)
    task = LogitDistillationTask(
        student,
        teacher,
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=CE_SHARE,
        temperature=TEMPERATURE,
        device=device,
        verbose=False,
    )
    task.train()
    if is_compiled:
        task.compile()
    return _updating(pair, student, lambda image, label: task(image, label)["loss"])


def timm_task(problem: Problem, *, is_compiled: bool = False) -> Distiller:
    """The same, given bytes."""
    update = timm_loop(*problem[:2], problem.device, is_compiled=is_compiled)
    normalise = _normaliser(problem)
    batch = problem.batch

    def step() -> Tensor:
        return update(normalise(batch.image), batch.label)

    return Distiller(step, lambda: float(step()), metadata.version("timm"))


def torchdistill_box(problem: Problem) -> Distiller:
    """torchdistill's distillation box with its KDLoss, under autocast where the pair asks for it.

    Raises:  ImportError where it is not installed.
    """
    from torch.utils.data import SequentialSampler, TensorDataset
    from torchdistill.core.distillation import get_distillation_box

    teacher, student = _copies(problem.networks, problem.device)
    normalise = _normaliser(problem)
    size = {"batch_size": problem.pair.batch_size}
    data = {"dataset_id": "bytes", "kwargs": size}
    data["sampler"] = {"class_or_func": SequentialSampler, "kwargs": None}
    ends = {f"{role}_module_path": "." for role in ("student", "teacher")}
    ends |= {f"{role}_module_io": "output" for role in ("student", "teacher")}
    kd_loss = {"temperature": TEMPERATURE, "alpha": CE_SHARE, "reduction": "batchmean", **ends}
    term = {"weight": 1.0, "criterion": {"key": "KDLoss", "kwargs": kd_loss}}
    config = {
        "num_epochs": 1,
        "train_data_loader": data,
        "val_data_loader": {**data, "requires_supp": False},
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.1}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": term}}},
    }
    sets = {"bytes": TensorDataset(*problem.batch)}
    box = get_distillation_box(teacher, student, sets, config, problem.device, None, False, 1)
    box.pre_epoch_process(epoch=0)
    # As for all: it builds none of its own kinds fused and with weight decay in two groups.
    box.optimizer = _optimizer(student)

    def step() -> Tensor:
        with _autocast(problem.pair, problem.device):
            loss = box.forward_process(normalise(problem.batch.image), problem.batch.label, None)
        box.post_forward_process(loss=loss)
        return loss.detach()

    return Distiller(step, lambda: float(step()), metadata.version("torchdistill"))


def ours(problem: Problem, mode: str) -> Distiller:
    """A Trainer in a KD run: what `hard_fast.train` does between two batches of its loader."""
    compile_ = {"mode": mode}
    tree = run_tree(problem.pair, "KD", problem.networks, problem.device, compile=compile_)
    trainer = build_trainer(tree, "KD", problem.batch)
    return Distiller(trainer.train_step, lambda: step_loss(trainer))


def installed_peers() -> tuple[str, ...]:
    """Those that can run here; stderr says what is left out."""
    if importlib.util.find_spec("torchdistill"):
        return "timm", "torchdistill"
    note("torchdistill: left out, not installed")
    return ("timm",)


def build_distillers(
    problem: Problem, peers: tuple[str, ...], *, with_compiled: bool
) -> dict[str, Distiller]:
    """Ours, the plain loop and the peers asked for; the one that is held right comes first."""
    found: dict[str, Distiller] = {}
    if "timm" in peers:
        found["timm"] = timm_task(problem)
        if with_compiled:
            found["timm_compiled"] = timm_task(problem, is_compiled=True)
    found["eager"] = plain(problem)
    if with_compiled:
        found["compiled"] = plain(problem, is_compiled=True)
    if "torchdistill" in peers:
        found["torchdistill"] = torchdistill_box(problem)
    found["hard_fast"] = ours(problem, "auto" if with_compiled else "off")
    if with_compiled and problem.device.type == "cpu":
        # Where `auto` is off.
        found["hard_fast_compiled"] = ours(problem, "default")
    return found


def _copies(networks: Networks, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """Teacher and student of an implementation's own, on the device in channels_last."""
    layout = {"device": device, "memory_format": torch.channels_last}
    teacher, student = (copy.deepcopy(net).to(**layout) for net in networks[:2])
    return teacher.eval().requires_grad_(False), student.train()


def _optimizer(student: nn.Module) -> torch.optim.Optimizer:
    return build_optimizer(OptimConfig(**OPTIM), student.named_parameters())


def _normaliser(problem: Problem) -> Callable[[Tensor], Tensor]:
    """Bytes to what timm's prefetcher makes of them, for both networks."""
    configs = [network.pretrained_cfg for network in problem.networks[:2]]
    mean, std = (
        torch.tensor(configs[1][key], device=problem.device).view(1, -1, 1, 1) * 255
        for key in ("mean", "std")
    )
    assert all(configs[0][key] == configs[1][key] for key in ("mean", "std"))
    return lambda image: image.to(torch.float32).sub_(mean).div_(std)


def _autocast(pair: Pair, device: torch.device) -> contextlib.AbstractContextManager:
    if pair.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def _updating(
    pair: Pair, student: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor]
) -> Update:
    optimizer = _optimizer(student)

    def update(image: Tensor, label: Tensor) -> Tensor:
        with _autocast(pair, image.device):
            loss = loss_of(image, label)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return update
