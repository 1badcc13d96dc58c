import importlib.util
import json

import pytest
import torch

from bench import distillers, step
from bench.gate import Disagreement, check
from bench.trainers import PHASES, Pair

KEYS = "bench case impl metric unit p20 p50 p80 n device torch threads commit"
TINY = Pair("test_resnet", "test_resnet", 32, 4)
HAS_TORCHDISTILL = importlib.util.find_spec("torchdistill") is not None


@pytest.fixture
def tiny(monkeypatch):
    bf16 = TINY._replace(precision="bf16")
    monkeypatch.setattr(step, "PAIRS", {"cpu": [TINY], "cuda": [bf16]})
    nothing = {key: step.Limits(0.0, 3) for key in step.LIMITS}
    monkeypatch.setattr(step, "LIMITS", nothing)


def run(tmp_path, *arguments, device="cpu"):
    """The exit code, and the rows where they were written."""
    file = tmp_path / "rows.json"
    code = step.main(["--device", device, "--json", str(file), *arguments])
    return code, json.loads(file.read_text()) if file.exists() else None


def test_a_call_times_every_implementation_and_every_phase(tiny, tmp_path, capsys):
    code, rows = run(tmp_path, "--peers")
    said = capsys.readouterr()
    assert code == 0
    for row in rows:
        assert set(KEYS.split()) <= set(row)
        assert 0 < row["p20"] <= row["p50"] <= row["p80"] and row["bench"] == "step"
    cases = {kind: f"{TINY.name}: {kind}" for kind in PHASES}
    for unit in ("ms", "cpu_ms"):
        found = [row for row in rows if row["unit"] == unit]
        assert all(row["n"] == 3 and row["metric"] == "step" for row in found)
        impls = {kind: [r["impl"] for r in found if r["case"] == cases[kind]] for kind in PHASES}
        peers = ["torchdistill"] * HAS_TORCHDISTILL
        assert impls.pop("KD") == ["timm", "eager", *peers, "hard_fast"]
        assert set(map(tuple, impls.values())) == {("hard_fast",)}
        assert [row["of_kd"] for row in found if row["impl"] == "hard_fast"][0] == 1.0
    assert ("torchdistill: left out" in said.err) != HAS_TORCHDISTILL
    assert all(kind in said.out for kind in PHASES) and "(goal >= 0.98)" in said.out


def test_flops_are_those_of_the_bound_but_for_the_first_layer(tiny, tmp_path):
    _, rows = run(tmp_path)
    counts = {row["case"].partition(": ")[2]: row for row in rows if row["unit"] == "flops"}
    share = {kind: row["p50"] / row["bound"] for kind, row in counts.items()}
    assert share["HARD augmentor phase"] == share["HARD joint phase"] == 1.0
    assert 0.98 < share["KD"] < 1.0 and share["KD"] == share["HARD student phase"]
    # The student is as large as the teacher: 4 forward passes of KD, 5 of the augmentor's phase.
    assert counts["HARD augmentor phase"]["bound"] * 4 == counts["KD"]["bound"] * 5


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("TEMPERATURE", 4.01, "loss 1"), ("CE_SHARE", 0.2, "loss 1"), ("OPTIM", None, "loss 2")],
)
def test_nothing_is_timed_where_losses_differ(
    name, value, said, tiny, tmp_path, capsys, monkeypatch
):
    # The peers' share of it; ours is read from the configuration of its run.
    monkeypatch.setattr(distillers, name, value or {"kind": "adamw", "lr": 1e-2})
    assert run(tmp_path) == (1, None)
    printed = capsys.readouterr()
    assert f"hard_fast: {said} is" in printed.err and "of eager" in printed.err
    assert printed.out == ""


def test_a_pair_in_bf16_passes_the_gate_in_fp32_first(tiny, tmp_path, capsys, monkeypatch):
    pair = TINY._replace(precision="bf16")
    monkeypatch.setattr(step, "PAIRS", {"cpu": [pair]})
    code, rows = run(tmp_path)
    assert code == 0 and all(row["case"].startswith(pair.name) for row in rows)
    # What bf16 would let pass.
    monkeypatch.setattr(distillers, "TEMPERATURE", 4.01)
    assert run(tmp_path)[0] == 1
    assert "hard_fast: loss 1 is" in capsys.readouterr().err


def test_the_gate_lets_rounding_pass_and_no_more():
    def build(*losses):
        left = iter(losses)
        return distillers.Distiller(lambda: None, lambda: next(left))

    check({"a": build(1.0, 0.9, 0.8), "b": build(1.000009, 0.9008, 0.8)}, TINY)
    for losses in ((1.00002, 0.9, 0.8), (1.0, 0.9, 0.802), (float("nan"), 0.9, 0.8)):
        with pytest.raises(Disagreement, match="b: loss"):
            check({"a": build(1.0, 0.9, 0.8), "b": build(*losses)}, TINY)


def test_utilisation_is_a_share_of_a_known_peak():
    setting = step.Setting(torch.device("cpu"), "NVIDIA H100 80GB HBM3", {})
    pair = TINY._replace(precision="bf16")
    # Half of 989 TFLOPS for 100 ms.
    assert step._utilisation(989e12 / 20, 100.0, pair, setting) == pytest.approx(0.5)
    pcie = setting._replace(device_name="NVIDIA H100 PCIe")
    assert step._utilisation(756e12 / 20, 100.0, pair, pcie) == pytest.approx(0.5)
    assert step._utilisation(1e12, 100.0, TINY, setting) is None
    unknown = setting._replace(device_name="another")
    assert step._utilisation(1e12, 100.0, pair, unknown) is None


def test_a_mistake_on_the_command_line_is_one_line(capsys):
    assert step.main(["--device", "cpu", "--threads", "0"]) == 2
    assert capsys.readouterr().err == "error: --threads 0: needs at least 1\n"


@pytest.mark.gpu
def test_a_call_on_a_gpu_compiles_and_says_what_is_utilised(tiny, tmp_path):
    code, rows = run(tmp_path, "--peers", device="cuda")
    assert code == 0
    found = {row["impl"]: row for row in rows if row["unit"] == "ms"}
    assert {"timm_compiled", "compiled", "hard_fast"} <= set(found)
    assert {row["unit"] for row in rows} == {"ms", "flops"}
    assert all("flop_utilisation" in row for row in found.values())
