import os

import pytest

from hard_fast.data.unreadable import LIST_NAME, read_unreadable, write_unreadable


def test_no_list_is_an_empty_list(tmp_path):
    assert read_unreadable(tmp_path) == {}


@pytest.mark.parametrize(
    "name",
    [
        "train/cat/1.jpg",
        "shard-0.tar/a/b.jpg",
        "train/cat/two words .jpg",
        "train/cat/tab\there.jpg",
        "train/cat/line\nbreak\r.jpg",
        "#1.tar/0.jpg",
        "train/\\tcat/\\\\1.jpg",
        "train/\u2028cat/\N{SNOWMAN}.jpg",
        os.fsdecode(b"train/cat/\xff\xfe.jpg"),
    ],
)
def test_every_name_comes_back(tmp_path, name):
    write_unreadable(tmp_path, {name: "torn"}, "check")
    assert read_unreadable(tmp_path) == {name: "torn"}


def test_the_list_is_sorted_with_its_reasons(tmp_path):
    path = write_unreadable(tmp_path, {"b": "no\n picture", "a": "empty file"}, "check ROOT")
    assert path == tmp_path / LIST_NAME
    assert path.read_text() == (
        "# Left out of training and evaluation. Made by: check ROOT\na\tempty file\nb\tno picture\n"
    )
    assert [p.name for p in tmp_path.iterdir()] == [LIST_NAME]


def test_a_person_may_edit_it(tmp_path):
    (tmp_path / LIST_NAME).write_bytes(b"# mine\r\n\r\ntrain/a/1.jpg\r\n   \ntrain/a/2.jpg  ")
    assert read_unreadable(tmp_path) == {"train/a/1.jpg": "", "train/a/2.jpg": ""}


def test_a_list_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / LIST_NAME).mkdir()
    with pytest.raises(ValueError, match=f"{LIST_NAME}: cannot be read"):
        read_unreadable(tmp_path)
