import json

import pytest

from bench import memory
from bench.trainers import PHASES, Pair

TINY = Pair("test_resnet", "test_resnet", 32, 2)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(memory, "PAIRS", {"cpu": TINY, "cuda": TINY})
    monkeypatch.setattr(memory, "NETWORKS", ["test_resnet"])


def run(tmp_path, device="cpu"):
    file = tmp_path / "rows.json"
    assert memory.main(["--device", device, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert all((row["bench"], row["unit"], row["n"]) == ("memory", "bytes", 1) for row in rows)
    return {(row["metric"], row["case"].removeprefix(f"{TINY.name}: ")): row["p50"] for row in rows}


@pytest.mark.slow
def test_a_call_writes_rows_of_optimizers_phases_and_teachers(tiny, tmp_path, capsys):
    found = run(tmp_path)
    per_parameter = {
        case.partition(", ")[2]: value
        for (metric, case), value in found.items()
        if metric == "state_per_parameter"
    }
    assert per_parameter["AdamW"] == pytest.approx(8.0, abs=0.01)
    assert per_parameter["Lion"] == pytest.approx(4.0, rel=0.05)
    assert per_parameter["Lion8bit"] < per_parameter["Lion"] / 2
    kept = {case: value for (metric, case), value in found.items() if metric != "weights"}
    for kind in PHASES:
        assert kept[f"{kind}, as it is"] > 0
    augmentor = "HARD augmentor phase"
    assert kept[f"{augmentor}, teacher checkpointed"] < kept[f"{augmentor}, as it is"]
    assert kept[f"{augmentor}, as it is"] > kept["KD, as it is"]
    weights = {case: value for (metric, case), value in found.items() if metric == "weights"}
    # Normalisation stays in fp32.
    share = weights["test_resnet, teacher in bf16"] / weights["test_resnet, as it is"]
    assert 0.5 <= share < 0.55
    said = capsys.readouterr()
    assert "(goal <= 1.1)" in said.out and "peak memory: left out" in said.err


@pytest.mark.gpu
def test_a_call_on_a_gpu_finds_peaks(tiny, tmp_path):
    found = run(tmp_path, "cuda")
    peaks = [value for (metric, _), value in found.items() if metric == "peak_memory"]
    assert peaks and all(value > 0 for value in peaks)
