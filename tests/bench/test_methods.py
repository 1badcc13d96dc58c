import pytest

from bench.methods import methods_of, methods_table
from hard_fast.runtime.configfile import CONFIG_FOLDER, read

FIRST = "# What it is.\n#\n# Method: DAFL (arXiv:1904.01186): dafl, generator\n\nkey = 1\n"


def test_a_method_has_a_line_with_its_configurations(tmp_path):
    for name in ("data_free/mnist.toml", "studies/dafl_cpu.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(FIRST)
    (tmp_path / "ema.toml").write_text("# Method: EMA: average\nkey = 1\n# Method: too late\n")
    dafl = "DAFL ([1904.01186](https://arxiv.org/abs/1904.01186))"
    assert methods_table(tmp_path).splitlines()[2:] == [
        f"| {dafl} | `dafl`, `generator` | `data_free/mnist` | `dafl_cpu` |",
        "| EMA | `average` | `ema` |  |",
    ]


def test_what_cannot_be_read_or_disagrees_is_named(tmp_path):
    (tmp_path / "a.toml").write_text("# Method: DAFL\n")
    with pytest.raises(ValueError, match="a.toml: '# Method: DAFL' must read"):
        methods_table(tmp_path)
    (tmp_path / "a.toml").write_text(FIRST)
    (tmp_path / "b.toml").write_text(FIRST.replace("1904", "1905"))
    with pytest.raises(ValueError, match=r"b.toml: .*1905.* is .*1904.* elsewhere"):
        methods_table(tmp_path)


@pytest.mark.parametrize("config", sorted(CONFIG_FOLDER.rglob("*.toml")), ids=lambda c: c.stem)
def test_a_configuration_holds_the_kinds_that_its_methods_name(config):
    name = str(config.relative_to(CONFIG_FOLDER).with_suffix(""))
    tree = str(read(name).tree)
    for method in methods_of(config):
        assert all(f"'{kind}" in tree for kind in method.kinds), method
