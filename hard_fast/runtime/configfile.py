"""TOML files into strict, frozen models; every mistake is one line that names key, value and file.

A file may start with `base = "other.toml"` (one level). A table whose `kind` or `name` differs from
the base's replaces it whole, since the keys of one kind mean nothing to another.
"""

import difflib
import hashlib
import json
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hard_fast.runtime.messages import printable

CONFIG_FOLDER = Path(__file__).resolve().parent.parent / "configs"
COMMAND_LINE = "command line"
_IDENTITY_KEYS = ("kind", "name")
# Two ways to say one thing: the upper's replaces the lower's, whichever either took.
_EITHER = (("epochs", "steps"), ("steps", "epochs"))


class Config(BaseModel):
    """Base of every component's configuration: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ConfigError(ValueError):
    """A mistake in a configuration. Its message is one line, ready for the person."""


class Source(NamedTuple):
    """A merged configuration and, per dotted key, the file (or command line) it came from."""

    tree: dict[str, Any]
    origin: dict[str, str]


AnyConfig = TypeVar("AnyConfig", bound=Config)


def find(name: str) -> Path:
    """The file that `--config NAME` means: a path, or the name of a configuration we ship.

    Raises:  ConfigError with the nearest names if there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = {
        str(file.relative_to(CONFIG_FOLDER).with_suffix("")): file
        for file in sorted(CONFIG_FOLDER.rglob("*.toml"))
    }
    by_stem = {file.stem: file for file in shipped.values()}
    key = name.removesuffix(".toml").removeprefix("configs/")
    if key in shipped or key in by_stem:
        return shipped.get(key) or by_stem[key]
    raise ConfigError(f"--config {name}: no such file{_nearest(key, [*shipped, *by_stem])}")


def read(name: str, overrides: Sequence[str] = ()) -> Source:
    """The tree of a file, its base below it and the command line's `section.key=value` above it."""
    path = find(name)
    tree = _load(path)
    origin = dict.fromkeys(dotted(tree), str(path))
    if (base := tree.pop("base", None)) is not None:
        if not isinstance(base, str):
            raise ConfigError(f"{path}: base = {base!r}: must be the name of one file")
        base_path = path.parent / base
        if not base_path.is_file():
            raise ConfigError(f"{path}: base = {base!r}: no such file ({base_path})")
        base_tree = _load(base_path)
        if "base" in base_tree:
            raise ConfigError(f"{base_path}: a base file cannot have a base itself (from {path})")
        origin = dict.fromkeys(dotted(base_tree), str(base_path)) | origin
        tree = merge(base_tree, tree)
    typed = read_overrides(overrides)
    return Source(merge(tree, typed.tree), origin | typed.origin)


def read_overrides(overrides: Sequence[str]) -> Source:
    """The tree of a command line's `section.key=value` alone."""
    tree: dict[str, Any] = {}
    for override in overrides:
        _set(tree, override)
    return Source(tree, dict.fromkeys(dotted(tree), COMMAND_LINE))


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """A new tree with `above` laid over `below`, table by table."""
    replaced = [other for key, other in _EITHER if key in above and other not in above]
    merged = {key: value for key, value in below.items() if key not in replaced}
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            is_other = any(k in value and k in old and value[k] != old[k] for k in _IDENTITY_KEYS)
            merged[key] = dict(value) if is_other else merge(old, value)
        else:
            merged[key] = value
    return merged


def parse(model: type[AnyConfig], source: Source) -> AnyConfig:
    """The tree as a validated model.

    Raises:  ConfigError: one line for the first mistake, with the nearest valid name.
    """
    if (large := _first_too_large(source.tree)) is not None:
        raise ConfigError(printable(f"{_origin(source, large)}: {large}: out of range"))
    try:
        # JSON mode is strict about scalars, yet takes a list for a tuple as TOML writes it.
        return model.model_validate_json(json.dumps(source.tree, default=str))
    except ValidationError as error:
        raise ConfigError(printable(_one_line(model, source, error.errors()[0]))) from None


def dump(tree: Mapping[str, Any]) -> str:
    """The tree as TOML text that `read` gives back unchanged. None values are left out."""
    lines: list[str] = []
    _dump_table(tree, (), lines)
    return "\n".join(lines).strip() + "\n"


