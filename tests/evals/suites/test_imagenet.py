import io
import json
import tarfile

import pytest

from hard_fast.evals.suites import Missing
from hard_fast.evals.suites.imagenet_classes import read_real_labels, read_wnids

WNIDS = read_wnids()


def greys(image):
    return image[:, 0, 8, 8].tolist()


@pytest.mark.parametrize(
    "name, home",
    [
        ("imagenet", "imagenet/val"),
        ("imagenet", "ImageNet/ILSVRC/Data/CLS-LOC/val"),
        ("imagenet_sketch", "sketch"),
        ("imagenet_stylized", "stylized-imagenet/val"),
        ("imagenet_v2", "imagenetv2-matched-frequency-format-val"),
    ],
)
def test_a_folder_per_wordnet_identifier(load, see, write_folders, name, home):
    write_folders(home, WNIDS)
    loaded = load(name)
    image, label = see(loaded)
    assert loaded.num_classes == 1000 and loaded.columns is None
    assert label.tolist() == list(range(1000)) and greys(image) == [i % 256 for i in range(1000)]


@pytest.mark.parametrize(
    "name, stem",
    [
        ("imagenet_v2", "matched-frequency"),
        ("imagenet_v2_top", "top-images"),
        ("imagenet_v2_threshold", "threshold0.7"),
    ],
)
def test_the_folders_of_v2_are_numbers(load, see, write_folders, name, stem):
    write_folders(f"imagenetv2-{stem}-format-val", map(str, range(1000)))
    image, label = see(load(name))
    assert sorted(label.tolist()) == list(range(1000))
    # By name, 10 comes before 2: what counts is the number.
    assert label[:3].tolist() == [0, 1, 10]
    assert greys(image) == [k % 256 for k in label.tolist()]


@pytest.mark.parametrize("letter", "ar")
def test_the_subsets_pick_their_outputs(load, see, write_folders, refused, letter):
    wnids = read_wnids(letter)
    folder = write_folders(f"imagenet-{letter}", wnids)
    (folder / "README.txt").write_text("as shipped")
    loaded = load(f"imagenet_{letter}")
    image, label = see(loaded)
    assert loaded.num_classes == 200 and loaded.columns.shape == (200,)
    assert [WNIDS[column] for column in loaded.columns] == list(wnids)
    assert label.tolist() == greys(image) == list(range(200))
    other = next(wnid for wnid in WNIDS if wnid not in wnids)
    (folder / wnids[7]).rename(folder / other)
    assert f"lacks 1 of them: {wnids[7]} and has 1 too many: {other}" in (
        refused(f"imagenet_{letter}")
    )


@pytest.mark.parametrize("group", ["", "weather/"])
def test_imagenet_c_has_a_folder_per_severity(load, see, write_folders, refused, group):
    folder = write_folders(f"ImageNet-C/{group}fog/2", WNIDS)
    loaded = load("imagenet_c:fog@2")
    _, label = see(loaded, "fog/2")
    assert list(loaded.parts) == ["fog/2"] and label.tolist() == list(range(1000))
    # The pictures are the network's size already, so nothing is cut off.
    assert loaded.parts["fog/2"].config.eval_crop == 1.0
    assert f"{folder.parent}: no folder 1, expected ImageNet-C/" in refused("imagenet_c:fog")
    assert "lacks snow, expected ImageNet-C/" in refused("imagenet_c:snow@2")
    assert refused("imagenet_c@2").endswith("ask for imagenet_c:fog")


def write_shard(path, members):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))


def test_shards_of_validation_pictures(tmp_path, load, see, refused, picture):
    for shard, numbers in enumerate(((1, 2), (3,))):
        members = []
        for i in numbers:
            key = f"ILSVRC2012_val_{i:08d}"
            members += [(f"{key}.png", picture(i)), (f"{key}.cls", b"%d" % (9 * i))]
        write_shard(tmp_path / f"imagenet/val-{shard}.tar", members)
    image, label = see(load("imagenet"))
    assert label.tolist() == [9, 18, 27] and greys(image) == [1, 2, 3]
    _, row = see(load("imagenet_real"))
    assert row.tolist() == [0, 1, 2]
    write_shard(tmp_path / "imagenet/val-2.tar", [("a.png", picture(1)), ("a.cls", b"1000")])
    assert "val-2.tar/a.png: its class is 1000, but classes go from 0 to 999" in refused("imagenet")


