from pathlib import Path

import pytest

from hard_fast.data.folders import check_same_classes, is_picture, list_folder, shorten


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"12345")
    return root


def test_pictures_are_listed_class_by_class_and_sorted(tmp_path):
    names = ["b/2.jpg", "b/1.JPEG", "a/x/deep.png", "a/z.webp", "a/y.TIF"]
    found = list_folder(fill(tmp_path, *names, "b/notes.txt", "b/LICENSE", "loose.jpg"))
    assert found.classes == ("a", "b")
    assert found.names == ["a/x/deep.png", "a/y.TIF", "a/z.webp", "b/1.JPEG", "b/2.jpg"]
    assert found.label.tolist() == [0, 0, 0, 1, 1]
    assert found.num_bytes.tolist() == [5] * 5


def test_hidden_files_and_folders_are_no_classes(tmp_path):
    hidden = (".ipynb_checkpoints/1.jpg", "a/.cache/1.jpg", "a/._1.jpg", ".DS_Store")
    assert list_folder(fill(tmp_path, "a/1.jpg", *hidden)).names == ["a/1.jpg"]


def test_links_are_followed_once(tmp_path):
    fill(tmp_path, "real/1.jpg", "set/a/2.jpg")
    (tmp_path / "set/b").symlink_to(tmp_path / "real")
    (tmp_path / "set/a/again").symlink_to(tmp_path / "set/a")
    (tmp_path / "set/a/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    found = list_folder(tmp_path / "set")
    assert found.names == ["a/2.jpg", "a/gone.jpg", "b/1.jpg"]
    assert found.num_bytes.tolist() == [5, 0, 5]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["notes.txt"], "no class folders; put the pictures of each class into a folder"),
        (["1.jpg"], "pictures, but no class folders"),
        (["a/1.jpg", "b/1.gif", "c/1.txt"], "no pictures (jpg, jpeg, png, webp, bmp"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, names, said):
    with pytest.raises(ValueError) as error:
        list_folder(fill(tmp_path, *names))
    assert said in str(error.value) and str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_every_empty_class_is_named(tmp_path):
    with pytest.raises(ValueError, match="in b, c; add some, or remove the class"):
        list_folder(fill(tmp_path, "a/1.jpg", "b/1.gif", "c/1.txt"))


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone: cannot be listed \(No such file"):
        list_folder(tmp_path / "gone")


def test_class_lists_must_be_the_same():
    train, val = Path("set/train"), Path("set/val")
    check_same_classes(("a", "b"), ("a", "b"), train, val)
    with pytest.raises(ValueError, match="^set/val: lacks b compared with .* set/train, so the"):
        check_same_classes(("a", "b"), ("a",), train, val)
    with pytest.raises(ValueError, match="^set/val: lacks b and adds c, d compared"):
        check_same_classes(("a", "b"), ("a", "c", "d"), train, val)


def test_long_lists_are_cut():
    assert shorten(list("abcde")) == "a, b, c, d, e"
    assert shorten(list("abcdefg")) == "a, b, c, d, e and 2 more"


def test_pictures_are_told_by_their_suffix():
    assert all(map(is_picture, ("a.jpg", "A.B.JPEG", "x.Webp")))
    assert not any(map(is_picture, ("a.gif", "a.jpg.txt", "a")))
