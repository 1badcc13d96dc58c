"""Files of weights whose classes are not the network's, and what is said of them."""

import pytest
import timm
import torch

from hard_fast.models.classifier import load_checkpoint

LEARNS = {"new_head": False, "may_learn": True, "may_keep_classes": False}
TEACHES = {"new_head": False, "may_learn": False, "may_keep_classes": True}


@pytest.fixture
def path(tmp_path):
    """Weights of ten classes."""
    net = timm.create_model("test_resnet", num_classes=10)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    return str(tmp_path / "net.pth")


def mistake(path, model="test_resnet", num_classes=7, **given):
    net = timm.create_model(model, num_classes=num_classes)
    with pytest.raises(ValueError) as caught:
        load_checkpoint(net, model, path, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_classes_end_with_what_to_do(path):
    said = mistake(path, **LEARNS)
    assert "2 of another shape (fc.weight: file [10, " in said
    assert said.endswith("; the file has 10 classes: set new_head = true to learn others")
    said = mistake(path, **TEACHES)
    assert (
        "; the file has 10 classes: it must learn the data's first (--config own_teacher)" in said
    )
    assert said.endswith("keep its own with num_classes = 10")
    # What is only evaluated, or one of several teachers, can do neither.
    assert mistake(path, **LEARNS | {"may_learn": False}).endswith("; the file has 10 classes")


def test_the_advice_is_right(path):
    for given, num_classes in ((LEARNS | {"new_head": True}, 7), (TEACHES, 10)):
        net = timm.create_model("test_resnet", num_classes=num_classes)
        load_checkpoint(net, "test_resnet", path, **given)


def test_what_differs_in_more_gets_no_advice(tmp_path, path):
    state = torch.load(path)
    del state["fc.bias"]
    torch.save(state, tmp_path / "less.pth")
    assert "1 missing (fc.bias)" in (said := mistake(str(tmp_path / "less.pth"), **LEARNS))
    assert "classes" not in said
    assert "classes" not in mistake(path, "test_vit", **LEARNS)


def test_other_rows_than_the_classifiers_are_no_classes(tmp_path):
    """Those of a window's positions, say: the file is for pictures of another size."""
    state = timm.create_model("test_resnet", num_classes=10).state_dict()
    name = "layer4.0.bn1.weight"
    state[name] = torch.cat([state[name], state[name][:1]])
    torch.save(state, tmp_path / "net.pth")
    for given in (LEARNS, TEACHES, LEARNS | {"new_head": True}):
        said = mistake(str(tmp_path / "net.pth"), num_classes=10, **given)
        assert f"1 of another shape ({name}" in said and "classes" not in said


def test_a_network_of_two_heads_has_no_classifier_to_leave_out(tmp_path):
    small = {"depth": 1, "embed_dim": 12, "num_heads": 2, "img_size": 32}
    name = "deit_tiny_distilled_patch16_224"
    path = tmp_path / "net.pth"
    torch.save(timm.create_model(name, num_classes=10, **small).state_dict(), path)
    net = timm.create_model(name, num_classes=7, **small)
    with pytest.raises(ValueError, match="of another shape [^;]*$"):
        load_checkpoint(net, name, str(path), **LEARNS)
    with pytest.raises(ValueError, match="does not name its classifier as timm's do"):
        load_checkpoint(net, name, str(path), **LEARNS | {"new_head": True})


def test_real_weights_of_another_trainer(real_data):
    """Under other names; ImageNet's classes, where those learned are 25."""
    path = str(real_data / "weights" / "efficientnet-lite0-57934424.pth")
    said = mistake(path, "tf_efficientnet_lite0", 25, **LEARNS)
    assert "2 of another shape (classifier.weight: file [1000, 1280], network [25, 1280]" in said
    assert said.endswith("the file has 1000 classes: set new_head = true to learn others")
