import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hard_kernels import affine_mix
from torch import nn

from hard_fast.augment.affine import Affine, AffineConfig
from hard_fast.augment.autoencoder import Autoencoder, AutoencoderConfig
from hard_fast.augment.compose import Compose
from hard_fast.augment.noise import GaussianNoise, NoiseConfig
from hard_fast.bank import AugmentorBank, BankConfig
from hard_fast.models.rqvae import RqVae
from hard_fast.report.entries import Part, read_history, read_moments
from hard_fast.report.learned import write_patch_map
from hard_fast.report.page import write_run_report
from hard_fast.report.parts import (
    Learned,
    draw_matrices,
    learned_parts,
    posterior_scales,
    posterior_shifts,
    warp_corners,
)
from hard_fast.report.record import read_record
from hard_fast.runtime.configfile import Config, dump
from hard_fast.types import View

Changes = dict[str, Callable[[torch.Tensor], torch.Tensor]]
SHAPE = torch.Size([3, 8, 8])
TINY = {"width": 8, "latent": 4, "num_levels": 1, "num_blocks": 1}
VDVAE = {
    "enc_blocks": "8x1,8d2,4d4,1x1",
    "dec_blocks": "1x1,4m1,8m4,8x1",
    "width": 8,
    "bottleneck": 0.5,
    "zdim": 2,
    "num_mixtures": 2,
    "train_from_block": 2,
}
RQVAE = {"width": 4, "multipliers": (1, 2), "num_blocks": 1, "latent": 3, "num_codes": 4}


def _leave(run_dir: Path, config: dict, augmentor: nn.Module, changes: list[Changes]) -> None:
    """A run of 100 steps that saved the augmentor untouched, and after each of these changes."""
    bank = AugmentorBank(augmentor, run_dir / "bank", BankConfig(), seed=0)
    bank.save()
    rows: list[dict] = [{"kind": "train", "step": 100}]
    parameters = dict(augmentor.named_parameters())
    for number, change in enumerate(changes, 1):
        with torch.no_grad():
            for name, new in change.items():
                parameters[name].copy_(new(parameters[name]))
        bank.save()
        rows.append({"kind": "switch", "step": 10 * number, "from": "augmentor", "to": "student"})
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run_dir / "config.toml").write_text(dump({"augmentor": config}))


def _table(config: Config) -> dict:
    return config.model_dump(mode="json", exclude_none=True)


def _learned(run_dir: Path) -> list[Learned]:
    return learned_parts(read_record(run_dir))[0]


def _texts(svg: str) -> set[str]:
    return set(re.findall(r"<text[^>]*>([^<]*)</text>", svg))


def test_corners_go_where_the_warp_takes_them() -> None:
    identity = np.array([1.0, 0, 0, 0, 1, 0])
    square = [[-1, -1], [1, -1], [1, 1], [-1, 1]]
    assert warp_corners(identity).tolist() == square
    # Twice as wide, a quarter to the right, x moved by y.
    found = warp_corners(np.stack([identity, [2.0, 0.5, 0.25, 0, 1, -1]]))
    assert found[0].tolist() == square
    assert found[1].tolist() == [[-2.25, -2], [1.75, -2], [2.75, 0], [-1.25, 0]]


def test_corners_enclose_what_the_kernel_reads() -> None:
    theta = np.array([0.5, 0.0, 0.25, 0.0, 0.5, -0.25])
    columns = torch.linspace(-1, 1, 65)[:-1] + 1 / 64
    image = torch.stack(torch.meshgrid(columns, columns, indexing="xy"))[None]
    made = affine_mix(image, torch.tensor(theta, dtype=torch.float32).view(1, 1, 2, 3))
    corners = warp_corners(theta)
    half_pixel = 0.5 / 64
    for axis in (0, 1):
        low, high = corners[:, axis].min(), corners[:, axis].max()
        assert made[0, axis].min() == pytest.approx(low + half_pixel, abs=1e-5)
        assert made[0, axis].max() == pytest.approx(high - half_pixel, abs=1e-5)


def test_matrices_are_drawn_as_the_augmentor_draws_them() -> None:
    augmentor = Affine(AffineConfig(covariance="full", std=0.1, padding="border"))
    with torch.no_grad():
        augmentor.scale[5, 0] = 0.5
    normal = torch.tensor([[1.0, 0, 0, 0, 0, 0], [-1.0, 0, 2.0, 0, 0, 0]])
    factor = augmentor.scale.detach().double().numpy()
    found = draw_matrices(np.array([1.0, 0, 0, 0, 1, 0]), factor, normal.double().numpy())
    expected = [[1.1, 0, 0, 0, 1, 0.5], [0.9, 0, 0.2, 0, 1, -0.5]]
    np.testing.assert_allclose(found, expected, atol=1e-7)
    image = torch.rand(2, 1, 8, 8)
    made = affine_mix(
        image, torch.tensor(found, dtype=torch.float32).view(2, 1, 2, 3), padding="border"
    )
    torch.testing.assert_close(made, augmentor(View(image, None), {"theta": normal}).image)


