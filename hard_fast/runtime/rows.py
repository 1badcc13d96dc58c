"""Rows of numbers as JSON lines: what metrics.jsonl is made of."""

import json
import math
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; torn or damaged lines are left out, no file is no rows."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and "step" in row and isinstance(row["step"], int):
            rows.append(row)
    return rows


def as_json(value: Any) -> Any:
    """The value with null for what is not a finite number, since JSON has no NaN."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
