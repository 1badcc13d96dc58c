import pytest
import torch

from hard_fast.runtime.late import Late


def test_on_a_cpu_it_is_the_tensor():
    tensor = torch.arange(3.0)
    assert Late(tensor).value() is tensor


@pytest.mark.gpu
def test_the_copy_starts_at_once_and_nobody_waits_before_it_is_asked_for():
    tensor = torch.ones(4, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        late = Late(tensor)
        tensor.zero_()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert late.value().tolist() == [1.0] * 4 and not late.value().is_cuda
