import pytest

from hard_fast.runtime.configfile import ConfigError, Source, parse
from hard_fast.train_config import TrainConfig, check_batches


def read(**train):
    return parse(TrainConfig, Source(train, dict.fromkeys(train, "run.toml")))


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({}, "exactly one of train.epochs and train.steps"),
        ({"steps": 3, "epochs": 1.0}, "exactly one of train.epochs and train.steps"),
        ({"steps": 3, "profile_steps": -1}, "profile_steps = -1"),
        ({"steps": 3, "resolution": {}}, "resolution.start_px: required"),
        ({"steps": 3, "resolution": {"start_px": 8, "end": 1.0}}, "resolution.end = 1.0"),
        ({"steps": 3, "resolution": {"start_px": 8, "stage_px": 0}}, "resolution.stage_px = 0"),
    ],
)
def test_a_mistake_is_one_line(train, words):
    with pytest.raises(ConfigError) as caught:
        read(**train)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_of_its_own_makes_pictures_grow():
    assert read(steps=3).resolution is None and read(steps=3).profile_steps == 0
    growing = read(steps=3, resolution={"start_px": 128}).resolution
    assert (growing.start_px, growing.stage_px, growing.end) == (128, 32, 0.75)


@pytest.mark.parametrize(
    ("train", "group", "processes", "words"),
    [
        ({"batch_size": 15}, 2, 1, r"train.batch_size = 15.*multiple of 2 .*groups of 2"),
        ({"batch_size": 18, "accumulate": 4}, 1, 1, "multiple of 4"),
        ({"batch_size": 16, "augmentor_batch_size": 6}, 1, 4, "augmentor_batch_size = 6"),
        ({"batch_size": 16, "augmentor_batch_size": 32}, 1, 1, "cannot be larger"),
    ],
)
def test_batches_that_cannot_be_cut_are_one_line(train, group, processes, words):
    with pytest.raises(ValueError, match=words):
        check_batches(TrainConfig(steps=1, **train), processes, group)