def test_a_class_folder_too_many_or_too_few(tmp_path, write_folders, refused):
    folder = write_folders("imagenet/val", [*WNIDS, "n99999999"])
    said = refused("imagenet")
    assert said == (
        f"{folder}: expected the 1000 class folders of ImageNet val, but it has 1 too many: "
        "n99999999"
    )
    folder = write_folders("sketch", WNIDS[:998])
    said = refused("imagenet_sketch")
    assert f"{folder}: " in said and f"lacks 2 of them: {WNIDS[998]}, {WNIDS[999]}" in said
    folder = write_folders("imagenetv2-top-images-format-val", map(str, range(1001)))
    assert "0 to 999, but it has 1 too many: 1000" in refused("imagenet_v2_top")


def write_real(tmp_path, picture, rows, numbers=(3, 1, 2)):
    """Flat pictures 1, 2 and 3, whose greys are their numbers, and the label sets."""
    home = tmp_path / "imagenet"
    (home / "val").mkdir(parents=True, exist_ok=True)
    names = {i: f"ILSVRC2012_val_{i:08d}" for i in numbers}
    for i, name in names.items():
        (home / "val" / f"{name}.JPEG").write_bytes(picture(i))
    (home / "val.txt").write_text("".join(f"{name}.JPEG 0\n" for name in names.values()))
    if rows is not None:
        (home / "real.json").write_text(json.dumps(rows))


def test_real_goes_by_the_pictures_number(tmp_path, load, see, picture):
    write_real(tmp_path, picture, [[], [970, 795], [230]])
    loaded = load("imagenet_real")
    image, label = see(loaded)
    assert greys(image) == [1, 2, 3] and label.tolist() == [0, 1, 2]
    assert loaded.label_sets.tolist() == [[-1, -1], [970, 795], [230, -1]]


def test_real_needs_no_json_beside_it(tmp_path, load, picture):
    write_real(tmp_path, picture, None)
    sets = load("imagenet_real").label_sets
    rows = read_real_labels()
    assert len(sets) == 50_000
    assert [[k for k in row if k >= 0] for row in sets[:100].tolist()] == rows[:100]


@pytest.mark.parametrize(
    "rows, reason",
    [
        ([[0], [1]], "label sets of 2 pictures, but val/ILSVRC2012_val_00000003.JPEG is beyond"),
        ({"a": 1}, "expected a JSON list of lists"),
        ([[0.5], [1], [2]], "labels must be whole numbers from 0 to 999"),
        ([[1000], [1], [2]], "labels must be whole numbers from 0 to 999"),
        ([0, 1, 2], "expected a JSON list of lists"),
    ],
)
def test_wrong_label_sets_end_with_one_line(tmp_path, picture, refused, rows, reason):
    write_real(tmp_path, picture, rows)
    assert reason in refused("imagenet_real")


def test_a_truncated_real_json(tmp_path, picture, refused):
    write_real(tmp_path, picture, [[1]])
    (tmp_path / "imagenet/real.json").write_text("[[1], [2")
    assert "real.json: expected a JSON list of lists" in refused("imagenet_real")


@pytest.mark.parametrize(
    "name",
    [
        "imagenet",
        "imagenet_real",
        "imagenet_v2",
        "imagenet_v2_top",
        "imagenet_v2_threshold",
        "imagenet_a",
        "imagenet_r",
        "imagenet_c",
        "imagenet_sketch",
        "imagenet_stylized",
    ],
)
def test_missing_data_are_a_gap(tmp_path, load, name):
    with pytest.raises(Missing, match=f"no .* in {tmp_path} "):
        load(name)
    (tmp_path / "imagenet").mkdir()
    with pytest.raises(Missing):
        load(name)
