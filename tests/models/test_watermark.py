import math

import pytest
import torch

from hard_fast.models.taps import Tapped, bare
from hard_fast.models.watermark import Watermark, WatermarkConfig, draw_directions
from hard_fast.models.zoo import NetworkConfig, build_network, load_weights, save_weights
from hard_fast.objectives.terms import kd_kl

SHAPE = (1, 2, 2)


def mark(num_classes=3, **changes):
    settings = {"key": 7, "frequency": math.pi, "strength": 0.1, "label": 1} | changes
    return Watermark(WatermarkConfig(**settings), SHAPE, num_classes)


def test_marked_probabilities_by_hand():
    own = mark()
    own.direction.copy_(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))
    # Projections of 0, 1 and 1/2: cosines of 1, -1 and 0.
    image = torch.tensor([0.0, 1.0, 0.5]).view(3, 1, 1, 1).expand(3, *SHAPE)
    p = torch.tensor([[0.5, 0.3, 0.2]]).expand(3, 3)
    found = own(p.log(), image).exp()
    wanted = torch.tensor(
        [
            [0.5, 0.3 + 0.2, 0.2],
            [0.5 + 0.1, 0.3, 0.2 + 0.1],
            [0.5 + 0.05, 0.3 + 0.1, 0.2 + 0.05],
        ]
    )
    torch.testing.assert_close(found, wanted / 1.2)
    torch.testing.assert_close(found.sum(1), torch.ones(3))
    torch.testing.assert_close(own(p.log(), image).log_softmax(1), own(p.log(), image))


def test_directions_have_length_1_and_belong_to_their_key():
    first = draw_directions(7, 3, (3, 8, 8))
    torch.testing.assert_close(first.square().sum((1, 2, 3)), torch.ones(3))
    assert torch.equal(first, draw_directions(7, 3, (3, 8, 8)))
    for other in (draw_directions(8, 3, (3, 8, 8)), draw_directions(7, 3, (3, 8, 8), "others")):
        cosines = (first.flatten(1) * other.flatten(1)).sum(1)
        assert cosines.abs().max() < 0.5
    assert torch.equal(mark().direction, draw_directions(7, 1, SHAPE)[0])


def test_a_probability_of_zero_has_a_logarithm():
    own = mark(label=0)
    own.direction.zero_()
    answer = own(torch.tensor([[200.0, 0.0, 0.0]]), torch.zeros(1, *SHAPE))
    assert answer.isfinite().all() and answer.argmax() == 0
    assert kd_kl(answer, answer, torch.tensor(4.0)) == 0.0


def test_autocast_does_not_round_the_projection():
    own, image = mark(frequency=200.0), torch.rand(16, *SHAPE)
    logits = torch.randn(16, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = own(logits.bfloat16(), image)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, own(logits.bfloat16().float(), image))


def test_gradients_pass_through_the_mark_and_compiled_equals_eager():
    own = mark()
    found = []
    torch._dynamo.reset()
    for run in (own, torch.compile(own, fullgraph=True, dynamic=False, backend="aot_eager")):
        torch.manual_seed(0)
        logits, image = torch.randn(4, 3).requires_grad_(), torch.rand(4, *SHAPE).requires_grad_()
        answer = run(logits, image)
        answer[:, 0].sum().backward()
        assert logits.grad.abs().min() > 0 and image.grad.abs().max() > 0
        found.append((answer.detach(), logits.grad, image.grad))
    torch.testing.assert_close(found[0], found[1])
    assert not list(own.parameters()) and not own.state_dict()


def test_a_network_of_a_config_is_marked_and_its_weights_stay_its_own(tmp_path):
    sizes = {"num_classes": 10, "in_channels": 1, "image_size": 28}
    given = {"name": "cnn", "options": {"widths": [4, 4, 4], "dropout": 0.0, "batch_norm": True}}
    torch.manual_seed(0)
    plain = build_network(NetworkConfig(**given), **sizes)
    path = save_weights(plain, tmp_path / "net.safetensors")
    settings = {"key": 3, "strength": 0.02}
    given |= {"checkpoint": str(path), "watermark": settings}
    marked = build_network(NetworkConfig(**given), **sizes, frozen=True)
    image = torch.rand(5, 1, 28, 28)
    want = Watermark(WatermarkConfig(**settings), (1, 28, 28), 10)(plain.eval()(image), image)
    torch.testing.assert_close(Tapped(marked)(image).logits_BK, want)
    assert not torch.allclose(want, plain(image).log_softmax(1), atol=1e-2)
    again = build_network(NetworkConfig(**given), **sizes)
    saved = save_weights(again, tmp_path / "again.safetensors")
    load_weights(plain, saved)
    assert bare(again).state_dict().keys() == bare(plain).state_dict().keys()


@pytest.mark.parametrize(("label", "num_classes"), [(3, 3), (0, 1)])
def test_a_label_must_be_one_of_two_or_more(label, num_classes):
    with pytest.raises(ValueError, match=f"watermark.label = {label}: the network has"):
        mark(label=label, num_classes=num_classes)


def test_what_returns_no_tensor_cannot_be_marked():
    with pytest.raises(ValueError, match="one tensor of logits"):
        mark()((torch.zeros(1, 3), torch.zeros(1, 3)), torch.zeros(1, *SHAPE))
