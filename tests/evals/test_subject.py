import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hard_fast.evals.subject import open_model, open_run
from hard_fast.evals.suites import PictureFormat
from hard_fast.evals.suites.imagenet_classes import read_wnids
from hard_fast.runtime.configfile import CONFIG_FOLDER, dump
from hard_fast.runtime.dist import World
from hard_fast.types import Outputs

WORLD = World(0, 1, torch.device("cpu"))
Write = Callable[..., Path]
RUN = {
    "data": {"kind": "cifar10", "root": "/nowhere"},
    "student": {"name": "cifar_resnet20", "pretrained": False},
    "objective": {"kind": "kd"},
    "optim": {"lr": 1e-3},
    "train": {"steps": 1, "precision": "fp32"},
}


@pytest.fixture
def write_run(tmp_path: Path, write_weights: Write) -> Write:
    """A function that writes the directory of a run, whose tables are laid over a common one's."""

    def write_run(name: str = "run", *, is_done: bool = True, **tables) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        teacher = {"name": "cifar_resnet20", "checkpoint": str(write_weights("cifar_resnet20", 7))}
        (folder / "config.toml").write_text(dump(RUN | {"teacher": teacher} | tables))
        if is_done:
            write_weights("cifar_resnet20").rename(folder / "student.safetensors")
        return folder

    return write_run


def test_a_run_gives_its_student_its_teacher_and_their_images(write_run: Write):
    subject = open_run(write_run(), None, [])
    assert subject.teacher_name == "cifar_resnet20" and subject.data.precision == "fp32"
    assert subject.pictures == PictureFormat(32, 0.875, "bilinear")
    # The data of the run are not asked for: there are none at its root.
    student, teacher = subject.build((3, 32, 32), 10, WORLD)
    image = torch.rand(2, 3, 32, 32)
    found = [network(image) for network in (student, teacher)]
    assert all(isinstance(one, Outputs) and one.logits_BK.shape == (2, 10) for one in found)
    assert not torch.equal(found[0].logits_BK, found[1].logits_BK)
    assert not student.training and not any(p.requires_grad for p in student.parameters())


def test_a_teacher_of_other_classes_is_not_compared(write_run: Write):
    layers = {"student_layer": "layer3", "teacher_layer": "layer3"}
    teacher = {"name": "cifar_resnet20", "num_classes": 7}
    run_dir = write_run(teacher=teacher, objective={"kind": "prototypes", **layers})
    subject = open_run(run_dir, None, [])
    assert subject.teacher is None and subject.teacher_name is None
    assert subject.build((3, 32, 32), 10, WORLD)[1] is None


def test_another_checkpoint_teacher_and_setting_can_be_given(
    write_run: Write, write_weights: Write
):
    run_dir, weights = write_run(), write_weights("cifar_resnet56")
    other = write_run("other")
    changed = ["student.name=cifar_resnet56", "student.mean=[0.5]"]
    subject = open_run(run_dir, str(weights), changed, str(other))
    assert subject.student.checkpoint == str(weights) and subject.student.mean == (0.5,)
    assert subject.teacher.checkpoint == str(other / "student.safetensors")
    assert subject.teacher_name == str(other)
    subject.build((3, 32, 32), 10, WORLD)
    assert open_run(run_dir, None, [], "none").teacher is None
    # The run's own teacher had other weights, and is not there to be told otherwise.
    told = [f"teacher.checkpoint={weights}", "teacher.mean=[0.4]", *changed]
    subject = open_run(run_dir, str(weights), told, "cifar_resnet56")
    assert subject.teacher.name == "cifar_resnet56" and subject.teacher.mean == (0.4,)
    subject.build((3, 32, 32), 10, WORLD)


