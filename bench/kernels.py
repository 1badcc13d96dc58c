"""python -m bench.kernels [--device auto|cpu|cuda] [--json FILE] [--full] [--threads N]

Times `hard_kernels.affine_mix` beside all else that computes the same, once it is shown to be
right. bench/README.md says what the rows mean.
"""

import math
import sys
from collections.abc import Callable

import torch
from hard_kernels.affine_mix import reference
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.affine_mix import OURS, Case, Impl, Problem, cases_on, draw_problem, peers
from bench.timing import (
    Budget,
    Row,
    Setting,
    clock_for,
    command_line,
    interleave,
    make_row,
    note,
    prepare,
    write_rows,
)

SECONDS = 34.0
"""For all measurements of a default call on a CPU; warming up is part of it."""
THOROUGH_SECONDS = 10.0
"""For each measurement of a full call and on a GPU, where rounds are short; after warming up."""
MAX_ROUNDS = {False: 15, True: 200}
"""Of a default call on a CPU, and of thorough ones."""
SMALL = {"shape": (16, 3, 24, 20), "patch_px": 4}
"""What the gate is run on."""
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
"""Per dtype of a result, its largest error let pass, as a share of the largest value."""
PEER_TOLERANCE = 0.05
"""The same for others against ours, on noise, where rounding alone moves theta's gradient."""

MUST_AGREE = (*OURS, "eager")
"""Where one of these differs from ours it is not known which is wrong."""

Results = dict[str, Tensor]


class Disagreement(RuntimeError):
    """Ours finds something else than plain PyTorch does, on the very tensors to be timed."""


def check_op(cases: list[Case], device: torch.device) -> list[str]:
    """What ours gets wrong at a small shape of every kind and dtype of the cases; [] is right.

    Held against the reference and autograd in fp64: values, and gradients of theta, weight and
    image, for both layouts.
    """
    wrong = []
    for case in dict.fromkeys(case._replace(**SMALL) for case in cases):
        problem, metric = draw_problem(case, device, off_grid=True), case.metrics[-1]
        want = build_run(Impl(_exact), _in_fp64(problem), metric, torch.float64)()
        for name, impl in OURS.items():
            got = build_run(impl, problem, metric, case.out_dtype)()
            for result, value in got.items():
                error = _difference(value, want[result])
                if error > TOLERANCES[value.dtype]:
                    wrong.append(f"{name}, {case.name}: {result} is {error:.1e} off the reference")
    return wrong


def build_run(
    impl: Impl, problem: Problem, metric: str, out_dtype: torch.dtype
) -> Callable[[], Results]:
    """A call that computes a metric of a problem, fed the way the implementation likes best.

    It returns "output" and each gradient by its tensor's name.
    """
    image = problem.image.contiguous(memory_format=impl.layout)
    grad = problem.grad.contiguous(memory_format=impl.layout)
    matrix = problem.theta
    if matrix is not None:
        matrix = impl.to_matrix(matrix, problem.image.shape[2:])
    given = {"image": image, "theta": matrix, "weight": problem.weight}
    wanted = problem.wanted(metric)
    given |= {name: given[name].detach().requires_grad_() for name in wanted}

    def forward() -> Results:
        with torch.no_grad():
            return {"output": impl.call(*given.values(), problem.index, out_dtype)}

    def forward_backward() -> Results:
        output = impl.call(*given.values(), problem.index, out_dtype)
        found = torch.autograd.grad(output, [given[name] for name in wanted], grad)
        return {"output": output.detach(), **dict(zip(wanted, found, strict=True))}

    return forward_backward if wanted else forward


def build_agreeing_runs(
    case: Case, problem: Problem, metric: str, impls: dict[str, Impl]
) -> dict[str, Callable[[], object]]:
    """A warmed-up run of each implementation that finds what ours finds, and the images' copy.

    Where one cannot do the case it is left out, and with a note where it fails or differs.

    Args:    impls: `hard_fast` first.
    Raises:  Disagreement if it is ours or plain PyTorch that differs: nothing is to be timed.
    """
    runs: dict[str, Callable[[], object]] = {}
    want: Results = {}
    for name, impl in impls.items():
        if case.kind not in impl.kinds or metric not in impl.metrics:
            continue
        run = build_run(impl, problem, metric, case.out_dtype)
        try:
            got = _in_terms_of_theta(impl, problem, run())
        except Exception as error:
            # Other packages change and have limits of their own.
            if name in MUST_AGREE:
                raise
            note(f"{name}: left out of {case.name} {metric}: {error!r}")
            continue
        want = want or got
        errors = {result: _difference(got[result], want[result]) for result in want}
        worst = max(errors, key=lambda result: errors[result])
        if errors[worst] <= PEER_TOLERANCE:
            runs[name] = run
            continue
        text = f"{case.name} {metric}: its {worst} is {errors[worst]:.1e} off ours"
        if name in MUST_AGREE:
            raise Disagreement(f"{name}, {text}")
        note(f"{name}: left out of {text}")
    copied = torch.empty_like(problem.image)
    return runs | {"copy": lambda: copied.copy_(problem.image)}


