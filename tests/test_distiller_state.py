"""A loop of one's own that is saved, resumed bit for bit, averaged, or no longer finite."""

import io

import pytest
import torch

import hard_fast
from hard_fast.runtime.configfile import merge
from tests.own_loops import RUNS, bare, distiller, mistake, same, with_differences


@pytest.fixture
def run(tiny_run):
    return with_differences(tiny_run)


@pytest.mark.parametrize("kind", ["threshold", "student_only"])
def test_a_saved_state_goes_on_as_if_nothing_had_been(run, kind):
    tree = {key: value for key, value in merge(run, RUNS[kind]).items() if value is not None}
    tree |= {"bank": {"capacity": 2}} if kind == "threshold" else {}
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8, generator=generator)] * 12
    labels = torch.arange(8)
    whole = distiller(tree)
    states, reports = [], []
    for image in batches:
        reports.append(whole.step(image, labels))
        states.append(io.BytesIO())
        torch.save(whole.state_dict(), states[-1])
    assert {report.phase for report in reports} >= {"student"}
    for step, file in enumerate(states[:-1], start=1):
        file.seek(0)
        state = torch.load(file, weights_only=True)
        resumed = distiller(tree)
        resumed.load_state_dict(state)
        assert resumed.steps_done == step
        found = [resumed.step(image, labels) for image in batches[step:]]
        assert [r.logs for r in found] == [r.logs for r in reports[step:]], step
        for name in ("student", "augmentor"):
            parts = (own._learning.parts()[name] for own in (whole, resumed))
            assert same(*parts), step
    # Also of a run that has moved on, and the state is as it was.
    resumed.load_state_dict(state)
    assert resumed.step(batches[-1], labels).logs == reports[-1].logs


def test_the_average_is_there_while_it_is_asked_for(run):
    student = bare(run["student"], "student")
    tree = {key: value for key, value in merge(run, RUNS["student_only"]).items() if value}
    own = distiller(tree, student)
    with pytest.raises(ValueError, match="no average is kept"), own.averaged():
        pass
    image, label = torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8), torch.arange(8)
    for _ in range(4):
        own.step(image, label)
    before, state = student.conv2.weight.clone(), own.state_dict()
    with own.averaged():
        average = student.conv2.weight.clone()
        assert not torch.equal(average, before)
        calls = [lambda: own.step(image, label), own.state_dict, own.averaged().__enter__]
        for call in [*calls, lambda: own.load_state_dict(state)]:
            with pytest.raises(ValueError, match="^Distiller: inside averaged"):
                call()
        assert torch.equal(student.conv2.weight, average) and own.steps_done == 4
    assert torch.equal(student.conv2.weight, before)
    own.step(image, label)
    with pytest.raises(ValueError, match="no average is kept"), distiller(run).averaged():
        pass


def test_numbers_that_are_not_finite_are_skipped_or_end_the_run(run):
    image = torch.rand(8, 1, 16, 16)
    student = bare(run["student"], "student")
    own = distiller(run, student)
    own.step(image)
    before = [value.clone() for value in student.parameters()]
    report = own.step(torch.full_like(image, torch.nan))
    assert report.is_skipped and all(map(torch.equal, before, student.parameters()))
    own = distiller(run, guard={"on_nonfinite": "stop"})
    with pytest.raises(hard_fast.Diverged, match="a step had a loss or gradient"):
        for value in (0.5, torch.nan, torch.nan, torch.nan, torch.nan):
            own.step(torch.full_like(image, value))
    own = distiller(run, guard={"max_in_a_row": 3}, schedule={"kind": "threshold"})
    with pytest.raises(hard_fast.Diverged, match="^Distiller: step .* saved before to a file"):
        for value in (0.5, *[torch.nan] * 9):
            own.step(torch.full_like(image, value))


def test_states_that_do_not_fit_are_one_line(run):
    image = torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8)
    own = distiller(run)
    own.step(image)
    for wrong in ({}, [], {"fingerprint": own.state_dict()["fingerprint"]}):
        said = mistake(own.load_state_dict, wrong)
        assert said.startswith("this is not what state_dict() returned (without batch, ")
    other = distiller(run, optim={"lr": 0.5})
    assert "other networks or settings" in mistake(other.load_state_dict, own.state_dict())
    state = own.state_dict()
    del state["parts"]["bank"]
    assert "the state: saved with other parts than this run has (bank)" in mistake(
        distiller(run).load_state_dict, state
    )


def test_states_of_other_batches_or_epochs_are_one_line(run):
    image = torch.randint(256, (16, 1, 16, 16), dtype=torch.uint8)
    large, small = distiller(run), distiller(run)
    large.step(image)
    small.step(image[:8])
    said = mistake(small.load_state_dict, large.state_dict())
    assert said.startswith("the state was saved with batches of another shape")
    assert small.steps_done == 1
    small.step(image[:8])
    fresh = distiller(run)
    fresh.load_state_dict(large.state_dict())
    fresh.step(image)
    said = mistake(distiller(run, steps_per_epoch=5).load_state_dict, large.state_dict())
    assert said == "steps_per_epoch: the state was saved with 12, and here it is 5"
