import pytest
import torch

from hard_fast.data import Arrays, DataSet
from hard_fast.data.toys import DigitsConfig
from hard_fast.evals.own import is_own, load_own, one_part, open_with_own
from hard_fast.evals.suites import PictureFormat

CPU = torch.device("cpu")
PICTURES = PictureFormat(28, 0.875, "bilinear")


def part(num):
    image = torch.randint(256, (num, 8, 8, 1), dtype=torch.uint8).permute(0, 3, 1, 2)
    return Arrays(image, torch.arange(num) % 3)


def data(**tests):
    return DataSet(3, part(9), part(4), tests)


def open_own(names, found, **selected):
    return open_with_own(names, None, PICTURES, CPU, data=found, **selected)


def test_names_of_its_own():
    names = ["own", "own:val", "own+corrupted:fog@3", "owner", "cifar10", "folder:own"]
    assert [is_own(name) for name in names] == [True, True, True, False, False, False]


def test_all_test_sets_or_one_part():
    two = data(centered=part(6), shifted=part(7))
    opened = open_own(["own", "own:val", "own:shifted"], two)
    nums = {name: loaded.parts["test"].num for name, loaded in opened.suites.items()}
    assert nums == {"own_centered": 6, "own_shifted": 7, "own:val": 4, "own:shifted": 7}
    assert all(loaded.num_classes == 3 for loaded in opened.suites.values())
    assert list(open_own(["own"], data(test=part(6))).suites) == ["own"]
    cut = open_own(["own"], two, limit=5).suites["own_shifted"].parts["test"]
    assert cut.num == 5 and two.test["shifted"].num == 7
    # Without a test set, what a run was watched by.
    assert open_own(["own"], data()).suites["own_val"].parts["test"].num == 4


def test_corruptions_are_of_the_part_that_is_named_or_the_first():
    two = data(centered=part(6), shifted=part(7))
    for name, num in (("own+corrupted:contrast@3", 6), ("own:shifted+corrupted:contrast@3", 7)):
        (loaded,) = open_own([name], two).suites.values()
        corrupted = loaded.parts["contrast/3"]
        (batch,) = corrupted.batches(10)
        source = two.test["shifted" if num == 7 else "centered"]
        assert corrupted.num == num and torch.equal(batch.label, source.label)
        assert not torch.equal(batch.image, source.image)


def test_what_is_not_there_is_one_line():
    two = data(centered=part(6), shifted=part(7))
    with pytest.raises(ValueError, match="^own:test: no such part; .* centered, shifted, val$"):
        open_own(["own:test"], two)
    with pytest.raises(ValueError, match=r"^own@3: has no severities; write own\+corrupted@3$"):
        open_own(["own@3"], two)
    with pytest.raises(ValueError, match="neither a test nor a validation part"):
        open_own(["own"], DataSet(3, part(9), None, {}))
    with pytest.raises(ValueError, match="^--data-root: cifar10 is looked for in it"):
        open_own(["own", "cifar10"], two)
    with pytest.raises(ValueError, match="--suite own: has several .* such as own:centered$"):
        one_part("own", open_own(["own"], two))
    assert one_part("own:val", open_own(["own:val"], two)).num == 4


def test_data_are_read_only_where_they_are_asked_for():
    digits = DigitsConfig()
    assert load_own(["cifar10"], digits, CPU) is None and load_own(["usps"], None, CPU) is None
    assert set(load_own(["usps", "own:shifted"], digits, CPU).test) == {"centered", "shifted"}
    with pytest.raises(ValueError, match="^own: these are the test sets of a run; .* --run$"):
        load_own(["own"], None, CPU)