def test_the_affine_distribution_by_hand(tmp_path: Path) -> None:
    config = AffineConfig(covariance="full", std=0.1)
    # The row of the y shift becomes 0.3, 0, 0, 0, 0, 0.4: a standard deviation of 0.5.
    row = torch.tensor([0.3, 0, 0, 0, 0, 0.4])
    # What is above the diagonal does not count.
    above = torch.ones(5, 6).triu(1)
    change: Changes = {
        "mean": lambda mean: mean + torch.tensor([0.25, 0, -0.5, 0, 0, 0]),
        "scale": lambda scale: torch.cat([scale[:5] + above, row[None]]),
    }
    _leave(tmp_path, _table(config), Affine(config), [change])
    (found,) = _learned(tmp_path)
    assert found.title == "Affine: the learned distribution"
    assert [tile.caption for tile in found.tiles] == ["step 0", "step 10"]
    mean, std = found.panels
    expected = {"xx 0.25", "xy 0", "x shift \u22120.5", "yx 0", "yy 0", "y shift 0"}
    assert expected <= _texts(mean.svg)
    expected = {"xx 0.1", "xy 0.1", "x shift 0.1", "yx 0.1", "yy 0.1", "y shift 0.5"}
    assert expected <= _texts(std.svg)


def test_at_most_eight_warps_are_drawn_first_and_last_among_them(tmp_path: Path) -> None:
    config = AffineConfig()
    grow: Changes = {"mean": lambda mean: 1.01 * mean}
    _leave(tmp_path, _table(config), Affine(config), [grow] * 9)
    captions = [tile.caption for tile in _learned(tmp_path)[0].tiles]
    assert len(captions) == 8 and captions[0] == "step 0" and captions[-1] == "step 90"


def test_a_warp_that_is_no_number_has_no_tile(tmp_path: Path) -> None:
    config = AffineConfig()
    changes: list[Changes] = [{"scale": lambda s: s * float("nan")}, {"scale": torch.ones_like}]
    _leave(tmp_path, _table(config), Affine(config), changes)
    (found,) = _learned(tmp_path)
    assert [tile.caption for tile in found.tiles] == ["step 0", "step 20"]
    assert "yy 1" in _texts(found.panels[1].svg)


@pytest.mark.parametrize(
    "num_channels, labels",
    [
        (1, {"0.5", "0.25"}),
        (3, {"red 0.5", "blue 0.5", "green 0.25"}),
        (2, {"channel 1 0.5", "channel 0 0.25"}),
        (7, {"median 0.5", "highest 0.25"}),
    ],
)
def test_noise_has_mean_and_deviation_by_channel(
    tmp_path: Path, num_channels: int, labels: set
) -> None:
    config = NoiseConfig()
    change: Changes = {
        "mean": lambda mean: mean + 0.5,
        "std": lambda std: torch.full_like(std, -0.25),
    }
    _leave(tmp_path, _table(config), GaussianNoise(config, num_channels, True), [change])
    (found,) = _learned(tmp_path)
    mean, std = found.panels
    assert labels <= _texts(mean.svg) | _texts(std.svg)
    assert found.tiles == ()


@pytest.mark.parametrize("net", ["tiny", "rqvae"])
def test_the_latents_noise_by_hand(tmp_path: Path, net: str) -> None:
    if net == "tiny":
        augmentor: nn.Module = Autoencoder(AutoencoderConfig(options=TINY), SHAPE)
        name, num = "net.noise_log_std", 4
    else:
        augmentor = nn.ModuleDict({"net": RqVae(**RQVAE, norm_groups=2)})
        name, num = "net.noise.log_std", 3
    scales = torch.tensor([0.5, 0.125, 0.25, 0.25])[:num]
    _leave(
        tmp_path, {"kind": "autoencoder", "net": net}, augmentor, [{name: lambda _: scales.log()}]
    )
    (found,) = _learned(tmp_path)
    profile, over_run = found.panels
    assert {"step 0", "step 10", "channel"} <= _texts(profile.svg)
    assert {"highest 0.5", "median 0.25", "lowest 0.125"} <= _texts(over_run.svg)


