"""README's table of methods, out of the headers of configs/.

A header names each method it sets up on a line of its own, with what the method's runs are made of:
`# Method: DAFL (arXiv:1904.01186): dafl, generator`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_LINE = re.compile(r"# Method: (?P<name>[^:(]+?)(?: \(arXiv:(?P<source>[\d.]+)\))?: (?P<kinds>.+)")
_HEAD = ["| method | made of | as published | on two CPU cores |", "| --- | --- | --- | --- |"]


class Method(NamedTuple):
    """A line of a header: the method's name, its paper on arXiv if it has one, its kinds."""

    name: str
    source: str | None
    kinds: tuple[str, ...]


def methods_of(config: Path) -> Iterator[Method]:
    """The methods that a configuration's header names."""
    for line in config.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return
        if line.startswith("# Method:"):
            if (found := _LINE.fullmatch(line)) is None:
                raise ValueError(
                    f"{config}: {line!r} must read '# Method: NAME (arXiv:NUMBER): KIND, KIND'"
                )
            yield Method(found["name"], found["source"], tuple(found["kinds"].split(", ")))


def methods_table(folder: Path) -> str:
    """Markdown: a line per method, with its configurations of either size.

    Raises:  ValueError, one line, where a header cannot be read or two of them disagree.
    """
    found: dict[str, Method] = {}
    configs: dict[str, list[str]] = {}
    for config in sorted(folder.rglob("*.toml")):
        name = str(config.relative_to(folder).with_suffix("")).removeprefix("studies/")
        for method in methods_of(config):
            if found.setdefault(method.name, method) != method:
                raise ValueError(f"{config}: {method} is {found[method.name]} elsewhere")
            configs.setdefault(method.name, []).append(name)
    return "\n".join([*_HEAD, *(_line(found[name], configs[name]) for name in sorted(found))])


def _line(method: Method, configs: list[str]) -> str:
    link = f"[{method.source}](https://arxiv.org/abs/{method.source})" if method.source else ""
    name = f"{method.name} ({link})" if link else method.name
    small = [config for config in configs if config.endswith(("_cpu", "_cpu_long"))]
    large = [config for config in configs if config not in small]
    return f"| {name} | {_code(method.kinds)} | {_code(large)} | {_code(small)} |"


def _code(words: list[str] | tuple[str, ...]) -> str:
    return ", ".join(f"`{word}`" for word in words)
