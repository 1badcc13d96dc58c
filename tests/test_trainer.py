import copy
import gc
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hard_fast.config import RunConfig
from hard_fast.journal import Journal
from hard_fast.runtime.configfile import Source, merge, parse
from hard_fast.runtime.dist import World
from hard_fast.runtime.rows import read_rows
from hard_fast.trainer import Trainer
from hard_fast.types import Phase

WORLD = World(0, 1, torch.device("cpu"))
GOLDEN = Path(__file__).parent / "golden" / "hard_affine_cpu.json"


def build(tree, **changes):
    return Trainer(parse(RunConfig, Source(merge(tree, changes), {})), WORLD)


def rows(trainer, *kinds):
    """Rows of some kinds, without what depends on the clock."""
    return [
        {key: value for key, value in row.items() if key != "timing"}
        for row in read_rows(trainer.run_dir / "metrics.jsonl")
        if row["kind"] in kinds
    ]


def weights(trainer):
    # The drawn copy is left out: the bank overwrites it before each use.
    state = trainer.net.state_dict().items()
    return {name: value.clone() for name, value in state if not name.startswith("drawn.")}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_run_goes_through_every_phase_and_leaves_its_traces(tiny_run):
    trainer = build(tiny_run)
    results = trainer.run()
    assert results["steps"] == 12 and set(results["phases"]) == {"student", "augmentor"}
    assert sum(results["phases"].values()) == 12
    assert set(results["metrics"]) == {"top1", "nll", "ece"} == set(results["teacher"])
    switches = rows(trainer, "switch")
    assert len(switches) >= 2 and switches[0]["from"] == "student"
    assert [row["step"] for row in rows(trainer, "train")] == [2, 4, 6, 8, 10, 12]
    assert (
        sum(row["student"]["steps"] for row in rows(trainer, "train") if "student" in row)
        + sum(row["augmentor"]["steps"] for row in rows(trainer, "train") if "augmentor" in row)
        == 12
    )
    assert len(list((trainer.run_dir / "gallery").iterdir())) == len(rows(trainer, "eval")) == 3
    num_saved = 1 + sum(row["from"] == "augmentor" for row in switches)
    assert len(list((trainer.run_dir / "bank").iterdir())) == len(trainer.bank) == num_saved
    assert (trainer.run_dir / "student.safetensors").is_file()


def test_resume_from_any_step_is_the_same_run_bit_for_bit(tiny_run, tmp_path):
    # Dropout, every phase, a bank draw, half-full log windows and a late error lie on the way.
    tree = merge(tiny_run, {"student": {"options": {"hidden": [16], "dropout": 0.5}}})
    tree["checkpoint"] = {"every_steps": 1, "keep": 50}
    whole = build(tree, run_dir=str(tmp_path / "whole"))
    whole.run()
    for step in range(1, 12):
        cut_dir = tmp_path / f"cut{step}"
        first = build(tree, run_dir=str(cut_dir))
        while first.step < 12:
            if first.checkpointer.steps()[:1] == [step]:
                break
            _one_step(first)
        first.journal.__exit__()
        second = build(tree, run_dir=str(cut_dir))
        assert second.step == step
        second.run()
        assert same(weights(second), weights(whole)), f"resumed at {step}"
        kinds = ("train", "eval", "switch", "warning")
        assert rows(second, *kinds) == rows(whole, *kinds), f"resumed at {step}"


def _one_step(trainer):
    """What `run` does in one turn of its loop, so that a test can stop between two."""
    if trainer.step == 0:
        settings = {"num_steps": 12, "first_step": 0, "use_tensorboard": False}
        trainer.journal = Journal(trainer.run_dir, **settings)
    switch = trainer.train_step()
    if switch:
        trainer._change_phase(switch)
    trainer._keep_books()


