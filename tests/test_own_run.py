"""Modules, tables and batches of the caller's own: what is understood, and each mistake's line."""

import gc
import json
import weakref

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from hard_fast.augment.affine import Affine, AffineConfig
from hard_fast.models.ensemble import Ensemble
from hard_fast.objectives import ObjectiveConfig, reads_labels
from hard_fast.own_run import HeldBank, Network, as_network, check_values, dress, read_tables

GIVEN = {"objective": {"kind": "kd"}, "optim": {"lr": 1e-3}}
SHAPE = (1, 4, 4)


def net(num_classes=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, num_classes))


def read(*teachers, **tables):
    teachers = teachers or (Network(net()),)
    return read_tables(Network(net()), teachers, 10, GIVEN | tables)


def mistake(*teachers, **tables):
    with pytest.raises(ValueError) as caught:
        read(*teachers, **tables)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("Distiller: ")
    return str(caught.value).removeprefix("Distiller: ")


def test_tables_are_those_of_a_file():
    config = read(
        Network(net(), mean=(0.5,), precision="bf16"),
        Network(net(), weight=2.0),
        train={"accumulate": 2, "precision": "fp32"},
        seed=3,
    )
    assert config.train.steps == 10 and config.train.accumulate == 2 and config.seed == 3
    assert config.student.name == "python:torch.nn.modules.container:Sequential"
    first, second = config.teacher.members
    assert first.mean == (0.5,) and first.precision == "bf16" and second.weight == 2.0
    fitted = config.fitted(8, SHAPE)
    assert fitted.train.batch_size == 8 and fitted.data.image_shape == [1, 4, 4]
    assert (
        fitted.fingerprint
        != config.fingerprint
        == read(
            Network(net(), mean=(0.5,), precision="bf16"),
            Network(net(), weight=2.0),
            train={"accumulate": 2, "precision": "fp32"},
            seed=3,
        ).fingerprint
    )


def test_mistakes_are_those_of_a_file():
    assert mistake(optim={"lr": 1e-3, "kin": "adam"}).startswith(
        "optim.kin = 'adam': unknown key; did you mean 'kind'"
    )
    said = mistake(augmentr={})
    assert said.startswith("augmentr = {}: unknown key; did you mean 'augmentor'")
    assert said.endswith(
        "(choices: augmentor, objective, schedule, bank, optim, augmentor_optim, "
        "average, guard, compile, distributed, train, seed)"
    )
    assert mistake(optim={}) == "optim.lr: required, but not set"
    assert mistake(objective={"kind": "kdd"}).startswith("objective.kind = 'kdd': unknown kind")
    assert "augmentor_optim: augmentor.kind = 'affine' learns" in mistake(
        augmentor={"kind": "affine"}, schedule={"kind": "joint"}
    )
    assert "needs a [teacher]" in str(
        pytest.raises(ValueError, read_tables, Network(net()), (), 10, GIVEN).value
    )
    assert mistake(train=3).startswith("train = 3: input should be an object")
    assert mistake(train={"precison": "fp32"}) == (
        "train.precison = 'fp32': unknown key; did you mean 'precision'? "
        "(choices: device, precision, accumulate, augmentor_batch_size)"
    )
    assert mistake(Network(net(), mean=0.5)).startswith("teacher.mean = 0.5: input should be")
    assert mistake(Network(net(), weight=2.0)).startswith("teacher: weight = 2: there is no other")
    assert mistake(optim={"lr": torch.tensor(0.1)}).startswith("optim.lr = 'tensor(0.1")


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"data": {"kind": "mnist"}}, "data: a loop of one's own has no use for it"),
        ({"run_dir": "runs/a"}, "run_dir: a loop of one's own has no use for it"),
        ({"train": {"batch_size": 8}}, "train.batch_size: a loop of one's own has no use for it"),
        ({"train": {"epochs": 8}}, "train.epochs: a loop of one's own has no use for it"),
        ({"optim": {"lr": 0.1, "rate": {"kind": "plateau"}}}, "optim.rate.kind = 'plateau': needs"),
        ({"average": {"batchnorm_batches": 2}}, "average.batchnorm_batches: needs batches"),
        ({"guard": {"on_nonfinite": "rollback"}}, "guard.on_nonfinite = 'rollback': there are no"),
    ],
)
def test_what_a_loop_of_ones_own_has_no_use_for(tables, said):
    assert mistake(**tables).startswith(said)


def test_a_module_is_a_network_without_more_to_say():
    module = net()
    assert as_network(module, "student").module is module
    assert as_network(Network(module), "student").module is module
    with pytest.raises(ValueError, match="^Distiller: teacher: a str, not an nn.Module"):
        as_network("resnet18", "teacher")


