from pathlib import Path

import numpy as np
import pytest

from hard_fast.data.sources import PicturesConfig, Samples, read_pictures
from hard_fast.data.unreadable import write_unreadable
from hard_fast.runtime.configfile import ConfigError, Source, parse


def read(root, **keys):
    keys.setdefault("val_share", 0.25)
    return read_pictures(PicturesConfig(root=root if isinstance(root, list) else str(root), **keys))


def names(samples: Samples) -> list[str]:
    return [samples.name(i) for i in range(len(samples.label))]


def short(samples: Samples, root: Path) -> list[str]:
    return sorted(name.removeprefix(f"{root}/") for name in names(samples))


def refused(root, **keys) -> str:
    with pytest.raises(ValueError) as error:
        read(root, **keys)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_keys_are_read_from_toml():
    tree = {"root": ["a.tar", "b.tar"], "num_classes": 3}
    config = parse(PicturesConfig, Source(tree, {}))
    assert config.root == ["a.tar", "b.tar"] and config.val_share == 0.01
    with pytest.raises(ConfigError, match="eval_crop = 1.5"):
        parse(PicturesConfig, Source({"root": "a", "eval_crop": 1.5}, {}))


def test_a_folder_is_listed_and_split(folder):
    found = read(folder)
    assert found.num_classes == 2 and found.class_names == ("cat", "dog")
    assert (len(found.train.label), len(found.val.label), len(found.test.label)) == (6, 2, 2)
    everything = [f"train/{c}/{i}.jpg" for c in ("cat", "dog") for i in range(4)]
    assert sorted(short(found.train, folder) + short(found.val, folder)) == everything
    assert short(found.test, folder) == ["val/cat/0.jpg", "val/dog/0.jpg"]
    for part in (found.train, found.val, found.test):
        for i, name in enumerate(names(part)):
            assert ("cat", "dog")[part.label[i]] in name
            assert part.num_bytes[i] == Path(name).stat().st_size and part.offset[i] == 0
    types = [array.dtype for array in found.train[1:]]
    assert types == [np.int32, np.int64, np.int64, np.int64]


def test_no_share_is_no_split(folder):
    found = read(folder, val_share=0.0)
    assert len(found.train.label) == 8 and found.val is None


def test_without_val_only_the_held_out_split_is_left(folder):
    (folder / "val").rename(folder / "other")
    assert read(folder).test is None
    assert f"data.val_share = 0: nothing is left to evaluate, for there is no {folder}/val/" in (
        refused(folder, val_share=0.0)
    )


def test_shards_are_read_in_place(tmp_path, write_shard, encode):
    for i in range(2):
        write_shard(tmp_path / f"train-{i}.tar", [0, 1, 2, 0])
    write_shard(tmp_path / "val.tar", [2, 1])
    pattern, val = f"{tmp_path}/train-{{0..1}}.tar", f"{tmp_path}/val.tar"
    found = read(pattern, val_root=val, num_classes=3, val_share=0.3)
    assert found.class_names == ("0", "1", "2")
    assert (len(found.train.label), len(found.val.label), len(found.test.label)) == (5, 3, 2)
    assert names(found.test) == [f"{val}/000.jpg", f"{val}/001.jpg"]
    assert found.test.label.tolist() == [2, 1]
    for part in (found.train, found.val, found.test):
        for i, name in enumerate(names(part)):
            payload = Path(part.files[part.file_of[i]]).read_bytes()
            payload = payload[part.offset[i] : part.offset[i] + part.num_bytes[i]]
            assert payload == encode(seed=int(Path(name).stem))
    listed = read([f"{tmp_path}/train-0.tar", f"{tmp_path}/train-1.tar"], num_classes=3)
    assert listed.test is None and len(listed.train.files) == 2


