import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from hard_fast.config import RunConfig
from hard_fast.engine import Engine
from hard_fast.runtime.configfile import Source, dump, merge, parse
from hard_fast.runtime.dist import World
from hard_fast.trainer import Trainer
from hard_fast.types import Batch, Phase

WORLD = World(0, 1, torch.device("cpu"))


def config_of(tree, **changes):
    return parse(RunConfig, Source(merge(tree, changes), {}))


def build(tree, **changes):
    return Trainer(config_of(tree, **changes), WORLD)


def one_batch(trainer):
    """A batch of the trainer's loader with its noise."""
    batch = trainer.loader.next_batch()
    generator = torch.Generator().manual_seed(5)
    return batch, trainer.net.augmentor.draw_noise(batch.image.shape, generator)


def changes_of(module, run):
    """The parameters' changes while `run` runs."""
    before = [p.detach().clone() for p in module.parameters()]
    run()
    return [p.detach() - old for p, old in zip(module.parameters(), before, strict=True)]


@pytest.mark.parametrize("phase", [Phase.STUDENT, Phase.AUGMENTOR])
def test_accumulated_passes_make_the_same_update(tiny_run, phase):
    found, results = [], []
    for passes in (1, 4):
        sgd = {"kind": "sgd", "lr": 0.1}
        trainer = build(
            tiny_run, train={"accumulate": passes}, optim=sgd, augmentor_optim=sgd, seed=1
        )
        trainer.net.learn(phase)
        batch, noise = one_batch(trainer)
        step = partial(trainer.engine.step, phase, 0, batch, noise)
        found.append(changes_of(trainer.net, lambda step=step: results.append(step())))
    assert any(change.abs().sum() > 0 for change in found[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-7)
    for result in results:
        # A mean of the passes' ratios.
        result.logs.pop("contrast", None)
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_the_augmentors_phase_takes_the_first_images_of_the_batch(tiny_run):
    found = []
    for share in (None, 4):
        trainer = build(tiny_run, train={"augmentor_batch_size": share} if share else {})
        trainer.net.learn(Phase.AUGMENTOR)
        batch, noise = one_batch(trainer)
        if share is None:
            batch, noise = Batch(*(v[:4] for v in batch)), {k: v[:4] for k, v in noise.items()}
        found.append(trainer.engine.step(Phase.AUGMENTOR, 0, batch, noise))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    trainer.net.learn(Phase.STUDENT)
    whole = trainer.engine.step(Phase.STUDENT, 1, *one_batch(trainer))
    assert whole.error.item() * 16 == pytest.approx(round(whole.error.item() * 16), abs=1e-4)


def test_a_batch_holds_whole_groups_of_what_is_mixed(tiny_run):
    del tiny_run["augmentor_optim"]
    fixed = {"augmentor": {"kind": "mixup"}, "schedule": {"kind": "student_only"}}
    with pytest.raises(ValueError, match="groups of 2 images"):
        build(tiny_run, **fixed, objective={"kind": "kd"}, train={"batch_size": 15})


def test_one_graph_cannot_hold_what_processes_share(tiny_run):
    config = config_of(tiny_run, compile={"region": "step"}, distributed={"teacher": "sharded"})
    net = build(tiny_run).net
    with pytest.raises(ValueError, match="compile.region = 'step'.*distributed.teacher"):
        Engine(config, net, World(0, 2, WORLD.device), num_steps=1, num_steps_per_epoch=1)


@pytest.mark.parametrize(
    ("changes", "size", "words"),
    [
        ({"distributed": {"sync_batchnorm": True}}, 2, "compile.mode = 'off'"),
        ({"compile": {"mode": "reduce-overhead", "region": "networks"}}, 1, "use 'default'"),
    ],
)
def test_what_cannot_be_compiled_is_one_line(tiny_run, changes, size, words):
    config = config_of(merge(tiny_run, {"compile": {"mode": "default"}}), **changes)
    net = build(tiny_run).net
    with pytest.raises(ValueError, match=words):
        Engine(config, net, World(0, size, WORLD.device), num_steps=1, num_steps_per_epoch=1)


def test_an_engine_says_how_its_batch_comes_about(tiny_run):
    config = config_of(tiny_run, train={"accumulate": 2}, compile={"mode": "default"})
    net = build(tiny_run).net
    engine = Engine(config, net, World(0, 4, WORLD.device), num_steps=1, num_steps_per_epoch=1)
    assert engine.describe() == (
        "16 images a step = 4 x 4 on cpu in 2 passes; full learning rate: student 0.001, "
        "augmentor 0.01"
    )
    assert "compiling the student phase" in engine.notice(Phase.STUDENT, 16)
    assert build(tiny_run).engine.notice(Phase.STUDENT, 16) is None


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"precision": "fp16"}])
def test_gathered_steps_are_one_of_the_batches_together(tiny_run, changes):
    """Two steps of eight images, and one of sixteen: without BatchNorm and dropout they are one."""
    student = {"options": {"hidden": [16], "dropout": 0.0}}
    optim = {"kind": "sgd", "momentum": 0.0, "lr": 0.1, "clip_norm": 0.5}
    common = {"student": student, "augmentor_optim": {"kind": "sgd", "lr": 0.1}}
    one = build(tiny_run, optim=optim, train=changes, **common)
    batch, noise = one_batch(one)
    small = {**changes, "batch_size": 8}
    two = build(tiny_run, optim=optim | {"update_every": 2}, train=small, **common)

    def by_halves():
        for step, rows in enumerate((slice(0, 8), slice(8, 16))):
            own = {name: value[rows] for name, value in noise.items()}
            part = Batch(batch.image[rows], batch.label[rows])
            two.engine.step(Phase.STUDENT, step, part, own)

    for trainer in (one, two):
        trainer.net.learn(Phase.STUDENT)
    wanted = changes_of(one.net.student, lambda: one.engine.step(Phase.STUDENT, 0, batch, noise))
    found = changes_of(two.net.student, by_halves)
    assert any(change.abs().sum() > 0 for change in wanted)
    rtol, atol = (0.02, 2e-4) if "precision" in changes else (1e-4, 1e-7)
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)
    assert "an update after 2 steps" in two.engine.describe()


