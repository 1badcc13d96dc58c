import numpy as np
import pytest

from hard_fast.data.splits import split_held_out


def classes_of(*counts: int) -> tuple[list[str], np.ndarray, list[str]]:
    names = [f"{c}/{i}.jpg" for c, num in enumerate(counts) for i in range(num)]
    return names, np.repeat(np.arange(len(counts)), counts), [f"c{i}" for i in range(len(counts))]


def held(counts: tuple[int, ...], share: float, seed: int = 0) -> set[str]:
    names, label, class_names = classes_of(*counts)
    kept, out = split_held_out(names, label, class_names, share, seed)
    assert sorted([*kept, *out]) == list(range(len(names)))
    assert (np.diff(kept) > 0).all() and (np.diff(out) > 0).all()
    return {names[i] for i in out}


def per_class(names: set[str], num_classes: int) -> list[int]:
    return np.bincount([int(n.split("/")[0]) for n in names], minlength=num_classes).tolist()


def test_every_class_gives_its_rounded_share():
    assert per_class(held((1300, 732, 149, 150, 50), 0.01), 5) == [13, 7, 1, 2, 1]


def test_small_classes_share_what_they_owe_together():
    counts = (20,) * 10
    found = per_class(held(counts, 0.01), 10)
    assert sum(found) == 2 and max(found) == 1
    assert per_class(held(counts, 0.01, seed=1), 10) != found


def test_no_class_gives_all_it_has():
    assert per_class(held((1, 2, 3), 0.9), 3) == [0, 1, 2]


def test_it_is_the_same_on_every_machine():
    # Worked out once; it must never change, or a resumed run would train on its validation set.
    assert held((10, 10), 0.2, seed=42) == {"0/4.jpg", "0/7.jpg", "1/6.jpg", "1/9.jpg"}
    assert held((10, 10), 0.2, seed=43) != held((10, 10), 0.2, seed=42)


def test_another_class_moves_nothing():
    small = held((100, 70), 0.1)
    assert {n for n in held((100, 70, 90), 0.1) if not n.startswith("2/")} == small


def test_the_order_of_the_names_does_not_matter():
    names, label, class_names = classes_of(30, 30)
    order = np.random.default_rng(0).permutation(60)
    shuffled = [names[i] for i in order]
    _, out = split_held_out(shuffled, label[order], class_names, 0.2, 0)
    assert {shuffled[i] for i in out} == held((30, 30), 0.2)


def test_another_picture_moves_at_most_one():
    assert len(held((100,), 0.1) ^ held((101,), 0.1)) <= 2


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"^data.val_share = 0.01: holds out none of 12 pictures"):
        held((4, 4, 4), 0.01)
