"""timm's networks: told their image size where they want to be, and their mistakes in one line."""

import pytest
import timm
import torch

from hard_fast.models.from_timm import build_timm, is_timm_name

TINY = {"depth": 1, "embed_dim": 12, "num_heads": 2}


def build(name, in_channels=3, image_size=32, pretrained=False, **options):
    sizes = {"num_classes": 10, "in_channels": in_channels, "image_size": image_size}
    return build_timm(name, options, sizes, pretrained=pretrained)


def mistake(name, **options) -> str:
    with pytest.raises(ValueError) as caught:
        build(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_names():
    assert is_timm_name("resnet18") and is_timm_name("resnet18.tv_in1k")
    assert not is_timm_name("resnet18.tv_in2k") and not is_timm_name("resnet")


def test_a_net_that_works_at_any_size():
    net = build("resnet10t", in_channels=1, drop_rate=0.25)
    assert net(torch.rand(2, 1, 32, 32)).shape == (2, 10)
    assert net.drop_rate == 0.25


def test_a_net_is_told_its_image_size_unless_the_options_say_so():
    net = build("vit_tiny_patch16_224", image_size=48, **TINY)
    assert net.patch_embed.img_size == (48, 48)
    assert net(torch.rand(2, 3, 48, 48)).shape == (2, 10)
    net = build("vit_tiny_patch16_224", **TINY, img_size=64, dynamic_img_size=True)
    assert net.patch_embed.img_size == (64, 64)


def test_options_that_are_unknown_or_set_elsewhere():
    vit = mistake("vit_tiny_patch16_224", dept=1)
    assert "options.dept: 'vit_tiny_patch16_224' has no such option; did you mean 'depth'" in vit
    assert "num_heads" in vit
    assert "options.in_chans: is set elsewhere" in mistake("resnet10t", in_chans=1)
    assert "timm cannot build it (" in mistake("vit_tiny_patch16_224", embed_dim=13)


def test_options_that_would_fail_at_the_first_step_fail_at_the_start():
    said = mistake("vit_tiny_patch16_224", **TINY, img_size=64)
    assert said.startswith("name = 'vit_tiny_patch16_224', options = {'depth': 1, ")
    assert "cannot read an image of 3x32x32 (AssertionError: Input height (32)" in said
    assert "cannot read an image" in mistake("resnet10t", global_pool="")
    assert "must return logits or a pair of logits" in mistake("resnet10t", features_only=True)


def test_nets_that_list_the_keywords_they_refuse():
    assert type(build("hrnet_w18_small")).__name__ == "HighResolutionNet"


def test_pretrained_without_a_network_says_what_to_do(monkeypatch):
    def offline(name, **kwargs):
        assert kwargs["pretrained"]
        raise OSError("Name or service not known\nmore lines")

    monkeypatch.setattr(timm, "create_model", offline)
    message = mistake("resnet10t", pretrained=True)
    assert "Name or service not known" in message and "more lines" not in message
    assert message.endswith("set pretrained = false and checkpoint = FILE")
