"""report.html: one self-contained page of a run, and one of a study."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from hard_fast.report.canvas import COLOURS
from hard_fast.report.evaluation import evaluation_of
from hard_fast.report.figures import Score, draw_scores
from hard_fast.report.panels import (
    NOT_METRICS,
    Panel,
    galleries,
    learning_panels,
    more_panels,
    phase_strip,
    score_panels,
)
from hard_fast.report.parts import learned_parts
from hard_fast.report.record import (
    Record,
    at,
    error_thresholds,
    is_number,
    numbers,
    phase_steps,
    read_json,
    read_record,
    recipe,
    warnings,
)
from hard_fast.report.wording import count, duration, label, score, share
from hard_fast.runtime.files import write_atomic
from hard_fast.types import Phase

_NUM_GALLERIES = 8
_NUM_STUDY_GALLERIES = 4


class Fact(NamedTuple):
    """One number that a reader looks for first."""

    label: str
    value: str
    note: str = ""


def write_run_report(run_dir: Path) -> Path:
    """Write `report.html` into a run directory, of a finished run or of one that is going on.

    Raises:  ValueError if the directory holds no metrics.jsonl, or an evaluation.json that is none.
    """
    record = read_record(run_dir)
    summary = record.summary
    scores, more = score_panels(record), more_panels(record)
    learned, num_damaged = learned_parts(record)
    learning = learning_panels(record) + scores[1:]
    # The charts stand in two columns: an odd number would leave a hole.
    if len(learning) % 2 and more:
        learning.append(more.pop(0))
    page = {
        "kind": "run",
        "parent": run_dir.resolve().parent.name,
        "title": run_dir.resolve().name,
        "is_running": summary is None,
        "recipe": recipe(record),
        "facts": _run_facts(record),
        "warnings": warnings(record),
        "num_unreadable": record.num_unreadable,
        "scores": _score_table(record),
        "last_eval_step": record.rows["eval"][-1]["step"] if record.rows["eval"] else None,
        "has_teacher": bool(at(summary, "teacher")),
        "score_panels": scores[:1],
        "evaluation": evaluation_of(run_dir),
        "phases": phase_strip(record),
        "thresholds": error_thresholds(record),
        "learning_panels": learning,
        "more_panels": more,
        "galleries": galleries(record, _NUM_GALLERIES),
        "learned": learned,
        "num_damaged": num_damaged,
        "config_text": record.config_text,
        "versions": at(summary, "versions") or {},
        "config_hash": at(summary, "config_hash") or "",
    }
    return _write(run_dir, page)


def write_study_report(study_dir: Path) -> Path:
    """Write `report.html` into a study's directory, from its study.json and its runs' directories.

    Raises:  ValueError if there is no study.json.
    """
    study = read_json(study_dir / "study.json")
    rows, paper = at(study, "rows") or {}, at(study, "paper") or {}
    order = list(dict.fromkeys([*rows, *paper]))
    metrics = at(study, "metrics") or list(dict.fromkeys(m for row in rows.values() for m in row))
    paths = at(study, "runs") or {}
    runs = {
        row: [_run_entry(study_dir, path, i == 0) for i, path in enumerate(paths[row])]
        for row in paths
    }
    page = {
        "kind": "study",
        "title": str(at(study, "study") or study_dir.resolve().name),
        "metrics": {m: any(is_number(at(paper, row, m)) for row in order) for m in metrics},
        "rows": {row: {m: _cell(study, row, m) for m in metrics} for row in order},
        "facts": _study_facts(study, sum(map(len, runs.values()))),
        "panels": [_score_chart(study, order, m) for m in metrics if order],
        "runs": runs,
        "has_phases": any(run["phases"] for members in runs.values() for run in members),
        "versions": at(study, "versions") or {},
    }
    return _write(study_dir, page)


def _write(folder: Path, page: Mapping[str, Any]) -> Path:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "label": label, "share": share}
    text = environment.get_template("page.html.j2").render(page, colours=COLOURS)
    write_atomic(folder / "report.html", text)
    return folder / "report.html"


def _run_facts(record: Record) -> list[Fact]:
    train, summary = record.rows["train"], record.summary
    last = train[-1] if train else {}
    epochs = at(summary, "epochs") if summary else at(last, "epoch")
    note = f"{count(epochs)} epochs" if is_number(epochs) else ""
    facts = [Fact("Steps", count(record.num_steps), note)]
    timing = at(summary, "timing") or at(last, "timing")
    if is_number(at(timing, "seconds")):
        facts.append(Fact("Time", duration(timing["seconds"])))
    if is_number(at(timing, "images_per_s")):
        wait = at(timing, "data_wait_share") if summary else at(timing, "data_wait")
        note = f"data wait included ({share(wait)})" if is_number(wait) else ""
        facts.append(Fact("Images per second", count(round(timing["images_per_s"])), note))
    steps = phase_steps(record)
    if len(steps) > 1:
        note = " + ".join(f"{count(n)} {phase}" for phase, n in steps.items())
        facts.append(Fact("Phase switches", count(len(record.rows["switch"])), note))
    if is_number(at(timing, "peak_memory_gib")):
        facts.append(Fact("Peak memory", f"{timing['peak_memory_gib']:.3g} GiB"))
    return facts


def _score_table(record: Record) -> list[dict[str, str]]:
    """Every final metric of student and teacher; the latest evaluation while the run goes on."""
    student, teacher = at(record.summary, "metrics") or {}, at(record.summary, "teacher") or {}
    if record.summary is None and record.rows["eval"]:
        student = numbers(record.rows["eval"][-1], but=NOT_METRICS)
    table = []
    for name in dict.fromkeys([*student, *teacher]):
        ours, theirs = at(student, name), at(teacher, name)
        gap = ours - theirs if is_number(ours) and is_number(theirs) else None
        line = {"student": score(name, ours), "teacher": score(name, theirs)}
        table.append(line | {"label": label(name), "gap": score(name, gap, sign="+")})
    return table


def _study_facts(study: Mapping[str, Any], num_runs: int) -> list[Fact]:
    facts = [Fact("Rows", count(len(at(study, "rows") or {})))]
    if num_runs:
        facts.append(Fact("Runs", count(num_runs)))
    if is_number(at(study, "seconds")):
        facts.append(Fact("Time", duration(study["seconds"])))
    for row, found in (at(study, "reached") or {}).items():
        for metric, when in found.items():
            if row != study["reach"] and is_number(at(when, "seconds")):
                name = f"{row}: {label(metric, False)} as good as {study['reach']}'s in the end"
                text = f"epoch {when['epochs']:.3g}, {duration(when['seconds'])}"
                facts.append(Fact(name, text))
    return facts


def _cell(study: Mapping[str, Any], row: str, metric: str) -> dict[str, Any]:
    """One cell of the study's table: our mean, standard error and n, and the paper's number."""
    ours = at(study, "rows", row, metric)
    sem, num_seeds, paper = at(ours, "sem"), at(ours, "n"), at(study, "paper", row, metric)
    has_spread = is_number(sem) and num_seeds != 1
    return {
        "mean": score(metric, at(ours, "mean")),
        "sem": score(metric, sem) if has_spread else "",
        "n": "" if num_seeds is None else str(num_seeds),
        "paper": score(metric, paper),
        "has_paper": is_number(paper),
    }


def _score_chart(study: Mapping[str, Any], order: Sequence[str], metric: str) -> Panel:
    scores, has_paper = [], False
    for row in order:
        ours, paper = at(study, "rows", row, metric), at(study, "paper", row, metric)
        cell = _cell(study, row, metric)
        text = f"{cell['mean']} \u00b1 {cell['sem']}" if cell["sem"] else cell["mean"]
        scores.append(Score(row, at(ours, "mean"), at(ours, "sem"), paper, text))
        has_paper |= is_number(paper)
    note = "Dot: this study, with its standard error."
    note += " Diamond: the paper." if has_paper else ""
    return Panel(label(metric), draw_scores(label(metric), scores), note)


def _run_entry(study_dir: Path, path: str, is_first: bool) -> dict[str, Any]:
    """One run of a study: its link, and its phases and pictures.

    Runs that did not learn their inputs show the same kind of pictures at every seed: the first
    run of a row speaks for the others.
    """
    run_dir = study_dir / path
    link = quote(f"{path}/report.html") if (run_dir / "report.html").is_file() else ""
    entry: dict[str, Any] = {"path": path, "link": link, "phases": None, "is_open": False}
    if not (run_dir / "metrics.jsonl").is_file():
        return entry
    record = read_record(run_dir)
    has_learned = any(phase != Phase.STUDENT.value for phase in phase_steps(record))
    pictures = galleries(record, _NUM_STUDY_GALLERIES) if has_learned or is_first else []
    if has_learned or pictures:
        shown = {"phases": phase_strip(record), "galleries": pictures}
        entry |= shown | {"is_open": has_learned and is_first}
    return entry