def test_the_same_seed_is_the_same_run_and_another_seed_is_not(tiny_run, tmp_path):
    runs = [
        build(tiny_run, run_dir=str(tmp_path / n), seed=s)
        for n, s in (("a", 0), ("b", 0), ("c", 1))
    ]
    for trainer in runs:
        trainer.run()
    assert same(weights(runs[0]), weights(runs[1]))
    assert not same(weights(runs[0]), weights(runs[2]))
    assert rows(runs[0], "train", "eval") == rows(runs[1], "train", "eval")


def test_idle_networks_do_not_change(tiny_run):
    trainer = build(tiny_run)
    teacher = copy.deepcopy(trainer.net.teacher.state_dict())
    seen = set()
    for _ in range(12):
        phase = trainer.controller.phase
        before = weights(trainer)
        switch = trainer.train_step()
        after = weights(trainer)
        changed = {
            name.split(".")[0] for name in before if not torch.equal(before[name], after[name])
        }
        assert changed == {phase.value}
        seen.add(phase)
        if switch:
            trainer.net.learn(switch.after)
            if phase.value == "augmentor":
                trainer.bank.save()
                trainer.learning.phase_meter.take()
    assert len(seen) == 2 and same(teacher, trainer.net.teacher.state_dict())


@pytest.mark.parametrize("then", ["keep", "identity", "bank"])
def test_what_follows_a_phase_that_ran_out_of_steps(tiny_run, then):
    schedule = tiny_run["schedule"] | {"l_min": 0.9989, "l_max": 0.999, "on_timeout": then}
    trainer = build(tiny_run, schedule=schedule)
    untouched = trainer.net.augmentor.mean.detach().clone()
    trainer.run()
    assert (
        rows(trainer, "warning") and "not reached in 2 steps" in rows(trainer, "warning")[0]["text"]
    )
    num_entries = len(trainer.bank)
    if then == "keep":
        assert num_entries > 1 and not torch.equal(trainer.net.augmentor.mean, untouched)
    else:
        assert num_entries == 1
        if trainer.controller.phase.value == "student":
            assert torch.equal(trainer.net.augmentor.mean, untouched)


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


def test_a_schedule_that_never_switched_says_so(tiny_run):
    trainer = build(tiny_run, schedule=tiny_run["schedule"] | {"l_min": 0.0, "l_max": 0.5})
    trainer.run()
    assert "augmentor never learned" in rows(trainer, "warning")[-1]["text"]


@pytest.mark.parametrize("num_test", [1, 5])
def test_a_gallery_of_mixed_pairs_takes_an_even_number(tiny_run, num_test):
    del tiny_run["augmentor_optim"]
    fixed = {"augmentor": {"kind": "mixup"}, "schedule": {"kind": "student_only"}}
    trainer = build(tiny_run, **fixed, objective={"kind": "kd"}, data={"num_test": num_test})
    trainer.run()
    assert (trainer.run_dir / "gallery").exists() == (num_test > 1)


def test_the_plateau_rule_goes_back_to_the_best_weights_and_stops(tiny_run):
    rate = {"kind": "plateau", "warmup_epochs": 0.0, "patience": 1, "max_decays": 2}
    trainer = build(
        tiny_run,
        optim={"lr": 1e-9, "rate": rate},
        train={"steps": 400, "log_every": 100, "gallery": False},
        checkpoint={"every_steps": 400},
    )
    results = trainer.run()
    # At this rate nothing improves: best at the first evaluation, then two flat ones end it.
    assert trainer.is_done and results["steps"] == 3 * trainer.examiner.every < 400
    assert results["selected_step"] == trainer.examiner.every
    resumed = build(
        tiny_run,
        optim={"lr": 1e-9, "rate": rate},
        train={"steps": 400, "log_every": 100, "gallery": False},
        checkpoint={"every_steps": 400},
    )
    assert resumed.is_done and resumed.run()["metrics"] == results["metrics"]


