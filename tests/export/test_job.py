import json

import pytest
import torch
from PIL import Image

from hard_fast.config import RunConfig
from hard_fast.evals.subject import InputConfig, Subject, open_run
from hard_fast.export import measures
from hard_fast.export.files import Sizes
from hard_fast.export.job import Order, export, write_preprocessing
from hard_fast.export.quantize import Int8Config
from hard_fast.models.zoo import NetworkConfig
from hard_fast.runtime.configfile import parse, read
from hard_fast.runtime.dist import World

WORLD = World(0, 1, torch.device("cpu"))


@pytest.fixture
def order(finished_run, tmp_path, monkeypatch):
    """Of the run's weights alone."""
    monkeypatch.setattr(measures, "_SECONDS", 0.0)
    return {
        "subject": open_run(finished_run, None, ()),
        "run": parse(RunConfig, read(str(finished_run / "config.toml"))),
        "settings": Int8Config(num_images=32, steps=4, batch_size=8),
        "formats": ["safetensors"],
        "int8": [],
        "suites": ["own", "own+corrupted:contrast@3", "cifar10_1"],
        "data_root": tmp_path,
        "out": tmp_path / "out",
    }


def test_own_test_sets_clean_and_corrupted_and_a_gap(order, monkeypatch):
    tree = export(Order(**order, limit=12), WORLD)
    teacher, student, file = tree["rows"]
    assert [row["name"] for row in tree["rows"]] == ["teacher", "student", "safetensors"]
    assert set(student["suites"]) == {"own", "own+corrupted:contrast@3"}
    assert file["suites"] == student["suites"] != teacher["suites"]
    assert "contrast_error" in student["suites"]["own+corrupted:contrast@3"]
    assert "agreement" in student["suites"]["own"] and "agreement" not in teacher["suites"]["own"]
    assert list(tree["gaps"]) == ["cifar10_1"] and tree["limit"] == 12 and not tree["failures"]
    assert teacher["parameters"] != student["parameters"] == file["parameters"]
    told = json.loads((order["out"] / "preprocessing.json").read_text())
    # Its images are arrays, which nobody resizes.
    assert told["geometry"] == {"resize_shorter_side": None, "centre_crop": None}


def test_data_of_another_size_are_refused(order):
    wrong = order | {"run": None, "suites": [], "formats": ["onnx"], "int8": ["ptq"]}
    data = {"kind": "synthetic", "size": 8, "channels": 1}
    wrong["settings"] = Int8Config.model_validate({"data": data})
    with pytest.raises(ValueError, match="int8.data: images are 1x8x8, and the network reads 1x16"):
        export(Order(**wrong), WORLD)
    wrong["settings"] = Int8Config()
    with pytest.raises(ValueError, match="int8.data: needed for int8 and own"):
        export(Order(**wrong), WORLD)


def test_8_bits_without_a_format_that_holds_them_are_refused(order):
    with pytest.raises(ValueError, match="--int8: 8 bits ship as onnx or pt2; add one"):
        export(Order(**order | {"suites": [], "int8": ["ptq"]}), WORLD)


def test_a_run_learns_from_data_of_its_own_classes(order):
    data = {"kind": "synthetic", "size": 16, "channels": 1, "num_classes": 4}
    settings = Int8Config.model_validate({"data": data})
    other = order | {"suites": [], "formats": ["onnx"], "int8": ["qat"], "settings": settings}
    with pytest.raises(ValueError, match="int8.data: has 4 classes, and the run's student 10"):
        export(Order(**other), WORLD)


def test_class_names_are_those_of_the_outputs(order, tmp_path):
    for part in ("train", "val"):
        for name in ("ant", "bee"):
            folder = tmp_path / "insects" / part / name
            folder.mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(folder / "0.jpg")
    data = {"kind": "pictures", "root": str(tmp_path / "insects"), "size": 16, "val_share": 0.0}
    student = {"name": "mlp", "options": {"hidden": [4]}}
    config = NetworkConfig.model_validate(student)
    for num, names in ((2, ["ant", "bee"]), (7, None)):
        sizes = Sizes(channels=3, size=16, num_classes=num)
        subject = Subject("mlp", config, InputConfig(size=16, channels=3, num_classes=num))
        settings = Int8Config.model_validate({"data": data})
        one = Order(**order | {"subject": subject, "run": None, "settings": settings})
        tree = json.loads(write_preprocessing(one, sizes.build(config, frozen=True), sizes))
        assert tree["class_names"] == names


def test_a_student_whose_images_nobody_knows_says_which_key(order):
    subject = order["subject"]
    unknown = subject.data.model_copy(update={"size": None})
    bare = order | {"suites": [], "subject": type(subject)(
        subject.name, subject.student, unknown, subject.teacher, subject.teacher_name
    )}  # fmt: skip
    with pytest.raises(ValueError, match="data.size: .* does not say it; give data.size=N"):
        export(Order(**bare), WORLD)
