import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hard_fast.data import Arrays
from hard_fast.evals import sharpness as module
from hard_fast.evals.sharpness import landscape_of, sharpness, top_eigenvalue
from hard_fast.runtime.dist import World

WORLD = World(0, 1, torch.device("cpu"))


def bowl(weights, curvatures):
    """The landscape 1/2 sum c w^2."""

    def landscape(direction):
        pairs = zip(weights, curvatures, strict=True)
        loss = sum((c * w.detach() ** 2).sum().item() / 2 for w, c in pairs)
        along = weights if direction is None else direction
        return loss, [(c * v).detach() for c, v in zip(curvatures, along, strict=True)]

    return landscape


def test_a_round_bowl_by_hand():
    weights = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    landscape = bowl(weights, [torch.tensor(2.0)] * 2)
    # The norm is 5: from c/2 5^2 to c/2 (1.2 * 5)^2, straight outwards in one step.
    for steps in (1, 3):
        assert sharpness(weights, landscape, 0.2, steps) == pytest.approx(36 - 25)
    assert weights[0].tolist() == [3.0, 0.0] and weights[1].item() == 4.0
    assert top_eigenvalue(weights, landscape, 1) == pytest.approx(2.0)
    assert sharpness(weights, landscape, 0.0, 2) == 0.0


def test_a_long_bowl_by_hand():
    weights = [torch.tensor([1.0, 0.0, 1e-3])]
    curvatures = [torch.tensor([1.0, 4.0, 9.0])]
    landscape = bowl(weights, curvatures)
    assert top_eigenvalue(weights, landscape, 30) == pytest.approx(9.0, rel=1e-5)
    # One step goes along the gradient (1, 0, 0.009), nearly straight on: (1.5^2 - 1) / 2.
    one = sharpness(weights, landscape, 0.5, 1)
    assert one == pytest.approx(0.625, rel=0.01)
    # The best way ends at (1 + dx, 0, dz), dx = 1/8 and dz^2 = 1/4 - dx^2 (1 + dx = 9 dx), up to
    # the 1e-3: (81/64 + 9 * 15/64) / 2 - 1/2.
    assert sharpness(weights, landscape, 0.5, 60) == pytest.approx((81 + 135) / 128 - 0.5, rel=0.01)


class Line(nn.Module):
    """Logits of two classes, w x and 0."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.5]]))
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, image):
        score = image.mean((1, 2, 3))[:, None] * self.weight
        return torch.cat([score, torch.zeros_like(score)], 1)


def test_a_networks_landscape_by_hand(monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 2)
    network = Line()
    image = torch.tensor([255, 51, 0, 204], dtype=torch.uint8).view(4, 1, 1, 1)
    part = Arrays(image.expand(-1, 1, 2, 2).contiguous(), torch.tensor([0, 1, -1, 1]))
    landscape = landscape_of(network, part, WORLD)
    x, target = torch.tensor([1.0, 0.2, 0.8]), torch.tensor([1.0, 0.0, 0.0])
    p = torch.sigmoid(0.5 * x)
    wanted = F.binary_cross_entropy(p, target).item()
    loss, gradient = landscape(None)
    assert loss == pytest.approx(wanted)
    assert gradient[0].item() == pytest.approx(((p - target) * x).mean().item())
    assert gradient[1].tolist() == [0.0, 0.0]
    curvature = (p * (1 - p) * x**2).mean().item()
    weights = list(network.parameters())
    _, turned = landscape([torch.tensor([[2.0]]), torch.zeros(2)])
    assert turned[0].item() == pytest.approx(2.0 * curvature, rel=1e-5)
    assert top_eigenvalue(weights, landscape, 3) == pytest.approx(curvature, rel=1e-5)
    # The ball's radius is 0.1 |(0.5, 1, 1)| = 0.15, and the loss rises along the gradient's sign.
    sign = math.copysign(1.0, ((p - target) * x).mean().item())
    there = torch.sigmoid((0.5 + 0.15 * sign) * x)
    rise = F.binary_cross_entropy(there, target).item() - wanted
    assert sharpness(weights, landscape, 0.1, 1) == pytest.approx(rise, rel=1e-4)
    assert network.weight.item() == 0.5 and network.weight.grad is None
    none = Arrays(part.image, torch.full((4,), -1))
    assert math.isnan(landscape_of(network, none, WORLD)(None)[0])


def test_attention_is_differentiated_twice():
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(4, 2, batch_first=True).eval()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, image):
            x = image.flatten(2)
            return self.layer(x, x, x, need_weights=False)[0].mean(1)

    part = Arrays(torch.randint(256, (6, 3, 2, 2), dtype=torch.uint8), torch.arange(6) % 4)
    network = Net()
    weights, landscape = list(network.parameters()), landscape_of(network, part, WORLD)
    vector = [torch.randn_like(w) for w in weights]
    _, turned = landscape(vector)
    ends = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            for weight, v in zip(weights, vector, strict=True):
                weight += sign * 1e-2 * v * (1 if sign > 0 else 2)
        ends.append(landscape(None)[1])
    for found, high, low in zip(turned, *ends, strict=True):
        torch.testing.assert_close(found, (high - low) / 2e-2, rtol=0.05, atol=2e-3)


def test_the_command_measures_a_run_with_its_weights_as_they_were_trained(
    cifar_root, write_weights, write_run, capsys, tmp_path
):
    weights = write_weights("cifar_resnet20")
    run_dir = write_run(tmp_path / "run", weights, '{ name = "cifar_resnet20" }')
    command = ["--run", str(run_dir), "--suite", "cifar10", "--data-root", str(cifar_root)]
    command += ["--device", "cpu", "--limit", "4", "--steps", "1", "--power-steps", "1"]
    assert module.main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"loss", "sharpness", "top_eigenvalue"} and found["sharpness"] > 0.0
    assert module.main([*command, "--radius", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["sharpness"] == 0.0
    assert module.main([*command[:3], "mnist", *command[4:]]) == 2
    assert "mnist" in capsys.readouterr().err
