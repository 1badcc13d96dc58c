"""Configurations that nobody would write, drawn along the JSON schema of the real ones."""

import random
from typing import Any

# What no key expects, or some keys expect in moderation.
JUNK: tuple[Any, ...] = (
    *(0, 1, -1, 2, 7, 2**31, 2**63, -(2**63) - 1, 10**30, 10**4000),
    *(0.0, -0.0, 0.5, 1.0, 1e-300, 1e308, float("nan"), float("inf"), float("-inf")),
    *(True, False, "", " ", "nan", "kl", "auto", "../../etc", "a\nb", "\0", "\x1b[31m", "\u2028"),
    *("\N{SNOWMAN}" * 3, "x" * 5000, "{0..999999999}", "python:os:system", "<script>"),
    *([], [[]], [0], [1, "a", None], ["a"] * 300, {}, {"kind": "none"}, {"kind": []}),
    *({"": 1}, {"a\nb": 1}, {"a.b": {"c d": 1}}, {"name": 3}, {"kind": "affine"}),
)
_MOST_DEPTH = 4


def draw_tree(
    chance: random.Random, schema: dict[str, Any], mischief: float, *, whole: bool = False
) -> Any:
    """A value for a schema; each part of it is something else with this chance.

    Args:    whole: a table of all the sections that there are.
    """
    if whole:
        sections = schema["properties"].items()
        return {key: _draw(chance, part, schema, mischief, 0) for key, part in sections}
    return _draw(chance, schema, schema, mischief, 0)


def _draw(
    chance: random.Random, schema: dict[str, Any], root: dict[str, Any], mischief: float, depth: int
) -> Any:
    def inside(part: dict[str, Any]) -> Any:
        return _draw(chance, part, root, mischief, depth + 1)

    if chance.random() < mischief or depth > 3 * _MOST_DEPTH:
        return chance.choice(JUNK)
    if "$ref" in schema:
        return inside(root["$defs"][schema["$ref"].rpartition("/")[2]])
    for choices in ("anyOf", "oneOf", "allOf"):
        if choices in schema:
            return inside(chance.choice(schema[choices]))
    if "const" in schema or "enum" in schema:
        return chance.choice(schema["enum"] if "enum" in schema else [schema["const"]])
    kind = schema["type"] if "type" in schema else None
    if kind == "object" and "properties" in schema:
        return _table(chance, schema, mischief, depth, inside)
    if kind == "object":
        return {chance.choice(("a", "widths", "a\nb")): chance.choice(JUNK)}
    if kind == "array":
        item = schema["items"] if "items" in schema else {"type": "number"}
        return [inside(item) for _ in range(chance.choice((0, 1, 2, 3)))]
    return _plain(chance, schema, kind)


def _table(chance, schema, mischief, depth, inside) -> dict[str, Any]:
    required = schema["required"] if "required" in schema else []
    table = {}
    for key, part in schema["properties"].items():
        is_wanted = key in required or "const" in part
        if chance.random() < (0.97 if is_wanted else 0.25 / (1 + depth / 4)):
            table[key] = inside(part)
    if chance.random() < mischief:
        table[chance.choice(("unknown", "a\nb", "", "kin d", "\N{SNOWMAN}"))] = chance.choice(JUNK)
    return table


def _plain(chance: random.Random, schema: dict[str, Any], kind: str | None) -> Any:
    low = schema["minimum"] if "minimum" in schema else 0
    match kind:
        case "integer":
            return low + chance.choice((0, 1, 2, 3, 4, 8, 16, 100))
        case "number":
            return low + chance.choice((0.0, 0.1, 0.5, 1.0, 2.0))
        case "boolean":
            return chance.random() < 0.5
        case "string":
            return chance.choice(("cnn", "mlp", "resnet18", "mean", "a", "layer1", "none"))
        case "null":
            return None
    return chance.choice(JUNK)


def change_one(chance: random.Random, tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with one key, anywhere in it, removed, renamed or given something else."""
    changed = dict(tree)
    key = chance.choice(sorted(changed))
    value = changed[key]
    if isinstance(value, dict) and value and chance.random() < 0.8:
        changed[key] = change_one(chance, value)
        return changed
    match chance.randrange(8):
        case 0:
            del changed[key]
        case 1:
            changed[f"{key}s"] = changed.pop(key)
        case 2:
            changed[key] = {"kind": value}
        case 3:
            changed[key] = [value, value]
        case 4 if isinstance(value, int | float):
            changed[key] = chance.choice((-value, value * 1000, value + 0.5, str(value)))
        case _:
            changed[key] = chance.choice(JUNK)
    return changed


def as_toml(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree without what TOML cannot say: None."""
    if isinstance(tree, dict):
        return {k: as_toml(v) for k, v in tree.items() if v is not None}
    return [as_toml(v) for v in tree if v is not None] if isinstance(tree, list) else tree
