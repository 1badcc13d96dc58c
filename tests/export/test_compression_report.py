import json

from rich.console import Console

from hard_fast.export.compression_report import network_row, report_table, write_report
from hard_fast.export.files import Shipped

TIMES = {"1": {"p50_ms": 1.25, "p95_ms": 2.0, "n": 20}, "32": {"p50_ms": 8.5, "p95_ms": 9, "n": 20}}
COSTS = {"parameters": 12, "flops": 24, "bytes": 48, "packed_bytes": 48}


def _tree(tmp_path):
    path = tmp_path / "student_ptq.pt2"
    path.write_bytes(b"0" * 2**20)
    parity = {"worst": 0.013, "tolerance": 0.1, "same_class": 1.0, "batches": [1]}
    shipped = Shipped(path, "torch.export", None, parity, moved=parity)
    student = {"cifar10": {"top1": 91.5, "agreement": 93.25}, "imagenet_real": {"real": 70.0}}
    rows = [
        network_row("teacher", COSTS, None, TIMES, {"cifar10": {"top1": 95.0}} | {
            "imagenet_real": {"real": 80.0}}),
        network_row("student", COSTS, None, TIMES, student | {"cifar10": {"top1": 92.25}}),
        network_row("pt2 int8 ptq", COSTS, shipped, TIMES, student),
    ]  # fmt: skip
    return {
        "model": "runs/a",
        "teacher": "cnn",
        "rows": rows,
        "gaps": {"usps": "no usps.h5 in data"},
        "failures": {"onnx": "layer 'x' cannot be written"},
        "limit": 100,
        "int8": {"ptq": {"num_images": 512}},
        "threads": 1,
        "versions": {"device": "a CPU"},
    }


def test_a_row_counts_the_file_or_what_lies_in_memory(tmp_path):
    teacher, _, file = _tree(tmp_path)["rows"]
    assert (teacher["parameters"], teacher["flops"], teacher["bytes"]) == (12, 24, 48)
    assert teacher["file"] is None and teacher["parity"] is None
    assert (file["file"], file["bytes"], file["runtime"]) == (
        "student_ptq.pt2",
        2**20,
        "torch.export",
    )


def test_the_files_hold_everything(tmp_path):
    tree = _tree(tmp_path)
    data, page = write_report(tree, tmp_path)
    assert json.loads(data.read_text()) == tree
    text = page.read_text()
    assert "a CPU, 1 thread, 100 samples of each test set." in text
    assert "| teacher | 1.2e-05 | 2.4e-05 | 4.58e-05 | 1.25 / 2 | 8.5 / 9 | 95.00 | 80.00 |" in text
    assert "| 91.50 | 70.00 | 93.25 | - | 1e-02 |" in text
    assert "pt2 int8 ptq loses 0.75 points on cifar10." in text and text.count("loses") == 1
    assert "int8 ptq: num_images 512." in text and "as it is, torch rounds" in text
    assert "- onnx: layer 'x' cannot be written" in text and "- usps: no usps.h5 in data" in text


def test_binary_weights_are_told_with_what_they_would_take(tmp_path):
    tree = _tree(tmp_path)
    assert "binary" not in write_report(tree, tmp_path)[1].read_text()
    tree["rows"][1] |= {"bytes": 2**21, "packed_bytes": 2**17}
    text = write_report(tree, tmp_path)[1].read_text()
    assert "With one bit for each it would take 0.125 MiB; no file here is packed so." in text


def test_the_table_fits_a_terminal(tmp_path):
    console = Console(width=80, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(report_table(_tree(tmp_path)))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if "pt2 int8 ptq" in line)
    assert "91.50" in row and "70.00" in row and "1.25" in row
