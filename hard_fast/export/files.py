"""A student written in every format asked for, each opened again and held against it.

Letters: B images of a batch, C channels, H rows, W columns, K classes.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from hard_fast.evals.suites import PictureFormat
from hard_fast.export.formats import (
    INPUT,
    INT8_OPERATORS,
    OPSET,
    OUTPUT,
    OnnxNetwork,
    Program,
    capture,
    first_line,
    open_pt2,
    write_onnx,
    write_pt2,
)
from hard_fast.export.parity import FP32_TOLERANCE, INT8_TOLERANCE, compare_outputs
from hard_fast.models.small import SMALL_NETS
from hard_fast.models.taps import Normalized, Tapped
from hard_fast.models.zoo import Dressed, NetworkConfig, build_network, save_weights
from hard_fast.runtime.files import write_atomic


class Sizes(NamedTuple):
    """What a network reads and answers."""

    channels: int
    size: int
    num_classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        return self.channels, self.size, self.size

    def build(self, config: NetworkConfig, *, frozen: bool) -> Dressed:
        """The network of these sizes, in eval mode; frozen: with its BatchNorm folded."""
        sizes = {"num_classes": self.num_classes, "in_channels": self.channels}
        # Files hold fp32, and nothing is learned here that would need memory for gradients.
        changes = {"precision": "auto", "checkpointing": False}
        plain = config.each(lambda one: one.model_copy(update=changes))
        network = build_network(plain, image_size=self.size, frozen=frozen, **sizes)
        return network.eval().requires_grad_(False)


class Shipped(NamedTuple):
    """A file that was written, opened by its own runtime, and found to agree.

    network: as its runtime opened it; images in [0,1] to Outputs.
    parity:  how far it is from what it was written from, as `compare_outputs` says it.
    moved:   the same for an int8 file and the fp32 student; None: it is fp32 itself.
    """

    path: Path
    runtime: str
    network: nn.Module
    parity: dict[str, Any]
    moved: dict[str, Any] | None = None


@dataclass
class Shelf:
    """The folder that files are written to, what was written, and what failed and why.

    images: [36,C,H,W] in [0,1], on which files are compared.
    """

    folder: Path
    sizes: Sizes
    images: Tensor
    preprocessing: str
    num_threads: int
    opset: int = OPSET
    shipped: dict[str, Shipped] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def write_weights(self, config: NetworkConfig) -> None:
        """The weights as safetensors, checked through timm where the network is timm's."""
        whole = self.sizes.build(config, frozen=False)

        def write(path: Path) -> None:
            save_weights(whole, path)

        is_timm = config.name not in SMALL_NETS and not config.name.startswith("python:")

        def open_(path: Path) -> nn.Module:
            if not is_timm:
                given = {"checkpoint": str(path), "pretrained": False, "new_head": False}
                fresh = self.sizes.build(config.model_copy(update=given), frozen=False)
            else:
                fresh = _open_with_timm(config, path, whole, self.sizes)
            return Tapped(fresh)

        runtime = "timm.create_model" if is_timm else "hard_fast.models"
        self._ship("safetensors", "student.safetensors", runtime, write, open_, whole)

    def write_graphs(
        self,
        program: ExportedProgram,
        formats: Sequence[str],
        expected: nn.Module,
        *,
        int8: str | None = None,
    ) -> None:
        """The captured network as .onnx and .pt2, those of the two that were asked for.

        Args:    expected: what the outputs are held against.
                 int8: how the network came to 8 bits; None: it is in fp32.
        """
        suffix = f"_{int8}" if int8 else ""
        writers = {"onnx": self._write_onnx, "pt2": self._write_pt2}
        openers = {"onnx": lambda path: OnnxNetwork(path, self.num_threads), "pt2": open_pt2}
        runtimes = {"onnx": "onnxruntime", "pt2": "torch.export"}
        for name in ("onnx", "pt2"):
            if name not in formats:
                continue

            def write(path: Path, name: str = name) -> None:
                writers[name](program, path)

            label = f"{name} int8 {int8}" if int8 else name
            place = (label, f"student{suffix}.{name}", runtimes[name])
            against = Program(program.module()) if int8 else expected
            reference = expected if int8 else None
            self._ship(*place, write, openers[name], against, reference)

    def _write_onnx(self, program: ExportedProgram, path: Path) -> None:
        write_onnx(program, path, self.preprocessing, self.opset)

    def _write_pt2(self, program: ExportedProgram, path: Path) -> None:
        write_pt2(program, path, self.preprocessing)

    def _ship(
        self,
        label: str,
        file_name: str,
        runtime: str,
        write: Callable[[Path], None],
        open_: Callable[[Path], nn.Module],
        expected: nn.Module,
        reference: nn.Module | None = None,
    ) -> None:
        """Write, open again and compare; what fails or disagrees leaves no file, but its reason."""
        path = self.folder / file_name
        # Its own name is for a file that was proven.
        draft = path.with_name(f"unproven_{file_name}")
        path.unlink(missing_ok=True)
        tolerance = INT8_TOLERANCE if reference is not None else FP32_TOLERANCE
        try:
            write(draft)
            network = open_(draft).eval()
            parity = compare_outputs(network, expected, self.images, tolerance)
            moved = None
            if reference is not None:
                moved = compare_outputs(network, reference, self.images)
            draft.replace(path)
        except ValueError as error:
            self.failures[label] = str(error)
            return
        finally:
            draft.unlink(missing_ok=True)
        self.shipped[label] = Shipped(path, runtime, network, parity, moved)


