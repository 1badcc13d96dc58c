"""Runs that meet numbers which are not finite, and augmentors that are lost."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from hard_fast.config import RunConfig
from hard_fast.guard import Diverged
from hard_fast.journal import Journal
from hard_fast.runtime.configfile import Source, dump, merge, parse
from hard_fast.runtime.dist import World
from hard_fast.runtime.rows import read_rows
from hard_fast.trainer import Trainer
from hard_fast.types import Outputs, Phase

WORLD = World(0, 1, torch.device("cpu"))
STUDENT = {"name": "cnn", "options": {"widths": [4, 4, 4], "batch_norm": True}}
ALONE = {"schedule": {"kind": "student_only"}, "objective": {"kind": "kd"}}
ALONE |= {"augmentor": {"kind": "identity"}}


def build(tree, **changes):
    return Trainer(parse(RunConfig, Source(merge(tree, changes), {})), WORLD)


def alone(tiny_run, **changes):
    """A run in which the student learns alone."""
    tree = {key: value for key, value in tiny_run.items() if key != "augmentor_optim"}
    return merge(tree | ALONE | {"student": STUDENT}, changes)


def rows(trainer, *kinds):
    return [
        {key: value for key, value in row.items() if key != "timing"}
        for row in read_rows(trainer.run_dir / "metrics.jsonl")
        if row["kind"] in kinds
    ]


def spoil(trainer, network, when, num=None, value=torch.nan):
    """Have a network answer `num` images (all) with NaN in the training steps that `when` names."""

    def hook(module, inputs, outputs):
        if not (trainer.student.training or trainer.net.augmentor.training) or not when():
            return outputs
        logits = outputs.logits_BK.clone()
        logits[:num] = logits[:num] * value
        return Outputs(logits, outputs.taps)

    getattr(trainer, network).register_forward_hook(hook)


def state(trainer):
    """All that a step may change: weights, statistics, moments, averages, gathered gradients."""
    engine = trainer.engine
    found = {name: value.clone() for name, value in engine.taught.state_dict().items()}
    found = {name: v for name, v in found.items() if not name.endswith("num_batches_tracked")}
    for name, learner in engine.learners().items():
        for place, own in learner.state_dict()["optimizer"]["state"].items():
            kept = ((f"{name}.{place}.{key}", torch.as_tensor(v).clone()) for key, v in own.items())
            found |= dict(kept)
    if engine.average:
        averages = engine.average.state_dict()["averages"]
        # The moving average goes on towards weights that stand still.
        found |= {f"average.{k}": v.isfinite() for k, v in averages.items()}
    return found


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


KINDS = [{"kind": k} for k in ("adam", "adamw", "sgd", "lion", "lion8bit")]
KINDS += [{"kind": "adam", "clip_norm": 0.5}]


@pytest.mark.parametrize("optim", KINDS, ids=str)
@pytest.mark.parametrize("network", ["student", "teacher"])
def test_a_step_that_is_not_finite_changes_nothing(tiny_run, optim, network):
    trainer = build(alone(tiny_run, optim=optim, average={"decay": 0.5}))
    # One image of sixteen is enough.
    spoil(trainer, network, lambda: trainer.step == 4, num=1)
    for step in range(8):
        before = state(trainer)
        trainer.train_step()
        after = state(trainer)
        assert all(value.isfinite().all() for value in after.values())
        moves = not all(torch.equal(before[k], after[k]) for k in before)
        assert moves == (step != 4), step
    trainer.engine.guard.judge(trainer.step)
    assert trainer.engine.guard.counts["skipped"] == 1


def test_batchnorm_forgets_a_batch_that_was_not_finite(tiny_run):
    trainer = build(alone(tiny_run))
    norm = next(m for m in trainer.student.modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.register_forward_pre_hook(lambda m, i: (i[0] * torch.inf,) if trainer.step == 2 else i)
    means = []
    for _ in range(4):
        trainer.train_step()
        means.append(norm.running_mean.clone())
    assert torch.equal(means[1], means[2]) and not torch.equal(means[2], means[3])
    assert all(mean.isfinite().all() for mean in means)


def test_an_infinite_gradient_spoils_its_group_of_steps_alone(tiny_run):
    trainer = build(alone(tiny_run, optim={"kind": "sgd", "update_every": 2}))
    weight = next(trainer.student.parameters())
    weight.register_hook(lambda grad: grad * torch.inf if trainer.step == 2 else grad)
    moved = []
    for _ in range(8):
        before = weight.detach().clone()
        trainer.train_step()
        moved.append(not torch.equal(weight, before))
    assert moved == [False, True, False, False, False, True, False, True]
    assert weight.isfinite().all()


def test_a_skipped_step_is_counted_and_told_and_leaves_the_means(tiny_run):
    trainer = build(alone(tiny_run))
    spoil(trainer, "teacher", lambda: trainer.step in (4, 5, 8))
    results = trainer.run()
    found = {row["step"]: row["student"] for row in rows(trainer, "train")}
    assert {step: row["skipped"] for step, row in found.items() if "skipped" in row} == {
        6: 2,
        10: 1,
    }
    assert found[6]["loss"] is None and found[10]["loss"] > 0
    assert [row["step"] for row in rows(trainer, "warning")] == [6, 10]
    assert results["skipped"] == 3 and results["rollbacks"] == 0 and results["metrics"]["nll"] > 0


def too_fast(trainer):
    """A fault of the learning rate: it is gone once that is lower."""
    spoil(trainer, "student", lambda: trainer.step >= 7 and trainer.engine.learner.share == 1.0)
    return trainer


ROLLBACK = {"guard": {"max_in_a_row": 3}, "optim": {"lr": 1e-3, "clip_norm": 1.0}}


def test_many_skipped_steps_send_the_run_back_at_a_lower_rate(tiny_run):
    trainer = too_fast(build(alone(tiny_run, **ROLLBACK, checkpoint={"every_steps": 1})))
    results = trainer.run()
    assert results["steps"] == 12 and results["rollbacks"] == 1 and results["skipped"] >= 3
    found = rows(trainer, "train")
    assert [row["step"] for row in found] == [2, 4, 6, 8, 10, 12]
    assert [row["lr"]["student"] for row in found] == [1e-3] * 3 + [5e-4] * 3
    (warning,) = rows(trainer, "warning")
    # Step 7 is the last whose weights were saved; those that failed were not.
    assert warning["step"] == 7 and "back to step 7" in warning["text"]
    assert "student 0.5" in warning["text"] and "return 1 of 3" in warning["text"]


@pytest.mark.parametrize("cut", [8, 9, 10, 11])
def test_a_run_that_went_back_resumes_exactly_also_while_it_counts(tiny_run, tmp_path, cut):
    tree = alone(tiny_run, **ROLLBACK, checkpoint={"every_steps": 3})
    whole = too_fast(build(tree, run_dir=str(tmp_path / "whole")))
    results = whole.run()
    first = too_fast(build(tree, run_dir=str(tmp_path / "cut")))
    place = {"num_steps": 12, "first_step": 0, "use_tensorboard": False}
    first.journal = Journal(first.run_dir, **place)
    steps = 0
    while steps < cut:
        first.train_step()
        first._keep_books()
        steps += 1
    first._save()
    first.journal.__exit__()
    second = too_fast(build(tree, run_dir=str(tmp_path / "cut")))
    again = second.run()
    assert again["rollbacks"] == results["rollbacks"] == 1
    assert same(state(second), state(whole))
    assert rows(second, "train", "eval", "warning") == rows(whole, "train", "eval", "warning")


def test_rollback_at_once_before_the_first_checkpoint_and_no_more_often_than_allowed(tiny_run):
    guard = {"on_nonfinite": "rollback", "max_rollbacks": 2}
    trainer = build(alone(tiny_run, guard=guard))
    spoil(trainer, "student", lambda: trainer.step == 1)
    with pytest.raises(Diverged, match="also after 2 returns"):
        trainer.run()
    assert trainer.engine.learner.share == 0.25
    assert trainer.engine.guard.counts == {"skipped": 3, "rollbacks": 2, "resets": 0}


def test_stop_ends_the_run_in_one_line(tiny_run):
    trainer = build(alone(tiny_run, guard={"on_nonfinite": "stop"}))
    spoil(trainer, "teacher", lambda: trainer.step == 5)
    with pytest.raises(Diverged, match="^step 8: a step had"):
        trainer.run()


def test_an_overflowing_loss_scale_is_no_warning(tiny_run):
    trainer = build(alone(tiny_run, train={"precision": "fp16"}, student={"options": {}}))
    trainer._parts()["scaler"].scale(torch.zeros(()))
    trainer._parts()["scaler"].update(new_scale=2.0**127)
    results = trainer.run()
    assert results["skipped"] > 0 and not rows(trainer, "warning") and not results["rollbacks"]


def at_step(trainer, step, do):
    """Do something to a trainer before a step in its augmentor's turn."""
    train_step = trainer.net.register_forward_pre_hook

    def hook(module, inputs):
        if trainer.step >= step and inputs[0] is not Phase.STUDENT and not done:
            done.append(trainer.step)
            with torch.no_grad():
                do(trainer.net.augmentor)

    done = []
    train_step(hook)
    return done


