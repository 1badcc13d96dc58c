import json

import pytest
import torch

from hard_fast.config import RunConfig
from hard_fast.runtime.configfile import CONFIG_FOLDER, Source, parse, read
from hard_fast.runtime.dist import World
from hard_fast.smoke import shrink
from hard_fast.train_config import check_batches
from hard_fast.trainer import Trainer


def parse_tree(tree):
    return parse(RunConfig, shrink(Source(tree, dict.fromkeys(tree, "run.toml"))))


def test_smoke_keeps_the_kinds_and_shrinks_the_rest(tiny_run):
    tree = tiny_run | {
        "smoke": True,
        "data": {"kind": "cifar10", "root": "nowhere"},
        "teacher": {"name": "resnet50", "pretrained": True, "checkpoint": "none.pth"},
        "student": {"name": "vit_cifar"},
    }
    config = parse_tree(tree)
    assert config.train.steps == 3 and config.train.epochs is None
    assert config.data.kind == "synthetic" and config.data.size == 32 and config.data.channels == 3
    assert config.teacher.name == "test_resnet" and config.teacher.checkpoint is None
    assert config.student.name == "vit_cifar" and config.student.options["depth"] == 1
    assert config.augmentor.kind == "affine"
    tree = json.loads(config.model_dump_json(exclude_none=True))
    assert parse_tree(tree) == config, "shrinking what is small already changes nothing"


def test_layer_dropout_stays_with_the_names_of_the_small_network(tiny_run):
    dropout = {"layers": ["blocks.11", "norm"]}
    student = {"name": "vit_small_patch16_224", "dropout": dropout}
    config = parse_tree(tiny_run | {"smoke": True, "student": student})
    assert config.student.name == "test_vit"
    assert config.student.dropout.layers == ["blocks.0", "norm"]


def test_every_shipped_run_shrinks_to_one_that_can_be_cut():
    runs = 0
    for file in sorted(CONFIG_FOLDER.rglob("*.toml")):
        source = read(str(file), ["smoke=true"])
        if "study" not in source.tree and "student" in source.tree:
            config = parse(RunConfig, shrink(source))
            check_batches(config.train, num_processes=2, group=2)
            runs += 1
    assert runs >= 2


@pytest.mark.parametrize("net", ["tiny", "vdvae", "rqvae"])
def test_a_run_with_a_large_generator_shrinks_to_seconds(tiny_run, tmp_path, net):
    maker = {"kind": "autoencoder", "net": net, "checkpoint": "none.pth"}
    tree = tiny_run | {"smoke": True, "data": {"kind": "cifar10", "root": "nowhere"}}
    tree["augmentor"] = {"kind": "compose", "parts": [maker, {"kind": "affine"}]}
    for name in ("teacher", "student"):
        tree[name] = {"name": "cifar_resnet20"}
    config = parse_tree(tree)
    results = Trainer(config, World(0, 1, torch.device("cpu"))).run()
    assert results["steps"] == 3 and set(results["phases"]) == {"student", "augmentor"}


def test_what_is_no_table_is_left_to_the_check_of_the_configuration():
    tree = {"smoke": True, "augmentor": {"kind": "compose", "parts": [1.0]}}
    tree["student"] = {"name": "python:a:b", "options": {"trunk": []}}
    small = shrink(Source(tree, {})).tree
    assert small["augmentor"] == tree["augmentor"] and small["student"] == tree["student"]


def test_several_teachers_stay_as_many(tiny_run):
    tree = tiny_run | {"smoke": True}
    also = {"name": "resnet50", "weight": 2.0, "checkpoint": "gone.pth", "precision": "bf16"}
    tree["teacher"] = tiny_run["teacher"] | {"also": [also], "weight": 3.0}
    small = shrink(Source(tree, {})).tree["teacher"]
    assert small["weight"] == 3.0
    assert small["also"] == [{"name": "test_resnet", "options": {}, "weight": 2.0}]
    # What is no table is for the configuration to refuse.
    tree["teacher"] = tiny_run["teacher"] | {"also": ["resnet50"]}
    assert shrink(Source(tree, {})).tree["teacher"]["also"] == ["resnet50"]
