"""Runs of every schedule, augmentor and kind of data."""

import copy
import json
import shutil

import pytest
import torch

from hard_fast.types import Phase
from tests.whole_run import build, rows, same, weights


@pytest.mark.parametrize(
    ("schedule", "phases"),
    [
        ({"kind": "joint"}, {"joint": 6}),
        ({"kind": "alternate", "student_steps": 2}, {"student": 4, "augmentor": 2}),
        ({"kind": "epochs", "every": 2, "augmentor_epochs": 1}, {"student": 4, "augmentor": 2}),
    ],
)
def test_every_schedule_runs(tiny_run, schedule, phases):
    trainer = build(tiny_run, schedule=schedule, train={"steps": 6, "batch_size": 32})
    assert trainer.run()["phases"] == phases


FIXED_KINDS = ["identity", "standard", "random_affine", "shifts", "mixup", "cutmix"]
FIXED_KINDS += ["mixup_cutmix", "erasing", "trivial", "rand", "augmix"]


@pytest.mark.parametrize("kind", FIXED_KINDS)
def test_every_fixed_augmentor_runs(tiny_run, kind):
    del tiny_run["augmentor_optim"]
    fixed = {"augmentor": {"kind": kind}, "schedule": {"kind": "student_only"}}
    results = build(tiny_run, **fixed, objective={"kind": "kd", "ce_share": 0.5}).run()
    assert results["phases"] == {"student": 12}


TINY_VAE = {"kind": "autoencoder", "options": {"width": 4, "latent": 4, "num_levels": 1}}


@pytest.mark.parametrize(
    "augmentor",
    [
        TINY_VAE,
        {"kind": "compose", "parts": [TINY_VAE, {"kind": "affine"}]},
        {"kind": "patch_mix", "group": 4},
        {"kind": "compose", "parts": [{"kind": "affine"}, {"kind": "patch_mix"}]},
    ],
    ids=["autoencoder", "vae_affine", "patch_mix", "affine_mix"],
)
def test_every_learned_augmentor_runs_and_resumes_exactly(tiny_run, tmp_path, augmentor):
    merges = "mix" in str(augmentor)
    tree = tiny_run | {"augmentor": augmentor}
    tree["train"] = tree["train"] | {"accumulate": 2}
    if merges:
        tree["schedule"] = {"kind": "joint"}
    whole = build(tree, run_dir=str(tmp_path / "whole"))
    first = {n: p.detach().clone() for n, p in whole.net.augmentor.named_parameters()}
    results = whole.run()
    assert set(results["phases"]) == ({"joint"} if merges else {"student", "augmentor"})
    for name, parameter in whole.net.augmentor.named_parameters():
        assert torch.equal(first[name], parameter) is not parameter.requires_grad, name
    shutil.copytree(whole.run_dir, tmp_path / "cut")
    for path in (tmp_path / "cut" / "checkpoints").glob("step_000000012*"):
        path.unlink()
    resumed = build(tree, run_dir=str(tmp_path / "cut"))
    assert resumed.step == 9
    resumed.run()
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize(
    ("objective", "schedule", "phases"),
    [
        ("dafl", {"kind": "joint"}, {"joint"}),
        ("dafl", {"kind": "alternate", "student_steps": 2}, {"student", "augmentor"}),
        ("cudfkd", {"kind": "alternate", "student_steps": 2}, {"student", "augmentor"}),
    ],
)
def test_a_run_without_data_resumes_exactly(tiny_run, tmp_path, objective, schedule, phases):
    tree = tiny_run | {"objective": {"kind": objective}, "schedule": schedule}
    tree["augmentor"] = {"kind": "generator", "latent": 4, "width": 2}
    tree["data"] = tree["data"] | {"train_zeros": 48, "val_share": 0.0}
    tree["teacher"] = {"name": "cnn", "options": {"widths": [4, 4, 4], "batch_norm": True}}
    if "augmentor" in phases:
        tree["bank"] = {"capacity": 0}
    whole = build(tree, run_dir=str(tmp_path / "whole"))
    assert not whole.loader.next_batch().image.any()
    first = {n: p.detach().clone() for n, p in whole.net.augmentor.named_parameters()}
    assert set(whole.run()["phases"]) == phases
    made = dict(whole.net.augmentor.named_parameters())
    # Behind a BatchNorm a bias moves by rounding alone.
    moved = [name for name in first if not torch.equal(first[name], made[name])]
    assert {"net.linear.weight", "net.conv3.weight"} <= set(moved)
    shutil.copytree(whole.run_dir, tmp_path / "cut")
    for path in (tmp_path / "cut" / "checkpoints").glob("step_000000012*"):
        path.unlink()
    resumed = build(tree, run_dir=str(tmp_path / "cut"))
    assert resumed.step == 9
    resumed.run()
    assert same(weights(resumed), weights(whole))
    for name, value in whole.net.augmentor.state_dict().items():
        assert torch.equal(value, resumed.net.augmentor.state_dict()[name]), name


