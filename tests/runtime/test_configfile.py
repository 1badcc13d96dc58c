from typing import Annotated, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from hard_fast.runtime.configfile import (
    Config,
    ConfigError,
    Source,
    dump,
    find,
    fingerprint,
    merge,
    parse,
    read,
)


class Cat(Config):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(Config):
    kind: Literal["dog"] = "dog"
    sizes: tuple[float, float] = (1.0, 2.0)


class Inner(Config):
    rate: float = Field(default=0.1, gt=0.0)
    mode: Literal["slow", "fast"] = "slow"


class Top(Config):
    seed: int
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] = Cat()
    inner: Inner = Inner()
    extra: Inner | None = None

    @model_validator(mode="after")
    def _seed_is_not_13(self) -> "Top":
        if self.seed == 13:
            raise ValueError("seed = 13 brings bad luck")
        return self


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)


def load(path, *overrides):
    return parse(Top, read(path, overrides))


def test_a_file_its_base_and_the_command_line(tmp_path):
    write(tmp_path, "base.toml", "seed = 1\n[inner]\nrate = 0.5\nmode = 'fast'\n")
    path = write(tmp_path, "a.toml", "base = 'base.toml'\n[inner]\nrate = 2\n")
    config = load(path, "inner.mode=slow", "pet.kind='cat'", "pet.lives=3")
    assert config == Top(seed=1, pet=Cat(lives=3), inner=Inner(rate=2.0, mode="slow"))
    with pytest.raises(ValidationError):
        config.seed = 2


def test_another_kind_replaces_the_whole_table(tmp_path):
    write(tmp_path, "base.toml", "seed = 1\n[pet]\nkind = 'cat'\nlives = 3\n")
    path = write(tmp_path, "a.toml", "base = 'base.toml'\n[pet]\nkind = 'dog'\n")
    assert load(path).pet == Dog()
    assert load(path, "pet.sizes=[3, 4]").pet == Dog(sizes=(3.0, 4.0))
    assert load(path, "pet.kind=cat").pet == Cat()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["inner.rat=1"], ["command line: inner.rat = 1: unknown key", "'rate'", "mode"]),
        (["inner.rate='high'"], ["inner.rate = 'high'", "number"]),
        (["inner.rate=0"], ["inner.rate = 0", "greater than 0"]),
        (["inner.mode='fats'"], ["inner.mode = 'fats'", "did you mean 'fast'?"]),
        (["pet.kind='cta'"], ["pet.kind = 'cta'", "did you mean 'cat'?", "dog"]),
        (["pet.lives=3"], ["pet.kind: required, but not set", "cat, dog"]),
        (["pet.kind='dog'", "pet.size=[1]"], ["pet.size", "did you mean 'sizes'?"]),
        (["extra.mod='slow'"], ["extra.mod", "did you mean 'mode'?"]),
        (["seed=1.5"], ["seed = 1.5", "integer"]),
        (["seed=true"], ["seed = True", "integer"]),
        (["seed=13"], ["brings bad luck"]),
        (["inner=3"], ["inner = 3"]),
        (["inner.rate"], ["section.key=value"]),
        (["seed=1", "seed.x=2"], ["seed"]),
    ],
)
def test_every_mistake_is_one_line_that_names_it(tmp_path, overrides, words):
    path = write(tmp_path, "a.toml", "seed = 1\n")
    with pytest.raises(ConfigError) as error:
        load(path, *overrides)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_mistake_names_the_file_it_stands_in(tmp_path):
    base = write(tmp_path, "base.toml", "seed = 1\n[inner]\nrat = 1\n")
    path = write(tmp_path, "a.toml", "base = 'base.toml'\n")
    with pytest.raises(ConfigError, match="unknown key") as error:
        load(path)
    assert str(error.value).startswith(base)
    with pytest.raises(ConfigError, match="seed: required, but not set"):
        load(write(tmp_path, "b.toml", "[inner]\nrate = 1\n"))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("seed = = 1", "not valid TOML"),
        ("base = 'no.toml'", "no such file"),
        ("base = 3", "must be the name"),
        ("base = 'twice.toml'", "cannot have a base itself"),
    ],
)
def test_broken_files_end_in_one_line(tmp_path, text, word):
    write(tmp_path, "twice.toml", "base = 'a.toml'\n")
    with pytest.raises(ConfigError, match=word) as error:
        load(write(tmp_path, "a.toml", text))
    assert "\n" not in str(error.value)


def test_find_takes_paths_and_shipped_names_and_suggests_the_nearest(tmp_path):
    assert find("quickstart").name == "quickstart.toml"
    assert find("studies/toy").name == find("toy").name == "toy.toml"
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        find("quickstrat")


keys = st.text("abcdefghij -_.\"'", min_size=1, max_size=6)
values = st.recursive(
    st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


# The first draw pays for imports, which a busy machine takes seconds over.
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(keys, values, max_size=4))
def test_dump_is_read_back_unchanged(tmp_path_factory, tree):
    tree.pop("base", None)
    path = tmp_path_factory.mktemp("dump") / "a.toml"
    path.write_text(dump(tree), encoding="utf-8")
    assert read(str(path)).tree == tree


def test_fingerprint_ignores_order_and_sees_values():
    assert fingerprint({"a": 1, "b": {"c": 2}}) == fingerprint({"b": {"c": 2}, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_the_upper_length_of_a_run_replaces_the_lower():
    below = {"train": {"epochs": 50, "batch_size": 8}}
    steps = merge(below, {"train": {"steps": 200}})
    assert steps == {"train": {"steps": 200, "batch_size": 8}}
    assert merge(steps, {"train": {"epochs": 2}}) == {"train": {"epochs": 2, "batch_size": 8}}
    both = {"train": {"epochs": 1, "steps": 2}}
    assert merge({"train": {}}, both) == both


def test_merge_leaves_its_arguments_alone():
    below = {"a": {"x": 1}}
    assert merge(below, {"a": {"y": 2}}) == {"a": {"x": 1, "y": 2}}
    assert below == {"a": {"x": 1}}


def test_parse_without_an_origin_still_says_what_is_wrong():
    with pytest.raises(ConfigError, match="unknown key"):
        parse(Top, Source({"seed": 1, "sead": 2}, {}))
