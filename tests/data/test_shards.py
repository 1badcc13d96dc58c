import json
import logging
import os

import pytest

from hard_fast.data.shards import _checksum, expand_braces, find_shards, read_index, read_indices


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{000..001}-{a,b}", ["000-a", "000-b", "001-a", "001-b"]),
        ("x{a,{1..3}}y", ["xay", "x1y", "x2y", "x3y"]),
        ("{one}{a..b}", ["{one}{a..b}"]),
        ("{,z}", ["", "z"]),
    ],
)
def test_braces_expand_as_in_a_shell(pattern, names):
    assert expand_braces(pattern) == names


def test_shards_are_found_in_their_order(tmp_path, write_shard):
    paths = [write_shard(tmp_path / f"{i}.tar", [0]) for i in range(3)]
    assert find_shards([f"{tmp_path}/2.tar", f"{tmp_path}/{{0..1}}.tar"], "data.root") == [
        paths[2], paths[0], paths[1]
    ]  # fmt: skip


def test_wrong_shard_lists_are_refused(tmp_path, write_shard):
    write_shard(tmp_path / "0.tar", [0])
    with pytest.raises(ValueError, match=r"^data.root: .*1.tar: no such file \(2 of 3 shards are"):
        find_shards([f"{tmp_path}/{{0..2}}.tar"], "data.root")
    with pytest.raises(ValueError, match=r"0.tar is named 2 times; name each shard once"):
        find_shards([f"{tmp_path}/0.tar"] * 2, "data.root")
    with pytest.raises(ValueError, match=r"^data.root = \[\]: names no shards"):
        find_shards([], "data.root")


def test_an_index_says_where_each_picture_is(tmp_path, write_shard, encode):
    path = write_shard(tmp_path / "0.tar", [3, 0, 12])
    index = read_index(path)
    assert index.names == ["000.jpg", "001.jpg", "002.jpg"]
    assert index.label == [3, 0, 12]
    payload = path.read_bytes()
    for i, (offset, num) in enumerate(zip(index.offset, index.num_bytes, strict=True)):
        assert payload[offset : offset + num] == encode(seed=i)
    assert (index.no_picture, index.no_label, index.is_cut) == (0, 0, False)


def test_keys_are_made_as_in_webdataset(tmp_path, write_tar):
    members = [
        ("a/x.1.JPG", b"no picture: the suffix is 1.jpg"),
        ("a/x.cls", b"5"),
        ("a/y.json", b"{}"),
        ("a/y.PNG", b"png"),
        ("a/y.cls", b" 7\n"),
        ("b/y.seg.png", b"mask"),
        ("b/y.cls", b"8"),
        ("b/y.jpg", b"jpg"),
        ("b/z.png", b"png"),
        ("b/z.jpg", b"jpg first"),
        ("b/z.cls", b"9"),
        (".hidden", b"?"),
        ("README", b"?"),
        # The same key anew: another sample, as after joining two tars.
        ("b/z.jpg", b"jpg"),
        ("b/z.cls", b"10"),
    ]
    index = read_index(write_tar(tmp_path / "0.tar", members))
    assert index.names == ["a/y.PNG", "b/y.jpg", "b/z.jpg", "b/z.jpg"]
    assert index.label == [7, 8, 9, 10]
    assert index.num_bytes == [3, 3, 9, 3]
    assert (index.no_picture, index.no_label) == (1, 0)


def test_keys_that_lack_something_are_counted(tmp_path, write_tar, caplog):
    members = [
        ("0.jpg", b"j"),
        ("1.jpg", b"j"),
        ("1.cls", b"cat"),
        ("2.cls", b"1"),
        ("3.jpg", b"j"),
        ("3.cls", b"1"),
        ("4.jpg", b"j"),
        ("4.cls", b""),
    ]
    (index,) = read_indices([write_tar(tmp_path / "0.tar", members)])
    assert (index.names, index.no_picture, index.no_label) == (["3.jpg"], 1, 3)
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path}/0.tar: left out: 1 keys without a picture, 3 without a number in a .cls entry"
    ]


def test_a_cut_shard_gives_what_is_before(tmp_path, write_shard, caplog):
    path = write_shard(tmp_path / "0.tar", [0, 1, 2])
    os.truncate(path, read_index(path).offset[2] + 5)
    (index,) = read_indices([path])
    assert (index.label, index.is_cut) == ([0, 1], True)
    assert "0.tar: cut short or damaged; the 2 pictures before that are used" in caplog.text


def test_an_index_is_kept_until_the_shard_changes(tmp_path, write_shard):
    path = write_shard(tmp_path / "0.tar", [1, 2])
    fresh, kept = read_index(path), tmp_path / "0.tar.index.json"
    tree = json.loads(kept.read_text())
    # What was changed with its checksum is believed, so it is the kept index that is read.
    other = fresh._replace(label=[7, 7])
    kept.write_text(json.dumps(tree | {"label": [7, 7], "sha256": _checksum(other)}))
    assert read_index(path).label == [7, 7]
    kept.write_text(json.dumps(tree | {"label": [7, 7]}))
    assert read_index(path).label == [1, 2]
    kept.write_text(json.dumps(tree | {"label": [7, 7], "sha256": _checksum(other)}))
    os.utime(path, ns=(0, 0))
    assert read_index(path) == fresh
    write_shard(path, [3])
    assert read_index(path).label == [3]


@pytest.mark.parametrize("pattern", ["{0..1000000}", "{0..999}{0..999}{a,b}"])
def test_a_pattern_of_too_many_names_is_refused(pattern):
    with pytest.raises(ValueError, match="more than 1,000,000 names"):
        expand_braces(pattern)


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "{}", '{"stamp": 1, "names": []}', "[" * 100_000]
)
def test_a_damaged_index_is_made_anew(tmp_path, write_shard, damage):
    path = write_shard(tmp_path / "0.tar", [1, 2])
    fresh = read_index(path)
    (tmp_path / "0.tar.index.json").write_text(damage)
    assert read_index(path) == fresh


def test_names_that_are_no_utf8_survive_in_the_index(tmp_path, write_tar):
    name = os.fsdecode(b"\xff.jpg")
    path = write_tar(tmp_path / "0.tar", [(name, b"j"), (os.fsdecode(b"\xff.cls"), b"0")])
    assert read_index(path).names == read_index(path).names == [name]


def test_a_folder_that_cannot_be_written_to_will_do(tmp_path, write_shard, caplog):
    path = write_shard(tmp_path / "0.tar", [1, 2])
    # Not permissions, which a root user has anyway: a folder is in the way.
    (tmp_path / "0.tar.index.json/x").mkdir(parents=True)
    with caplog.at_level(logging.INFO):
        assert read_index(path).label == [1, 2]
    assert "the index is not kept" in caplog.text