def infinite(augmentor):
    augmentor.mean[0] = torch.inf


def black(augmentor):
    # All that a warp reads then lies outside of the picture.
    augmentor.mean.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0, 0.0, 9.0]))
    augmentor.scale.zero_()


@pytest.mark.parametrize(
    ("do", "words"), [(infinite, "no finite number"), (black, "of one colour")]
)
@pytest.mark.parametrize("schedule", ["threshold", "joint"])
def test_an_augmentor_that_is_lost_begins_again_from_the_bank(tiny_run, do, words, schedule):
    changes = {"schedule": {"kind": "joint"}} if schedule == "joint" else {}
    tree = tiny_run | changes | {"augmentor_optim": {"lr": 1e-6}}
    trainer = build(tree)
    done = at_step(trainer, 5, do)
    results = trainer.run()
    assert done and results["resets"] == 1 and results["rollbacks"] == 0
    texts = [row["text"] for row in rows(trainer, "warning")]
    (told,) = [text for text in texts if "begins again from one of the bank" in text]
    assert words in told
    # At this rate all that it ever was lies near the untouched one.
    untouched = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    torch.testing.assert_close(trainer.net.augmentor.mean.data, untouched, rtol=0, atol=1e-3)
    for path in (trainer.run_dir / "bank").iterdir():
        torch.testing.assert_close(load_file(path)["mean"], untouched, rtol=0, atol=1e-3)


