import torch

from hard_fast.runtime.undo import Undo


def test_tensors_go_back_only_where_they_were_spoilt():
    mean, var = torch.tensor([1.0, 2.0]), torch.ones(2, 2)
    undo = Undo([mean, var])
    for is_spoilt in (False, True):
        undo.remember()
        kept = mean.clone(), var.clone()
        mean.mul_(3.0)
        var.fill_(torch.nan if is_spoilt else 5.0)
        changed = mean.clone(), var.clone()
        undo.go_back(torch.tensor(is_spoilt))
        wanted = kept if is_spoilt else changed
        assert torch.equal(mean, wanted[0]) and torch.equal(var, wanted[1])
    assert mean.tolist() == [3.0, 6.0] and var.unique().tolist() == [5.0]


def test_nothing_to_undo_is_fine():
    undo = Undo([])
    undo.remember()
    undo.go_back(torch.tensor(True))