def time_cases(
    cases: list[Case], impls: dict[str, Impl], setting: Setting, full: bool
) -> list[Row]:
    """The rows; within a case and metric all implementations are timed in turn."""
    is_thorough = full or setting.device.type == "cuda"
    budget = Budget(SECONDS, sum(len(case.metrics) for case in cases))
    clock = clock_for(setting.device)
    rows = []
    for case in cases:
        if "compiled" in impls:
            # Every case brings graphs of its own, and only so many are kept.
            torch.compiler.reset()
        problem = draw_problem(case, setting.device)
        for metric in case.metrics:
            runs = build_agreeing_runs(case, problem, metric, impls)
            seconds = THOROUGH_SECONDS if is_thorough else budget.next_share()
            times = interleave(runs, clock, MAX_ROUNDS[is_thorough], seconds)
            found = [
                make_row("kernels", case.name, name, metric, "ms", values, setting)
                for name, values in times.items()
            ]
            for row in found:
                is_copy = row["impl"] == "copy"
                num_bytes = 2 * problem.image.nbytes if is_copy else problem.num_bytes(metric)
                row["gb_per_s"] = num_bytes / row["p50"] / 1e6
                if not is_copy and impls[row["impl"]].version:
                    row["version"] = impls[row["impl"]].version
            for row in found:
                row["fraction_of_copy"] = row["gb_per_s"] / found[-1]["gb_per_s"]
            rows += found
    return rows


def p50_table(rows: list[Row]) -> Table:
    """A line per case and metric: the floor, every p50, and how often ours fits in the best peer.

    The floor is the time of the fewest bytes at the copy's rate.
    """
    impls = list(dict.fromkeys(row["impl"] for row in rows))
    table = Table(title=f"affine_mix, p50 in ms, {rows[0]['device']}")
    table.add_column("case")
    table.add_column("metric")
    for name in ("floor", *impls, "best peer / ours"):
        table.add_column(name, justify="right")
    lines: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        lines.setdefault((row["case"], row["metric"]), {})[row["impl"]] = row
    for key, found in lines.items():
        ours = found["hard_fast"]
        best = min(row["p50"] for name, row in found.items() if name not in (*OURS, "copy"))
        cells = [f"{found[name]['p50']:.3g}" if name in found else "-" for name in impls]
        floor = ours["p50"] * ours["fraction_of_copy"]
        table.add_row(*key, f"{floor:.3g}", *cells, f"{best / ours['p50']:.2f}x")
    return table


def main(arguments: list[str] | None = None) -> int:
    """Check, time and print; the exit code is 0, 1 if something is wrong, 2 for a mistake."""
    options = command_line("kernels", __doc__).parse_args(arguments)
    try:
        setting = prepare(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    cases = cases_on(setting.device)
    wrong = check_op(cases, setting.device)
    rows: list[Row] = []
    if not wrong:
        impls = OURS | peers(setting.device, options.full)
        try:
            rows = time_cases(cases, impls, setting, options.full)
        except Disagreement as error:
            wrong = [str(error)]
    if wrong:
        print("wrong, so nothing is timed:", *wrong, sep="\n  ", file=sys.stderr)
        return 1
    if options.json:
        write_rows(options.json, rows)
    console = Console()
    # A file or a pipe has no width; a row should still be one line.
    console = console if console.is_terminal else Console(width=200)
    console.print(p50_table(rows))
    return 0


def _exact(image, theta, weight, index, out_dtype):
    return reference.forward(image, theta, weight, index, "zeros", out_dtype)


def _in_fp64(problem: Problem) -> Problem:
    is_bytes = problem.image.dtype == torch.uint8
    image = problem.image.double() / (255 if is_bytes else 1)
    theta, weight = (None if t is None else t.double() for t in (problem.theta, problem.weight))
    return Problem(image, theta, weight, problem.index, problem.grad.double())


def _in_terms_of_theta(impl: Impl, problem: Problem, got: Results) -> Results:
    """The results with the gradient of its own matrices traced back to theta's."""
    if "theta" not in got:
        return got
    theta = problem.theta.detach().requires_grad_()
    matrix = impl.to_matrix(theta, problem.image.shape[2:])
    return got | {"theta": torch.autograd.grad(matrix, theta, got["theta"])[0]}


def _difference(got: Tensor, want: Tensor) -> float:
    """The largest difference as a share of the largest value; NaN counts as infinite."""
    found = float((got - want).abs().max() / want.abs().max())
    return math.inf if math.isnan(found) else found


if __name__ == "__main__":
    sys.exit(main())
