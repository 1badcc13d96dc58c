import json

from rich.console import Console

from hard_fast.report.convergence import reached, reached_table


def write_run(place, name, scores, average=None):
    """A run of five steps an epoch that is scored after each, two seconds a step."""
    rows = []
    for i, value in enumerate(scores, start=1):
        metrics = {"top1": value, "nll": 10.0 - value}
        if average:
            metrics["average_top1"] = average[i - 1]
        rows.append({"kind": "eval", "step": 5 * i, "epoch": float(i), **metrics})
        rows.append(
            {"kind": "train", "step": 10 * i, "epoch": 2.0 * i, "timing": {"seconds": 20 * i}}
        )
    (place / name).mkdir()
    text = "".join(json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["step"]))
    (place / name / "metrics.jsonl").write_text(text)
    return place / name


def test_the_first_evaluation_that_is_as_good_counts(tmp_path):
    runs = {
        "kd": [write_run(tmp_path, "a", [1.0, 2.0, 3.0])],
        "hard": [
            write_run(tmp_path, "b", [3.0, 1.0, 5.0]),
            write_run(tmp_path, "c", [0.0, 4.0, 2.0]),
            write_run(tmp_path, "d", [0.0, 1.0, 2.0]),
        ],
    }
    found = reached(runs, {"top1": 3.0, "nll": 7.0})
    assert found["kd"]["top1"] == {"n": 1, "num_there": 1, "epochs": 3.0, "seconds": 30.0}
    hard = {"n": 3, "num_there": 2, "epochs": 1.5, "seconds": 15.0}
    assert found["hard"] == {"top1": hard, "nll": hard}
    assert reached(runs, {"top1": 9.0})["kd"]["top1"] == {"n": 1, "num_there": 0}


def test_a_run_that_ships_an_average_is_judged_by_it(tmp_path):
    run = write_run(tmp_path, "a", [9.0, 9.0, 9.0], average=[1.0, 2.0, 3.0])
    assert reached({"kd": [run]}, {"top1": 2.0})["kd"]["top1"]["epochs"] == 2.0


def test_the_table_says_who_never_got_there(capsys):
    result = {
        "reach": "kd",
        "metrics": ["top1"],
        "rows": {"kd": {"top1": {"mean": 98.6}}},
        "reached": {
            "kd": {"top1": {"n": 3, "num_there": 3, "epochs": 8.0, "seconds": 75.0}},
            "hard": {"top1": {"n": 3, "num_there": 1, "epochs": 2.5, "seconds": 9.0}},
            "alone": {"top1": {"n": 3, "num_there": 0}},
        },
    }
    Console(width=100).print(reached_table(result))
    text = capsys.readouterr().out
    assert "98.60" in text and "epoch 8, 1 min 15 s (3)" in text
    assert "epoch 2.5, 9 s (1 of 3)" in text and "never (3)" in text
