import pytest
import torch

from hard_fast.data.arrays import Arrays
from hard_fast.evals.suites import SUITES, Missing, PictureFormat
from hard_fast.evals.suites.suite import Loaded, Request


def request(root):
    wanted = PictureFormat(8, 1.0, "bilinear"), torch.device("cpu")
    return Request(SUITES["imagenet_a"], "imagenet_a", "", None, root, *wanted)


def test_the_first_of_the_known_folders_is_taken(tmp_path):
    with pytest.raises(Missing, match="no imagenet-a/<WordNet identifier>/, 200 of them in .*from"):
        request(tmp_path).find_home()
    (tmp_path / "ImageNet-A").mkdir()
    assert request(tmp_path).find_home() == tmp_path / "ImageNet-A"
    (tmp_path / "imagenet-a").mkdir()
    assert request(tmp_path).find_home() == tmp_path / "imagenet-a"


def test_a_suite_knows_its_home_and_the_papers_scores():
    suite = SUITES["imagenet_c"]
    assert suite.home == "ImageNet-C"
    assert suite.published["ViT-S HARD-Mix"] == {"mce": 56.2} and len(suite.published) == 15
    assert SUITES["usps"].published == {}


def test_a_part_of_training_data_is_one_for_evaluation():
    part = Arrays(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2).long())
    loaded = Loaded({"test": part}, 10)
    assert [len(batch.label) for batch in loaded.parts["test"].batches(1)] == [1, 1]
