import pytest
import torch

from hard_fast.augment.copies import Copies
from hard_fast.config import RunConfig
from hard_fast.data import load_data
from hard_fast.evals.contenders import (
    build_contender,
    build_contenders,
    check_alike,
    open_learned,
    published_rows,
)
from hard_fast.runtime.configfile import Source, merge, parse
from hard_fast.train import train

CPU = torch.device("cpu")
TREE = {
    "data": {"kind": "synthetic", "size": 8, "channels": 3, "num_train": 32, "num_test": 16},
    "teacher": {"name": "mlp", "options": {"hidden": [8]}},
    "student": {"name": "mlp", "options": {"hidden": [8]}},
    "objective": {"kind": "kd"},
    "optim": {"lr": 0.1},
    "train": {"steps": 3, "batch_size": 8, "device": "cpu", "tensorboard": False},
}


def config(**own):
    tree = merge(TREE, own)
    return parse(RunConfig, Source(tree, {}))


def data():
    return load_data(config().data, CPU)


def test_the_papers_augmentations_stand_beside_cropped_and_flipped_originals():
    rows = published_rows(config())
    assert list(rows) == [
        *("identity", "flip", "crop_flip", "cutout", "autoaugment", "mixup", "cutmix"),
        *("pick_student", "pick_teacher"),
    ]
    assert {row.augmentor.base.crop_px for row in rows.values()} == {4}
    assert rows["flip"].augmentor.part.crop_px == 0 and rows["crop_flip"].augmentor.part.flip
    assert rows["pick_teacher"].augmentor.num == 2 and rows["pick_teacher"].objective.keep == 0.5
    assert rows["cutmix"].objective.keep == 1.0


def test_a_base_of_the_runs_own_is_kept():
    maker = {"kind": "copies", "base": {"kind": "identity"}, "part": {"kind": "mixup"}}
    rows = published_rows(config(augmentor=maker, objective={"kind": "cutmixpick"}))
    assert {row.augmentor.base.kind for row in rows.values()} == {"identity"}


def test_who_judges_needs_weights(tmp_path, caplog):
    here = {"run_dir": str(tmp_path)}
    rows = published_rows(config().model_copy(update=here))
    found = build_contenders(rows, [], data(), CPU)
    assert len(found) == 8 and "pick_student: left out" in caplog.text
    assert found[-1].name == "pick_teacher" and found[-1].judge is None
    train(config(**here))
    judged = build_contender("pick_student", rows["pick_student"], data(), CPU)
    assert judged.judge is not None and judged.keep == 0.5
    assert not any(module.training for module in judged.judge.modules())


def test_learned_augmentors_of_a_run_are_drawn_from_its_bank(tmp_path, caplog):
    maker = config(
        run_dir=str(tmp_path / "hard"),
        augmentor={"kind": "affine"},
        augmentor_optim={"lr": 0.5},
        objective={"kind": "hard"},
        schedule={
            "kind": "threshold", "consecutive": 1, "lag": 0, "max_student_steps": 1,
            "max_augmentor_steps": 1, "min_student_steps": 0,
        },
    )  # fmt: skip
    assert build_contender("hard", maker, data(), CPU) is None and "left out" in caplog.text
    train(maker)
    found = open_learned(tmp_path / "hard", data(), CPU)
    assert found.name == "hard" and isinstance(found.augmentor, Copies)
    assert not found.augmentor.part.training
    seen = set()
    for step in range(20):
        found.prepare(step)
        seen.add(tuple(found.augmentor.part.mean.tolist()))
    assert len(seen) == len(list((tmp_path / "hard" / "bank").glob("*.safetensors"))) == 2


def test_a_run_without_learned_augmentors_is_a_mistake_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.toml in it"):
        open_learned(tmp_path, data(), CPU)
    train(config(run_dir=str(tmp_path / "kd")))
    with pytest.raises(ValueError, match="learns nothing"):
        open_learned(tmp_path / "kd", data(), CPU)


def test_one_teacher_and_one_data_set_are_ranked():
    bare = {key: value for key, value in TREE.items() if key != "teacher"}
    alone = parse(RunConfig, Source({**bare, "objective": {"kind": "ce"}}, {}))
    assert check_alike({"teacher": alone, "kd": config()}).teacher.name == "mlp"
    with pytest.raises(ValueError, match="there is none"):
        check_alike({"teacher": alone})
    with pytest.raises(ValueError, match=r"rows\.b: has another teacher"):
        check_alike({"a": config(), "b": config(teacher={"options": {"hidden": [16]}})})
    layers = {"student_layer": "a", "teacher_layer": "b"}
    other = {"teacher": {"num_classes": 5}, "objective": {"kind": "prototypes", **layers}}
    with pytest.raises(ValueError, match=r"rows\.c: teacher\.num_classes"):
        check_alike({"a": config(), "c": config(**other)})