def test_an_augmentors_last_step_leaves_no_gradient_of_the_student_unused(tiny_run):
    trainer = build(tiny_run, optim={"lr": 1e-3, "update_every": 8})
    for step, phase in ((10, Phase.STUDENT), (11, Phase.AUGMENTOR)):
        trainer.net.learn(phase)
        turn = partial(trainer.engine.step, phase, step, *one_batch(trainer))
        changes = changes_of(trainer.net.student, turn)
        moved = any(change.abs().sum() > 0 for change in changes)
        assert moved == (phase is Phase.AUGMENTOR)
    with pytest.raises(ValueError, match="augmentor_optim.update_every"):
        build(tiny_run, augmentor_optim={"update_every": 2})


def test_all_that_changes_over_a_run_is_set_before_a_step(tiny_run):
    cyclic = {"kind": "random_affine", "rotation_deg": {"ends": 0.0, "peak": 90.0}}
    parts = [cyclic, {"kind": "affine", "std": 0.1}]
    trainer = build(tiny_run, augmentor={"kind": "compose", "parts": parts})
    net = trainer.net
    warps = net.augmentor.parts[0], net.drawn.parts[0]
    # Of the last step, before the first one is made.
    assert [warp.rotation.item() for warp in warps] == [0.0, 0.0]
    net.learn(Phase.STUDENT)
    trainer.engine.step(Phase.STUDENT, 3, *one_batch(trainer))
    # Of 12 steps: 3 are 6/11 of the way to the peak, of a right angle.
    assert [warp.rotation.item() for warp in warps] == pytest.approx([6 / 11 * 1.5707963] * 2)


def test_networks_called_one_by_one_are_the_same_step(tiny_run):
    results = []
    for region in ("step", "networks"):
        trainer = build(tiny_run, compile={"region": region})
        trainer.net.learn(Phase.AUGMENTOR)
        results.append(trainer.engine.step(Phase.AUGMENTOR, 0, *one_batch(trainer)))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_fp16_skips_a_step_that_overflows_and_resumes_its_scale(tiny_run):
    trainer = build(tiny_run, train={"precision": "fp16"}, schedule={"kind": "joint"})
    scaler = trainer._parts()["scaler"]
    scale = scaler.get_scale()
    batch, noise = one_batch(trainer)
    assert scale > 1

    def step():
        trainer.engine.step(Phase.JOINT, 0, batch, noise)

    assert all(c.abs().sum() > 0 for c in changes_of(trainer.net.augmentor, step))
    scaler.update(new_scale=2.0**127)
    # The scaled loss itself overflows, and with it every gradient.
    assert all(c.abs().sum() == 0 for c in changes_of(trainer.net.student, step))
    assert scaler.get_scale() == 2.0**126
    again = build(tiny_run, train={"precision": "fp16"}, schedule={"kind": "joint"})
    again._parts()["scaler"].load_state_dict(scaler.state_dict())
    assert again._parts()["scaler"].get_scale() == 2.0**126


COMPILED = """
import sys
from torch._dynamo.utils import counters
from hard_fast.train import main
assert main(["--config", sys.argv[1]]) == 0
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


@pytest.mark.slow
def test_what_was_compiled_survives_a_restart_and_changes_no_curve(tiny_run, tmp_path):
    cache, script = tmp_path / "cache", tmp_path / "compiled.py"
    script.write_text(COMPILED)
    # Inductor draws dropout's masks from a stream of its own.
    student = {"options": {"hidden": [16], "dropout": 0.0}}
    train = {"log_every": 1, "gallery": False, "steps": 8}
    tree = merge(tiny_run, {"train": train, "student": student})
    eager = build(tree, run_dir=str(tmp_path / "eager"))
    eager.run()
    counts = []
    for name in ("first", "second"):
        compile_table = {"mode": "default", "cache": str(cache)}
        path = tmp_path / f"{name}.toml"
        path.write_text(dump(tree | {"run_dir": str(tmp_path / name), "compile": compile_table}))
        done = subprocess.run(
            [sys.executable, str(script), str(path)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr
        assert "compiling the student phase" in done.stderr
        counts.append([int(number) for number in done.stdout.split()])
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "eager"), rel=2e-4)
    assert counts[0][1] > 0 and counts[1] == [sum(counts[0]), 0], counts


def losses(run_dir):
    from hard_fast.runtime.rows import read_rows

    rows = [row for row in read_rows(run_dir / "metrics.jsonl") if row["kind"] == "train"]
    return [row[row["phase"]]["loss"] for row in rows]
