import pytest
import torch

from hard_fast.runtime.compile import (
    CompileConfig,
    allow_graphs,
    amp_dtype,
    compiled,
    is_compiled,
    use_cache,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@pytest.mark.parametrize(
    ("mode", "on_cpu", "on_cuda"),
    [("auto", False, True), ("off", False, False), ("default", True, True)],
)
def test_auto_compiles_on_a_gpu_only_and_off_never(mode, on_cpu, on_cuda):
    config = CompileConfig(mode=mode)
    for device, is_on in ((CPU, on_cpu), (CUDA, on_cuda)):
        assert is_compiled(config, device) is is_on
        assert (compiled(double, config, device) is not double) is is_on


def test_amp_is_for_those_who_ask_and_for_gpus():
    assert amp_dtype("auto", CPU) is None and amp_dtype("fp32", CPU) is None
    assert amp_dtype("bf16", CPU) == torch.bfloat16 and amp_dtype("fp16", CPU) == torch.float16


def test_the_cache_is_where_the_configuration_the_environment_or_the_user_keeps_it(
    tmp_path, monkeypatch
):
    variable = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert use_cache(CompileConfig()) == tmp_path / "user/hard_fast/compile"
    monkeypatch.setenv(variable, str(tmp_path / "named"))
    assert use_cache(CompileConfig()) == tmp_path / "named"
    chosen = CompileConfig(cache=str(tmp_path / "chosen"))
    assert use_cache(chosen) == tmp_path / "chosen" and (tmp_path / "chosen").is_dir()
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert cache_dir() == str(tmp_path / "chosen")


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="compile.cache = .*file/x"):
        use_cache(CompileConfig(cache=str(tmp_path / "file" / "x")))


def test_graphs_of_many_shapes_are_allowed_where_they_are_announced():
    limits = torch._dynamo.config
    with limits.patch(recompile_limit=2):
        torch._dynamo.reset()
        graph = torch.compile(double, fullgraph=True, dynamic=False, backend="eager")
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            for size in range(1, 5):
                graph(torch.ones(size))
        allow_graphs(4)
        assert [graph(torch.ones(size)).sum().item() for size in range(1, 5)] == [2, 4, 6, 8]
        allow_graphs(3)
        assert limits.recompile_limit == 4
