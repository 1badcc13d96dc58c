import json
import math
from pathlib import Path

import pytest
import torch

from hard_fast.data import Arrays
from hard_fast.evals.results import result_tree, write_result
from hard_fast.evals.suites import Loaded
from hard_fast.evals.survey import Findings, Opened

PART = Arrays(torch.zeros(3, 1, 2, 2).byte(), torch.zeros(3).long())
OPENED = Opened({"cifar10": Loaded({"test": PART}, 10)}, {"mnist": "no idx files in /data"})
OURS = {"cifar10": {"top1": 80.0, "nll": math.nan}}


def tree(findings: Findings, **given) -> dict:
    options = {"model": "net", "teacher": None, "paper": None, "limit": None, "versions": {}}
    return result_tree(findings, OPENED, **(options | given))


def test_the_tree_holds_suites_gaps_parts_teacher_and_the_papers_row():
    parts = {"cifar10": {"test": OURS["cifar10"]}}
    findings = Findings(OURS, {"cifar10": {"top1": 90.0}}, parts, parts)
    found = tree(findings, teacher="cnn", paper="CIFAR R18->ViT KD", limit=3, versions={"a": "1"})
    assert found["suites"] == OURS and found["gaps"] == OPENED.gaps and found["parts"] == parts
    assert found["model"] == "net" and found["versions"] == {"a": "1"}
    assert found["num"] == {"cifar10": 3} and found["limit"] == 3
    assert found["teacher"]["model"] == "cnn"
    assert found["teacher"]["suites"] == {"cifar10": {"top1": 90.0}}
    assert found["paper"] == {"row": "CIFAR R18->ViT KD", "suites": {"cifar10": {"top1": 67.9}}}


def test_the_papers_row_stands_beside_gaps_too():
    found = tree(Findings({}, None, {}, None), paper="MNIST CNN->MLP KD")
    assert found["paper"]["suites"] == {"mnist": {"top1": 98.6}} and found["teacher"] is None


def test_an_unknown_row_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="MNIST CNN->MLP KD"):
        tree(Findings({}, None, {}, None), paper="MNIST CNN-MLP KD")


def test_the_file_is_json_without_nan(tmp_path: Path):
    path = write_result(tree(Findings(OURS, None, {}, None)), tmp_path / "deep" / "found.json")
    assert json.loads(path.read_text())["suites"] == {"cifar10": {"top1": 80.0, "nll": None}}
