import torch
from safetensors.torch import load_file

from hard_fast.runtime.configfile import dump, merge
from hard_fast.runtime.dist import World
from hard_fast.train import load_config
from hard_fast.trainer import Trainer

ALONE = World(0, 1, torch.device("cpu"))


def trainer_of(tree, tmp_path, **changes):
    path = tmp_path / "in.toml"
    path.write_text(dump(merge(tree, changes)))
    return Trainer(load_config(str(path), []), ALONE)


def test_student_and_average_are_scored_apart_and_the_average_is_what_ships(tiny_run, tmp_path):
    trainer = trainer_of(tiny_run, tmp_path, average={"decay": 0.5})
    examiner, weight = trainer.examiner, next(trainer.student.parameters())
    before = weight.detach().clone()
    averages = trainer.engine.average.state_dict()["averages"]
    for name, value in averages.items():
        if name.endswith("weight"):
            value.fill_(7.0)
    trainer.engine.average._num_updates = 1
    row = examiner.row(0, is_last=False)
    assert {"top1", "average_top1", "val_top1", "average_val_top1"} <= row.keys()
    assert row["nll"] != row["average_nll"]
    metrics, teacher = examiner.finish()
    assert metrics["nll"] == row["average_nll"] and teacher.keys() == metrics.keys()
    shipped = load_file(tmp_path / "run" / "student.safetensors")
    weights = [value for name, value in shipped.items() if name.endswith("weight")]
    assert weights and all((value == 7.0).all() for value in weights)
    assert torch.equal(weight, before), "the run goes on with its own weights"


def test_a_picture_is_the_same_whenever_it_is_drawn(tiny_run, tmp_path):
    examiner = trainer_of(tiny_run, tmp_path).examiner
    first = examiner.picture(3)
    drawn = first.read_bytes()
    assert examiner.picture(3).read_bytes() == drawn
    none = trainer_of(tiny_run, tmp_path, train={"gallery": False}).examiner
    assert none.picture(3) is None
