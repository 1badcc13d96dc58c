"""What a run's student is worth on the way and at the end: scores, suites, pictures."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hard_fast.bank import AugmentorBank
from hard_fast.batchnorm import recompute_batchnorm
from hard_fast.config import RunConfig
from hard_fast.data import DataSet
from hard_fast.data.arrays import Loader
from hard_fast.engine import Engine
from hard_fast.evals.runner import evaluate
from hard_fast.evals.surveyor import Surveyor
from hard_fast.gallery import save_pictures
from hard_fast.models.zoo import save_weights
from hard_fast.runtime import pulse
from hard_fast.runtime.dist import World
from hard_fast.runtime.seed import reseed
from hard_fast.types import Phase


class Examiner:
    """Scores a run's networks; where the run keeps an average of the student, that as well.

    Args:    bank: of the run's augmentors, if it has one.
             new_loader: a loader of training batches at their beginning.
             num_steps_per_epoch: of the run.
    Raises:  ValueError, one line, for suites that cannot be evaluated.
    """

    def __init__(
        self,
        config: RunConfig,
        data: DataSet,
        engine: Engine,
        bank: AugmentorBank | None,
        new_loader: Callable[[], Loader],
        num_steps_per_epoch: int,
        world: World,
    ) -> None:
        self._config, self._data, self._engine, self._world = config, data, engine, world
        self._new_loader, self._run_dir = new_loader, Path(config.run_dir)
        self._net, self._bank = engine.net, bank
        per_epoch = num_steps_per_epoch
        self.every = max(1, round(config.train.eval_every_epochs * per_epoch))
        self._surveyor = Surveyor(config.evaluation, config.data, data, per_epoch, world)
        self.warnings = self._surveyor.warnings

    def row(self, step: int, *, is_last: bool) -> dict[str, float]:
        """The student's scores after so many steps; its average's have a name of their own."""
        pulse.at(f"step {step} (evaluation)")
        student = self._net.student
        metrics = self._scores(student, with_val=True)
        # At the end `finish` goes through the suites, with the weights that are the result.
        turn = (student, step, 0 if is_last else self.every)
        if self._engine.average is None:
            return metrics | self._surveyor.row(*turn)
        with self._averaged():
            found = self._scores(student, with_val=True) | self._surveyor.row(*turn)
        return metrics | {f"average_{name}": score for name, score in found.items()}

    def picture(self, step: int) -> Path | None:
        """A file with original and augmented images, where there are any to show."""
        part = next(iter(self._data.test.values()), self._data.val)
        if not self._config.train.gallery or part is None:
            return None
        generator = torch.Generator(self._world.device)
        generator = reseed(generator, self._config.seed, "gallery", step)
        return save_pictures(self._run_dir, step, self._net, part, generator)

    def finish(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Final scores of student and teacher; student.safetensors holds the weights scored."""
        pulse.at("the last evaluation")
        net = self._net
        # One of other classes has no score on these.
        teacher = net.teacher if self._config.shares_classes else None
        with self._averaged():
            if self._world.is_main:
                save_weights(net.student.network, self._run_dir / "student.safetensors")
            metrics = self._scores(net.student)
            of_teacher = self._scores(teacher) if teacher else None
            name = self._config.teacher and self._config.teacher.title
            found = self._surveyor.finish(net.student, teacher, name, self._run_dir)
        return metrics | found[0], of_teacher and of_teacher | found[1]

    def _scores(self, network: nn.Module, *, with_val: bool = False) -> dict[str, float]:
        answer, val = self._config.answer, self._data.val
        parts = {"val": val} if with_val and val and answer != "values" else {}
        truth = self._net.teacher if answer == "values" else None
        return evaluate(network, parts | self._data.test, self._world, answer=answer, truth=truth)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """While it lasts, the student holds its average, if the run keeps one."""
        average, config = self._engine.average, self._config
        with average.applied() if average else contextlib.nullcontext():
            if average and config.average.batchnorm_batches:
                num = config.average.batchnorm_batches
                phase = Phase.JOINT if config.schedule.kind == "joint" else Phase.STUDENT
                given = {"seed": config.seed, "bank": self._bank}
                recompute_batchnorm(self._net, phase, self._new_loader(), num, self._world, **given)
            yield
