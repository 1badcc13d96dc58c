"""A trace of some steps: it holds the parts' names, and the run is the one without it."""

import gzip
import json

import pytest
import torch

from hard_fast.config import RunConfig
from hard_fast.runtime import profile
from hard_fast.runtime.configfile import Source, merge, parse
from hard_fast.runtime.dist import World
from hard_fast.runtime.profile import FILE_NAME, NUM_WARM_UP, Trace, named
from hard_fast.trainer import Trainer

CPU = torch.device("cpu")
NAMES = {
    *("loader", "augmentor", "teacher", "student", "forward"),
    *("backward", "averaging", "optimizer"),
}


def run(tree, folder, **train):
    tree = merge(tree, {"run_dir": str(folder), "train": {"gallery": False, **train}})
    trainer = Trainer(parse(RunConfig, Source(tree, {})), World(0, 1, CPU))
    trainer.run()
    return {name: value.clone() for name, value in trainer.net.state_dict().items()}


def events(folder):
    with gzip.open(folder / FILE_NAME, "rt") as file:
        return json.load(file)["traceEvents"]


def test_a_run_is_the_same_with_a_trace_of_some_steps(tiny_run, tmp_path, capsys):
    plain = run(tiny_run, tmp_path / "plain", steps=16)
    capsys.readouterr()
    traced = run(tiny_run, tmp_path / "traced", steps=16, profile_steps=3)
    assert all(torch.equal(plain[name], traced[name]) for name in plain)
    assert not (tmp_path / "plain" / FILE_NAME).exists()
    path = tmp_path / "traced" / FILE_NAME
    said = capsys.readouterr().err
    assert said.count(str(path)) == 1 and "perfetto" in said
    # The name of the part lies within the step's.
    found = [event for event in events(tmp_path / "traced") if event.get("ph") == "X"]
    count = {name: sum(event["name"] == name for event in found) for name in NAMES}
    assert count["loader"] == count["backward"] == count["optimizer"] == 3
    assert all(count.values())
    steps = [e["name"] for e in found if e["name"].startswith("ProfilerStep#")]
    assert set(steps) == {f"ProfilerStep#{NUM_WARM_UP + number}" for number in range(3)}
    assert not list((tmp_path / "traced").glob("part-*"))
    assert not profile._is_named


def test_a_run_that_ends_sooner_leaves_what_there_was(tiny_run, tmp_path, capsys):
    run(tiny_run, tmp_path / "a", steps=12, profile_steps=50)
    assert sum(event["name"] == "backward" for event in events(tmp_path / "a")) == 2
    run(tiny_run, tmp_path / "b", steps=4, profile_steps=2)
    assert not (tmp_path / "b" / FILE_NAME).exists()
    assert "ended in its first 10 steps" in capsys.readouterr().err


def test_off_it_does_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(profile, "profile", None)
    monkeypatch.setattr(profile, "record_function", None)
    said = []
    with Trace(tmp_path, 0, CPU, said.append) as trace, named("anything"):
        trace.step()
    assert not said and not list(tmp_path.iterdir())


def test_a_disk_that_takes_nothing_costs_the_trace_alone(tmp_path):
    said = []
    with Trace(tmp_path / "gone", 1, CPU, said.append) as trace:
        for _ in range(NUM_WARM_UP + 2):
            trace.step()
    assert len(said) == 1 and "cannot be written" in said[0] and not profile._is_named


def test_an_error_in_the_run_turns_it_off(tmp_path):
    with pytest.raises(KeyError), Trace(tmp_path, 1, CPU, print):
        raise KeyError
    assert not profile._is_named


def test_a_compiled_graph_does_not_know_of_it(tmp_path):
    def double(x):
        with named("double"):
            return 2.0 * x

    graph = torch.compile(double, fullgraph=True, backend="eager")
    graph(torch.ones(2))
    with torch.compiler.set_stance("fail_on_recompile"):
        with Trace(tmp_path, 1, CPU, print):
            assert graph(torch.ones(2)).tolist() == [2.0, 2.0]
        graph(torch.ones(2))
