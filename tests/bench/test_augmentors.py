import json

from bench import augmentors
from bench.trainers import Pair


def test_every_augmentor_has_its_rows_and_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(augmentors.PAIRS, "cpu", Pair("test_resnet", "test_resnet", 32, 4))
    monkeypatch.setitem(augmentors.SECONDS, False, 0.0)
    monkeypatch.setattr(augmentors, "FIXED", ("identity", "mixup"))
    small = {"affine": {"kind": "affine"}, "small VAE": augmentors._SMALL_VAE}
    monkeypatch.setattr(augmentors, "LEARNED", small)
    file = tmp_path / "rows.json"
    assert augmentors.main(["--device", "cpu", "--threads", "1", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    found = {(r["case"].partition(": ")[2], r["metric"], r["unit"]) for r in rows}
    both = {("student_step", "ms"), ("augmentor_step", "ms")}
    both |= {("student_saved", "bytes"), ("augmentor_saved", "bytes")}
    want = {(name, *metric) for name in small for metric in both}
    fixed = {("student_step", "ms"), ("student_saved", "bytes")}
    want |= {(name, *metric) for name in ("identity", "mixup") for metric in fixed}
    want |= {("patch_mix", "joint_step", "ms"), ("patch_mix", "joint_saved", "bytes")}
    assert found == want
    kept = {(r["case"].partition(": ")[2], r["metric"]): r["p50"] for r in rows}
    # Without gradients through the maker a student's step keeps what any does.
    assert kept["small VAE", "student_saved"] < kept["small VAE", "augmentor_saved"]
    assert "small VAE" in capsys.readouterr().out