def try_capture(shelf: Shelf, network: nn.Module, label: str) -> ExportedProgram | None:
    """The network as one graph, or None after its failure was noted under the label."""
    try:
        return capture(network, shelf.sizes.image_shape)
    except ValueError as error:
        shelf.failures[label] = str(error)
        return None


def preprocessing_tree(
    config: NetworkConfig,
    network: Normalized,
    sizes: Sizes,
    pictures: PictureFormat | None,
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    """What must be done to a picture before the network reads it, and what its outputs mean.

    Args:    pictures: the geometry of evaluation; None: images are read in the size they have.
             class_names: in the order of the outputs, where they are known.
    """
    geometry: dict[str, Any] = {"resize_shorter_side": None, "centre_crop": None}
    if pictures is not None:
        shorter = math.floor(pictures.size / pictures.eval_crop)
        geometry = {"resize_shorter_side": shorter, "centre_crop": pictures.size}
        geometry["interpolation"] = pictures.interpolation
    channels = "RGB" if sizes.channels == 3 else "grey" if sizes.channels == 1 else None
    return {
        "model": {"name": config.name, "options": config.options},
        "input": {
            "name": INPUT,
            "shape": ["batch", *sizes.image_shape],
            "dtype": "float32",
            "range": [0.0, 1.0],
            "channels": channels,
        },
        "geometry": geometry,
        "normalisation": {
            "mean": [round(value, 7) for value in network.mean.flatten().tolist()],
            "std": [round(value, 7) for value in network.std.flatten().tolist()],
            "is_inside": {"onnx": True, "pt2": True, "safetensors": False},
        },
        "output": {"name": OUTPUT, "shape": ["batch", sizes.num_classes]},
        "class_names": None if class_names is None else list(class_names),
        "import_before_int8_pt2": INT8_OPERATORS,
    }


def write_json(path: Path, tree: Any) -> Path:
    """Write a tree as JSON, whole or not at all."""
    return write_atomic(path, json.dumps(tree, indent=2, allow_nan=False) + "\n")


def _open_with_timm(
    config: NetworkConfig, path: Path, whole: Normalized, sizes: Sizes
) -> Normalized:
    """The weights as timm's own users load them, behind the same normalisation."""
    import timm

    given = {"num_classes": sizes.num_classes, "in_chans": sizes.channels, **config.options}
    create = partial(timm.create_model, config.name.partition(".")[0], checkpoint_path=str(path))
    try:
        try:
            net = create(**{"img_size": sizes.size, **given})
        except TypeError:
            # Networks that work at any size do not take it.
            net = create(**given)
    except Exception as error:
        # Whatever timm raises on a file it cannot take, the person reads a line.
        raise ValueError(f"timm cannot load it ({first_line(error)})") from error
    fresh = Normalized(net, whole.mean.flatten().tolist(), whole.std.flatten().tolist())
    return fresh.eval().requires_grad_(False)


def draw_images(sizes: Sizes, seen: Tensor | None, num: int) -> Tensor:
    """[num,C,H,W] in [0,1]: images that were given, and noise where they do not suffice."""
    noise = torch.rand(num, *sizes.image_shape, generator=torch.Generator().manual_seed(0))
    return noise if seen is None else torch.cat([seen.contiguous(), noise])[:num].contiguous()