def test_without_a_bank_a_lost_augmentor_is_the_untouched_one(tiny_run):
    trainer = build(tiny_run, bank={"capacity": 0}, augmentor_optim={"lr": 1e-6})
    at_step(trainer, 5, black)
    assert trainer.run()["resets"] == 1
    assert "from the untouched one" in str(rows(trainer, "warning"))
    assert trainer.net.augmentor.mean[0].item() == pytest.approx(1.0, abs=1e-3)


def test_compiled_steps_are_skipped_like_others(tiny_run):
    found = []
    for backend in (None, "aot_eager"):
        # Dropout's masks come from another stream there.
        student = {"options": {"hidden": [16], "dropout": 0.0}}
        run_dir = f"{tiny_run['run_dir']}-{backend}"
        trainer = build(tiny_run, student=student, run_dir=run_dir, train={"log_every": 1})
        if backend:
            torch._dynamo.reset()
            compiled = torch.compile(trainer.net, fullgraph=True, dynamic=False, backend=backend)
            trainer.engine._forward = compiled
        weight = next(trainer.teacher.parameters())
        whole = weight.detach().clone()
        states = []
        for step in range(8):
            with torch.no_grad():
                weight.copy_(torch.full_like(whole, torch.nan) if step in (2, 5) else whole)
            if switch := trainer.train_step():
                trainer.net.learn(switch.after)
            states.append(state(trainer) | {"augmentor": trainer.net.augmentor.mean.clone()})
        for bad in (2, 5):
            assert all(torch.equal(states[bad][k], v) for k, v in states[bad - 1].items()), bad
        found.append(states[-1])
    for name in ("augmentor", *(key for key in found[0] if key.startswith("student."))):
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-6)


TWO = """
import sys
import torch
from hard_fast import train, trainer
from hard_fast.runtime import dist
from hard_fast.types import Outputs

class Spoilt(trainer.Trainer):
    def __init__(self, config, world, **rest):
        super().__init__(config, world, **rest)
        def hook(module, inputs, outputs):
            is_due = self.step >= 7 and self.engine.learner.share == 1.0
            if world.rank == 1 and module.training and is_due:
                return Outputs(outputs.logits_BK * torch.nan, outputs.taps)
        self.student.register_forward_hook(hook)

    def run(self):
        summary = super().run()
        found = {name: v.double().sum().item() for name, v in self.student.named_parameters()}
        everyone = dist.gather_objects((found, self.engine.guard.state_dict()))
        assert everyone[0] == everyone[1], everyone
        assert self.engine.guard.counts["rollbacks"] == 1, self.engine.guard.counts
        return summary

train.Trainer = Spoilt
dist.end(train.main(["--config", sys.argv[1]]))
"""


@pytest.mark.slow
def test_two_processes_go_back_together_though_one_alone_has_nan(tiny_run, tmp_path):
    script, config = tmp_path / "two.py", tmp_path / "run.toml"
    script.write_text(TWO)
    config.write_text(dump(alone(tiny_run, **ROLLBACK)))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(script), str(config)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in found if row["kind"] == "train"] == [2, 4, 6, 8, 10, 12]
    assert sum("back to step 6" in row["text"] for row in found if row["kind"] == "warning") == 1
