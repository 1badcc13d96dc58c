from hard_fast.runtime.rows import as_json, read_rows


def test_what_is_no_number_becomes_null_at_any_depth():
    row = {"a": float("nan"), "b": {"c": float("inf"), "d": 1.5}, "e": "x"}
    assert as_json(row) == {"a": None, "b": {"c": None, "d": 1.5}, "e": "x"}


def test_rows_stop_at_a_torn_line_and_leave_out_what_is_no_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_rows(path) == []
    path.write_text('{"step": 1}\n[2]\n{"no": "step"}\n{"step": 3}\n{"st')
    assert read_rows(path) == [{"step": 1}, {"step": 3}]
