import json

import pytest
import torch

from hard_fast.evals.suites import Missing, PictureFormat, load_suite
from hard_fast.evals.suites.folders import (
    LABEL_MAP,
    PACS_CLASSES,
    PACS_DOMAINS,
    check_classes,
    list_classes,
    read_label_map,
)

CPU = torch.device("cpu")


def greys(image):
    return image[:, 0, 8, 8].tolist()


def test_any_folder_of_classes(load, see, write_folders):
    write_folders("mine/val", ["cat", "ant", "dog"])
    loaded = load("folder:mine/val")
    image, label = see(loaded)
    assert loaded.num_classes == 3 and loaded.columns is None and loaded.label_sets is None
    assert image.shape == (3, 3, 16, 16)
    # Sorted: ant, cat, dog.
    assert label.tolist() == [0, 1, 2] and greys(image) == [1, 0, 2]


def test_the_networks_format_is_used(tmp_path, see, write_folders):
    write_folders("mine", ["a"])
    for crop, size in ((1.0, 9), (0.5, 12)):
        wanted = PictureFormat(size, crop, "bicubic")
        part = load_suite("folder:mine", tmp_path, wanted, CPU).parts["test"]
        assert next(part.batches(1)).image.shape == (1, 3, size, size)
        assert part.config.eval_crop == crop and part.config.interpolation == "bicubic"


def test_a_missing_folder_is_a_gap_and_an_empty_one_is_not(tmp_path, load, refused):
    with pytest.raises(Missing, match=f"no folder {tmp_path}/mine"):
        load("folder:mine")
    (tmp_path / "mine").mkdir()
    assert "no class folders; put the pictures of each class into a folder" in (
        refused("folder:mine")
    )
    (tmp_path / "mine/cat").mkdir()
    assert f"{tmp_path}/mine: no pictures" in refused("folder:mine")
    assert "name the folder, as folder:mine/val" in refused("folder")


def test_listed_and_empty_pictures_are_left_out(tmp_path, load, see, write_folders, picture):
    folder = write_folders("mine", ["cat", "dog"])
    (folder / "cat/1.png").write_bytes(b"")
    (folder / "dog/1.png").write_bytes(picture(200))
    (tmp_path / "unreadable.txt").write_text("mine/dog/0.png\treason\n")
    image, label = see(load("folder:mine"))
    assert label.tolist() == [0, 1] and greys(image) == [0, 200]


@pytest.mark.parametrize("is_beside", [True, False])
def test_a_label_map_adds_outputs_and_leaves_folders_out(
    tmp_path, load, see, write_folders, caplog, is_beside
):
    folder = write_folders("mine", ["ant", "cat", "dog", "eel"])
    tree = {"dog": ["n02085620", 7], "ant": 310, "eel": [5, 6, 9]}
    path = folder / LABEL_MAP if is_beside else tmp_path / "map.json"
    path.write_text(json.dumps(tree))
    loaded = load("folder:mine", label_map=None if is_beside else path)
    image, label = see(loaded)
    assert loaded.num_classes == 3
    # n02085620 is the Chihuahua, the network's output 151.
    assert loaded.columns.tolist() == [[310, -1, -1], [151, 7, -1], [5, 6, 9]]
    assert label.tolist() == [0, 1, 2] and greys(image) == [0, 2, 3]
    assert caplog.messages == [f"{folder}: left out, for {path.name} does not name them: cat"]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("{", "no readable JSON"),
        ("[]", "expected class folders and outputs"),
        ("{}", "expected class folders and outputs"),
        ('{"cow": [1]}', "has no class folder cow"),
        ('{"cat": []}', "cat: []: expected outputs"),
        ('{"cat": [-1]}', "cat: [-1]: expected outputs"),
        ('{"cat": ["kitten"]}', "cat: ['kitten']: expected outputs"),
        ('{"cat": [true]}', "cat: [True]: expected outputs"),
        ('{"cat": [1], "dog": [1]}', "output 1 is given twice: cat and dog"),
    ],
)
def test_a_wrong_label_map_ends_with_one_line(tmp_path, write_folders, refused, text, reason):
    write_folders("mine", ["cat", "dog"])
    path = tmp_path / "map.json"
    path.write_text(text)
    said = refused("folder:mine", label_map=path)
    assert said.startswith(f"{path}: ") and reason in said
    path.unlink()
    assert "no readable JSON" in refused("folder:mine", label_map=path)


def test_a_label_map_is_sorted_by_folder(tmp_path, write_folders):
    found = list_classes(write_folders("mine", ["cat", "dog"]))
    (tmp_path / "map.json").write_text('{"dog": 1, "cat": [2]}')
    outputs = read_label_map(tmp_path / "map.json", found)
    assert list(outputs.items()) == [("cat", [2]), ("dog", [1])]


@pytest.mark.parametrize("below", ["", "kfold/", "images/"])
def test_every_domain_of_pacs(load, see, write_folders, below):
    for domain in PACS_DOMAINS:
        write_folders(f"PACS/{below}{domain}", PACS_CLASSES)
        loaded = load(f"pacs:{domain}")
        image, label = see(loaded)
        assert loaded.num_classes == 7
        assert label.tolist() == greys(image) == list(range(7))


def test_wrong_folders_of_pacs_are_named(tmp_path, load, write_folders, refused):
    with pytest.raises(Missing, match="no PACS/<domain>/<class>/"):
        load("pacs:photo")
    write_folders("PACS/photo", [*PACS_CLASSES, "cow"])
    assert refused("pacs:photo") == (
        f"{tmp_path}/PACS/photo: expected the 7 class folders of PACS, but it has 1 too many: cow"
    )
    assert f"{tmp_path}/PACS: no folder sketch, expected PACS/<domain>" in refused("pacs:sketch")
    assert "name a domain, as pacs:art_painting|cartoon|photo|sketch" in refused("pacs")


def test_both_kinds_of_wrong_class_folders_are_told(tmp_path):
    check_classes(("a", "b"), ("b", "a"), tmp_path, "X")
    with pytest.raises(ValueError) as error:
        check_classes(("a", "c", "d"), ("a", "b"), tmp_path, "X")
    assert str(error.value).endswith("of X, but it lacks 1 of them: b and has 2 too many: c, d")


def test_real_pictures(real_data, see):
    wanted = PictureFormat(64, 0.875, "bicubic")
    loaded = load_suite("folder:caltech25/val", real_data, wanted, CPU)
    _, label = see(loaded)
    assert len(label) == loaded.parts["test"].num == 389
    assert loaded.num_classes == 25 and label.unique().tolist() == list(range(25))