def test_pictures_of_a_run_are_not_asked_for(write_run: Write, tmp_path: Path):
    data = {"kind": "pictures", "root": str(tmp_path / "mine"), "size": 32, "eval_crop": 0.5}
    run_dir = write_run(data=data)
    subject = open_run(run_dir, None, [])
    assert subject.pictures == PictureFormat(32, 0.5, "bilinear")
    assert subject.data.channels == 3 and subject.data.num_classes is None
    assert open_run(run_dir, None, ["data.num_classes=10"]).data.num_classes == 10
    # Empty class folders: nothing in them is looked at.
    for i in range(7):
        (tmp_path / "mine" / "train" / f"class{i}").mkdir(parents=True)
    assert open_run(run_dir, None, []).data.num_classes == 7


def test_a_run_that_left_nothing_or_no_classifier_is_refused(write_run: Write, tmp_path: Path):
    with pytest.raises(ValueError, match="no config.toml in it"):
        open_run(tmp_path, None, [])
    unfinished = write_run("unfinished", is_done=False)
    with pytest.raises(ValueError, match="the run is not finished, give --checkpoint FILE"):
        open_run(unfinished, None, [])
    line = {"kind": "line"}, {"kind": "kd", "distance": "mse"}
    with pytest.raises(ValueError, match="no classifier"):
        open_run(write_run("line", data=line[0], objective=line[1]), None, [])


def test_a_network_by_name_reads_what_its_makers_say(write_weights: Write):
    subject = open_model("tf_efficientnet_lite0", "some.pth", [])
    assert subject.pictures == PictureFormat(224, 0.875, "bicubic")
    assert (subject.data.channels, subject.data.num_classes) == (3, 1000)
    changed = ["data.size=96", "data.interpolation=bilinear", "data.num_classes=7"]
    changed += ["model.mean=[0.5,0.4,0.3]", "model.options.drop_rate=0.1", "data.eval_crop=1.0"]
    subject = open_model("tf_efficientnet_lite0", "some.pth", changed)
    assert subject.pictures == PictureFormat(96, 1.0, "bilinear")
    assert subject.student.mean == (0.5, 0.4, 0.3)
    assert subject.student.options == {"drop_rate": 0.1} and subject.data.num_classes == 7


def test_the_first_suite_says_what_a_small_net_reads(write_weights: Write, tmp_path: Path):
    weights = write_weights("mlp", hidden=[8])
    subject = open_model("mlp", str(weights), ["model.options.hidden=[8]"])
    assert subject.data.size is None
    student, teacher = subject.build((3, 32, 32), 10, WORLD)
    assert student(torch.rand(1, 3, 32, 32)).logits_BK.shape == (1, 10) and teacher is None


def test_published_weights_of_cifar_nets_are_found_below_the_data_root(tmp_path: Path):
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights" / "resnet56-4bfd9763.th"
    file.touch()
    subject = open_model("cifar_resnet56", None, [], data_root=tmp_path)
    assert subject.student.checkpoint == str(file) and subject.pictures.size == 32
    with pytest.raises(ValueError, match="no weights are given and no weights/resnet20-"):
        open_model("cifar_resnet20", None, [], data_root=tmp_path)
    taught = open_model("cifar_resnet56", None, [], "cifar_resnet56", tmp_path)
    assert taught.teacher.checkpoint == str(file) and taught.teacher_name == "cifar_resnet56"
    told = ["teacher.checkpoint=other.pth", "data.size=32"]
    taught = open_model("cifar_resnet56", None, told, "cifar_resnet20", tmp_path)
    assert taught.teacher.checkpoint == "other.pth"
    assert open_model("cifar_resnet56", None, [], "none", tmp_path).teacher is None


def test_settings_of_a_teacher_that_is_a_run_or_none_are_refused(write_run: Write):
    run_dir = write_run()
    for teacher in (str(run_dir), "none"):
        with pytest.raises(ValueError, match="teacher.std=.* is no network by name"):
            open_run(run_dir, None, ["teacher.std=[0.5]"], teacher)
        with pytest.raises(ValueError, match="teacher.std=.* is no network by name"):
            open_model("mlp", "x.pth", ["teacher.std=[0.5]"], teacher)


