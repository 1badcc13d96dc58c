"""One export, from a student on disk to files that were measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from hard_fast.config import RunConfig
from hard_fast.data import DataSet, PicturesConfig, load_data
from hard_fast.data.sources import read_pictures
from hard_fast.evals.own import is_own, open_with_own
from hard_fast.evals.subject import Subject
from hard_fast.evals.survey import Findings, Opened, check_suites, survey
from hard_fast.export.compression_report import network_row
from hard_fast.export.files import (
    Shelf,
    Sizes,
    draw_images,
    preprocessing_tree,
    try_capture,
    write_json,
)
from hard_fast.export.formats import OPSET
from hard_fast.export.measures import count_costs, time_calls
from hard_fast.export.parity import NUM_IMAGES
from hard_fast.export.quantize import (
    Int8Config,
    Method,
    build_lessons,
    calibrate,
    fine_tune,
    training_images,
)
from hard_fast.models.taps import Normalized, Tapped, bare
from hard_fast.runtime.dist import World
from hard_fast.runtime.environment import versions
from hard_fast.runtime.rows import as_json


@dataclass(frozen=True)
class Order:
    """What is to be exported, to where, and how it is to be judged.

    run:   the configuration of the run that made the student; None: no run did.
    int8:  the ways to 8 bits, each of which gives files of its own.
    limit: samples of each test set; None: all.
    """

    subject: Subject
    run: RunConfig | None
    settings: Int8Config
    formats: Sequence[str]
    int8: Sequence[Method]
    suites: Sequence[str]
    data_root: Path
    out: Path
    opset: int = OPSET
    limit: int | None = None
    label_map: Path | None = None


def export(order: Order, world: World) -> dict[str, Any]:
    """Write the files, and return what export.json is to hold.

    Raises:  ValueError, one line, if there is no student to export or a suite is wrong; a format
             that fails is an entry of `failures` instead.
    """
    subject = order.subject
    data_config = order.settings.data or (order.run and order.run.data)
    wants_data = order.int8 or any(map(is_own, order.suites))
    data = load_data(data_config, world.device) if data_config and wants_data else None
    if wants_data and data is None:
        raise ValueError("int8.data: needed for int8 and own; give int8.data.kind=... of the data")
    opened = _open(order, data, world)
    sizes = _sizes(subject, data, opened)
    check_suites(opened, sizes.image_shape, sizes.num_classes)
    _check(order, data, sizes)
    student = sizes.build(subject.student, frozen=True)
    teacher = Tapped(sizes.build(subject.teacher, frozen=True)) if subject.teacher else None
    seen = None
    if data is not None:
        seen = torch.cat(list(training_images(data.train, NUM_IMAGES, order.settings.seed)))
    text = write_preprocessing(order, student, sizes)
    threads = torch.get_num_threads()
    images = draw_images(sizes, seen, NUM_IMAGES)
    shelf = Shelf(order.out, sizes, images, text, threads, order.opset)
    learned = _write(order, shelf, student, teacher, data)
    return {
        "model": subject.name,
        "teacher": subject.teacher_name,
        "rows": _rows(order, shelf, student, teacher, opened, world),
        "gaps": opened.gaps,
        "failures": shelf.failures,
        "limit": order.limit,
        "int8": as_json(learned),
        "threads": threads,
        "versions": versions(world.device),
    }


def _check(order: Order, data: DataSet | None, sizes: Sizes) -> None:
    """See that what is asked for can be done with these data."""
    if order.int8 and not set(order.formats) & {"onnx", "pt2"}:
        raise ValueError("--int8: 8 bits ship as onnx or pt2; add one of them to --formats")
    if data is None:
        return
    if tuple(data.train.image_shape) != sizes.image_shape:
        theirs, ours = ("x".join(map(str, s)) for s in (data.train.image_shape, sizes.image_shape))
        raise ValueError(f"int8.data: images are {theirs}, and the network reads {ours}")
    if order.run is not None and data.num_classes != sizes.num_classes:
        raise ValueError(
            f"int8.data: has {data.num_classes} classes, and the run's student "
            f"{sizes.num_classes}; give data of the run's classes"
        )


def write_preprocessing(order: Order, student: Normalized, sizes: Sizes) -> str:
    """Write preprocessing.json, and return its text."""
    subject, data = order.subject, order.settings.data if order.run is None else order.run.data
    is_files = isinstance(data, PicturesConfig)
    # A run on arrays reads them as they are; a network without a run says what it wants.
    is_resized = subject.data.eval_crop is not None if order.run is None else is_files
    class_names = read_pictures(data).class_names if is_files else None
    if class_names is not None and len(class_names) != sizes.num_classes:
        # Images for 8 bits alone; the outputs are other classes.
        class_names = None
    pictures = subject.pictures if is_resized else None
    tree = preprocessing_tree(subject.student, student, sizes, pictures, class_names)
    return write_json(order.out / "preprocessing.json", tree).read_text()


def _write(
    order: Order, shelf: Shelf, student: nn.Module, teacher: nn.Module | None, data: DataSet | None
) -> dict[str, Any]:
    """Every file; returns how the ones in 8 bits came about."""
    if "safetensors" in order.formats:
        shelf.write_weights(order.subject.student)
    graphs = [name for name in order.formats if name != "safetensors"]
    if not graphs:
        return {}
    program = try_capture(shelf, student, " and ".join(graphs))
    if program is None:
        return {}
    shelf.write_graphs(program, graphs, student)
    learned: dict[str, Any] = {}
    for method in order.int8:
        try:
            made, notes = _quantise(order, method, program, student, teacher, data)
        except ValueError as error:
            shelf.failures[f"int8 {method}"] = str(error)
            continue
        learned[method] = notes
        shelf.write_graphs(made, graphs, student, int8=method)
    return learned


def _quantise(
    order: Order,
    method: Method,
    program: ExportedProgram,
    student: nn.Module,
    teacher: nn.Module | None,
    data: DataSet,
) -> tuple[ExportedProgram, dict[str, Any]]:
    """The network in 8 bits, and what it learned from."""
    settings, shape = order.settings, tuple(data.train.image_shape)
    if method == "ptq":
        made = calibrate(program, data.train, shape, settings)
        return made, {"num_images": min(settings.num_images, data.train.num)}
    # A student that nobody taught follows what it was in fp32.
    follows = teacher if teacher is not None else Tapped(student)
    lessons = build_lessons(data.train, data.num_classes, follows, settings, order.run)
    made, losses = fine_tune(program, lessons, shape, settings)
    share = max(1, len(losses) // 10)
    notes = {"steps": settings.steps, "batch_size": settings.batch_size, "lr": settings.lr}
    notes |= {"teacher": order.subject.teacher_name or "the student itself, in fp32"}
    notes |= {"augmentor": type(lessons.augmentor).__name__}
    notes |= {"augmentors": 0 if lessons.bank is None else len(lessons.bank)}
    ends = {"loss_first": losses[:share], "loss_last": losses[-share:]}
    return made, notes | {name: sum(part) / share for name, part in ends.items()}


def _rows(
    order: Order,
    shelf: Shelf,
    student: nn.Module,
    teacher: nn.Module | None,
    opened: Opened,
    world: World,
) -> list[dict[str, Any]]:
    """Teacher, student and files: what each costs and scores."""
    ours = Tapped(student)
    networks = {} if teacher is None else {"teacher": teacher}
    networks |= {"student": ours}
    networks |= {name: shipped.network for name, shipped in shelf.shipped.items()}
    shape = shelf.sizes.image_shape
    times = time_calls(networks, shape)
    configs = {"student": order.subject.student, "teacher": order.subject.teacher}
    costs = {
        name: count_costs(bare(shelf.sizes.build(config, frozen=False)), shape)
        for name, config in configs.items()
        if config is not None
    }
    rows, theirs = [], None
    for name, network in reversed(networks.items()):
        if name == "teacher":
            scores = theirs
        else:
            found: Findings = survey(network, teacher, opened, world)
            scores, theirs = found.student, found.teacher
        # A file computes what the student computes.
        own = costs["teacher" if name == "teacher" else "student"]
        shipped = shelf.shipped[name] if name in shelf.shipped else None
        rows.append(as_json(network_row(name, own, shipped, times[name], scores)))
    return rows[::-1]


def _open(order: Order, data: DataSet | None, world: World) -> Opened:
    place = (order.data_root, order.subject.pictures, world.device)
    selected = {"label_map": order.label_map, "limit": order.limit}
    return open_with_own(order.suites, *place, data=data, **selected)


def _sizes(subject: Subject, data: DataSet | None, opened: Opened) -> Sizes:
    """What the network reads and answers: as it says itself, else as its data have it."""
    first = next(iter(opened.suites.values()), None)
    shape, num_classes = None, None
    if data is not None:
        shape, num_classes = data.train.image_shape, data.num_classes
    elif first is not None:
        shape = next(iter(first.parts.values())).image_shape
        num_classes = first.num_classes if first.columns is None else None
    known = {
        "channels": subject.data.channels or (shape and shape[0]),
        "size": subject.data.size or (shape and shape[-1]),
        "num_classes": subject.data.num_classes or num_classes,
    }
    for key, value in known.items():
        if value is None:
            raise ValueError(f"data.{key}: {subject.name!r} does not say it; give data.{key}=N")
    return Sizes(**known)
