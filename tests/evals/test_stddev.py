import pytest
import torch
from torch import nn

from hard_fast.augment.base import Augmentor
from hard_fast.augment.copies import Copies
from hard_fast.augment.fixed import Identity
from hard_fast.evals.scores import draw_spread
from hard_fast.evals.stddev import Contender, measure, rank
from hard_fast.types import Batch, Outputs, View


class Odds(nn.Module):
    """Two classes; the first pixel is the probability of the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.num_images = 0

    def forward(self, image: torch.Tensor) -> Outputs:
        self.num_images += len(image)
        share = image[:, 0, 0, 0]
        return Outputs(torch.stack([share, 1.0 - share], 1).log(), {})


class Constant(Augmentor):
    """Images of one value, whatever comes in."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def draw_noise(self, shape, generator):
        return {}

    def forward(self, view, noise):
        return View(torch.full_like(view.image, self.value), view.target_BK)


class Dice(Augmentor):
    """Each image's value is its noise."""

    def draw_noise(self, shape, generator):
        return {"value": torch.rand(shape[0], generator=generator)}

    def forward(self, view, noise):
        return View(noise["value"].view(-1, 1, 1, 1).expand_as(view.image), view.target_BK)


def batches(*shares):
    return [
        Batch(torch.tensor(one).view(-1, 1, 1, 1), torch.zeros(len(one)).long()) for one in shares
    ]


def copies(part):
    return Copies(Identity(), part, 1)


def test_a_draw_is_the_mean_of_originals_and_copies_by_hand():
    shown = batches([0.2, 0.4], [0.6, 0.8])
    contenders = [
        Contender("identity", copies(Identity())),
        Contender("even", copies(Constant(0.5))),
    ]
    sums = measure(
        contenders, Odds(), shown, num_draws=2, batches_per_draw=1, num_classes=2, seed=0
    )
    torch.testing.assert_close(sums["even"][0], torch.tensor([1.6, 2.4, 4.0]).double())
    # Means 0.3 and 0.7, or 0.4 and 0.6: apart by 0.4 and 0.2, over sqrt(2), alike in both classes.
    assert draw_spread(sums["identity"]) == pytest.approx(0.4 / 2**0.5, abs=1e-7)
    assert draw_spread(sums["even"]) == pytest.approx(0.2 / 2**0.5, abs=1e-7)
    whole = measure(
        contenders, Odds(), shown, num_draws=1, batches_per_draw=2, num_classes=2, seed=0
    )
    torch.testing.assert_close(whole["even"], sums["even"].sum(0, keepdim=True))


def test_what_is_kept_is_what_the_judge_scores_highest():
    shown = batches([0.2, 0.4])
    pool = Copies(Identity(), Identity(), 2)
    score = {"score": lambda outputs: outputs.logits_BK[:, 0], "keep": 0.5}

    class Contrary(Odds):
        def forward(self, image):
            return super().forward(1.0 - image)

    sums = measure(
        [
            Contender("teacher", pool, **score),
            Contender("student", pool, judge=Contrary(), **score),
        ],
        Odds(), shown, num_draws=1, batches_per_draw=1, num_classes=2, seed=0,
    )  # fmt: skip
    assert sums["teacher"][0, 0].item() == pytest.approx(0.6 + 0.8)
    assert sums["student"][0, 0].item() == pytest.approx(0.6 + 0.4)


def test_contenders_see_the_same_noise_and_the_teacher_answers_each_image_once():
    teacher, steps = Odds(), []
    dice = copies(Dice())
    sums = measure(
        [Contender("one", dice), Contender("other", dice, prepare=steps.append)],
        teacher, batches([0.2] * 4, [0.3] * 4), num_draws=2, batches_per_draw=1, num_classes=2,
        seed=3,
    )  # fmt: skip
    assert torch.equal(sums["one"], sums["other"]) and steps == [0, 1]
    assert teacher.num_images == 2 * (4 + 4)


def test_the_ranking_is_paired():
    """One is always a tenth above the other, though both vary much more than that."""
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(30, 1, generator=generator, dtype=torch.float64)
    one = torch.cat([share, 1.0 - share, torch.ones_like(share)], 1)
    shrunk = torch.cat([0.9 * share, 1.0 - 0.9 * share, torch.ones_like(share)], 1)
    found = rank({"wide": one, "narrow": shrunk}, num_resamples=200, seed=0)
    assert list(found["rows"]) == ["narrow", "wide"]
    wide, narrow = found["rows"]["wide"], found["rows"]["narrow"]
    assert wide["t_stddev"] == pytest.approx(share.std().item())
    assert wide["low"] < wide["t_stddev"] < wide["high"] and narrow["high"] > wide["low"]
    (difference,) = found["differences"]
    assert (difference["of"], difference["from"]) == ("wide", "narrow")
    assert difference["difference"] == pytest.approx(0.1 * wide["t_stddev"])
    assert difference["low"] == pytest.approx(0.1 * wide["low"])
    assert difference["high"] == pytest.approx(0.1 * wide["high"])


def test_an_interval_of_two_draws_by_hand():
    # Two draws drawn again are one of them twice, without any spread, or both: sqrt(2) too wide.
    share = torch.tensor([[0.2], [0.6]], dtype=torch.float64)
    sums = torch.cat([share, 1.0 - share, torch.ones_like(share)], 1)
    row = rank({"one": sums}, num_resamples=50, seed=0)["rows"]["one"]
    assert row["t_stddev"] == pytest.approx(0.4 / 2**0.5)
    assert row["low"] == pytest.approx(0.0) and row["high"] == pytest.approx(0.4)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    generator = torch.Generator().manual_seed(1)
    num_right = 0
    for _ in range(40):
        share = 0.5 + 0.1 * torch.randn(60, 1, generator=generator, dtype=torch.float64)
        sums = torch.cat([share, 1.0 - share, torch.ones_like(share)], 1)
        row = rank({"one": sums}, num_resamples=100, seed=0)["rows"]["one"]
        num_right += row["low"] < 0.1 < row["high"]
    assert 33 <= num_right <= 40