@pytest.mark.parametrize(
    ("name", "checkpoint", "overrides", "said"),
    [
        ("resnet10t", None, [], "model 'resnet10t': no weights are given; give --checkpoint FILE"),
        ("mlp", "x.pth", ["data.sise=3"], "data.sise = 3: unknown key; did you mean 'size'?"),
        ("mlp", "x.pth", ["size"], "an override looks like section.key=value"),
    ],
)
def test_mistakes_are_one_line(name, checkpoint, overrides, said):
    with pytest.raises(ValueError, match=said) as caught:
        open_model(name, checkpoint, overrides)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_network_is_refused_with_its_name(write_weights: Write):
    subject = open_model("cifar_resnet20", str(write_weights("cifar_resnet56")), [])
    with pytest.raises(ValueError, match="cifar_resnet20: .*does not fit the network") as caught:
        subject.build((3, 32, 32), 10, WORLD)
    assert "\n" not in str(caught.value)


def test_the_label_map_of_caltech_names_imagenets_classes_once():
    """Folders were matched by meaning: the ImageNet classes that are the folder's object or a kind
    of it (a wallaby is a kangaroo, a notebook a laptop, six classes are butterflies). Without a
    counterpart: bonsai, brain, buddha, chandelier, hawksbill, helicopter, menorah, minaret,
    sunflower."""
    tree = json.loads((CONFIG_FOLDER / "label_maps" / "caltech25.json").read_text())
    outputs = [wnid for found in tree.values() for wnid in found]
    assert len(tree) == 16 and list(tree) == sorted(tree)
    assert len(outputs) == len(set(outputs)) == 25 and set(outputs) <= set(read_wnids())


def test_several_teachers_are_one(write_run: Write, write_weights: Write, tmp_path: Path):
    paths = [str(write_weights("cifar_resnet20", seed)) for seed in (3, 4)]
    teacher = {"name": "cifar_resnet20", "checkpoint": paths[0]}
    also = {"name": "cifar_resnet20", "checkpoint": paths[1], "precision": "bf16"}
    subject = open_run(write_run(teacher=teacher | {"also": [also]}), None, [])
    assert subject.teacher_name == "cifar_resnet20 + cifar_resnet20"
    image = torch.rand(2, 3, 32, 32)
    together = subject.build((3, 32, 32), 10, WORLD)[1](image).logits_BK.softmax(1)
    apart = []
    for number in range(2):
        told = [f"teacher.checkpoint={paths[number]}", "teacher.also=[]"]
        one = open_run(write_run(f"alone{number}", teacher=teacher), None, told)
        apart.append(one.build((3, 32, 32), 10, WORLD)[1](image).logits_BK.softmax(1))
    torch.testing.assert_close(together, sum(apart) / 2, atol=0.02, rtol=0)
    assert not torch.allclose(together, apart[0], atol=0.02)


def test_each_of_several_teachers_needs_weights(write_weights: Write, tmp_path: Path):
    path = write_weights("cifar_resnet20")
    told = ["teacher.name=cifar_resnet20", f"teacher.checkpoint={path}"]
    open_model("cifar_resnet20", str(path), told)
    with pytest.raises(ValueError, match="^teacher 'cifar_resnet56': no weights are given"):
        open_model("cifar_resnet20", str(path), [*told, 'teacher.also=[{name="cifar_resnet56"}]'])
    root = tmp_path / "root"
    (root / "weights").mkdir(parents=True)
    write_weights("cifar_resnet56").rename(root / "weights" / "resnet56-1.th")
    also = 'teacher.also=[{name="cifar_resnet56"}]'
    subject = open_model("cifar_resnet20", str(path), [*told, also], None, root)
    assert subject.teacher.also[0].checkpoint == str(root / "weights" / "resnet56-1.th")
