import pytest
import torch

from hard_fast.augment.cutout import Cutout, CutoutConfig
from hard_fast.types import View


def cut(centre, side=0.5, size=8):
    view = Cutout(CutoutConfig(side=side, fill=0.25))(
        View(torch.ones(1, 1, size, size), torch.eye(1)), {"centre": torch.tensor([centre])}
    )
    return view.image[0, 0]


def test_the_square_reaches_half_a_side_around_its_centre():
    image = cut([0.5, 0.25])
    # Side 4, centre at row 4 and column 2: rows 2 to 5, columns 0 to 3.
    want = torch.ones(8, 8)
    want[2:6, 0:4] = 0.25
    assert torch.equal(image, want)


# Half a side before the centre and half behind it, its own pixel among the latter.
@pytest.mark.parametrize(("centre", "num"), [([0.0, 0.0], 4), ([0.999, 0.999], 9), ([0.0, 0.5], 8)])
def test_what_lies_beyond_the_edge_is_cut_off(centre, num):
    assert (cut(centre) == 0.25).sum().item() == num


def test_equals_the_published_code_at_every_centre():
    size, length = 8, 4
    for y in range(size):
        for x in range(size):
            mask = torch.ones(size, size)
            mask[max(y - length // 2, 0) : min(y + length // 2, size)][
                :, max(x - length // 2, 0) : min(x + length // 2, size)
            ] = 0.25
            assert torch.equal(cut([(y + 0.5) / size, (x + 0.5) / size]), mask)


def test_range_layout_gradient_and_one_graph():
    augmentor = Cutout(CutoutConfig())
    image = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    noise = augmentor.draw_noise(image.shape, torch.Generator().manual_seed(0))
    view = augmentor(View(image, torch.eye(4)), noise)
    assert view.image.is_contiguous(memory_format=torch.channels_last)
    assert view.image.min() >= 0.0 and view.image.max() <= 1.0
    whole = torch.compile(augmentor, fullgraph=True, backend="aot_eager")
    assert torch.equal(whole(View(image, torch.eye(4)), noise).image, view.image)
    earlier = (image / 255.0).requires_grad_()
    augmentor(View(earlier, None), noise).image.sum().backward()
    assert torch.equal(earlier.grad == 0.0, view.image == torch.tensor(0.47))
