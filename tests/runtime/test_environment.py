import torch

from hard_fast.runtime.environment import peak_memory_gib, versions


def test_versions_name_the_packages_and_the_hardware():
    found = versions(torch.device("cpu"))
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert found["python"].startswith("3.")
    assert found["device"]


def test_peak_memory_is_that_of_a_process_with_torch_in_it():
    assert 0.05 < peak_memory_gib(torch.device("cpu")) < 64