@pytest.mark.parametrize("is_elu", [False, True])
def test_a_vdvaes_posteriors_by_hand(tmp_path: Path, is_elu: bool) -> None:
    config = AutoencoderConfig(net="vdvae", options={**VDVAE, "sigma": "elu" if is_elu else "exp"})
    augmentor = Autoencoder(config, SHAPE)
    blocks = "net.decoder.dec_blocks"
    # Two means, then two scales: with elu + 1 both are deviations of 2, with exp of e.
    change: Changes = {f"{blocks}.3.enc.c4.bias": lambda _: torch.tensor([7.0, 7.0, 1.0, 1.0])}
    for name, parameter in augmentor.named_parameters():
        if name.startswith(f"{blocks}.2.enc") and parameter.requires_grad:
            change[name] = lambda value: 1.5 * value
    _leave(tmp_path, _table(config), augmentor, [change])
    moments, _ = read_moments(read_record(tmp_path))
    history = read_history(moments, Part({}, ""), rf"{re.escape(blocks)}\.\d+\.enc\..*")
    (_, first), (_, second) = history
    assert posterior_scales(first, is_elu) == {2: 0.0, 3: 0.0}
    expected = math.log(2) if is_elu else 1.0
    assert posterior_scales(second, is_elu) == {2: 0.0, 3: pytest.approx(expected)}
    assert posterior_shifts(first, first) == {2: 0.0, 3: 0.0}
    moved = posterior_shifts(first, second)
    assert moved[2] == pytest.approx(0.5, rel=1e-6)
    weights = [value for name, value in first.items() if ".3." in name]
    # The biases were zero: only what was written into one of them counts.
    length = math.sqrt(sum(float((value**2).sum()) for value in weights))
    assert moved[3] == pytest.approx(10 / length, rel=1e-6)
    (found,) = _learned(tmp_path)
    for panel in found.panels:
        assert {"step 0", "step 10", "block"} <= _texts(panel.svg)


def test_nothing_is_shown_of_what_learned_no_noise(tmp_path: Path) -> None:
    config = AutoencoderConfig(options={**TINY, "trains": ["decoder"]})
    _leave(tmp_path, _table(config), Autoencoder(config, SHAPE), [{}])
    assert _learned(tmp_path) == []


def test_every_part_of_a_chain_is_shown(tmp_path: Path) -> None:
    configs = [NoiseConfig(learned=False), AutoencoderConfig(options=TINY), AffineConfig()]
    chain = Compose(
        [
            GaussianNoise(configs[0], 3, True),
            Autoencoder(configs[1], SHAPE),
            Affine(configs[2]),
        ]
    )
    change: Changes = {"parts.2.mean": lambda mean: mean + 0.5}
    table = {"kind": "compose", "parts": [_table(config) for config in configs]}
    _leave(tmp_path, table, chain, [change])
    latent, affine = _learned(tmp_path)
    assert latent.title == "Part 2: Autoencoder: noise on the latent"
    assert affine.title == "Part 3: Affine: the learned distribution"
    assert "xx 0.5" in _texts(affine.panels[0].svg)
    page = write_run_report(tmp_path).read_text()
    assert page.index("<h2>What the augmentor learned") < page.index("Part 2: Autoencoder")
    learned = page[page.index("<h2>What the augmentor learned") :]
    assert learned.count('<figure class="card chart">') == 4
    assert learned.count("<figcaption>step") == 2
    # Every colour is one of the page's, so that it follows its scheme.
    assert re.findall(r"(?:fill|stroke): #\w+", learned) == []


def test_maps_of_patches_are_shown_over_the_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    for step in (0, 1500):
        path = tmp_path / "patches" / f"step_{step:08d}.png"
        pictures = (torch.zeros(4, 1, 8, 8), torch.zeros(2, 1, 8, 8))
        write_patch_map(path, *pictures, torch.full((2, 2, 2, 2), 0.5))
    (tmp_path / "patches" / "step_00002000.png").write_bytes(b"torn")
    (found,) = _learned(tmp_path)
    assert [picture["caption"] for picture in found.pictures] == ["step 0", "step 1,500"]
    assert write_run_report(tmp_path).read_text().count("<img ") == 2


def test_damaged_files_cost_a_panel_and_not_the_page(tmp_path: Path) -> None:
    config = AffineConfig()
    _leave(tmp_path, _table(config), Affine(config), [{}, {}])
    files = sorted((tmp_path / "bank").iterdir())
    files[1].write_bytes(files[1].read_bytes()[:-1])
    page = write_run_report(tmp_path).read_text()
    assert "1 file of its bank could not be read." in page
    assert page.count("<figcaption>step") == 1
    for file in files:
        file.write_bytes(b"\xff" * 40)
    page = write_run_report(tmp_path).read_text()
    assert "3 files of its bank could not be read." in page
    assert "Affine: the learned distribution" not in page
    for file in files:
        file.unlink()
    assert "What the augmentor learned" not in write_run_report(tmp_path).read_text()


@pytest.mark.parametrize("table", ['augmentor = "affine"', "[augmentor", '[augmentor]\nkind = "x"'])
def test_a_configuration_that_does_not_fit_costs_only_the_panels(
    tmp_path: Path, table: str
) -> None:
    _leave(tmp_path, {}, Affine(AffineConfig()), [])
    (tmp_path / "config.toml").write_text(table)
    assert _learned(tmp_path) == []
    assert "<h2>Results" in write_run_report(tmp_path).read_text()
