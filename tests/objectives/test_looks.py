import pytest
import torch

from hard_fast.objectives.looks import above_chance, contrast, looks
from hard_fast.types import Batch, Outputs, Seen, View


def seen(image, teacher=None, clean=None):
    batch = Batch(torch.zeros(0), torch.zeros(0))
    made, before = (None if v is None else Outputs(v, {}) for v in (teacher, clean))
    return Seen(batch, View(image, None), {}, (), made, None, before)


def test_contrast_is_the_spread_within_a_channel():
    # Half black, half white: 0.5. Plain red has none, though its channels differ.
    half = torch.tensor([0, 255], dtype=torch.uint8).expand(2, 3, 4, 2)
    assert contrast(half).item() == pytest.approx(0.5)
    red = torch.zeros(2, 3, 4, 4)
    red[:, 0] = 1.0
    assert contrast(red).item() == 0.0


def test_looks_are_shares_of_the_originals():
    original = torch.tensor([0.0, 1.0]).expand(2, 1, 4, 2)
    assert looks(seen(0.25 * original), original).keys() == {"contrast"}
    assert looks(seen(0.25 * original), original)["contrast"].item() == pytest.approx(0.25)
    blank = torch.zeros_like(original)
    # What a generator makes has zeros for its originals.
    assert looks(seen(blank), blank)["contrast"].item() == 0.0
    assert looks(seen(original), blank)["contrast"].item() > 1.0
    points = torch.zeros(4, 1, 1, 1)
    assert looks(seen(points), points) == {}


def test_a_teacher_loses_only_what_it_had():
    image = torch.rand(2, 1, 4, 4)
    certain, unsure = torch.tensor([[50.0, 0.0, 0.0, 0.0]] * 2), torch.zeros(2, 4)
    assert above_chance(Outputs(certain, {})).item() == pytest.approx(0.75)
    for now, clean, wanted in ((unsure, certain, 0.0), (certain, certain, 1.0)):
        assert looks(seen(image, now, clean), image)["sure"].item() == pytest.approx(wanted)
    assert looks(seen(image, unsure, unsure), image)["sure"].item() == 1.0
