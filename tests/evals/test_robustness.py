import json
import math

import pytest
import torch
from torch import nn

from hard_fast.data import Arrays
from hard_fast.evals import robustness
from hard_fast.evals.robustness import (
    NUM_BINS,
    adapted,
    attacked,
    attacked_top1,
    auroc,
    confidence,
    confidence_sums,
    confidences,
)
from hard_fast.evals.subject import open_run
from hard_fast.evals.suites.corrupted import CorruptedPart, number
from hard_fast.models.taps import bare
from hard_fast.models.zoo import NetworkConfig, build_network, save_weights
from hard_fast.runtime.dist import World

WORLD = World(0, 1, torch.device("cpu"))


def test_confidence_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0], [60.0, 0.0]])
    wanted = [-math.log(0.25), -math.log(0.5), 60.0]
    assert confidence(logits).tolist() == pytest.approx(wanted, rel=1e-5)
    assert logits[2].softmax(0)[0] == 1.0, "where the probability itself is rounded"
    sums = confidence_sums(logits)
    assert sums.nonzero().flatten().tolist() == [
        *(int(256 * math.log(2.0)), int(256 * math.log(4.0)), NUM_BINS - 1)
    ]


def test_auroc_by_hand_and_by_all_pairs():
    inside, outside = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([2.0, 1.0, 0.0])
    # Of nine pairs inside is surer in 7: 1 beats 2, the tie counts half, 2 beat 3 each.
    assert auroc(inside, outside) == pytest.approx(100.0 * (2 + 0.5 + 6) / 9)
    assert auroc(inside, inside) == 50.0 and math.isnan(auroc(inside, torch.zeros(3)))
    torch.manual_seed(0)
    ours, theirs = 3.0 * torch.randn(200, 5), torch.randn(300, 5)
    one, other = ours.softmax(1).amax(1)[:, None], theirs.softmax(1).amax(1)
    by_pairs = 100.0 * ((one > other).double() + 0.5 * (one == other).double()).mean()
    # Bins of 1/256 nat make ties of a few pairs.
    found = auroc(confidence_sums(ours), confidence_sums(theirs))
    assert found == pytest.approx(by_pairs.item(), abs=0.1)