def test_select_best_ships_the_best_weights(tiny_run):
    trainer = build(tiny_run, train={"select": "best"})
    results = trainer.run()
    evaluations = rows(trainer, "eval")
    best = max(evaluations, key=lambda row: (row["val_top1"], -row["step"]))
    assert results["selected_step"] == best["step"]
    assert results["metrics"]["top1"] == best["top1"]


def test_golden_curve(tiny_run, request):
    """A change that should not alter the computation keeps these losses."""
    trainer = build(tiny_run, train={"log_every": 1})
    trainer.run()
    found = [
        {"step": row["step"], **{p: row[p]["loss"] for p in ("student", "augmentor") if p in row}}
        for row in rows(trainer, "train")
    ]
    if request.config.getoption("--rewrite-golden"):
        GOLDEN.write_text("[\n" + ",\n".join(f"  {json.dumps(row)}" for row in found) + "\n]\n")
    want = json.loads(GOLDEN.read_text())
    assert [set(row) for row in found] == [set(row) for row in want] and len(want) == 12
    for got, expected in zip(found, want, strict=True):
        # Processors differ in the last bits of fp32 sums, and twelve steps carry them on.
        assert got == pytest.approx(expected, rel=2e-4, abs=1e-6)


@pytest.mark.parametrize("option", ["accumulate", "networks", "contiguous", "checkpointing"])
def test_an_option_of_speed_or_memory_leaves_the_curve(tiny_run, tmp_path, option):
    """The losses of twelve steps through both phases, within 2e-4 of the plain run's."""
    network = {"name": "test_vit" if option == "checkpointing" else "mlp"}
    sgd = {"kind": "sgd", "lr": 0.02}
    tree = tiny_run | {"student": network, "optim": sgd, "augmentor_optim": sgd}
    # Dropout draws other masks in another order, and so would hide what is compared here.
    tree["student"]["options"] = {} if option == "checkpointing" else {"dropout": 0.0}
    if option == "checkpointing":
        tree["teacher"] = {"name": "test_resnet"}
        tree["data"] = tree["data"] | {"size": 32, "channels": 3}
    tree = merge(tree, {"train": {"log_every": 1, "gallery": False}})
    changes = {
        "accumulate": {"train": {"accumulate": 4}},
        "networks": {"compile": {"region": "networks"}},
        "contiguous": {},
        "checkpointing": {"student": {"checkpointing": True}, "teacher": {"checkpointing": True}},
    }[option]
    curves = []
    for name, changed in (("plain", {}), ("changed", changes)):
        trainer = build(merge(tree, changed), run_dir=str(tmp_path / name))
        if option == "contiguous" and name == "changed":
            trainer.net.to(memory_format=torch.contiguous_format)
        results = trainer.run()
        assert set(results["phases"]) == {"student", "augmentor"}
        curves.append([row[row["phase"]]["loss"] for row in rows(trainer, "train")])
    assert len(curves[0]) == 12 and curves[1] == pytest.approx(curves[0], rel=2e-4, abs=1e-6)


def test_the_averaged_student_is_the_result_and_resumes_exactly(tiny_run, tmp_path):
    average = {"average": {"decay": 0.5}}
    whole = build(tiny_run, **average, run_dir=str(tmp_path / "whole"))
    results = whole.run()
    evaluation = rows(whole, "eval")[-1]
    assert results["metrics"]["nll"] == evaluation["average_nll"] != evaluation["nll"]
    shipped = load_file(whole.run_dir / "student.safetensors")
    own = whole.student.network.net.state_dict()
    assert own.keys() == shipped.keys()
    assert not any(torch.equal(shipped[name], own[name]) for name in own)
    shutil.copytree(whole.run_dir, tmp_path / "cut")
    for path in (tmp_path / "cut" / "checkpoints").glob("step_000000012*"):
        path.unlink()
    resumed = build(tiny_run, **average, run_dir=str(tmp_path / "cut"))
    assert resumed.step == 9 and resumed.run()["metrics"] == results["metrics"]


