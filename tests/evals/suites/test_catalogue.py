import numpy as np
import pytest

from hard_fast.evals.published import PAPER_ROWS
from hard_fast.evals.suites import SUITES, find_suite, split_names

NAMES = """
mnist mnist_shifted mnist_c usps cifar10 cifar10_1 cifar10_1_v4 cifar10_c imagenet
imagenet_real imagenet_v2 imagenet_v2_top imagenet_v2_threshold imagenet_a imagenet_r
imagenet_c imagenet_sketch imagenet_stylized pacs folder
"""


def test_every_suite_says_where_it_is_from_and_how_it_lies():
    assert list(SUITES) == NAMES.split()
    for name, suite in SUITES.items():
        assert suite.name == name and suite.homes and suite.scores
        for text in (suite.title, suite.source, suite.layout, suite.labels):
            assert text and "\n" not in text
    assert len({suite.title for suite in SUITES.values()}) == len(SUITES)


def test_the_papers_rows_are_of_suites_and_scores_we_have():
    for suites in PAPER_ROWS.values():
        for name, scores in suites.items():
            assert set(scores) <= set(SUITES[name].scores)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("imagenet_v3", "no such suite; choose from imagenet_v2"),
        ("qqq", "no such suite; choose from mnist, "),
        ("mnist:fog", "mnist takes nothing behind a colon"),
        ("cifar10@3", "cifar10 has no severities; write cifar10+corrupted@3"),
    ],
)
def test_wrong_names_end_with_one_line(name, reason, refused):
    assert refused(name).startswith(f"{name}: ") and reason in refused(name)


def test_what_is_corrupted_already_is_not_corrupted_again(tmp_path, noise, refused):
    (tmp_path / "CIFAR-10-C").mkdir()
    np.save(tmp_path / "CIFAR-10-C/fog.npy", noise(5, 32, 32, 3))
    np.save(tmp_path / "CIFAR-10-C/labels.npy", np.zeros(5, np.int64))
    assert "CIFAR-10-C is corrupted already" in refused("cifar10_c:fog+corrupted")


def test_every_kind_of_name_is_found():
    for name in split_names("cifar10+corrupted:fog,snow@2,pacs:photo,folder:a/b,imagenet_c:fog"):
        suite, asked = find_suite(name)
        assert suite.name == asked.key == name.split(":")[0].split("+")[0]
