import importlib
import json

bench = importlib.import_module("bench.__main__")


def test_rows_are_added_behind_those_that_are_there(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"bench": "study", "mean": 1.0}\n')
    bench.add_rows(rows, [{"bench": "a"}, {"bench": "b"}])
    bench.add_rows(rows, [{"bench": "c"}])
    found = [json.loads(line)["bench"] for line in rows.read_text().splitlines()]
    assert found == ["study", "a", "b", "c"]


def test_an_unknown_bench_is_one_line(capsys):
    assert bench.main(["krenels"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no bench 'krenels': kernels, ")


def test_a_bench_without_time_is_a_failure_that_is_named(tmp_path, capfd):
    rows = tmp_path / "rows.jsonl"
    assert bench.main(["memory", "--seconds", "0", "--rows", str(rows)]) == 1
    assert "memory: no time left" in capfd.readouterr().err and not rows.exists()
