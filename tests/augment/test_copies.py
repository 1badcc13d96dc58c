import pytest
import torch
from pydantic import TypeAdapter

from hard_fast.augment import AugmentorConfig, build_augmentor
from hard_fast.augment.base import draw_share, take_rows
from hard_fast.types import View

ADAPTER = TypeAdapter(AugmentorConfig)
SHAPE = torch.Size([3, 8, 8])


def make(part="identity", num=1, base="identity", **own):
    tree = {"kind": "copies", "num": num, "base": {"kind": base}, "part": {"kind": part, **own}}
    return build_augmentor(ADAPTER.validate_python(tree), SHAPE, is_picture=True)


def flat(values):
    """Images of one grey level each."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, *SHAPE).contiguous()


def test_copies_stand_behind_each_other_and_the_originals_beside_them():
    image, target = torch.rand(4, *SHAPE), torch.eye(4)
    view = make(num=3)(View(image, target), {})
    assert torch.equal(view.image, torch.cat([image] * 3))
    assert torch.equal(view.target_BK, torch.cat([target] * 3))
    assert torch.equal(view.original, image)
    assert make(num=3)(View(image, None), {}).target_BK is None


def test_each_copy_meets_another_partner_with_its_own_share():
    augmentor = make("mixup", num=2)
    assert augmentor.group == 4
    image, target = flat([0.0, 0.2, 0.4, 1.0]), torch.eye(4)
    noise = {"0.share": torch.tensor([1.0, 0.5, 0.5, 0.5]), "1.share": torch.full((4,), 0.75)}
    view = augmentor(View(image, target), noise)
    # By hand: 0 with 1 and 2 with 3, then 0 with 2 and 1 with 3.
    want = [0.0, 0.1, 0.7, 0.7, 0.1, 0.3, 0.4, 0.8]
    torch.testing.assert_close(view.image[:, 0, 0, 0], torch.tensor(want))
    torch.testing.assert_close(view.target_BK[4], torch.tensor([0.75, 0.0, 0.25, 0.0]))
    torch.testing.assert_close(view.target_BK[7], torch.tensor([0.0, 0.25, 0.0, 0.75]))
    assert torch.equal(view.original, image)


@pytest.mark.parametrize("num", [1, 2, 3, 4, 7])
def test_no_image_meets_itself_or_one_that_it_met(num):
    augmentor = make("mixup", num=num)
    size = augmentor.group
    met = {image: set() for image in range(size)}
    for order in augmentor._order.tolist():
        assert sorted(order) == list(range(size))
        for left, right in zip(order[::2], order[1::2], strict=True):
            met[left].add(right)
            met[right].add(left)
    assert all(len(partners - {own}) == num for own, partners in met.items())


def test_the_base_makes_the_originals_and_does_not_depend_on_the_part():
    image = torch.rand(4, *SHAPE)
    made = []
    for part in ("identity", "cutmix"):
        augmentor = make(part, base="standard")
        noise = augmentor.draw_noise(image.shape, torch.Generator().manual_seed(0))
        view = augmentor(View(image, None), noise)
        made.append(view.original)
        assert part == "cutmix" or torch.equal(view.image, view.original)
    assert torch.equal(*made) and not torch.equal(made[0], image)


def test_rows_of_its_noise_make_the_same_images_on_two_processes():
    augmentor = make("cutmix", num=2, base="standard")
    image, target = torch.rand(8, *SHAPE), torch.eye(8)
    noise = augmentor.draw_noise(image.shape, torch.Generator().manual_seed(1))
    whole = augmentor(View(image, target), noise)
    for rank in range(2):
        rows = slice(4 * rank, 4 * rank + 4)
        share = draw_share(
            augmentor, torch.Size([4, *SHAPE]), torch.Generator().manual_seed(1), rank, 2
        )
        cut = take_rows(noise, rows.start, rows.stop, num_images=8)
        assert all(torch.equal(share[name], cut[name]) for name in noise)
        part = augmentor(View(image[rows], target[rows]), share)
        assert torch.equal(part.image, whole.image.unflatten(0, (2, 8))[:, rows].flatten(0, 1))


def test_one_graph_equals_eager_and_keeps_the_layout():
    augmentor = make("cutmix", num=2, base="standard")
    image = torch.randint(0, 256, (4, *SHAPE), dtype=torch.uint8)
    noise = augmentor.draw_noise(image.shape, torch.Generator().manual_seed(0))
    view = augmentor(View(image, torch.eye(4)), noise)
    assert view.image.is_contiguous(memory_format=torch.channels_last)
    assert view.image.min() >= 0.0 and view.image.max() <= 1.0
    whole = torch.compile(augmentor, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(View(image, torch.eye(4)), noise), view)


@pytest.mark.parametrize("part", ["affine", "copies"])
def test_copies_are_made_by_what_does_not_learn_and_makes_as_many(part):
    maker = {"kind": part, **({"part": {"kind": "identity"}} if part == "copies" else {})}
    config = ADAPTER.validate_python({"kind": "copies", "part": maker})
    with pytest.raises(ValueError, match=rf"augmentor\.part\.kind = '{part}'"):
        build_augmentor(config, SHAPE, is_picture=True)


def test_copies_are_no_link_of_a_chain():
    parts = [{"kind": "copies", "part": {"kind": "identity"}}, {"kind": "identity"}]
    config = ADAPTER.validate_python({"kind": "compose", "parts": parts})
    with pytest.raises(ValueError, match="stands alone"):
        build_augmentor(config, SHAPE, is_picture=True)