def test_empty_files_are_left_out_with_one_warning(folder, caplog):
    (folder / "train/cat/0.jpg").write_bytes(b"")
    found = read(folder, val_share=0.0)
    assert "train/cat/0.jpg" not in short(found.train, folder)
    assert [r.getMessage() for r in caplog.records] == [
        f"{folder}: left out of 8 pictures: 1 empty, 0 listed in unreadable.txt"
    ]


def test_listed_files_are_left_out_and_move_no_other(folder, caplog):
    before = read(folder)
    gone = short(before.val, folder)[0], "train/dog/gone.jpg", "val/dog/0.jpg"
    write_unreadable(folder, dict.fromkeys(gone, "torn"), "check")
    after = read(folder)
    assert short(after.train, folder) == short(before.train, folder)
    assert short(after.val, folder) == short(before.val, folder)[1:]
    assert short(after.test, folder) == ["val/cat/0.jpg"]
    said = [r.getMessage().removeprefix(f"{folder}: left out of ") for r in caplog.records]
    assert said == [
        "8 pictures: 0 empty, 1 listed in unreadable.txt",
        "2 pictures: 0 empty, 1 listed in unreadable.txt; none is left of class dog",
    ]


def test_listed_members_are_left_out_in_every_folder(tmp_path, write_shard):
    roots = [str(write_shard(tmp_path / f"{part}/0.tar", [0, 0, 0])) for part in "ab"]
    for part, name in (("a", "0.tar/001.jpg"), ("b", "0.tar/002.jpg")):
        write_unreadable(tmp_path / part, {name: "torn"}, "check")
    found = read(roots, num_classes=1)
    left = short(found.train, tmp_path) + short(found.val, tmp_path)
    assert sorted(left) == [f"{p}/0.tar/{i}.jpg" for p, i in
        [("a", "000"), ("a", "002"), ("b", "000"), ("b", "001")]]  # fmt: skip


def test_nothing_left_is_refused(folder):
    for path in folder.glob("train/*/*.jpg"):
        path.write_bytes(b"")
    assert "left out of 8 pictures: 8 empty, 0 listed in unreadable.txt; none is left" in (
        refused(folder)
    )


def test_a_class_that_val_lacks_would_shift_labels(folder):
    (folder / "val/cat").rename(folder / "val/emu")
    said = refused(folder)
    assert f"{folder}/val: lacks cat and adds emu compared with the class folders" in said


def test_an_empty_class_folder_is_refused(folder):
    (folder / "train/emu").mkdir()
    assert f"{folder}/train: no pictures (jpg" in refused(folder)


def test_wrong_roots_are_one_line(folder, tmp_path, write_shard):
    shard = write_shard(tmp_path / "tars/0.tar", [0, 1])
    assert "data.root = '/gone': no such folder or shard; correct data.root" in refused("/gone")
    said = refused(shard.parent, num_classes=2)
    assert "tars: no train/ in it" in said and f"give their names, such as {shard})" in said
    assert f"(or give the folder above: data.root = '{folder}')" in refused(folder / "train")
    assert "data.num_classes = 3: " in refused(folder, num_classes=3)
    assert "goes with shards only" in refused(folder, val_root=str(shard))
    assert "data.num_classes is not set" in refused(shard)
    assert "its class is 1, but classes go from 0 to 0" in refused(shard, num_classes=1)
    assert "0.tar: also a shard of data.root" in refused(shard, val_root=str(shard), num_classes=2)
    assert "there is no data.val_root" in refused(shard, num_classes=2, val_share=0.0)


def test_shards_without_samples_are_refused(tmp_path, write_tar):
    path = write_tar(tmp_path / "0.tar", [("0.jpg", b"j"), ("1.txt", b"t")])
    assert f"data.root: no sample in {path}; each needs a picture and a .cls" in (
        refused(path, num_classes=2)
    )


def test_a_negative_class_is_refused(tmp_path, write_shard):
    path = write_shard(tmp_path / "0.tar", [0, -1])
    assert "001.jpg: its class is -1, but" in refused(path, num_classes=2)
