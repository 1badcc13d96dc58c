"""Rows of numbers as JSON lines: what metrics.jsonl is made of."""

import json
import math
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line torn by a kill is left out, no file is no rows."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def as_json(value: Any) -> Any:
    """The value with null for what is not a finite number, since JSON has no NaN."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_finite(row: dict[str, Any]) -> bool:
    """Whether every number of a row is finite."""
    return as_json(row) == row
