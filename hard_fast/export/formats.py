"""The files a network ships as, and how each is opened again by its own runtime.

Letters: B images of a batch, C channels, H rows, W columns, K classes.
"""

import contextlib
import importlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from hard_fast.runtime.files import write_atomic
from hard_fast.types import Outputs

Format = Literal["safetensors", "onnx", "pt2"]
OPSET = 23
"""Of the ONNX files: the newest whose operators onnxruntime has had since its release 1.22."""
PREPROCESSING = "preprocessing"
"""The entry of a file that holds what its input must be, as JSON."""
INT8_OPERATORS = "torch.ao.quantization.fx._decomposed"
"""The module to import before an int8 .pt2 is opened."""
INPUT, OUTPUT = "image", "logits"
_NEEDS_EXTRA = "pip install hard-fast[export]"


def capture(network: nn.Module, image_shape: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """The network as one graph for batches of any size.

    Args:    network: in eval mode; [B,C,H,W] fp32 images in [0,1] to logits [B,K].
             image_shape: [C,H,W].
    Raises:  ValueError, one line, that names the layer which cannot be captured, or says that the
             network returns more than logits.
    """
    assert not network.training
    # Two images: torch takes one for a batch that is always one.
    images = torch.zeros(2, *image_shape)
    batch = ({0: torch.export.Dim("batch")},)
    try:
        with quiet():
            program = torch.export.export(network, (images,), dynamic_shapes=batch)
    except Exception as error:
        # What a network of any origin raises while it is traced is anything.
        raise ValueError(_capture_failure(error, network)) from error
    if len(program.graph_signature.user_outputs) != 1:
        raise ValueError("the network returns more than logits; let it return one tensor [B,K]")
    for node in program.graph.nodes:
        # Lines of source code with their folders: of no use where the file goes.
        node.meta.pop("stack_trace", None)
    return program


def write_pt2(program: torch.export.ExportedProgram, path: Path, preprocessing: str) -> Path:
    """Write a captured network as torch's own archive, whole or not at all."""
    buffer = io.BytesIO()
    with quiet():
        extra = {f"{PREPROCESSING}.json": preprocessing}
        torch.export.save(program, buffer, extra_files=extra)
    return write_atomic(path, buffer.getvalue())


def write_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    preprocessing: str,
    opset: int = OPSET,
) -> Path:
    """Write a captured network as ONNX, whole or not at all.

    Raises:  ValueError, one line: an operator without a counterpart and its layer, an opset that is
             not known, a network beyond the 2 GiB of one file, or packages that are missing.
    """
    onnx = import_onnx()
    newest = onnx.defs.onnx_opset_version()
    if not 18 <= opset <= newest:
        raise ValueError(f"--opset {opset}: must be from 18 to {newest}, what this onnx knows")
    names = {"input_names": [INPUT], "output_names": [OUTPUT], "opset_version": opset}
    try:
        with quiet():
            made = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    except Exception as error:
        raise ValueError(_onnx_failure(error, program)) from error
    model = made.model_proto
    _strip(model)
    _name_batch(model)
    onnx.helper.set_model_props(model, {PREPROCESSING: preprocessing})
    try:
        onnx.checker.check_model(model)
        payload = model.SerializeToString()
    except Exception as error:
        raise ValueError(f"{path.name}: not a valid ONNX file ({first_line(error)})") from error
    return write_atomic(path, payload)


class OnnxNetwork(nn.Module):
    """An ONNX file in onnxruntime on the CPU, called as the network is that it was made from.

    Args:    num_threads: of one call.
    Raises:  ValueError, one line, if onnxruntime cannot read the file.
    """

    def __init__(self, path: Path, num_threads: int) -> None:
        super().__init__()
        import_onnx()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ValueError(f"{path}: onnxruntime cannot read it ({first_line(error)})") from error
        kept = self._session.get_modelmeta().custom_metadata_map
        self.preprocessing = kept[PREPROCESSING] if PREPROCESSING in kept else ""

    def forward(self, image_BCHW: Tensor) -> Outputs:
        """Logits [B,K] of images in [0,1]."""
        # The file wants [B,C,H,W] in plain memory.
        image = image_BCHW.detach().float().contiguous().numpy()
        (logits,) = self._session.run([OUTPUT], {INPUT: image})
        return Outputs(torch.from_numpy(logits), {})


