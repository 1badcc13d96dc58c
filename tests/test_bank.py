import collections
import copy

import pytest
import torch
from torch import nn

from hard_fast.bank import AugmentorBank, BankConfig


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))
        self.frozen = nn.Parameter(torch.full((1,), 7.0), requires_grad=False)


def filled(folder, num, capacity=64, seed=0):
    learner = Shift()
    bank = AugmentorBank(learner, folder, BankConfig(capacity=capacity), seed=seed)
    for number in range(num):
        learner.value.data.fill_(number)
        bank.save()
    return learner, bank


def drawn(bank, step):
    target = Shift()
    bank.draw_into(target, step)
    assert target.frozen.item() == 7.0
    return target.value.item()


def test_draws_are_uniform_and_a_function_of_the_step(tmp_path):
    _, bank = filled(tmp_path, 4)
    counts = collections.Counter(drawn(bank, step) for step in range(800))
    assert set(counts) == {0.0, 1.0, 2.0, 3.0} and min(counts.values()) > 150
    assert [drawn(bank, step) for step in range(9)] == [drawn(bank, step) for step in range(9)]


def test_entries_do_not_follow_the_learner(tmp_path):
    learner, bank = filled(tmp_path, 1)
    learner.value.data.fill_(5.0)
    assert drawn(bank, 0) == 0.0


def test_reservoir_keeps_every_augmentor_with_equal_chance(tmp_path):
    counts = collections.Counter()
    for seed in range(200):
        _, bank = filled(tmp_path / str(seed), 12, capacity=3, seed=seed)
        assert len(bank) == 3
        counts.update(bank.state_dict()["entries"])
    assert min(counts[number] for number in range(12)) > 25
    assert max(counts.values()) < 85


def test_state_round_trip_and_files_are_written_once(tmp_path):
    learner, bank = filled(tmp_path, 5, capacity=3)
    names = {path.name for path in tmp_path.iterdir()}
    assert "entry_000000.safetensors" in names and len(names) >= 3
    again = AugmentorBank(Shift(), tmp_path, BankConfig(capacity=3), seed=0)
    again.load_state_dict(copy.deepcopy(bank.state_dict()))
    assert [drawn(again, step) for step in range(20)] == [drawn(bank, step) for step in range(20)]
    learner.value.data.fill_(5.0)
    bank.save()
    again._augmentor.value.data.fill_(5.0)
    again.save()
    assert again.state_dict() == bank.state_dict()


def test_restart_goes_back_to_the_untouched_or_to_an_entry(tmp_path):
    learner, bank = filled(tmp_path, 3)
    learner.value.data.fill_(9.0)
    bank.restart(0, untouched=True)
    assert learner.value.item() == 0.0
    learner.value.data.fill_(9.0)
    bank.restart(4, untouched=False)
    assert learner.value.item() == drawn(bank, 4)


def test_without_capacity_the_student_sees_the_newest(tmp_path):
    learner, bank = filled(tmp_path, 2, capacity=0)
    learner.value.data.fill_(3.5)
    assert drawn(bank, 0) == 3.5 and not list(tmp_path.iterdir())


def test_files_that_nobody_needs_go_and_the_first_stays(tmp_path):
    _, bank = filled(tmp_path, 12, capacity=3)
    (tmp_path / ".entry_000099.safetensors.x7").write_bytes(b"half")
    (tmp_path / "entry_of_another_kind.txt").touch()
    before = {path.name for path in tmp_path.iterdir()}
    assert len(before) > 3 + 1 + 2
    older = next(number for number in range(1, 12) if number not in bank.numbers)
    bank.keep({*bank.numbers, older})
    kept = {f"entry_{number:06d}.safetensors" for number in (0, older, *bank.numbers)}
    assert {path.name for path in tmp_path.iterdir()} == kept & before | {
        "entry_of_another_kind.txt"
    }
    AugmentorBank(Shift(), tmp_path, BankConfig(), seed=0).load_state_dict(bank.state_dict())


def test_other_processes_do_not_write(tmp_path):
    AugmentorBank(Shift(), tmp_path, BankConfig(), seed=0, is_main=False).save()
    assert not list(tmp_path.iterdir())


def test_a_missing_entry_is_named(tmp_path):
    _, bank = filled(tmp_path, 2)
    (tmp_path / "entry_000001.safetensors").unlink()
    with pytest.raises(ValueError, match="entry_000001"):
        AugmentorBank(Shift(), tmp_path, BankConfig(), seed=0).load_state_dict(bank.state_dict())


def test_a_learner_in_channels_last_is_kept_and_read_again(tmp_path):
    learner = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    bank = AugmentorBank(learner, tmp_path, BankConfig(), seed=0)
    bank.save()
    again = AugmentorBank(copy.deepcopy(learner), tmp_path, BankConfig(), seed=0)
    again.load_state_dict(bank.state_dict())
    target = nn.Conv2d(3, 4, 3)
    again.draw_into(target, 0)
    assert torch.equal(target.weight, learner.weight)


def test_an_entry_with_other_numbers_is_named(tmp_path):
    _, bank = filled(tmp_path, 2)
    path = tmp_path / "entry_000001.safetensors"
    payload = path.read_bytes()
    path.write_bytes(payload[:-1] + bytes([payload[-1] ^ 1]))
    with pytest.raises(ValueError, match="entry_000001.*checksum differs"):
        AugmentorBank(Shift(), tmp_path, BankConfig(), seed=0).load_state_dict(bank.state_dict())
