"""What the project wants to see of its benches, and whether it does."""

from typing import NamedTuple

from bench.timing import Row


class Goal(NamedTuple):
    """A number, and the limit that it should keep."""

    text: str
    value: float
    limit: float
    is_ceiling: bool = True

    @property
    def is_met(self) -> bool:
        """Whether the value is on the right side of the limit."""
        return self.value <= self.limit if self.is_ceiling else self.value >= self.limit

    def __str__(self) -> str:
        sign = "<=" if self.is_ceiling else ">="
        verdict = "met" if self.is_met else "NOT MET"
        return f"{self.text}: {self.value:.3f} (goal {sign} {self.limit}): {verdict}"


def kind_and_impl(row: Row) -> tuple[str, str]:
    """Which step a row of `bench.step` is of, and whose."""
    return row["case"].partition(": ")[2], row["impl"]


def step_goals(rows: list[Row], is_gpu: bool) -> list[Goal]:
    """What is wanted of the rows of one pair of `bench.step`."""
    times = {kind_and_impl(row): row["of_kd"] for row in rows if row["unit"] == "ms"}
    flops = {kind_and_impl(row)[0]: row["p50"] for row in rows if row["unit"] == "flops"}
    kd = {impl: cost for (kind, impl), cost in times.items() if kind == "KD"}
    student, augmentor = "HARD student phase", "HARD augmentor phase"
    goals = []
    if is_gpu:
        # There the goal is one beside timm at its best, and ours is compiled.
        goals += _beside(kd, "hard_fast", [name for name in kd if name.startswith("timm")], 1.15)
    else:
        compiled = [name for name in kd if name.endswith("_compiled") or name == "compiled"]
        goals += _beside(kd, "hard_fast", [name for name in kd if name not in compiled], 0.98)
        goals += _beside(kd, "hard_fast_compiled", compiled, 0.98)
    goals.append(Goal(f"{student} / KD", times[student, "hard_fast"], 1.08 if is_gpu else 1.10))
    if not is_gpu:
        cost = times[augmentor, "hard_fast"] / (flops[augmentor] / flops["KD"])
        goals.append(Goal(f"{augmentor} / KD over their ratio of FLOPs", cost, 1.05))
    return goals


def _beside(kd: dict[str, float], ours: str, others: list[str], limit: float) -> list[Goal]:
    """The time of the fastest of the others over ours; nothing where there is none of either."""
    others = [name for name in others if not name.startswith("hard_fast")]
    if ours not in kd or not others:
        return []
    best = min(others, key=lambda name: kd[name])
    return [Goal(f"KD: {best} / {ours}", kd[best] / kd[ours], limit, is_ceiling=False)]
