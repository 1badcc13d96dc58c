import pytest
import torch

from hard_fast.evals.corruptions.draws import draws_for, normal_table


def test_numbers_are_a_function_of_seed_name_severity_and_index_alone():
    index_B = torch.tensor([5, 0, 2**40])
    found = draws_for(0, "fog", 1, index_B).uniform(4)
    alone = draws_for(0, "fog", 1, index_B[1:2]).uniform(4)
    assert torch.equal(found[1:2], alone)
    others = [(1, "fog", 1, 0), (0, "snow", 1, 0), (0, "fog", 2, 0), (0, "fog", 1, 1)]
    for seed, name, severity, index in others:
        other = draws_for(seed, name, severity, torch.tensor([index])).uniform(4)
        assert (other != alone).all()


def test_each_call_goes_on_where_the_last_one_ended():
    index_B = torch.arange(3)
    draws = draws_for(0, "fog", 1, index_B)
    parts = torch.cat([draws.uniform(2), draws.uniform(3)], 1)
    assert torch.equal(parts, draws_for(0, "fog", 1, index_B).uniform(5))


def test_numbers_spread_evenly():
    draws = draws_for(3, "fog", 2, torch.arange(20000))
    values_BN = draws.uniform(2)
    assert values_BN.min() >= 0 and values_BN.max() < 1
    count = torch.histc(values_BN, 20, 0, 1)
    # Each bin: mean 2000, std 44.
    assert (count - 2000).abs().max() < 5 * 44
    assert abs(float(torch.corrcoef(values_BN.T)[0, 1])) < 5 / 20000**0.5
    whole = draws.whole(1, 7)
    assert torch.bincount(whole[:, 0]).tolist() == pytest.approx([20000 / 7] * 7, abs=5 * 50)


def test_fields_are_windows_at_places_of_their_own():
    draws = draws_for(0, "fog", 1, torch.arange(64))
    field = draws.normal_field(3, 10, 10)
    assert field.shape == (64, 3, 10, 10)
    assert len(torch.unique(field[:, 0, 0, 0])) == 64
    table = normal_table(2**22, field.device)
    assert abs(float(table.mean())) < 5 / 2**11 and abs(float(table.std()) - 1) < 5 / 2**11.5
    start = int((table == field[7, 0, 0, 0]).nonzero()[0])
    assert torch.equal(table[start : start + 300], field[7].flatten())


def test_a_field_larger_than_the_table_has_a_larger_one():
    assert draws_for(0, "fog", 1, torch.arange(1)).uniform_field(2**22 + 1).shape == (1, 2**22 + 1)
