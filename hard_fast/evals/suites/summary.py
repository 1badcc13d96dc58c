"""The scores of a suite out of those of its parts."""

from collections.abc import Mapping
from statistics import fmean

from hard_fast.evals.published import ALEXNET_ERRORS, SEVERITIES
from hard_fast.evals.suites.names import parse_name

Scores = Mapping[str, float]


def summarise(name: str, per_part: Mapping[str, Scores]) -> dict[str, float]:
    """A suite's scores: those of its only part, or the means over corruptions and severities.

    Where there are corruptions, `<corruption>_error` is the mean top-1 error over its severities,
    and `corruption_error` that over corruptions, both percent. On ImageNet, `mce` weighs each
    corruption by AlexNet's errors; it needs all fifteen at all severities.

    Args:    per_part: scores by part, `test` or CORRUPTION/SEVERITY, as `Loaded` names them.
    Source:  mCE: Hendrycks and Dietterich 2019, arXiv:1903.12261, section 4.1.
    """
    if set(per_part) == {"test"}:
        return dict(per_part["test"])
    shared = set.intersection(*(set(scores) for scores in per_part.values()))
    by_corruption: dict[str, list[str]] = {}
    for part in per_part:
        by_corruption.setdefault(part.partition("/")[0], []).append(part)

    def mean(score: str, parts: list[str]) -> float:
        return fmean(per_part[part][score] for part in parts)

    order = [score for score in next(iter(per_part.values())) if score in shared]
    means = {s: fmean(mean(s, parts) for parts in by_corruption.values()) for s in order}
    if "top1" not in shared:
        return means
    errors = {c: 100.0 - mean("top1", parts) for c, parts in by_corruption.items()}
    found = means | {"corruption_error": fmean(errors.values())}
    if parse_name(name).key in ("imagenet", "imagenet_c"):
        found |= _mce(per_part)
    return found | {f"{corruption}_error": error for corruption, error in errors.items()}


def _mce(per_part: Mapping[str, Scores]) -> dict[str, float]:
    wanted = {f"{corruption}/{s}" for corruption in ALEXNET_ERRORS for s in SEVERITIES}
    if not wanted <= set(per_part):
        return {}
    ratios = [
        sum(100.0 - per_part[f"{corruption}/{s}"]["top1"] for s in SEVERITIES) / sum(alexnet)
        for corruption, alexnet in ALEXNET_ERRORS.items()
    ]
    return {"mce": 100.0 * fmean(ratios)}
