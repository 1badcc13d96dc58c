import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from hard_fast.augment import AugmentorConfig, build_augmentor
from hard_fast.augment.base import is_learned, take_rows, to_float
from hard_fast.types import View

SHAPE = torch.Size([3, 12, 12])
LENGTH = {"num_steps": 5, "num_steps_per_epoch": 1}


def test_to_float_scales_bytes_and_leaves_floats_alone():
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0.0, 1.0]
    image = torch.tensor([-3.0, 7.0])
    assert to_float(image) is image


def test_learned_means_that_something_requires_gradients():
    layer = nn.Linear(1, 1)
    assert is_learned(layer)
    assert not is_learned(layer.requires_grad_(False))
    assert not is_learned(nn.Identity())


def test_noise_is_cut_like_the_images_it_belongs_to():
    noise = {"each": torch.arange(12), "pair": torch.arange(6), "all": torch.tensor(7)}
    part = take_rows(noise, 4, 8, num_images=12)
    assert part["each"].tolist() == [4, 5, 6, 7] and part["pair"].tolist() == [2, 3]
    assert part["all"].item() == 7


def build(kind, **settings):
    config = TypeAdapter(AugmentorConfig).validate_python({"kind": kind, **settings})
    return build_augmentor(config, SHAPE, is_picture=True)


def views():
    generator = torch.Generator().manual_seed(3)
    image = torch.randint(256, (16, *SHAPE), dtype=torch.uint8, generator=generator)
    return View(image, torch.eye(16)[:, :4])


# Kind and key, strengths at the ends and at the peak.
STRENGTHS = [
    ("standard", "rotation_deg", 10.0, 60.0),
    ("standard", "crop_px", 0, 4),
    ("shifts", "max_px", 1, 3),
    ("random_affine", "translate", 0.0, 0.5),
    ("random_affine", "shear_deg", 0.0, 60.0),
    ("mixup_cutmix", "cutmix_share", 0.0, 1.0),
    ("erasing", "probability", 0.0, 1.0),
    ("cutout", "side", 0.25, 0.75),
    ("rand", "magnitude", 0, 20),
    ("trivial", "strength", 0.1, 1.0),
    ("augmix", "severity", 1, 9),
]


@pytest.mark.parametrize(("kind", "key", "ends", "peak"), STRENGTHS)
def test_a_strength_goes_its_cycle_and_remembers_nothing(kind, key, ends, peak):
    view, cyclic = views(), build(kind, **{key: {"ends": ends, "peak": peak}})
    noise = cyclic.draw_noise(view.image.shape, torch.Generator().manual_seed(0))
    made = {}
    # A quarter of the way, the peak, an end, and back to the peak.
    for step, value in ((2, peak), (4, ends), (2, peak)):
        cyclic.advance(step, **LENGTH)
        fixed = build(kind, **{key: value})
        made[value] = cyclic(view, noise).image
        torch.testing.assert_close(made[value], fixed(view, noise).image, rtol=0, atol=1e-6)
    assert not torch.equal(made[ends], made[peak]) and not cyclic.state_dict()


def test_strengths_in_the_middle_are_whole_where_they_count_something():
    view, cyclic = views(), build("rand", magnitude={"ends": 1, "peak": 6})
    noise = cyclic.draw_noise(view.image.shape, torch.Generator().manual_seed(0))
    # Half way is 3.5, which rounds to the even one.
    cyclic.advance(1, **LENGTH)
    assert torch.equal(cyclic(view, noise).image, build("rand", magnitude=4)(view, noise).image)


@pytest.mark.parametrize("place", [0, 1, 7])
def test_a_strength_that_changes_recompiles_nothing(place):
    kind, key, ends, peak = STRENGTHS[place]
    view, cyclic = views(), build(kind, **{key: {"ends": ends, "peak": peak}})
    noise = cyclic.draw_noise(view.image.shape, torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    whole = torch.compile(cyclic, fullgraph=True, dynamic=False, backend="aot_eager")
    whole(view, noise)
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in (1, 2, 3):
            cyclic.advance(step, **LENGTH)
            found = whole(view, noise).image
            torch.testing.assert_close(found, cyclic(view, noise).image, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("rand", {"magnitude": {"ends": 5, "peak": 40}}),
        ("cutout", {"side": {"ends": 0.5, "peak": 1.5}}),
        ("mixup", {"alpha": {"ends": 0.5, "peak": 1.0}}),
        ("erasing", {"probability": -0.1}),
    ],
)
def test_strengths_out_of_bounds_are_refused(kind, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        build(kind, **settings)
