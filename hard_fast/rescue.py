"""What is done where the guard says so: an augmentor starts again, or the run goes back."""

from collections.abc import Callable, Mapping
from typing import Literal

from hard_fast.bank import AugmentorBank
from hard_fast.checkpoint import Checkpointer, Stateful
from hard_fast.engine import Engine
from hard_fast.guard import Back, Diverged, is_finite
from hard_fast.runtime import dist
from hard_fast.runtime.dist import World
from hard_fast.types import Phase

_NOT_FINITE = "a parameter of the augmentor is no finite number"


class Rescue:
    """Acts on the guard's verdicts; every process alike.

    Args:    bank: of augmentors; None where none learns.
             warn: tells a person.
    """

    def __init__(
        self,
        engine: Engine,
        bank: AugmentorBank | None,
        world: World,
        warn: Callable[[str], None],
    ) -> None:
        self._guard, self._engine, self._bank = engine.guard, engine, bank
        self._world, self._warn = world, warn

    def heed(self, step: int, *, is_row_due: bool) -> Back | None:
        """Act on the verdicts that are due after `step` steps, as far as the augmentor goes.

        Args:    is_row_due: whether it is time to look at its pictures.
        Returns: why the run must go back, if it must.
        """
        guard = self._guard
        back, is_bad = guard.back, guard.has_skipped
        guard.back, guard.has_skipped = None, False
        if self._bank is None:
            return back
        why = None
        if back is not None and back.phase is Phase.AUGMENTOR:
            self._slow("augmentor")
            why, back = back.why, None
        elif is_bad and not self._is_finite():
            why = _NOT_FINITE
        elif is_row_due:
            why = guard.lost()
            if why and not self._is_finite():
                why = _NOT_FINITE
        if why:
            self._reset(step, why)
        return back

    def end_turn(self, step: int, then: Literal["keep", "identity", "bank"]) -> None:
        """Save the augmentor whose turn has ended, or have it begin again; waits for the device.

        Args:    then: what becomes of it; nothing that is lost is kept.
        """
        self._guard.judge(step)
        why = self._guard.lost()
        if not self._is_finite():
            why = _NOT_FINITE
        if why:
            self._reset(step, why)
        elif then == "keep":
            self._bank.save()
        else:
            self._begin_again(step, untouched=then == "identity")

    def go_back(self, back: Back, checkpointer: Checkpointer, parts: Mapping[str, Stateful]) -> str:
        """Set all parts to the newest good checkpoint; what learned then learns more slowly now.

        Returns: what to tell.
        Raises:  Diverged if there is no such checkpoint.
        """
        learners, counts = self._engine.learners(), dict(self._guard.counts)
        shares = {name: learner.share for name, learner in learners.items()}
        step = self._load_good(back, checkpointer, parts)
        # What the run remembers of itself is newer than the checkpoint.
        self._guard.counts = counts | {"rollbacks": counts["rollbacks"] + 1}
        for name, learner in learners.items():
            learner.share = shares[name]
        slowed = list(learners) if back.phase is Phase.JOINT else ["student"]
        told = ", ".join(f"{name} {self._slow(name):g}" for name in slowed)
        return (
            f"{back.why}: back to step {step}, at a lower share of the learning rate ({told}); "
            f"return {self._guard.counts['rollbacks']} of {self._guard.config.max_rollbacks}"
        )

    def _load_good(
        self, back: Back, checkpointer: Checkpointer, parts: Mapping[str, Stateful]
    ) -> int:
        """Of the newest whole checkpoint whose own last step was finite; which step that is."""
        step = None
        while True:
            found = checkpointer.newest(step) if self._world.is_main else None
            if (step := dist.broadcast_object(found)) is None:
                raise Diverged(f"{back.why}, and no good checkpoint is left to go back to")
            checkpointer.load(step, parts, self._world.device)
            if self._guard.is_calm():
                return step

    def _slow(self, name: str) -> float:
        learner = self._engine.learners()[name]
        learner.share *= self._guard.config.rate_factor
        return learner.share

    def _is_finite(self) -> bool:
        return is_finite(self._engine.net.augmentor)

    def _reset(self, step: int, why: str) -> None:
        self._guard.counts["resets"] += 1
        self._guard.forget_looks()
        is_empty = not len(self._bank)
        self._begin_again(step, untouched=is_empty)
        source = "the untouched one" if is_empty else "one of the bank"
        self._warn(f"{why}: the augmentor begins again from {source}")

    def _begin_again(self, step: int, *, untouched: bool) -> None:
        self._bank.restart(step, untouched=untouched)
        self._engine.augmentor_learner.forget()
