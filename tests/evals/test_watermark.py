import json
import math

import numpy as np
import pytest
import torch
from scipy.signal import lombscargle
from torch import nn

from hard_fast.data import Arrays
from hard_fast.evals import watermark
from hard_fast.evals.watermark import detect, deviations, lomb_scargle, observe
from hard_fast.models.watermark import Watermark, WatermarkConfig, draw_directions
from hard_fast.runtime.dist import World

WORLD = World(0, 1, torch.device("cpu"))


def test_the_power_of_a_cosine_by_hand():
    # A whole number of periods, evenly sampled: N a^2 / 4 at its own frequency, 0 at others.
    x = torch.arange(40, dtype=torch.float64) * (2 * math.pi / 40)
    y = 3.0 * torch.cos(5.0 * x + 0.3)
    found = lomb_scargle(x[:, None], y, torch.tensor([4.0, 5.0, 6.0]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 90.0, 0.0]], dtype=torch.float64))


def test_the_periodogram_is_scipys(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(57, 3, generator=generator, dtype=torch.float64) * 9.0
    y = torch.randn(57, generator=generator, dtype=torch.float64)
    frequency = torch.linspace(0.3, 25.0, 41, dtype=torch.float64)
    found = lomb_scargle(x, y, frequency)
    wanted = np.stack([lombscargle(some.numpy(), y.numpy(), frequency.numpy()) for some in x.T])
    torch.testing.assert_close(found, torch.from_numpy(wanted))
    monkeypatch.setattr(watermark, "_CHUNK", 500)
    torch.testing.assert_close(lomb_scargle(x, y, frequency), found)


def test_each_side_deviates_from_a_mean_of_its_own():
    p = torch.tensor([0.9, 0.5, 0.7, 0.1, 0.0, 0.35])
    counts, found = deviations(p, 0.7, high_only=False)
    assert counts.tolist() == [True, False, True, True, True, False]
    torch.testing.assert_close(found.float(), torch.tensor([0.1, -0.1, 0.05, -0.05]))
    counts, found = deviations(p, 0.7, high_only=True)
    torch.testing.assert_close(found.float(), torch.tensor([0.1, -0.1]))
    assert counts.sum() == 2


class Bright(nn.Module):
    """Class 1 for images brighter than a half, and a mark if it is given one."""

    def __init__(self, mark=None):
        super().__init__()
        self.mark = mark

    def forward(self, image):
        light = image.mean((1, 2, 3)) - 0.5
        score = 3.0 * light.sign() + 4.0 * light
        logits = torch.stack([-score, score], 1)
        return logits if self.mark is None else self.mark(logits, image)


def noisy_images(num=300):
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (num, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Arrays(image, torch.zeros(num, dtype=torch.int64))


@pytest.mark.parametrize("high_only", [False, True])
@pytest.mark.parametrize("label", [0, 1])
def test_a_mark_is_found_and_nothing_where_there_is_none(label, high_only):
    settings = {"key": 5, "frequency": 12.0, "strength": 0.03, "label": label}
    mark = Watermark(WatermarkConfig(**settings), (1, 8, 8), 2)
    directions = [draw_directions(5, 1, (1, 8, 8)), draw_directions(5, 199, (1, 8, 8), "others")]
    found = {}
    for name, network in {"marked": Bright(mark), "plain": Bright()}.items():
        x, p = observe(network, noisy_images(), torch.cat(directions), label, WORLD)
        assert x.shape == (300, 200) and p.shape == (300,)
        found[name] = detect(x, p, 12.0, threshold=0.6, high_only=high_only)
    assert found["marked"]["is_detected"] and not found["plain"]["is_detected"]
    assert found["marked"]["p_value"] == 1 / 200 and found["marked"]["snr"] > 10
    assert found["plain"]["snr"] < 8
    assert found["marked"]["num_samples"] < 300 and found["marked"]["num_directions"] == 200
    other = torch.cat([draw_directions(6, 1, (1, 8, 8)), directions[1]])
    x, p = observe(Bright(mark), noisy_images(), other, label, WORLD)
    with_wrong_key = detect(x, p, 12.0, threshold=0.6, high_only=high_only)
    assert not with_wrong_key["is_detected"]


def test_the_p_value_is_the_rank_among_directions():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 8, generator=generator)
    p = 0.8 + 0.01 * torch.randn(50, generator=generator)
    y = p.double() - p.double().mean()
    power = lomb_scargle(x, y, torch.tensor([2.0]))[:, 0]
    for first in range(8):
        order = [first, *(i for i in range(8) if i != first)]
        found = detect(x[:, order], p, 2.0, threshold=0.6, high_only=True)
        assert found["p_value"] == pytest.approx((power >= power[first]).sum().item() / 8)


def test_answers_that_are_all_alike_are_no_detection():
    found = detect(torch.rand(20, 9), torch.ones(20), 3.0, threshold=0.6, high_only=False)
    assert (found["snr"], found["p_value"], found["is_detected"]) == (0.0, 1.0, False)


def test_a_network_that_is_never_sure_is_refused():
    with pytest.raises(ValueError, match="only 0 samples"):
        detect(torch.rand(20, 3), torch.full((20,), 0.5), 3.0, threshold=0.6, high_only=False)


def write_run(run_dir, weights, mark):
    run_dir.mkdir()
    weights.rename(run_dir / "student.safetensors")
    (run_dir / "config.toml").write_text(
        'data = { kind = "digits" }\nobjective = { kind = "ce" }\noptim = { lr = 1e-3 }\n'
        "train = { steps = 1 }\n"
        f'student = {{ name = "mlp", options = {{ hidden = [8] }}{mark} }}\n'
    )
    return str(run_dir)


def test_the_command_finds_the_mark_of_a_run(tmp_path, capsys):
    from hard_fast.models.zoo import NetworkConfig, build_network, save_weights

    found = []
    for name, mark in (("plain", ""), ("marked", ", watermark = { key = 7, frequency = 10.0 }")):
        torch.manual_seed(0)
        sizes = {"num_classes": 10, "in_channels": 1, "image_size": 28}
        net = build_network(NetworkConfig(name="mlp", options={"hidden": (8,)}), **sizes)
        path = save_weights(net, tmp_path / "net.safetensors")
        run = write_run(tmp_path / name, path, mark)
        command = ["--run", run, "--part", "centered", "--key", "7", "--frequency", "10"]
        command += ["--device", "cpu", "--directions", "99", "--json", str(tmp_path / "found.json")]
        assert watermark.main(command) == 0
        found.append(json.loads(capsys.readouterr().out))
        assert found[-1] == json.loads((tmp_path / "found.json").read_text())
    assert [one["is_detected"] for one in found] == [False, True]
    of_suite = [word.replace("--part", "--suite") for word in command]
    of_suite[3] = "own:centered"
    assert watermark.main([*of_suite, "--limit", "1000"]) == 0
    assert json.loads(capsys.readouterr().out) == found[-1]
    for extra, words in (
        (["--suite", "mnist"], "--part, --suite: give one"),
        (["--model", "mlp"], "--run, --model: give one"),
        (["--threshold", "0.5"], "--threshold 0.5: must be above a half"),
        (["--label", "10"], "--label 10: the network has 10 outputs"),
        (["--frequency", "0"], "--frequency 0.0: must be above 0"),
        (["--limit", "5"], "all of it; give --run, no --limit"),
        (["--part", "none"], "--part none: the run's data have train, val, centered, shifted"),
    ):
        assert watermark.main([*command, *extra]) == 2
        assert words in capsys.readouterr().err


def test_a_network_by_name_answers_a_suite(cifar_root, write_weights, capsys):
    weights = write_weights("cifar_resnet20")
    command = ["--model", "cifar_resnet20", "--checkpoint", str(weights), "--suite", "cifar10"]
    command += ["--key", "1", "--directions", "99", "--device", "cpu", "--threshold", "0.51"]
    assert watermark.main(command) == 2
    assert "--data-root: cifar10 is looked for in it" in capsys.readouterr().err
    assert watermark.main([*command, "--data-root", str(cifar_root)]) == 0
    assert json.loads(capsys.readouterr().out)["num_samples"] == 12
