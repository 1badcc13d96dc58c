"""The test sets of a run's own data, as suites beside those of the catalogue."""

from collections.abc import Sequence
from pathlib import Path

import torch

from hard_fast.data import DataConfig, DataSet, load_data
from hard_fast.data.arrays import EvalPart
from hard_fast.evals.limit import limited
from hard_fast.evals.suites import Loaded, PictureFormat
from hard_fast.evals.suites.corrupted import CorruptedPart, number
from hard_fast.evals.suites.names import parse_name
from hard_fast.evals.survey import Opened, open_suites

OWN = "own"
"""The suites that are the test sets of the run's, or the given, data; `own:PART` is one of them."""


def is_own(name: str) -> bool:
    """Whether a suite's name means data of the run's own."""
    return parse_name(name).key == OWN


def load_own(
    names: Sequence[str], config: DataConfig | None, device: torch.device
) -> DataSet | None:
    """The run's data, if one of these suites is made of them.

    Raises:  ValueError, one line, if there is no run, or its data cannot be read.
    """
    asked = [name for name in names if is_own(name)]
    if not asked:
        return None
    if config is None:
        raise ValueError(f"{asked[0]}: these are the test sets of a run; give one with --run")
    return load_data(config, device)


def open_with_own(
    names: Sequence[str],
    data_root: Path | None,
    pictures: PictureFormat,
    device: torch.device,
    *,
    data: DataSet | None,
    label_map: Path | None = None,
    limit: int | None = None,
) -> Opened:
    """The suites of the catalogue, as `open_suites` opens them, and those of these data.

    Args:    data_root: None where no suite of the catalogue is asked for.
    Raises:  ValueError, one line, as `open_suites` does, and for a part that the data do not have.
    """
    others = [name for name in names if not is_own(name)]
    if others and data_root is None:
        raise ValueError(f"--data-root: {others[0]} is looked for in it; give the folder")
    place = (data_root or Path(), pictures, device)
    opened = open_suites(others, *place, label_map=label_map, limit=limit)
    suites = dict(opened.suites)
    for name in filter(is_own, names):
        for key, loaded in _open_own(name, data, device).items():
            suites[key] = loaded if limit is None else limited(loaded, limit)
    return opened._replace(suites=suites)


def one_part(name: str, opened: Opened) -> EvalPart:
    """The only set of images of the only suite.

    Args:    name: that was opened.
    Raises:  ValueError if there are more.
    """
    parts = [part for loaded in opened.suites.values() for part in loaded.parts.values()]
    if len(parts) > 1:
        known = [f"{OWN}:{key.removeprefix(f'{OWN}_')}" for key in opened.suites]
        hint = f", such as {known[0]}" if name == OWN else ""
        raise ValueError(f"--suite {name}: has several sets of images; give one of them{hint}")
    return parts[0]


def _open_own(name: str, data: DataSet, device: torch.device) -> dict[str, Loaded]:
    """One suite for each test set, or for one of them; of corruptions one, of the first set."""
    asked = parse_name(name)
    if asked.severity is not None:
        raise ValueError(f"{name}: has no severities; write {OWN}+corrupted@3")
    tests = _parts(name, asked.detail, data)
    if asked.corruptions:
        numbered = number(next(iter(tests.values())), device)
        parts = {
            f"{corruption}/{severity}": CorruptedPart(numbered, corruption, severity)
            for corruption in asked.corruptions
            for severity in asked.severities
        }
        return {name: Loaded(parts, data.num_classes)}
    suites = {part: Loaded({"test": test}, data.num_classes) for part, test in tests.items()}
    if asked.detail:
        return {name: suites[asked.detail]}
    return {OWN if part == "test" else f"{OWN}_{part}": one for part, one in suites.items()}


def _parts(name: str, detail: str, data: DataSet) -> dict[str, EvalPart]:
    """The part that is asked for, or all that a run is tested on."""
    val = {} if data.val is None else {"val": data.val}
    if detail:
        known = data.test | val
        if detail not in known:
            raise ValueError(f"{name}: no such part; the data have {', '.join(known) or 'none'}")
        return {detail: known[detail]}
    tests = data.test or val
    if not tests:
        raise ValueError(f"{name}: the data have neither a test nor a validation part")
    return tests
