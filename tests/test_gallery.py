import pytest
import torch
from PIL import Image

from hard_fast.build import build_step
from hard_fast.config import RunConfig
from hard_fast.data import load_data
from hard_fast.gallery import save_pictures
from hard_fast.runtime.configfile import Source, parse
from hard_fast.runtime.dist import World

WORLD = World(0, 1, torch.device("cpu"))
AFFINE, MIX = {"kind": "affine"}, {"kind": "patch_mix", "group": 4}


@pytest.mark.parametrize(
    ("augmentor", "num_pairs"),
    [(AFFINE, 10), (MIX, 2), ({"kind": "compose", "parts": [AFFINE, MIX]}, 2)],
    ids=["affine", "patch_mix", "affine_mix"],
)
def test_pairs_are_shown_and_what_won_the_patches(tiny_run, tmp_path, augmentor, num_pairs):
    schedule = {"kind": "threshold"} if augmentor is AFFINE else {"kind": "joint"}
    tree = tiny_run | {"augmentor": augmentor, "schedule": schedule}
    config = parse(RunConfig, Source(tree, {}))
    data = load_data(config.data, WORLD.device)
    net, part = build_step(config, data, WORLD), data.test["test"]
    path = save_pictures(tmp_path, 7, net, part, torch.Generator().manual_seed(0))
    assert path == tmp_path / "gallery" / "step_00000007.png"
    width, height = Image.open(path).size
    assert width / height == pytest.approx(num_pairs / 2, rel=0.2)
    assert (tmp_path / "patches" / path.name).exists() is (augmentor is not AFFINE)
    assert not any(module._forward_hooks for module in net.augmentor.modules())


def test_a_look_moves_no_statistics_and_leaves_the_mode(tiny_run, tmp_path):
    tree = tiny_run | {
        "augmentor": {"kind": "generator", "width": 2},
        "objective": {"kind": "dafl"},
    }
    tree |= {"schedule": {"kind": "joint"}}
    config = parse(RunConfig, Source(tree, {}))
    data = load_data(config.data, WORLD.device)
    net = build_step(config, data, WORLD)
    net.augmentor.train()
    before = {name: value.clone() for name, value in net.augmentor.state_dict().items()}
    assert save_pictures(tmp_path, 1, net, data.test["test"], torch.Generator()) is not None
    assert all(torch.equal(before[n], v) for n, v in net.augmentor.state_dict().items())
    assert net.augmentor.training and net.augmentor.net.norm1.training


def test_what_is_no_picture_is_not_shown(tiny_run, tmp_path):
    config = parse(RunConfig, Source(tiny_run | {"augmentor": AFFINE}, {}))
    data = load_data(config.data, WORLD.device)
    net = build_step(config, data, WORLD)
    numbers = data.test["test"]._replace(image=torch.rand(20, 1, 16, 16))
    assert save_pictures(tmp_path, 1, net, numbers, torch.Generator()) is None
    assert not list(tmp_path.glob("gallery"))
