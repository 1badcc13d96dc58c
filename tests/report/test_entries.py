import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hard_fast.augment.affine import Affine, AffineConfig
from hard_fast.augment.base import Augmentor
from hard_fast.augment.compose import Compose
from hard_fast.augment.noise import GaussianNoise, NoiseConfig
from hard_fast.bank import AugmentorBank, BankConfig
from hard_fast.checkpoint import Checkpointer
from hard_fast.phases import PhaseController, ThresholdConfig
from hard_fast.report.entries import Part, augmentor_parts, read_history, read_moments
from hard_fast.report.record import Record, read_record

ONLY = Part({"kind": "affine"}, "")


def _record(run_dir: Path, ends: list[int], config: str = "", reason: str = "") -> Record:
    """A run in which the augmentor's turn ended at these steps."""
    rows = [{"kind": "train", "step": 1000}]
    for step in ends:
        row = {"kind": "switch", "step": step, "from": "augmentor", "to": "student"}
        rows += [{**row, "step": step - 5, "from": "student"}, {**row, "reason": reason}]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run_dir / "config.toml").write_text(config)
    return read_record(run_dir)


def _fill(run_dir: Path, augmentor: Augmentor, means: list[float]) -> None:
    """Save the augmentor with each of these values as its every number."""
    bank = AugmentorBank(augmentor, run_dir / "bank", BankConfig(), seed=0)
    for mean in means:
        with torch.no_grad():
            for parameter in augmentor.parameters():
                parameter.fill_(mean)
        bank.save()


def _steps_and_values(record: Record, part: Part = ONLY) -> list[tuple[int, float]]:
    moments, _ = read_moments(record)
    history = read_history(moments, part, "mean|scale")
    return [(step, float(tensors["mean"][0])) for step, tensors in history]


def test_parts_of_chains_are_found_with_their_prefixes() -> None:
    inner = {"kind": "compose", "parts": [{"kind": "noise"}, {"kind": "affine"}]}
    config = {"augmentor": {"kind": "compose", "parts": [{"kind": "standard"}, inner]}}
    found = [(part.kind, part.prefix) for part in augmentor_parts(config)]
    assert found == [
        ("standard", "parts.0."),
        ("noise", "parts.1.parts.0."),
        ("affine", "parts.1.parts.1."),
    ]
    assert augmentor_parts({"augmentor": {"kind": "affine"}}) == [ONLY]


@pytest.mark.parametrize("augmentor", [None, "affine", 3, [], {"parts": ["x", 1]}])
def test_a_configuration_of_another_shape_has_no_parts(augmentor: object) -> None:
    assert augmentor_parts({"augmentor": augmentor}) == []


def test_each_entry_has_the_step_at_which_it_was_saved(tmp_path: Path) -> None:
    _fill(tmp_path, Affine(AffineConfig()), [0.0, 1.0, 2.0])
    assert _steps_and_values(_record(tmp_path, [40, 90])) == [(0, 0.0), (40, 1.0), (90, 2.0)]
    # No switch tells of the third: it is not of this run.
    assert _steps_and_values(_record(tmp_path, [40])) == [(0, 0.0), (40, 1.0)]


@pytest.mark.parametrize("on_timeout", ["keep", "identity", "bank"])
def test_turns_whose_augmentor_was_not_kept_have_no_entry(tmp_path: Path, on_timeout: str) -> None:
    options = {"l_max": 0.9, "consecutive": 1, "lag": 0, "max_student_steps": 1}
    schedule = ThresholdConfig(**options, max_augmentor_steps=1, on_timeout=on_timeout)
    controller, rows = PhaseController(schedule), [{"kind": "train", "step": 30}]
    # The second turn of the augmentor reaches its threshold, the others run out of steps.
    for step, error in enumerate([0.5, 0.5, 0.5, 0.95, 0.5, 0.5]):
        switch = controller.observe(step, torch.tensor(error))
        row = {"kind": "switch", "step": step + 1, "reason": switch.reason}
        rows.append(row | {"from": switch.before.value, "to": switch.after.value})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.toml").write_text(f'[schedule]\non_timeout = "{on_timeout}"\n')
    _fill(tmp_path, Affine(AffineConfig()), [0.0, 1.0])
    expected = 2 if on_timeout == "keep" else 4
    assert _steps_and_values(read_record(tmp_path)) == [(0, 0.0), (expected, 1.0)]


