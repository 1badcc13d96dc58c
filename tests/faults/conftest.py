"""The campaign's table: what was done to runs, how often they survived it, what was lost."""

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

_TABLE = pytest.StashKey["Faults"]()


@dataclass
class Attempt:
    """One run that something was done to. lost_steps: those it had to do again."""

    has_survived: bool = False
    lost_steps: int = 0


class Faults:
    """Attempts by what was done."""

    def __init__(self) -> None:
        self.attempts: dict[str, list[Attempt]] = defaultdict(list)

    @contextlib.contextmanager
    def tried(self, fault: str) -> Iterator[Attempt]:
        """Count an attempt; it has survived if no assertion fails inside."""
        attempt = Attempt()
        self.attempts[fault].append(attempt)
        try:
            yield attempt
            attempt.has_survived = True
        except pytest.skip.Exception:
            self.attempts[fault].remove(attempt)
            raise

    def lines(self) -> Iterator[str]:
        """The table, a line per fault."""
        width = max(map(len, self.attempts), default=5)
        yield f"{'fault':<{width}}  tries  survived  lost steps (mean, most)"
        for fault, attempts in sorted(self.attempts.items()):
            lost = [attempt.lost_steps for attempt in attempts]
            survived = sum(attempt.has_survived for attempt in attempts)
            if lost:
                mean = sum(lost) / len(lost)
                yield f"{fault:<{width}}  {len(lost):5}  {survived:8}  {mean:.1f}, {max(lost)}"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TABLE] = Faults()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    table = terminalreporter.config.stash[_TABLE]
    if table.attempts:
        terminalreporter.section("faults")
        for line in table.lines():
            terminalreporter.line(line)


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> Faults:
    """The table of this session."""
    return request.config.stash[_TABLE]
