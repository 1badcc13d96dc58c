import importlib.util
import json

import pytest
import torch
from hard_kernels import affine_mix as true_op

from bench import affine_mix as compared
from bench import kernels
from bench.affine_mix import OURS, Case, Impl

CPU = torch.device("cpu")
PEERS = [name for name in ("kornia", "torchtransform") if importlib.util.find_spec(name)]
KEYS = "bench case impl metric unit p20 p50 p80 n device torch threads commit gb_per_s"


@pytest.fixture
def tiny(monkeypatch):
    sizes = (((8, 3, 8, 8), 4),)
    monkeypatch.setattr(compared, "SIZES", {"cpu": sizes, "cuda": sizes})
    monkeypatch.setattr(kernels, "SECONDS", 0.0)
    monkeypatch.setattr(kernels, "THOROUGH_SECONDS", 0.0)


def run(tmp_path, device="cpu"):
    """The exit code, and the rows where they were written."""
    file = tmp_path / "rows.json"
    code = kernels.main(["--device", device, "--json", str(file)])
    return code, json.loads(file.read_text()) if file.exists() else None


def test_a_call_writes_rows_of_every_implementation_that_is_there(tiny, tmp_path, capsys):
    code, rows = run(tmp_path)
    said = capsys.readouterr()
    assert code == 0
    for row in rows:
        is_peer = row["impl"] in ("kornia", "torchtransform")
        assert set(row) - ({"version"} if is_peer else set()) == {*KEYS.split(), "fraction_of_copy"}
        assert 0 < row["p20"] <= row["p50"] <= row["p80"] and row["n"] == 3
        assert (row["bench"], row["unit"]) == ("kernels", "ms")
    lines = {(row["case"], row["metric"]) for row in rows}
    # Three kinds: three metrics of floats, two of bytes.
    assert len(lines) == 15
    assert all(case in said.out for case, _ in lines)
    for case, metric in lines:
        here = {row["impl"] for row in rows if (row["case"], row["metric"]) == (case, metric)}
        want = {"hard_fast", "hard_fast_nchw", "eager", "copy"}
        if not case.startswith("mixup"):
            want |= {name for name in PEERS if name == "kornia" or metric == "forward"}
        assert here == want, said.err


def test_rates_are_bytes_over_time(tiny, tmp_path):
    _, rows = run(tmp_path)
    of = {row["impl"]: row for row in rows if row["case"] == "warp G=1 8x3x8x8 uint8->fp32"}
    given = 8 * 3 * 8 * 8
    copy, ours = of["copy"], of["hard_fast"]
    assert ours["metric"] == "forward_backward"
    moved = 2 * (given + 4 * given) + 8 * 6 * 4
    assert ours["gb_per_s"] * ours["p50"] * 1e6 == pytest.approx(moved)
    assert copy["gb_per_s"] * copy["p50"] * 1e6 == pytest.approx(2 * given)
    assert copy["fraction_of_copy"] == 1.0
    assert ours["fraction_of_copy"] == pytest.approx(ours["gb_per_s"] / copy["gb_per_s"])


def wrong_values(image, theta, weight, index, out_dtype):
    return 1.001 * true_op(image, theta, weight, index, out_dtype=out_dtype)


def wrong_theta(image, theta, weight, index, out_dtype):
    if theta is not None:
        theta = theta + 0.01 * (theta - theta.detach())
    return true_op(image, theta, weight, index, out_dtype=out_dtype)


def wrong_weight(image, theta, weight, index, out_dtype):
    if weight is not None:
        weight = weight + 0.01 * (weight - weight.detach())
    return true_op(image, theta, weight, index, out_dtype=out_dtype)


def wrong_image(image, theta, weight, index, out_dtype):
    if image.requires_grad:
        image = image + 0.01 * (image - image.detach())
    return true_op(image, theta, weight, index, out_dtype=out_dtype)


def wrong_where_timed(image, theta, weight, index, out_dtype):
    """Right at the small shape of the gate."""
    made = true_op(image, theta, weight, index, out_dtype=out_dtype)
    return made if image.shape[0] == 16 else 0.9 * made


@pytest.mark.parametrize(
    ("op", "text"),
    [
        (wrong_values, "output is 1.0e-03 off"),
        (wrong_theta, "theta is 1.0e-02 off"),
        (wrong_weight, "weight is 1.0e-02 off"),
        (wrong_image, "image is 1.0e-02 off"),
        (wrong_where_timed, "its output is 1.1e-01 off ours"),
    ],
)
def test_nothing_is_timed_where_the_op_is_wrong(op, text, tiny, tmp_path, capsys, monkeypatch):
    def called(*tensors, out_dtype):
        return op(*tensors, out_dtype)

    monkeypatch.setattr(compared, "affine_mix", called)
    assert run(tmp_path) == (1, None)
    said = capsys.readouterr()
    assert text in said.err and said.out == ""


def test_a_nan_is_wrong(tiny, tmp_path, monkeypatch):
    def called(*tensors, out_dtype):
        made = true_op(*tensors, out_dtype=out_dtype)
        return made.masked_fill(torch.arange(made.shape[3]) == 5, torch.nan)

    monkeypatch.setattr(compared, "affine_mix", called)
    assert run(tmp_path) == (1, None)


def test_a_peer_that_differs_or_fails_is_left_out_and_said(capsys):
    def transposed(image, theta, weight, index, out_dtype):
        return true_op(image, theta.flip(0), weight, index, out_dtype=out_dtype)

    def failing(*_):
        raise NotImplementedError("not for such images")

    case = Case("warp", (4, 3, 8, 8), 4, torch.float32, torch.float32)
    problem = compared.draw_problem(case, CPU)
    impls = OURS | {"a": Impl(transposed), "b": Impl(failing), "c": Impl(failing, kinds=())}
    runs = kernels.build_agreeing_runs(case, problem, "forward", impls)
    assert list(runs) == ["hard_fast", "hard_fast_nchw", "copy"]
    assert torch.equal(runs["copy"](), problem.image)
    said = capsys.readouterr().err
    assert "a: left out of" in said and "not for such images" in said and "c:" not in said


def test_a_gradient_of_other_matrices_is_traced_back_to_theta():
    # Fed halves, it doubles them: its own gradient is twice theta's.
    def call(image, half, weight, index, out_dtype):
        return true_op(image, 2 * half, weight, index, out_dtype=out_dtype)

    case = Case("warp", (4, 3, 8, 8), 4, torch.float32, torch.float32)
    problem = compared.draw_problem(case, CPU)
    halved = Impl(call, torch.channels_last, to_matrix=lambda theta, size: theta / 2)
    metric = "forward_backward"
    want = kernels.build_run(OURS["hard_fast"], problem, metric, torch.float32)()
    got = kernels.build_run(halved, problem, metric, torch.float32)()
    assert torch.equal(got["theta"], 2 * want["theta"])
    runs = kernels.build_agreeing_runs(case, problem, metric, OURS | {"halved": halved})
    assert "halved" in runs


def test_a_mistake_on_the_command_line_is_one_line(capsys):
    assert kernels.main(["--device", "cpu", "--threads", "0"]) == 2
    assert capsys.readouterr().err == "error: --threads 0: needs at least 1\n"


@pytest.mark.gpu
def test_a_call_on_a_gpu_has_the_compiled_rows_too(tiny, tmp_path):
    code, rows = run(tmp_path, "cuda")
    assert code == 0
    assert {"hard_fast", "hard_fast_nchw", "eager", "compiled", "copy"} <= {
        row["impl"] for row in rows
    }