def test_networks_are_dressed_as_their_config_says():
    one = Network(net(), mean=(0.5,), std=(0.25,))
    config = read(one).teacher
    dressed = dress([one], config, 3, SHAPE, frozen=True, taps=())
    image = torch.rand(2, *SHAPE)
    torch.testing.assert_close(dressed(image), one.module((image - 0.5) / 0.25))
    pair = [one, Network(net())]
    assert isinstance(dress(pair, read(*pair).teacher, 3, SHAPE, frozen=True, taps=()), Ensemble)
    with pytest.raises(ValueError, match="^Sequential has 3 outputs, and the student 5"):
        dress([one], config, 5, SHAPE, frozen=True, taps=())
    with pytest.raises(ValueError, match="^also.0: Sequential has 4 outputs"):
        pair = [one, Network(net(4))]
        dress(pair, read(*pair).teacher, 3, SHAPE, frozen=True, taps=())
    other = Network(net(5), num_classes=5)
    objective = {"kind": "features", "layers": [["0", "0"]]}
    dress([other], read(other, objective=objective).teacher, 3, SHAPE, frozen=True, taps=())


def test_values_of_the_first_batch():
    image = torch.rand(2, *SHAPE)
    check_values(image, None, 3)
    check_values((image * 255).to(torch.uint8), torch.tensor([-1, 2]), 3)
    for wrong in (image - 1, image * 3, image / 0):
        with pytest.raises(ValueError, match=r"floats must be in \[0,1\]"):
            check_values(wrong, None, 3)
    for wrong in ([-2, 0], [0, 3]):
        with pytest.raises(ValueError, match="so 0 to 2, or -1 for none"):
            check_values(image, torch.tensor(wrong), 3)


@pytest.mark.parametrize(
    ("objective", "is_needed"),
    [
        ({"kind": "ce"}, True),
        ({"kind": "kd"}, False),
        ({"kind": "kd", "ce_share": 0.1}, True),
        ({"kind": "hard"}, False),
        ({"kind": "hard", "reference": "label"}, True),
        ({"kind": "vae"}, False),
        ({"kind": "tst"}, True),
        ({"kind": "dafl"}, False),
        ({"kind": "cudfkd"}, False),
        ({"kind": "cutmixpick"}, True),
        ({"kind": "cutmixpick", "ce_share": 0.0}, False),
        ({"kind": "token"}, True),
        ({"kind": "token", "teacher_share": 1.0}, False),
        ({"kind": "byot"}, True),
        ({"kind": "sd_dropout", "feature": "0", "classifier": "1"}, True),
        ({"kind": "cosub"}, True),
        ({"kind": "cosub", "label_share": 0.0}, False),
        ({"kind": "features", "layers": [["0", "0"]]}, False),
        ({"kind": "features", "layers": [["0", "0"]], "ce_weight": 1.0}, True),
        ({"kind": "prototypes", "student_layer": "0", "teacher_layer": "0"}, True),
        (
            {
                "kind": "prototypes",
                "student_layer": "0",
                "teacher_layer": "0",
                "ce_share": 0.0,
            },
            False,
        ),
    ],
)
def test_who_reads_labels(objective, is_needed):
    assert (
        reads_labels(TypeAdapter(ObjectiveConfig).validate_json(json.dumps(objective))) == is_needed
    )


def test_a_bank_without_files_holds_its_entries_in_its_state(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = read(
        objective={"kind": "hard"},
        augmentor={"kind": "affine"},
        augmentor_optim={"lr": 0.1},
        schedule={"kind": "threshold"},
        bank={"capacity": 2},
    )
    maker, target = Affine(AffineConfig()), Affine(AffineConfig())
    bank = HeldBank(maker, config)
    for value in range(5):
        with torch.no_grad():
            maker.mean.fill_(float(value))
        bank.save()
    assert len(bank) == 2 and not list(tmp_path.iterdir())
    assert set(bank.state_dict()) == {"entries", "tensors", "num_seen"}
    again = HeldBank(maker, config)
    again.load_state_dict(bank.state_dict())
    found = []
    for one in (bank, again):
        found.append([])
        for step in range(8):
            one.draw_into(target, step)
            found[-1].append(target.mean.clone())
    assert torch.equal(torch.stack(found[0]), torch.stack(found[1]))
    assert len({mean.flatten()[0].item() for mean in found[0]}) == 2
    held = [weakref.ref(entry["mean"]) for entry in bank.state_dict()["tensors"]]
    for _ in range(40):
        bank.save()
        again.save()
    gc.collect()
    assert [entry() for entry in held] == [None] * 2, "replaced entries are kept"