def test_an_autoencoder_learns_its_data_and_then_augments_them(tiny_run, tmp_path):
    tree = copy.deepcopy(tiny_run)
    for key in ("teacher", "augmentor_optim"):
        del tree[key]
    sizes = {"width": 8, "latent": 4, "num_levels": 1, "num_blocks": 1}
    tree |= {"student": {"name": "tiny_vae", "options": sizes}, "objective": {"kind": "vae"}}
    tree |= {"augmentor": {"kind": "identity"}, "schedule": {"kind": "student_only"}}
    tree["optim"] = {"lr": 3e-3}
    learner = build(tree, train={"steps": 60}, run_dir=str(tmp_path / "vae"))
    results = learner.run()
    bounds = [row["bound"] for row in rows(learner, "eval")]
    assert bounds[-1] < 0.5 * bounds[0] and results["metrics"]["bound"] == bounds[-1]
    options = {**sizes, "channels": 1, "variational": True, "wide_norm": False}
    file = str(learner.run_dir / "student.safetensors")
    maker = {"kind": "autoencoder", "options": options, "checkpoint": file}
    trainer = build(tiny_run, augmentor=maker, run_dir=str(tmp_path / "hard"))
    batch = next(next(iter(trainer.data.test.values())).batches(8))
    noise = trainer.net.augmentor.draw_noise(batch.image.shape, torch.Generator())
    made = trainer.net.make_view(Phase.STUDENT, batch, noise).image
    error = (made - batch.image / 255).square().mean()
    assert error < 0.7 * (batch.image / 255).var()
    trainer.run()


def test_suites_are_gone_through_while_the_student_learns_and_at_the_end(tiny_run, tmp_path):
    records = torch.randint(256, (8, 3073), generator=torch.Generator().manual_seed(0))
    records[:, 0] %= 10
    (tmp_path / "cifar10").mkdir()
    folder = tmp_path / "cifar10" / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "test_batch.bin").write_bytes(records.byte().numpy().tobytes())
    tiny_run["data"] |= {"size": 32, "channels": 3}
    tiny_run["train"]["eval_every_epochs"] = 1.0
    suites = {"suites": ["cifar10", "usps"], "data_root": str(tmp_path), "every_epochs": 2.0}
    trainer = build(tiny_run | {"evaluation": suites})
    results = trainer.run()
    # Epochs are four steps long: the suites' turns are steps 8 and, at the end, 12.
    assert [row["step"] for row in rows(trainer, "eval") if "cifar10_top1" in row] == [8]
    assert any("usps" in row["text"] for row in rows(trainer, "warning"))
    found = json.loads((trainer.run_dir / "evaluation.json").read_text())
    assert found["suites"]["cifar10"]["top1"] == results["metrics"]["cifar10_top1"]
    assert found["teacher"]["suites"]["cifar10"]["top1"] == results["teacher"]["cifar10_top1"]
    # What is learned does not depend on it.
    other = tiny_run | {"run_dir": str(tmp_path / "other")}
    plain = build(other)
    plain.run()
    assert same(weights(plain), weights(trainer))
    assert plain.config.fingerprint == trainer.config.fingerprint