def test_damaged_entries_are_counted_and_left_out(tmp_path: Path) -> None:
    _fill(tmp_path, Affine(AffineConfig()), [0.0, 1.0, 2.0, 3.0, 4.0])
    whole = (tmp_path / "bank" / "entry_000001.safetensors").read_bytes()
    (tmp_path / "bank" / "entry_000001.safetensors").write_bytes(whole[:-7])
    (tmp_path / "bank" / "entry_000002.safetensors").write_bytes(b"")
    (tmp_path / "bank" / "entry_000003.safetensors").unlink()
    (tmp_path / "bank" / "entry_last.safetensors").write_bytes(whole)
    record = _record(tmp_path, [10, 20, 30, 40])
    assert read_moments(record)[1] == 2
    assert _steps_and_values(record) == [(0, 0.0), (40, 4.0)]


def test_an_entry_of_another_shape_is_left_out(tmp_path: Path) -> None:
    _fill(tmp_path, Affine(AffineConfig(covariance="full")), [5.0, 6.0])
    _fill(tmp_path, Affine(AffineConfig()), [0.0])
    assert _steps_and_values(_record(tmp_path, [10])) == [(0, 0.0)]


def test_a_run_without_a_bank_has_no_moments(tmp_path: Path) -> None:
    Checkpointer(tmp_path / "checkpoints").save(10, {"augmentor": Affine(AffineConfig())})
    assert read_moments(_record(tmp_path, [])) == ([], 0)


def test_only_the_tensors_of_the_part_are_read(tmp_path: Path) -> None:
    fixed = GaussianNoise(NoiseConfig(learned=False), 3, is_picture=True)
    learned = GaussianNoise(NoiseConfig(), 3, is_picture=True)
    chain = Compose([fixed, learned, Affine(AffineConfig())])
    _fill(tmp_path, chain, [0.25, 0.5])
    record = _record(tmp_path, [10])
    with torch.no_grad():
        learned.mean.fill_(0.75)
    Checkpointer(tmp_path / "checkpoints").save(20, {"augmentor": chain})
    moments, _ = read_moments(record)
    assert list(read_history(moments, Part({}, "parts.0."), "mean|std")) == []
    history = list(read_history(moments, Part({}, "parts.1."), "mean|std"))
    assert [step for step, _ in history] == [0, 10, 20]
    assert [tensors["mean"].flatten().tolist() for _, tensors in history] == [
        [0.25] * 3,
        [0.5] * 3,
        [0.75] * 3,
    ]
    assert history[0][1].keys() == {"mean", "std"}
    assert history[0][1]["std"].dtype == np.float64


def test_the_newest_checkpoint_ends_the_history(tmp_path: Path) -> None:
    augmentor = Affine(AffineConfig())
    _fill(tmp_path, augmentor, [0.0])
    record, checkpointer = _record(tmp_path, []), Checkpointer(tmp_path / "checkpoints", keep=9)
    checkpointer.save(100, {"augmentor": augmentor})
    # It is equal to what the bank holds, and so no moment of its own.
    assert _steps_and_values(record) == [(0, 0.0)]
    for step in (200, 300, 2000):
        with torch.no_grad():
            augmentor.mean.fill_(step)
        checkpointer.save(step, {"augmentor": augmentor, "other": Affine(AffineConfig())})
    assert _steps_and_values(record) == [(0, 0.0), (300, 300.0)]
    newest = tmp_path / "checkpoints" / "step_000000300.pt"
    for damaged in (newest.read_bytes()[:-200], b"", b"\x80\x02X not a checkpoint"):
        newest.write_bytes(damaged)
        assert _steps_and_values(record) == [(0, 0.0), (200, 200.0)]
