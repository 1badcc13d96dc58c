"""Numbers and names as a report says them."""

import math

PERCENT_UNITS = ("top1", "top5", "real", "ece", "mce", "error", "agreement")
_MINUS = "\u2212"
_NO_BREAK = "\u00a0"


def label(metric: str, has_unit: bool = True) -> str:
    """A metric's name for reading: `centered_top1` is `centered top-1 (%)`."""
    words = metric.replace("top1", "top-1").replace("top5", "top-5").replace("_", " ")
    return f"{words} (%)" if has_unit and metric.endswith(PERCENT_UNITS) else words


def score(metric: str, value: float | None, sign: str = "") -> str:
    """A metric's value: percents with two decimals, others with four digits, a dash for none.

    Args:    sign: `+` writes the sign of positive values too, for differences.
    """
    if value is None:
        return "\u2013"
    if not math.isfinite(value):
        return "not finite"
    digits = ".2f" if metric.endswith(PERCENT_UNITS) else ".4g"
    return format(value, sign + digits).replace("-", _MINUS)


def count(number: float) -> str:
    """A count with commas: 12,345; two decimals where it is not whole."""
    return f"{number:,.0f}" if number == int(number) else f"{number:,.2f}"


def share(value: float) -> str:
    """A share of one in percent, with enough digits that a small one is not shown as none."""
    return f"{100 * value:.{2 if value < 0.1 else 3}g}{_NO_BREAK}%"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 8.2 s, 3 min 20 s, 5 h 7 min."""
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min" + f" {rest_s} s" * (rest_s > 0)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h" + f" {minutes} min" * (minutes > 0)
