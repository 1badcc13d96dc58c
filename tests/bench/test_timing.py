import json
import subprocess
import time
from pathlib import Path

import pytest
import torch

from bench import timing


def parse(*arguments):
    return timing.command_line("test", None).parse_args(arguments)


def test_percentiles_worked_out_by_hand():
    values = [40.0, 10.0, 30.0, 20.0, 50.0, 60.0]
    # Places 1, 2.5 and 4 of 0 to 5.
    assert timing.percentile(values, 20) == 20.0
    assert timing.percentile(values, 50) == 35.0
    assert timing.percentile(values, 80) == 50.0
    assert timing.percentile([7.0], 80) == 7.0


def test_interleaving_runs_each_once_a_round_in_changing_orders():
    seen = []
    runs = {name: lambda name=name: seen.append(name) for name in "abc"}

    def clock(run):
        run()
        return float(len(seen))

    times = timing.interleave(runs, clock, num_rounds=20, seconds=60.0)
    rounds = [tuple(seen[start : start + 3]) for start in range(0, 60, 3)]
    assert len(seen) == 60
    assert all(sorted(found) == ["a", "b", "c"] for found in rounds)
    assert len(set(rounds)) > 3
    # Each time is filed under the run it is of.
    assert all(seen[int(at) - 1] == name for name, found in times.items() for at in found)
    assert [len(found) for found in times.values()] == [20, 20, 20]


def test_interleaving_ends_when_its_seconds_are_spent():
    times = timing.interleave({"a": lambda: None}, lambda run: 1.0, num_rounds=50, seconds=0.0)
    assert len(times["a"]) == timing.MIN_ROUNDS


def test_what_one_measurement_leaves_goes_to_the_next():
    budget = timing.Budget(10.0, num_parts=2)
    assert budget.next_share() == pytest.approx(5.0, abs=0.1)
    assert budget.next_share() == pytest.approx(10.0, abs=0.1)
    spent = timing.Budget(0.0, num_parts=1)
    assert spent.next_share() == spent.next_share() == 0.0


def test_the_clock_of_a_cpu_counts_milliseconds():
    clock = timing.clock_for(torch.device("cpu"))
    assert 20 <= clock(lambda: time.sleep(0.02)) < 200


@pytest.mark.gpu
def test_the_clock_of_a_gpu_counts_the_call_alone():
    clock = timing.clock_for(torch.device("cuda"))
    some = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    clock(some.zero_)
    once, often = clock(some.zero_), clock(lambda: [some.zero_() for _ in range(20)])
    assert 10 * once < often < 40 * once


def test_a_row_has_the_agreed_keys_and_is_written_as_json(tmp_path):
    setting = timing.prepare(parse("--device", "cpu"))
    row = timing.make_row("b", "c", "i", "m", "ms", [1.0, 3.0, 2.0], setting)
    keys = "bench case impl metric unit p20 p50 p80 n device torch threads commit"
    assert list(row) == keys.split()
    assert (row["p50"], row["n"]) == (2.0, 3)
    assert (row["torch"], row["threads"]) == (torch.__version__.split("+")[0], 1)
    timing.write_rows(tmp_path / "rows.json", [row, row])
    assert json.loads((tmp_path / "rows.json").read_text()) == [row, row]


def test_the_commit_is_what_git_says():
    root = Path(timing.__file__).parent.parent
    if not (root / ".git").exists():
        pytest.skip("not a checkout")
    head = subprocess.run(
        ["git", "-C", root, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    commit = timing.prepare(parse("--device", "cpu")).facts["commit"]
    assert head.stdout.strip() in commit


def test_rows_that_are_added_do_not_make_a_checkout_dirty(tmp_path):
    (tmp_path / "bench").mkdir()
    rows, code = tmp_path / "bench/results.jsonl", tmp_path / "bench/step.py"
    assert timing._commit(tmp_path) == "unknown"
    for path in (rows, code):
        path.write_text("")
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    for command in (("init",), ("add", "."), (*who, "commit", "-m", "a")):
        subprocess.run(["git", "-C", tmp_path, *command], check=True, capture_output=True)
    clean = timing._commit(tmp_path)
    rows.write_text("{}")
    assert timing._commit(tmp_path) == clean != "unknown"
    code.write_text("changed")
    assert timing._commit(tmp_path) == f"{clean}-dirty"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(("--threads", "0"), "--threads 0"), (("--json", "/no/such/folder/rows.json"), "--json /no")],
)
def test_a_mistake_is_named_before_anything_runs(arguments, text):
    with pytest.raises(ValueError, match=text):
        timing.prepare(parse("--device", "cpu", *arguments))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_mistake():
    with pytest.raises(ValueError, match="no CUDA device"):
        timing.prepare(parse("--device", "cuda"))
    assert timing.prepare(parse("--device", "auto")).device.type == "cpu"


def test_a_ratio_is_taken_within_each_round():
    # The machine became ten times slower after the first round.
    times = {"a": [10.0, 100.0, 100.0], "b": [20.0, 210.0, 190.0]}
    assert timing.pair_up(times, "a") == {"a": 1.0, "b": 2.0}


def test_the_last_row_of_a_measurement_is_the_newest():
    setting = timing.prepare(parse("--device", "cpu"))
    first, other, last = (
        timing.make_row("b", case, "i", "m", "ms", [value], setting)
        for case, value in (("c", 1.0), ("d", 2.0), ("c", 3.0))
    )
    assert timing.newest([first, other, last]) == [last, other]
    assert timing.newest([first, {**first, "unit": "images/s"}, {**first, "threads": 9}])[1:]


def test_rows_are_read_from_a_list_and_from_lines(tmp_path):
    setting = timing.prepare(parse("--device", "cpu"))
    row = timing.make_row("b", "c", "i", "m", "ms", [1.0], setting)
    timing.write_rows(tmp_path / "rows.json", [row])
    (tmp_path / "rows.jsonl").write_text(f'{{"bench": "study"}}\n{json.dumps(row)}\n')
    assert timing.read_rows(tmp_path / "rows.json") == [row]
    assert timing.read_rows(tmp_path / "rows.jsonl") == [row]
    assert timing.read_rows(Path(timing.__file__).with_name("results.jsonl"))