def test_what_changes_over_a_run_resumes_exactly_inside_a_group_of_steps(tiny_run, tmp_path):
    del tiny_run["augmentor_optim"]
    options = {"widths": [4, 4, 4], "dropout": 0.1, "batch_norm": True}
    dropout = {"layers": ["relu*"], "rate": {"ends": 0.1, "peak": 0.8, "factor": 1.0}}
    cyclic = {"kind": "random_affine", "rotation_deg": {"ends": 0.0, "peak": 60.0}}
    tree = tiny_run | {
        "student": {"name": "cnn", "options": options, "dropout": dropout},
        "augmentor": {"kind": "compose", "parts": [{"kind": "erasing"}, cyclic]},
        "objective": {"kind": "kd", "temperature": {"ends": 1.0, "peak": 4.0}},
        "schedule": {"kind": "student_only"},
        "average": {"kind": "swa", "start": 0.5, "batchnorm_batches": 2},
        "optim": {"lr": 1e-2, "clip_norm": 1.0, "update_every": {"ends": 2, "peak": 5}},
        "checkpoint": {"every_steps": 1, "keep": 50},
    }
    whole = build(tree, run_dir=str(tmp_path / "whole"))
    results = whole.run()
    gathered = set()
    for step in (1, 4, 7, 12):
        cut = tmp_path / f"cut{step}"
        shutil.copytree(whole.run_dir, cut)
        for path in (cut / "checkpoints").glob("step_*"):
            if int(path.stem.removeprefix("step_")) > step:
                path.unlink()
        resumed = build(tree, run_dir=str(cut))
        gathered.add(resumed.engine.learner.state_dict()["gathered"]["num"])
        assert resumed.step == step and resumed.run()["metrics"] == results["metrics"], step
        assert same(weights(resumed), weights(whole)), step
    assert len(gathered) > 2


def test_turns_with_a_new_optimizer_and_a_rate_that_stands_still_resume_exactly(tiny_run, tmp_path):
    # Epochs of two steps; any change of the loss is small enough to be a standstill.
    still = {"factor": 0.5, "least": 100.0, "least_share": 100.0}
    optim = {"kind": "sgd", "lr": 0.01, "fresh_turns": True, "standstill": still}
    tree = tiny_run | {
        "objective": {"kind": "tst"},
        "schedule": {"kind": "epochs", "every": 4, "augmentor_epochs": 3},
        "augmentor_optim": optim,
        "train": tiny_run["train"] | {"steps": 15, "batch_size": 32, "log_every": 1},
        "checkpoint": {"every_steps": 1, "keep": 50},
    }
    whole = build(tree, run_dir=str(tmp_path / "whole"))
    whole.run()
    turns = [row["lr"]["augmentor"] for row in rows(whole, "train") if row["phase"] == "augmentor"]
    # The first turn has three epochs, the second is cut after two and a half.
    assert turns == pytest.approx([0.01] * 4 + [0.005] * 2 + [0.01] * 4 + [0.005])
    losses = [row["augmentor"]["loss"] for row in rows(whole, "train")[-3:]]
    kept = whole.engine.augmentor_learner.state_dict()["standstill"]
    assert kept["sum"] == pytest.approx(losses[2])
    assert kept["last"] == pytest.approx(sum(losses[:2]) / 2.0)
    for step in (3, 5, 6, 8, 11):
        cut = tmp_path / f"cut{step}"
        shutil.copytree(whole.run_dir, cut)
        for path in (cut / "checkpoints").glob("step_*"):
            if int(path.stem.removeprefix("step_")) > step:
                path.unlink()
        resumed = build(tree, run_dir=str(cut))
        assert resumed.step == step
        resumed.run()
        assert same(weights(resumed), weights(whole)), step


