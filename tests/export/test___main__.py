import json
import shutil
import subprocess
import sys

import pytest

from hard_fast.export import measures
from hard_fast.export.__main__ import main
from hard_fast.export.formats import OnnxNetwork, open_pt2


@pytest.mark.slow
def test_a_run_ships_in_every_format_and_in_8_bits(finished_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measures, "_SECONDS", 0.0)
    out = tmp_path / "out"
    command = ["--run", str(finished_run), "--out", str(out), "--int8", "ptq,qat"]
    command += ["--suites", "own", "--threads", "1", "--data-root", str(tmp_path)]
    assert main([*command, "int8.steps=6", "int8.batch_size=8", "int8.num_images=48"]) == 0
    assert "own" in capsys.readouterr().out
    tree = json.loads((out / "export.json").read_text())
    rows = {row["name"]: row for row in tree["rows"]}
    assert list(rows) == [
        "teacher", "student", "safetensors", "onnx", "pt2",
        "onnx int8 ptq", "pt2 int8 ptq", "onnx int8 qat", "pt2 int8 qat",
    ]  # fmt: skip
    assert {path.name for path in out.iterdir()} == {
        "preprocessing.json", "export.json", "export.md", "student.safetensors", "student.onnx",
        "student.pt2", "student_ptq.onnx", "student_ptq.pt2", "student_qat.onnx", "student_qat.pt2",
    }  # fmt: skip
    for name in ("safetensors", "onnx", "pt2"):
        assert rows[name]["parity"]["worst"] <= 1e-4
        assert rows[name]["suites"]["own"]["top1"] == rows["student"]["suites"]["own"]["top1"]
    for name in ("onnx int8 ptq", "pt2 int8 qat"):
        assert rows[name]["moved"]["worst"] > 0 and rows[name]["parity"]["worst"] <= 0.3
    assert tree["int8"]["qat"]["augmentors"] > 0 and tree["int8"]["qat"]["teacher"] == "cnn"
    text = (out / "preprocessing.json").read_text()
    for network in (OnnxNetwork(out / "student_qat.onnx", 1), open_pt2(out / "student_qat.pt2")):
        assert network.preprocessing == text


def test_mistakes_end_in_one_line(finished_run, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out"), "--data-root", str(tmp_path)]
    run = ["--run", str(finished_run), *out]
    other = str(tmp_path / "teacher/student.safetensors")
    cases = {
        "--formats tf: unknown; choose from safetensors, onnx, pt2": [*run, "--formats", "tf"],
        "--int8 awq: unknown; choose from ptq, qat": [*run, "--int8", "awq"],
        "int8.steps": [*run, "int8.steps=0"],
        "did you mean 'steps'": [*run, "int8.step=3"],
        "does not fit the network": [*run, "--checkpoint", other],
        "no config.toml": ["--run", str(tmp_path / "nothing"), *out],
        "no weights": ["--model", "cifar_resnet20", *out],
        "no such suite": [*run, "--suites", "cifar11"],
    }  # fmt: skip
    for said, command in cases.items():
        assert main(command) == 2, said
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_format_that_fails_leaves_the_others_and_its_reason(finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr(measures, "_SECONDS", 0.0)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = ["--run", str(finished_run), "--out", str(out), "--formats", "onnx,pt2"]
    assert main([*command, "--data-root", str(tmp_path)]) == 1
    tree = json.loads((out / "export.json").read_text())
    reason = "onnx: onnxruntime is not installed; pip install hard-fast[export]"
    assert tree["failures"] == {"onnx": reason}
    assert (out / "student.pt2").is_file() and not (out / "student.onnx").exists()


def test_importing_it_loads_nothing_that_only_an_export_needs():
    heavy = ["onnx", "onnxruntime", "onnxscript", "torchao", "timm"]
    code = f"import sys, hard_fast.export.__main__; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
