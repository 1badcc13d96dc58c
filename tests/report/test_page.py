import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from hard_fast.config import RunConfig
from hard_fast.report.page import write_run_report, write_study_report
from hard_fast.report.record import read_record
from hard_fast.runtime.configfile import Source, dump, parse
from hard_fast.runtime.dist import World
from hard_fast.trainer import Trainer

Make = Callable[..., Path]
_VOID = {"meta", "link", "img", "br", "input", "hr"}


class _Checker(HTMLParser):
    """Finds tags that are not closed, and everything a page would fetch from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in _VOID:
            self.open.append(tag)
        for key, value in attrs:
            is_link = key in ("src", "srcset", "href", "xlink:href", "data") and tag != "a"
            if is_link and not (value or "").startswith(("data:", "#")):
                self.fetched.append(f"{tag} {key}={value}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _check(page: str) -> _Checker:
    """Assert that a page is well formed and needs nothing from outside."""
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.fetched == []
    assert "script" not in checker.tags
    assert not re.search(r"https?://|@import|url\((?!#)", page)
    return checker


def test_the_page_of_a_finished_run_tells_everything(make_run: Make, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "seed0-ab12", num_galleries=9)
    path = write_run_report(run_dir)
    assert path == run_dir / "report.html"
    page = path.read_text()
    tags = _check(page).tags
    assert ">finished</span>" in page
    for text in ("centered top-1 (%)", "97.12", "99.41", "\u22122.29", "val loss", "0.1394"):
        assert text in page
    for text in ("2,000", "8.51 epochs", "20,512", "data wait included (1.2\u00a0%)", "24 s"):
        assert text in page
    assert "1,820 student + 180 augmentor" in page
    assert page.count("error 43.2 % above l_max 40 % for 5 steps") == 9
    assert "<details><summary>Every switch and its reason" in page
    assert tags.count("img") == 8
    assert "temperature = 5.0" in page
    assert "torch 2.13.0" in page
    assert "3f9a2b77c01d" in page
    assert 'class="warnings"' not in page
    assert "prefers-color-scheme: dark" in page
    assert [file.name for file in run_dir.iterdir() if "partial" in file.name] == []


def test_the_page_of_a_running_run_shows_its_latest_scores(make_run: Make, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", num_steps=100, is_finished=False, is_learned=False)
    with (run_dir / "metrics.jsonl").open("a") as log:
        log.write('{"kind":"eval","step":100,"val_t')
    page = write_run_report(run_dir).read_text()
    _check(page)
    assert ">running</span>" in page
    assert "The latest evaluation, at step 100." in page
    assert "97.15" in page
    assert ">Teacher</th>" not in page
    assert 'class="warnings"' not in page


@pytest.mark.parametrize("is_learned", [True, False])
def test_charts_fill_both_columns(make_run: Make, tmp_path: Path, is_learned: bool) -> None:
    page = write_run_report(make_run(tmp_path / "run", is_learned=is_learned)).read_text()
    curves = page[page.index("<h2>Learning curves") : page.index('<details class="more">')]
    assert curves.count('<figure class="card chart">') == 4


def test_a_run_that_has_said_nothing_yet_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    page = write_run_report(tmp_path).read_text()
    _check(page)
    assert "Nothing has been evaluated yet." in page


def test_what_files_say_is_escaped(make_run: Make, tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    run_dir = make_run(tmp_path / "<b>run", num_steps=100)
    rows = [
        {"kind": "warning", "step": 1, "text": f"{evil} warning"},
        {"kind": "switch", "step": 5, "from": f'"{evil}', "to": evil, "reason": evil},
        {"kind": "eval", "step": 50, f"{evil}_top1": 5.0},
        {"kind": "train", "step": 50, "student": {evil: 1.0}, "lr": {evil: 1.0}},
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run_dir / "config.toml").write_text(f'[data]\nkind = "{evil}"\n')
    summary = {"metrics": {evil: 1.0}, "versions": {evil: evil}, "config_hash": evil}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    page = write_run_report(run_dir).read_text()
    _check(page)
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; warning" in page
    assert "<b>run" not in page


def test_warnings_stand_first_and_many_are_folded(make_run: Make, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", num_steps=100)
    with (run_dir / "metrics.jsonl").open("a") as log:
        log.write("not json\n")
        for i in range(9):
            log.write(json.dumps({"kind": "warning", "step": i, "text": f"trouble {i}"}) + "\n")
    page = write_run_report(run_dir).read_text()
    _check(page)
    assert "10 warnings" in page
    assert "1 line of metrics.jsonl could not be read." in page
    assert page.index("trouble 0") < page.index('class="facts"')
    assert page.index("3 more") < page.index("trouble 6") < page.index("<h2>Results")


def test_a_final_metric_that_is_not_finite_is_told(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "summary.json").write_text('{"metrics": {"mse": NaN}, "teacher": null, "steps": 4}')
    page = write_run_report(tmp_path).read_text()
    assert "not finite" in page
    assert ">Teacher</th>" not in page


@pytest.mark.parametrize("write", [write_run_report, write_study_report])
def test_an_empty_directory_is_an_error_that_names_it(write: Callable, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file") as caught:
        write(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_page_of_a_study_compares_with_the_paper(make_study: Make, tmp_path: Path) -> None:
    study_dir = make_study(tmp_path / "study", num_galleries=2)
    linked = study_dir / "hard_affine" / "seed0-aaaa" / "report.html"
    linked.touch()
    page = write_study_report(study_dir).read_text()
    tags = _check(page).tags
    assert "<h1>mnist_table1</h1>" in page
    assert "<b>98.72</b> &plusmn; 0.07<small>n = 3</small>" in page
    assert "<b>99.41</b><small>n = 1</small>" in page
    assert '<td class="num paper">98.90</td>' in page
    assert '<td class="num paper none">\u2013</td>' in page
    assert page.count('<figure class="card chart">') == 2
    assert ">98.72 \u00b1 0.07</text>" in page
    assert 'href="hard_affine/seed0-aaaa/report.html"' in page
    assert 'href="hard_affine/seed1-bbbb/report.html"' not in page
    # Two runs learned their inputs; plain KD is only in the list of runs.
    assert page.count('class="strip"') == 2
    assert page.count('<details class="run" open>') == 1
    assert tags.count("img") == 4
    assert "kd/seed0-aaaa" in page
    assert "30 min 34 s" in page


def test_a_study_shows_fixed_inputs_once_per_row(make_run: Make, tmp_path: Path) -> None:
    paths = ["kd/seed0", "kd/seed1"]
    for path in paths:
        make_run(tmp_path / path, num_steps=100, is_learned=False, num_galleries=2)
    rows = {"kd": {"mse": {"mean": 0.5, "sem": 0.1, "n": 2}}}
    (tmp_path / "study.json").write_text(json.dumps({"rows": rows, "runs": {"kd": paths}}))
    page = write_study_report(tmp_path).read_text()
    assert _check(page).tags.count("img") == 2
    assert '<details class="run">' in page
    assert f"<h1>{tmp_path.name}</h1>" in page


def test_a_study_without_paper_or_runs_has_a_page(tmp_path: Path) -> None:
    rows = {"a b&c": {"mse": {"mean": 0.5, "sem": float("nan"), "n": 1}}, "d": {}}
    study = {"study": "toy", "rows": rows, "paper": {}, "seconds": 3.0, "versions": {}}
    (tmp_path / "study.json").write_text(json.dumps(study))
    page = write_study_report(tmp_path).read_text()
    _check(page)
    assert "a b&amp;c" in page
    assert "<b>0.5</b><small>n = 1</small>" in page
    assert ">Paper</th>" not in page
    assert "Diamond" not in page


@pytest.mark.parametrize("kind", ["threshold", "joint"])
def test_a_real_run_leaves_what_the_page_shows(tiny_run: dict, kind: str) -> None:
    if kind == "joint":
        tiny_run["schedule"] = {"kind": "joint"}
    config = parse(RunConfig, Source(tiny_run, {}))
    trainer = Trainer(config, World(0, 1, torch.device("cpu")))
    run_dir = trainer.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.toml").write_text(dump(config.model_dump(mode="json")))
    trainer.run()
    record = read_record(run_dir)
    ends = [row["step"] for row in record.rows["switch"] if row["from"] == "augmentor"]
    page = write_run_report(run_dir).read_text()
    _check(page)
    learned = page[page.index("<h2>What the augmentor learned") :]
    captions = re.findall(r"<figcaption>(step [\d,]+)</figcaption></figure>", learned)
    expected = [f"step {step}" for step in [0, *ends]]
    # Joint runs have no switches: their newest checkpoint tells what was learned.
    assert captions[: len(expected)] == expected
    assert captions[-1] == "step 12" if kind == "joint" else len(ends) >= 1
    x_shift = re.search(r">x shift ([^<]*)<", learned)[1].replace("\u2212", "-")
    assert float(x_shift) == pytest.approx(trainer.net.augmentor.mean[2].item(), rel=1e-3)