@pytest.mark.slow
def test_a_long_run_keeps_nothing_of_its_steps(tiny_run):
    trainer = build(tiny_run, train={"steps": 600, "gallery": False})
    trainer.journal = Journal(
        trainer.run_dir, num_steps=600, first_step=0, use_tensorboard=False, is_main=False
    )

    def steps(num):
        for _ in range(num):
            switch = trainer.train_step()
            if switch:
                # The bank keeps an augmentor for each turn, by design.
                trainer.net.learn(switch.after)
                trainer.learning.phase_meter.take()
            if trainer.step % 10 == 0:
                trainer._late_row.begin(trainer.journal, trainer.step, trainer.last_phase)

    objects, pages = [], []
    for _ in range(5):
        steps(100)
        gc.collect()
        objects.append(len(gc.get_objects()))
        pages.append(int(Path("/proc/self/statm").read_text().split()[1]))
    # What is kept grows every time; an allocator that fills its pools does not. Less than one
    # object in five steps and one page of memory in three:
    for held, bound in ((objects, 20), (pages, 30)):
        assert min(after - before for before, after in itertools.pairwise(held)) < bound, held


@pytest.mark.gpu
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("mode", ["off", "default", "reduce-overhead"])
@pytest.mark.parametrize("kind", ["adam", "lion_auto"])
def test_steps_do_not_wait_for_the_device(tiny_run, kind, mode, passes):
    train = {"device": "cuda", "accumulate": passes}
    tree = merge(tiny_run, {"train": train, "compile": {"mode": mode}, "optim": {"kind": kind}})
    tree["schedule"] = {"kind": "alternate", "student_steps": 2, "augmentor_steps": 2}
    config = parse(RunConfig, Source(merge(tree, {"train": {"steps": 400}}), {}))
    trainer = Trainer(config, World(0, 1, torch.device("cuda", 0)))
    for _ in range(8):
        if switch := trainer.train_step():
            trainer.net.learn(switch.after)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.compiler.set_stance("fail_on_recompile"):
            for _ in range(8):
                if switch := trainer.train_step():
                    trainer.net.learn(switch.after)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_run_without_a_stall_or_a_recompile_compiles_to_one_graph_per_phase(tiny_run):
    trainer = build(tiny_run)
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    trainer.engine._forward = torch.compile(
        trainer.net, fullgraph=True, dynamic=False, backend=count
    )
    trainer.run()
    assert len(graphs) == 2


def test_pictures_in_a_folder_are_trained_on_and_a_run_resumes_inside_an_epoch(tiny_run, tmp_path):
    generator = np.random.default_rng(0)
    for part, num in (("train", 12), ("val", 3)):
        for name in ("cat", "dog"):
            place = tmp_path / "pictures" / part / name
            place.mkdir(parents=True)
            for i in range(num):
                noise = generator.integers(0, 256, (20, 24, 3), np.uint8)
                Image.fromarray(noise).save(place / f"{i}.jpg")
    tiny_run["data"] = {
        "kind": "pictures",
        "root": str(tmp_path / "pictures"),
        "size": 16,
        "val_share": 0.0,
        "threads": 1,
    }
    tiny_run["train"]["batch_size"] = 4
    whole = build(tiny_run)
    results = whole.run()
    assert set(results["metrics"]) == {"top1", "nll", "ece"} and results["bad_samples"] == 0
    assert len(list((whole.run_dir / "gallery").iterdir())) == 2

    # A run stopped at step 9 of 6-step epochs goes on with the batch that would have come.
    other = copy.deepcopy(tiny_run) | {"run_dir": str(tmp_path / "other")}
    shutil.copytree(whole.run_dir, other["run_dir"])
    for path in (tmp_path / "other" / "checkpoints").glob("step_000000012*"):
        path.unlink()
    resumed = build(other)
    assert resumed.step == 9
    resumed.run()
    assert same(weights(resumed), weights(whole))


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