def fingerprint(tree: Mapping[str, Any]) -> str:
    """A short hash that is equal for equal configurations."""
    text = json.dumps(tree, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(printable(f"{path}: not valid TOML: {error}")) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _set(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"{override!r}: an override looks like section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    for part in parts[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{override!r}: {part!r} was given a value, so it has no keys")
    tree[parts[-1]] = value


def dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key of a tree as section.key, tables included."""
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")


def _first_too_large(value: Any, key: str = "") -> str | None:
    """The key of the first number that is not finite, or whole and more than 64 bits hold."""
    if isinstance(value, (int, float)):
        return None if abs(value) < (2**63 if isinstance(value, int) else float("inf")) else key
    pairs = value.items() if isinstance(value, Mapping) else ()
    if isinstance(value, list):
        pairs = ((None, item) for item in value)
    found = (_first_too_large(v, key if k is None else f"{key}.{k}".strip(".")) for k, v in pairs)
    return next((name for name in found if name is not None), None)


def _one_line(model: type[BaseModel], source: Source, error: Mapping[str, Any]) -> str:
    """One line for one pydantic error: file, key, value, what is wrong, nearest valid name."""
    known, parts = _walk(model, error["loc"])
    key = ".".join(parts)
    origin = _origin(source, key) or next(iter(source.origin.values()), COMMAND_LINE)
    match error["type"]:
        case "extra_forbidden":
            return (
                f"{origin}: {key} = {_short(error['input'])}: unknown key"
                f"{_nearest(parts[-1], known)}"
            )
        case "missing":
            return f"{origin}: {key}: required, but not set"
        case "union_tag_not_found":
            return f"{origin}: {key}.kind: required, but not set (choices: {', '.join(known)})"
        case "union_tag_invalid":
            choices = [tag.strip("'") for tag in error["ctx"]["expected_tags"].split(", ")]
            tag = str(error["ctx"]["tag"])
            return f"{origin}: {key}.kind = {tag!r}: unknown kind{_nearest(tag, choices)}"
        case "literal_error" | "enum":
            choices = [
                c.strip("'") for c in error["ctx"]["expected"].replace(" or ", ", ").split(", ")
            ]
            given = error["input"]
            return (
                f"{origin}: {key} = {_short(given)}: unknown value{_nearest(str(given), choices)}"
            )
        case "value_error":
            return ": ".join(filter(None, (origin, key, str(error["ctx"]["error"]))))
    reason = error["msg"][:1].lower() + error["msg"][1:]
    return f"{origin}: {key} = {_short(error['input'])}: {reason}"


def _walk(model: type[BaseModel], loc: Sequence[Any]) -> tuple[list[str], list[str]]:
    """The valid names at the place of an error, and the place without pydantic's union tags.

    Where the place is a union whose kind is missing, the valid names are its kinds.
    """
    known: list[str] = []
    parts: list[str] = []
    current: Any = model
    for step in loc:
        members = _models(current)
        if len(members) > 1 or (members and step in _tags(members[0])):
            tagged = [m for m in members if step in _tags(m)]
            if tagged:
                current = tagged[0]
                known = list(current.model_fields)
                continue
        if members:
            known = list(members[0].model_fields)
            field = members[0].model_fields.get(str(step))
            current = field.annotation if field else None
        else:
            current = next(iter(typing.get_args(current)[-1:]), None)
        parts.append(str(step))
    kinds = [tag for member in _models(current) for tag in _tags(member)]
    return (kinds if len(_models(current)) > 1 else known), parts


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) is typing.Annotated:
        return _models(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [m for arg in typing.get_args(annotation) for m in _models(arg)]
    return []


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    field = model.model_fields.get("kind")
    return typing.get_args(field.annotation) if field else ()


def _origin(source: Source, key: str) -> str | None:
    while key:
        if key in source.origin:
            return source.origin[key]
        key = key.rpartition(".")[0]
    return None


def _nearest(name: str, choices: Sequence[str]) -> str:
    unique = sorted(set(choices))
    close = difflib.get_close_matches(name, unique, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    listing = f" (choices: {', '.join(unique)})" if 0 < len(unique) <= 30 else ""
    return hint + listing


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _dump_table(tree: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    tables = {k: v for k, v in tree.items() if isinstance(v, Mapping)}
    plain = {k: v for k, v in tree.items() if k not in tables and v is not None}
    if path and (plain or not tables):
        lines += ["", f"[{'.'.join(_key(p) for p in path)}]"]
    lines += [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    for key, value in tables.items():
        _dump_table(value, (*path, key), lines)


def _key(name: str) -> str:
    is_bare = name and all(c.isascii() and (c.isalnum() or c in "-_") for c in name)
    return name if is_bare else json.dumps(name)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None)
        return f"{{{inner}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, (bool, int, float)):
        return repr(value).lower()
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
