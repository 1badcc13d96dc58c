"""What the Triton kernels cost in registers, compiled for GPUs that need not be there.

`python tests/kernels/affine_mix/test_aot.py` prints the table of kernels/README.md.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

ARCHS = (80, 90, 100)
DTYPES = (("uint8", "bfloat16"), ("bfloat16", "bfloat16"), ("float32", "float32"))
NAMES = {"uint8": "u8", "bfloat16": "bf16", "float32": "fp32", "int64": "i64"}


def record_launches(image_dtype: str, out_dtype: str, num_mixed: int) -> list[tuple]:
    """What `kernel` launches forward and backward at 224 px, without launching it.

    Each is the kernel, its tensors (or None) and its constants.
    """
    import torch
    from hard_kernels.affine_mix import kernel

    launches = []

    def record(kernel, num_programs, tensors, image, mixture, constants):
        launches.append((kernel, [*tensors, image, *mixture], constants))

    kernel._launch = record
    last = {"memory_format": torch.channels_last, "device": "meta"}
    image = torch.empty(512, 3, 224, 224, dtype=getattr(torch, image_dtype), **last)
    made = 512 // num_mixed
    theta = torch.empty(made, num_mixed, 2, 3, device="meta")
    weight, index = None, None
    if num_mixed > 1:
        weight = torch.empty(made, num_mixed, 14, 14, device="meta")
        index = torch.empty(made, num_mixed, dtype=torch.int64, device="meta")
    case = (image, theta, weight, index, "zeros")
    grad = kernel.forward(*case, getattr(torch, out_dtype))
    kernel.backward(grad, *case, [False, True, weight is not None])
    if image_dtype != "uint8":
        kernel.backward(grad, *case, [True, True, weight is not None])
    return launches


def compile_launch(launch: tuple, config: Any, arch: int) -> Any:
    """What Triton compiles for a launch whose tensors start at multiples of 16 bytes."""
    import triton
    from triton.backends.compiler import GPUTarget

    tuned, tensors, constants = launch
    values = constants | config.kwargs
    names = tuned.fn.arg_names
    signature = dict.fromkeys(names, "constexpr") | {"num_images": "i32"}
    for name, tensor in zip(names, tensors, strict=False):
        if tensor is None:
            values[name] = None
        else:
            signature[name] = "*" + NAMES[str(tensor.dtype).removeprefix("torch.")]
    places = {name: (number,) for number, name in enumerate(names)}
    source = triton.compiler.ASTSource(
        tuned.fn,
        signature,
        {places[name]: values[name] for name in names if signature[name] == "constexpr"},
        {places[name]: [["tt.divisibility", 16]] for name in names if signature[name][0] == "*"},
    )
    options = {"num_warps": config.num_warps, "maxnreg": config.maxnreg, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def measure(compiled: Any) -> dict[str, Any]:
    """Registers and bytes of stack of a thread, bytes of shared memory, and what PTX flushes."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = usage[usage.index("Function") :]
    found = {name: int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL")}
    flushes = re.search(r"\b(add|sub|mul|fma)[a-z.]*\.ftz", compiled.asm["ptx"]) is not None
    return found | {"SHARED": compiled.metadata.shared, "flushes": flushes}


def list_rows() -> list[dict[str, Any]]:
    """A row for each kernel, pair of dtypes, number mixed, config and GPU.

    The configs that only tuning can choose are tried in one case and on one GPU.
    """
    rows = []
    for (image_dtype, out_dtype), num_mixed in itertools.product(DTYPES, (1, 4)):
        for launch in record_launches(image_dtype, out_dtype, num_mixed):
            tuned, tensors, _ = launch
            kernel = tuned.fn.__name__.removeprefix("_")
            if kernel == "backward":
                wanted = zip(("image", "theta", "weight"), tensors, strict=False)
                kernel += " of " + ", ".join(name for name, parts in wanted if parts is not None)
            for config, arch in itertools.product(tuned.configs, ARCHS):
                is_main = (image_dtype, num_mixed, arch) == ("uint8", 4, 90)
                if is_main or config is tuned.configs[0]:
                    row = {"kernel": kernel, "G": num_mixed}
                    row["dtypes"] = f"{NAMES[image_dtype]}, {NAMES[out_dtype]}"
                    row["tile"] = f"{config.kwargs['TILE_H']} rows, {config.num_warps} warps"
                    row["arch"] = f"sm_{arch}"
                    rows.append(row | measure(compile_launch(launch, config, arch)))
    return rows


def rows_of_a_process() -> list[dict[str, Any]]:
    # Triton reads the variable when it is imported, and here it is set.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, __file__, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_kernels_compile_and_fit_in_registers():
    rows = rows_of_a_process()
    assert {row["arch"] for row in rows} == {"sm_80", "sm_90", "sm_100"}
    for row in rows:
        assert row["STACK"] == row["LOCAL"] == 0, f"spills: {row}"
        assert row["SHARED"] <= 2048, row
        # Of a multiprocessor's 65536 registers, eight warps of eight pixels a thread or more.
        assert row["REG"] <= 240, row
        assert not row["flushes"], f"bytes are read as denormal floats, and would be zero: {row}"


def print_table() -> None:
    """Prints the registers of a thread as a table in Markdown."""
    names = ["kernel", "dtypes", "G", "tile"]
    archs = [f"sm_{arch}" for arch in ARCHS]
    lines: dict[tuple, dict[str, int]] = {}
    for row in list_rows():
        lines.setdefault(tuple(row[name] for name in names), {})[row["arch"]] = row["REG"]
    print("| " + " | ".join([*names, *archs]) + " |\n" + "| --- " * 7 + "|")
    for line, registers in lines.items():
        found = (registers[arch] if arch in registers else "" for arch in archs)
        print("| " + " | ".join(map(str, [*line, *found])) + " |")


if __name__ == "__main__":
    if sys.argv[1:] == ["--json"]:
        json.dump(list_rows(), sys.stdout)
    else:
        print_table()
