import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hard_fast.runtime import rendezvous


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE = 'two': must be a whole number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE = 0: must be at least 1"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE = 2, but RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK = 2: must be from 0 to 1, since WORLD_SIZE = 2"),
        ({"RANK": "1"}, "RANK = 1: must be from 0 to 0, since WORLD_SIZE = 1"),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "-1"}, "LOCAL_RANK = -1: must be"),
    ],
)
def test_a_place_that_makes_no_sense_is_one_line(monkeypatch, environment, words):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words) as found:
        rendezvous.read_place()
    assert "\n" not in str(found.value)


def test_more_processes_than_gpus_is_one_line():
    rendezvous.check_gpu(1, 2)
    with pytest.raises(ValueError, match="process 4 of its node, which has 2 GPUs.*per-node=2"):
        rendezvous.check_gpu(3, 2)


def test_a_restart_is_known_from_a_first_start(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert not rendezvous.was_restarted()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not rendezvous.was_restarted()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert rendezvous.was_restarted()


def meet_all(store, size, *, late=(), knows=None):
    """The meetings of all ranks; those that are late come after the others have waited."""

    def come(rank):
        if rank in late:
            time.sleep(0.2)
        return rendezvous.meet(store, rank, size, is_restart=rank == knows, timeout_s=20)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(come, range(size)))


@pytest.mark.parametrize("late", [(), (0,), (1, 2)])
def test_each_start_meets_under_a_name_of_its_own_and_knows_whether_it_is_the_first(late):
    store = torch.distributed.HashStore()
    first, again = (meet_all(store, 3, late=late) for _ in range(2))
    # A start of fewer processes, as after the loss of a node.
    fewer = meet_all(store, 2)
    assert [len(set(found)) for found in (first, again, fewer)] == [1, 1, 1]
    assert len({found[0].name for found in (first, again, fewer)}) == 3
    assert [found[0].is_restart for found in (first, again, fewer)] == [False, True, True]


@pytest.mark.parametrize("survivor", [0, 1])
def test_a_start_that_died_before_all_had_come_does_not_mislead_the_next(survivor):
    store = torch.distributed.HashStore()
    if survivor == 0:
        # Rank 0 gave the name, and rank 1 never answered.
        with pytest.raises(rendezvous.Lost, match="rank 1 did not answer at the start"):
            rendezvous.meet(store, 0, 2, timeout_s=0.1)
    else:
        store.set("meeting", "of-the-dead")
        with pytest.raises(rendezvous.Lost, match="rank 0 did not answer at the start"):
            rendezvous.meet(store, 1, 2, timeout_s=0.1)
    found = meet_all(store, 2, late=(0,))
    assert found[0] == found[1] and found[0].is_restart


@pytest.mark.parametrize("absent", [[0], [1], [2], [1, 3], [0, 2]])
@pytest.mark.parametrize("is_restart", [False, True])
def test_all_who_come_name_those_who_do_not(absent, is_restart):
    store = torch.distributed.HashStore()
    if is_restart:
        store.set("meeting", "of-the-dead")
    came = [rank for rank in range(4) if rank not in absent]

    def come(rank):
        with pytest.raises(rendezvous.Lost) as found:
            rendezvous.meet(store, rank, 4, timeout_s=0.3)
        return str(found.value)

    with ThreadPoolExecutor(len(came)) as pool:
        said = set(pool.map(come, came))
    if 0 in absent:
        # Nobody answers where rank 0 gave no name, and nobody knows whose name an old one is.
        absent = (absent[1:] if is_restart else []) or [0]
    names = ", ".join(map(str, absent))
    why = "it hangs or is gone (distributed.timeout_s = 0.3)"
    assert said == {f"rank {names} did not answer at the start: {why}"}


@pytest.mark.parametrize("knows", [0, 2])
def test_what_one_process_knows_of_a_restart_all_learn(knows):
    found = meet_all(torch.distributed.HashStore(), 3, knows=knows)
    assert [meeting.is_restart for meeting in found] == [True] * 3