class Graph(nn.Module):
    """A captured graph, which is that of evaluation whatever `train` and `eval` are told."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.captured = graph

    def train(self, mode: bool = True) -> Self:
        """Note the mode, and leave the graph alone, which would refuse to change."""
        self.training = mode
        return self

    def forward(self, image_BCHW: Tensor) -> Any:
        """Logits [B,K] of images in [0,1]."""
        return self.captured(image_BCHW)


class Program(Graph):
    """A captured graph, called as every network is that is trained or scored."""

    def __init__(self, graph: nn.Module, preprocessing: str = "") -> None:
        super().__init__(graph)
        self.preprocessing = preprocessing

    def forward(self, image_BCHW: Tensor) -> Outputs:
        """Logits [B,K] of images in [0,1]."""
        return Outputs(self.captured(image_BCHW), {})


def open_pt2(path: Path) -> Program:
    """A torch archive, opened without the code of the network.

    Raises:  ValueError, one line, if torch cannot read the file.
    """
    kept = {f"{PREPROCESSING}.json": ""}
    # Importing it makes the operators of int8 networks known to torch.
    importlib.import_module(INT8_OPERATORS)
    try:
        with quiet():
            program = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=kept)
    except Exception as error:
        raise ValueError(f"{path}: torch cannot read it ({first_line(error)})") from error
    (preprocessing,) = kept.values()
    text = preprocessing.decode() if isinstance(preprocessing, bytes) else preprocessing
    return Program(program.module(), text)


def import_onnx() -> Any:
    """The onnx package, once all that ONNX files need is there.

    Raises:  ValueError that says what to install.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"onnx: {error.name} is not installed; {_NEEDS_EXTRA}") from error
    return onnx


def import_torchao() -> None:
    """See that torchao is there.

    Raises:  ValueError that says what to install.
    """
    try:
        with quiet():
            import torchao.quantization.pt2e  # noqa: F401
    except ImportError as error:
        raise ValueError(f"int8: {error.name} is not installed; {_NEEDS_EXTRA}") from error


def _strip(model: Any) -> None:
    """Take from a model what names the source code it was made from."""
    graph = model.graph
    nodes = [*graph.node, *(node for function in model.functions for node in function.node)]
    values = (*graph.value_info, *graph.initializer, *graph.input, *graph.output)
    for owner in (model, graph, *nodes, *values):
        del owner.metadata_props[:]
    for node in nodes:
        node.doc_string = ""


def _name_batch(model: Any) -> None:
    """Call the first dimension `batch`, for which torch has a number."""
    number = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == number:
                dim.dim_param = "batch"


def _capture_failure(error: Exception, network: nn.Module) -> str:
    if "marked batch as dynamic" in str(error):
        return (
            "a layer fixes the number of images in a batch; let its reshape or view take it from "
            "the input, as in x.reshape(len(x), -1)"
        )
    names = {id(module): name for name, module in network.named_modules() if name}
    layers = [names[id(m)] for m in _modules_of(error) if id(m) in names]
    layer = f"layer {layers[-1]!r}" if layers else "the network"
    hint = ""
    if "data-dependent" in str(error):
        hint = "; it decides by the values of a tensor, write it with torch.where"
    return f"{layer} cannot be captured by torch.export: {first_line(error)}{hint}"


def _onnx_failure(error: Exception, program: torch.export.ExportedProgram) -> str:
    """The operator that has no counterpart, and the layers which use it."""
    said = "\n".join(str(e) for e in _chain(error))
    found = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", said)
    if found is None:
        return f"onnx: cannot be written: {first_line(list(_chain(error))[-1])}"
    operator = found[1]
    stem = operator.rpartition(".")[2]
    layers = [_layer(node.meta) for node in program.graph.nodes if stem in str(node.target)]
    where = f" in layer {layers[0]!r}" if layers and layers[0] else ""
    return f"onnx: operator {operator}{where} has no counterpart; replace it, or leave onnx out"


def _layer(meta: Mapping[str, Any]) -> str:
    stack = list(meta["nn_module_stack"].values()) if "nn_module_stack" in meta else []
    return stack[-1][0].removeprefix("L['self'].") if stack else ""


def _modules_of(error: Exception) -> Iterator[nn.Module]:
    """The modules that were running when an error was raised, from the outermost inwards."""
    for one in reversed(list(_chain(error))):
        trace = one.__traceback__
        while trace is not None:
            local = trace.tb_frame.f_locals
            if "self" in local and isinstance(local["self"], nn.Module):
                yield local["self"]
            trace = trace.tb_next


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def first_line(error: BaseException) -> str:
    """What an error is called and the first thing it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = re.sub(r"\x1b\[\d*m", "", lines[0]) if lines else ""
    return f"{type(error).__name__}: {text[:200]}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what torch and its exporters print of their own work and deprecations."""
    logger = logging.getLogger("torch")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        said = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
