import json

import pytest

from bench import render
from bench.methods import methods_table
from bench.render import END
from hard_fast.runtime.configfile import CONFIG_FOLDER

METHODS = "<!-- methods table -->"
SPEED = "<!-- performance table -->"


def row(bench, case, impl, metric, unit, p50, **more):
    where = {"device": "CPU", "threads": 2, "torch": "2.15.0", "commit": "abc"}
    what = {"bench": bench, "case": case, "impl": impl, "metric": metric, "unit": unit}
    return {**what, "p50": p50, **where, **more}


ROWS = [
    row("step", "a -> b: KD", "timm", "step", "ms", 50.0, of_kd=1.25),
    row("step", "a -> b: KD", "eager", "step", "ms", 60.0, of_kd=1.5),
    row("step", "a -> b: KD", "hard_fast", "step", "ms", 40.0, of_kd=1.0),
    row("step", "a -> b: KD", "hard_fast", "step", "cpu_ms", 40.0, of_kd=1.0),
    row("step", "a -> b: HARD student phase", "hard_fast", "step", "ms", 44.0, of_kd=1.1),
    row("step", "a -> b: KD", "hard_fast", "flops", "flops", 1e9, bound=1e9),
    row("loader", "JPEGs", "hard_fast", "decode_crop_flip", "images/s", 300.0),
    row("loader", "JPEGs", "timm", "decode_crop_flip", "images/s", 100.0),
    row("memory", "net, AdamW", "hard_fast", "state_per_parameter", "bytes", 8.0),
    row("memory", "net, Lion8bit", "hard_fast", "state_per_parameter", "bytes", 1.02),
    row("kernels", "warp", "hard_fast", "forward", "ms", 1.0),
    row("kernels", "warp", "eager", "forward", "ms", 4.0),
    row("kernels", "warp", "copy", "forward", "ms", 0.1),
    row("kernels", "mix", "hard_fast", "forward", "ms", 1.0),
    row("kernels", "mix", "kornia", "forward", "ms", 2.0),
]


def write(tmp_path, rows, readme=f"# title\n\n{METHODS}\n{END}\n{SPEED}\nold\n{END}\n\nrest\n"):
    lines, page = tmp_path / "rows.jsonl", tmp_path / "README.md"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page.write_text(readme)
    return ["--rows", str(lines), "--readme", str(page)], page


def test_the_table_has_ours_beside_the_best_peer():
    assert render.performance_table(ROWS).splitlines() == [
        "CPU, 2 threads; torch 2.15.0; commit abc:",
        "",
        "| what | | hard_fast | best peer | peer / ours |",
        "| --- | --- | ---: | ---: | ---: |",
        "| a -> b: KD | one step, ms | 40 | 50 (timm) | 1.25 |",
        "| a -> b: HARD student phase | one step, ms (1.10 of KD) | 44 |  |  |",
        "| JPEGs | decode, crop, flip, images/s | 300 | 100 (timm) | 3.00 |",
        "| net: AdamW, Lion8bit | optimizer state per parameter, bytes | 8.00, 1.02 | | |",
        "| affine_mix, 2 cases | ms | | | 2.0 to 4.0, median 3.0 |",
    ]


def test_the_newest_row_counts_and_each_place_has_its_table():
    newer = row("step", "a -> b: KD", "hard_fast", "step", "ms", 25.0, of_kd=1.0)
    elsewhere = {**newer, "device": "GPU", "power_cap_w": 700.0, "p50": 5.0}
    table = render.performance_table([*ROWS, newer, elsewhere])
    # The ratio stays that of the rounds in which both ran.
    assert "| one step, ms | 25 | 50 (timm) | 1.25 |" in table
    assert table.count("| --- |") == 2 and "\nGPU; torch" in table


def test_writing_changes_only_what_lies_between_the_markers(tmp_path, capsys):
    options, page = write(tmp_path, ROWS)
    assert render.main([*options, "--check"]) == 1
    assert "run python -m bench.render" in capsys.readouterr().err
    assert page.read_text() == f"# title\n\n{METHODS}\n{END}\n{SPEED}\nold\n{END}\n\nrest\n"
    assert render.main(options) == 0
    methods, speed = methods_table(CONFIG_FOLDER), render.performance_table(ROWS)
    tables = f"{METHODS}\n{methods}\n{END}\n{SPEED}\n{speed}\n{END}"
    assert page.read_text() == f"# title\n\n{tables}\n\nrest\n"
    assert render.main([*options, "--check"]) == 0


@pytest.mark.parametrize("readme", ["no marker", f"{METHODS}\n", f"{END}\n{METHODS}\n"])
def test_missing_markers_are_one_line(readme, tmp_path, capsys):
    options, page = write(tmp_path, ROWS, readme)
    assert render.main(options) == 2
    said = capsys.readouterr().err
    assert said == f"error: {page} lacks a line {METHODS} and after it a line {END}\n"
    assert page.read_text() == readme


def test_a_file_that_is_not_there_is_one_line(tmp_path, capsys):
    options, page = write(tmp_path, ROWS)
    assert render.main([*options[:3], str(tmp_path / "none.md")]) == 2
    assert render.main(["--rows", str(tmp_path / "none.jsonl"), *options[2:]]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("cannot be read" in line for line in lines)


def test_the_readme_is_up_to_date():
    assert render.main(["--check"]) == 0