def test_images_of_another_set_take_the_networks_shape():
    grey = torch.full((2, 1, 4, 4), 51, dtype=torch.uint8)
    colours = adapted(grey, torch.Size((3, 8, 8)))
    assert colours.shape == (2, 3, 8, 8)
    torch.testing.assert_close(colours, torch.full_like(colours, 0.2))
    bright = torch.tensor([0.0, 0.3, 0.9]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    torch.testing.assert_close(
        adapted(bright, torch.Size((1, 2, 2))), torch.full((1, 1, 2, 2), 0.4)
    )


class Bright(nn.Module):
    """Class 1 for images brighter than a half."""

    def forward(self, image):
        score = 10.0 * (image.mean((1, 2, 3)) - 0.5)
        return torch.stack([-score, score], 1)


def grey(*bytes_):
    return torch.tensor(bytes_, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def test_an_attack_moves_each_pixel_to_the_edge_of_what_it_may():
    image = (grey(100, 2, 250) / 255).contiguous()
    label = torch.tensor([0, 0, 1])
    settings = {"radius": 8 / 255, "step": 3 / 255, "num_steps": 10}
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = attacked(Bright(), image, label, noise, **settings)
    wanted = grey(108, 10, 242) / 255
    torch.testing.assert_close(found, wanted.expand_as(found))
    start = attacked(Bright(), image, label, noise, **(settings | {"num_steps": 0}))
    torch.testing.assert_close(start, (image + 8 / 255 * noise).clamp(0, 1))
    one_step = attacked(
        Bright(), image[:1], label[:1], 0 * noise[:1], **(settings | {"num_steps": 1})
    )
    torch.testing.assert_close(one_step, (grey(103) / 255).expand_as(one_step))


def test_what_stands_an_attack_is_what_is_further_from_the_border():
    image, label = grey(100, 123, 132, 150, 10), torch.tensor([0, 0, 1, 1, -1])
    part = Arrays(image.contiguous(), label)
    assert attacked_top1(Bright(), part, WORLD) == 50.0
    assert attacked_top1(Bright(), part, WORLD, radius=0.0) == 100.0
    assert attacked_top1(Bright(), part, WORLD, radius=50 / 255, step=10 / 255) == 0.0
    assert math.isnan(attacked_top1(Bright(), Arrays(image, torch.full((5,), -1)), WORLD))


def test_a_start_depends_on_the_place_alone(monkeypatch):
    images = torch.randint(256, (7, 5, 6, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    part = Arrays(images, torch.tensor([0, 1, -1, 1, 0, 0, 1]))
    seen = []

    def starts(batch_size, *worlds, of=part):
        seen.clear()
        monkeypatch.setattr(robustness, "_BATCH", batch_size)
        watched = Bright()
        watched.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for world in worlds:
            attacked_top1(watched, of, world, radius=0.5, num_steps=0)
        return torch.cat(seen)

    whole = starts(7, WORLD)
    assert whole.shape == (6, 3, 5, 6) and whole.unique(dim=0).shape == whole.shape
    halves = [World(rank, 2, torch.device("cpu")) for rank in (0, 1)]
    assert torch.equal(starts(2, *halves), whole)
    darker = CorruptedPart(number(part, WORLD.device), "contrast", 5)
    whole = starts(7, WORLD, of=darker)
    assert whole.shape == (6, 3, 5, 6) and torch.equal(starts(2, *halves, of=darker), whole)


def test_confidences_of_a_set_are_counted_once(monkeypatch):
    monkeypatch.setattr(robustness, "_BATCH", 2)
    part = Arrays(grey(0, 100, 120, 130, 250).contiguous(), torch.zeros(5, dtype=torch.int64))
    total = confidences(Bright(), part, part.image_shape, WORLD)
    assert total.sum() == 5 and torch.equal(total, confidence_sums(Bright()(part.image / 255)))


def test_an_early_exit_of_a_run_is_an_override(write_weights, write_run, tmp_path):
    name, small = "python:hard_fast.models.branches:branched", {"widths": [4, 8], "num_blocks": 1}
    weights = write_weights(name, options=small, after=["layer1"])
    student = f'{{ name = "{name}", options = {{ options = {{ widths = [4, 8], num_blocks = 1 }}, '
    run_dir = write_run(tmp_path / "run", weights, student + 'after = ["layer1"] } }')
    shape, image = (3, 32, 32), torch.rand(2, 3, 32, 32)
    whole, early = (
        open_run(run_dir, None, overrides).build(shape, 10, WORLD)[0]
        for overrides in ([], ["student.options.exit=1"])
    )
    net = bare(whole)
    with torch.no_grad():
        x = image
        for layer in (net.trunk.conv1, net.trunk.bn1, net.trunk.relu, net.trunk.layer1):
            x = layer(x)
        wanted = net.branches["layer1"](x)[0]
        torch.testing.assert_close(early(image).logits_BK, wanted, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(whole(image).logits_BK, wanted, atol=1e-2)


def test_the_command_scores_a_run(cifar_root, write_weights, write_run, capsys, tmp_path):
    weights = write_weights("cifar_resnet20")
    run_dir = write_run(tmp_path / "run", weights, '{ name = "cifar_resnet20" }')
    command = ["--run", str(run_dir), "--suite", "cifar10", "--data-root", str(cifar_root)]
    command += ["--device", "cpu", "--json", str(tmp_path / "found.json"), "--limit", "8"]
    assert robustness.main([*command, "--outside", "cifar10", "--radius", "0"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "found.json").read_text())
    assert found.keys() == {"pgd_top1", "cifar10_auroc"} and found["cifar10_auroc"] == 50.0
    assert found["pgd_top1"] * 8 % 100 == 0.0
    assert robustness.main([*command, "--outside", "mnist"]) == 2
    assert "mnist: no mnist/" in capsys.readouterr().err
    assert robustness.main([*command[:3], "cifar10_c", *command[4:]]) == 2
    assert "error" in capsys.readouterr().err


def test_a_run_answers_parts_of_its_own_data_without_a_root(write_run, tmp_path, capsys):
    torch.manual_seed(0)
    sizes = {"num_classes": 10, "in_channels": 1, "image_size": 28}
    net = build_network(NetworkConfig(name="mlp", options={"hidden": (8,)}), **sizes)
    weights = save_weights(net, tmp_path / "net.safetensors")
    student = '{ name = "mlp", options = { hidden = [8] } }'
    run_dir = write_run(tmp_path / "run", weights, student, data='{ kind = "digits" }')
    command = ["--run", str(run_dir), "--device", "cpu", "--limit", "20", "--steps", "1"]
    command += ["--outside", "own:shifted,own+corrupted:contrast,fog@1", "--suite"]
    assert robustness.main([*command, "own:centered"]) == 0
    found = json.loads(capsys.readouterr().out)
    name = "own+corrupted:contrast,fog@1"
    names = {"pgd_top1", "own:shifted_auroc", f"{name}_contrast/1_auroc", f"{name}_fog/1_auroc"}
    assert found.keys() == names and found["pgd_top1"] * 20 % 100 == 0.0
    for suite, words in (
        ("own", "has several sets of images; give one of them, such as own:centered"),
        ("cifar10", "--data-root: cifar10 is looked for in it"),
    ):
        assert robustness.main([*command, suite]) == 2
        assert words in capsys.readouterr().err
