import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from hard_fast.build import build_step
from hard_fast.config import RunConfig
from hard_fast.data import load_data
from hard_fast.runtime.configfile import Source, dump, merge, parse
from hard_fast.runtime.dist import World
from hard_fast.types import Batch, Phase

WORLD = World(0, 1, torch.device("cpu"))


def build(tree, **changes):
    config = parse(RunConfig, Source(merge(tree, changes), {}))
    return build_step(config, load_data(config.data, WORLD.device), WORLD)


def test_a_seed_decides_the_weights_and_the_teacher_is_frozen(tiny_run):
    first, second, other = (build(tiny_run, seed=seed) for seed in (0, 0, 1))
    state = first.state_dict()
    assert all(torch.equal(state[name], value) for name, value in second.state_dict().items())
    weights = [net.student.state_dict() for net in (first, other)]
    assert not all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not any(p.requires_grad for p in first.teacher.parameters())


def test_each_network_has_its_own_precision(tiny_run):
    net = build(tiny_run, train={"precision": "bf16"}, teacher={"precision": "fp32"})
    assert net.student.amp_dtype == torch.bfloat16 and net.teacher.amp_dtype is None
    net = build(tiny_run, teacher={"precision": "bf16"})
    assert net.student.amp_dtype is None
    dtypes = {p.dtype for p in net.teacher.parameters()}
    assert torch.bfloat16 in dtypes and {p.dtype for p in net.student.parameters()} == {
        torch.float32
    }


def test_what_cannot_be_built_names_its_table(tiny_run):
    with pytest.raises(ValueError, match=r"^\[teacher\] .*none.pth"):
        build(tiny_run, teacher={"checkpoint": "none.pth"})
    with pytest.raises(ValueError, match=r"^\[student\] "):
        build(tiny_run, student={"name": "mlpp"})


def test_an_objective_meets_its_networks_and_its_heads_are_the_same_for_a_seed(tiny_run):
    tree = {key: value for key, value in tiny_run.items() if key not in ("augmentor_optim",)}
    tree |= {"augmentor": {"kind": "identity"}, "schedule": {"kind": "student_only"}}
    tree["objective"] = {"kind": "features", "layers": [["linear1", "flatten"]]}
    first, again = build(tree), build(tree)
    (head,) = first.objective.projections
    assert (head.in_features, head.out_features) == (16, 4)
    assert torch.equal(head.weight, again.objective.projections[0].weight)
    assert {"objective.projections.0.weight", "student.network.net.linear1.weight"} <= {
        name for name, p in first.named_parameters() if p.requires_grad
    }
    tree["objective"]["layers"] = [["linear1", "conv1"]]
    with pytest.raises(
        ValueError, match=r"^objective.layers: the student's 'linear1' gives \[16\]"
    ):
        build(tree)


def test_a_network_teaches_itself_without_a_teacher(tiny_run):
    tree = {
        key: value for key, value in tiny_run.items() if key not in ("augmentor_optim", "teacher")
    }
    tree |= {"augmentor": {"kind": "identity"}, "schedule": {"kind": "student_only"}}
    tree["objective"] = {"kind": "sd_dropout", "feature": "dropout1", "classifier": "head"}
    assert build(tree).teacher is None
    tree["objective"] = {"kind": "byot"}
    with pytest.raises(ValueError, match="objective.kind = 'byot': the student has no branches"):
        build(tree)
    for kind in ("byot", "cosub"):
        tree["objective"] = {"kind": kind}
        config = parse(RunConfig, Source(tree, {}))
        assert config.teacher is None
    with pytest.raises(ValueError, match="objective.kind = 'byot' does not use one"):
        parse(
            RunConfig,
            Source(tree | {"teacher": {"name": "cnn"}, "objective": {"kind": "byot"}}, {}),
        )


def test_a_teacher_of_as_many_but_other_classes_is_no_judge(tiny_run):
    tree = {key: value for key, value in tiny_run.items() if key not in ("augmentor_optim",)}
    tree |= {"augmentor": {"kind": "identity"}, "schedule": {"kind": "student_only"}}
    tree["objective"] = {"kind": "features", "layers": [["linear1", "flatten"]]}
    for teacher, is_judge in (
        (tree["teacher"], True),
        (tree["teacher"] | {"num_classes": 10}, False),
    ):
        net = build(tree | {"teacher": teacher}).eval()
        image = torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8)
        with torch.no_grad():
            says = net.student(image / 255).logits_BK.argmax(1)
            # Eight images leave classes that the student never names.
            other = min(set(range(10)) - set(says.tolist()))
            net.teacher.network.net.head.bias[other] += 1e3
        assert net(Phase.STUDENT, Batch(image, says), {}).error.item() == float(is_judge)


ALSO = [
    {"name": "mlp", "options": {"hidden": [8]}, "mean": [0.5], "weight": 2.0},
    {"name": "cnn", "options": {"widths": [4, 4, 4], "batch_norm": True}, "precision": "bf16"},
]


def test_several_teachers_are_one_to_the_step(tiny_run):
    tiny_run["teacher"]["also"] = ALSO
    net = build(tiny_run, train={"precision": "bf16"})
    # Members with a precision of their own do without autocast, whatever the others do.
    assert net.teacher.amp_dtype == torch.bfloat16
    assert build(tiny_run).teacher.amp_dtype is None
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in net.teacher.modules())
    batch = Batch(torch.randint(256, (4, 1, 16, 16), dtype=torch.uint8), torch.arange(4))
    noise = net.augmentor.draw_noise(batch.image.shape, torch.Generator().manual_seed(0))
    gradients = []
    for silent in (None, 0, 1, 2):
        net = build(tiny_run)
        net.learn(Phase.AUGMENTOR)
        if silent is not None:
            for parameter in getattr(net.teacher.network, str(silent)).parameters():
                parameter.data.zero_()
        net(Phase.AUGMENTOR, batch, noise).loss.backward()
        gradients.append(net.augmentor.mean.grad)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not any(torch.equal(gradients[0], other) for other in gradients[1:])


def test_several_teachers_have_probabilities_and_no_layers(tiny_run):
    tiny_run["teacher"]["also"] = ALSO
    with pytest.raises(ValueError, match="^teacher.also: .* 'mse' compares raw outputs; use 'kl'"):
        build(tiny_run, objective={"distance": "mse"})
    del tiny_run["augmentor_optim"]
    tree = tiny_run | {"augmentor": {"kind": "identity"}, "schedule": {"kind": "student_only"}}
    tree["objective"] = {"kind": "features", "layers": [["linear1", "flatten"]]}
    with pytest.raises(ValueError, match=r"^\[teacher\] also: the objective reads inner layers"):
        build(tree)


@pytest.mark.slow
def test_several_teachers_held_in_parts_are_the_same_run(tiny_run, tmp_path):
    tiny_run["teacher"]["also"] = ALSO
    found = []
    for how in ("replicated", "sharded"):
        tree = merge(tiny_run, {"distributed": {"teacher": how}, "run_dir": str(tmp_path / how)})
        (tmp_path / f"{how}.toml").write_text(dump(tree))
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command = ["-m", "hard_fast.train", "--config", str(tmp_path / f"{how}.toml")]
        done = subprocess.run(
            [sys.executable, *torchrun, *command],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        found.append(load_file(tmp_path / how / "student.safetensors"))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
