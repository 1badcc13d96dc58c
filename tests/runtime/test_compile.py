import torch

from hard_fast.runtime.compile import amp_dtype, compiled


def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def test_auto_compiles_on_a_gpu_only_and_off_never():
    assert compiled(double, "auto", torch.device("cpu")) is double
    assert compiled(double, "off", torch.device("cuda")) is double
    assert compiled(double, "auto", torch.device("cuda")) is not double
    assert compiled(double, "default", torch.device("cpu")) is not double


def test_bf16_is_for_those_who_ask_and_for_gpus():
    cpu = torch.device("cpu")
    assert amp_dtype("auto", cpu) is None and amp_dtype("fp32", cpu) is None
    assert amp_dtype("bf16", cpu) == torch.bfloat16
