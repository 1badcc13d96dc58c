from hard_fast.evals.suites.imagenet_classes import read_real_labels, read_wnids


def test_the_classes_are_in_the_order_of_the_outputs():
    wnids = read_wnids()
    assert len(set(wnids)) == 1000 and list(wnids) == sorted(wnids)
    # Tench, tabby cat and toilet tissue.
    assert (wnids[0], wnids[281], wnids[999]) == ("n01440764", "n02123045", "n15075141")


def test_the_subsets_are_200_of_them():
    for subset in "ar":
        wnids = read_wnids(subset)
        assert len(set(wnids)) == 200 and set(wnids) < set(read_wnids())
        assert list(wnids) == sorted(wnids)
    assert set(read_wnids("a")) != set(read_wnids("r"))


def test_the_reassessed_labels_are_those_of_the_paper():
    rows = read_real_labels()
    assert len(rows) == 50_000
    # Beyer et al. keep 46,837 pictures.
    assert sum(bool(row) for row in rows) == 46_837
    assert {label for row in rows for label in row} <= set(range(1000))
