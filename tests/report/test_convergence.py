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


def test_less_is_better_where_a_score_says_so(tmp_path):
    """A VAE's bound falls: 9 at the first evaluation is worse than 1 at the last."""
    (tmp_path / "vae").mkdir()
    rows = enumerate((9.0, 2.0, 1.0), start=1)
    rows = [{"kind": "eval", "step": 5 * i, "epoch": float(i), "bound": b} for i, b in rows]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "vae" / "metrics.jsonl").write_text(text)
    found = reached({"vae": [tmp_path / "vae"]}, {"bound": 1.0})
    assert found["vae"]["bound"]["epochs"] == 3.0


def test_what_is_scored_at_the_end_alone_is_reached_there_or_not_measured(tmp_path, capsys):
    runs = [write_run(tmp_path, name, [1.0, 2.0]) for name in ("a", "b", "c")]
    for run, score in zip(runs[:2], (80.0, 70.0), strict=True):
        metrics = {"top1": 2.0, "mnist_c_top1": score}
        summary = {"steps": 20, "epochs": 4.0, "metrics": metrics}
        (run / "summary.json").write_text(json.dumps(summary))
    levels = {"top1": 1.5, "mnist_c_top1": 75.0}
    found = reached({"kd": runs, "hard": runs[2:]}, levels)
    end = {"n": 2, "num_there": 1, "epochs": 4.0, "seconds": 40.0}
    assert found["kd"]["mnist_c_top1"] == end and found["kd"]["top1"]["epochs"] == 2.0
    assert found["hard"]["mnist_c_top1"] == {"n": 0, "num_there": 0}
    rows = {"kd": {metric: {"mean": level} for metric, level in levels.items()}}
    result = {"reach": "kd", "metrics": list(levels), "rows": rows, "reached": found}
    Console(width=100).print(reached_table(result))
    text = capsys.readouterr().out
    assert "epoch 4, 40 s (1 of 2)" in text and "not measured" in text and "never" not in text


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
