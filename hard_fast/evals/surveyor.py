"""Suites that a run is evaluated on while its student learns, and once it is done."""

from pathlib import Path

from pydantic import Field
from torch import nn

from hard_fast.data import DataConfig, DataSet
from hard_fast.evals.results import FILE_NAME, result_tree, write_result
from hard_fast.evals.survey import (
    Opened,
    check_suites,
    in_one_row,
    open_suites,
    picture_format,
    survey,
)
from hard_fast.runtime.configfile import Config
from hard_fast.runtime.dist import World
from hard_fast.runtime.environment import versions


class EvaluationConfig(Config):
    """Suites that the student is evaluated on."""

    suites: list[str] = Field(min_length=1)
    """Their names, as `python -m hard_fast.evaluate --suites` takes them."""
    data_root: str
    """The folder that holds their data."""
    every_epochs: float = Field(default=1.0, gt=0.0)
    """At the first evaluation of the run after so many more epochs, and at its end."""
    label_map: str | None = None
    """File of the network's outputs that are a class folder's: {folder: [outputs]}."""
    limit: int | None = Field(default=None, ge=1)
    """Samples of each part, the same ones always; None: all."""
    paper: str | None = None
    """Row of the paper that stands beside, such as "R18 HARD-Affine"."""


class Surveyor:
    """Goes through the suites of a run when their turn has come.

    Args:    data, learned: what the run learns from, as configured and as loaded.
    Raises:  ValueError, one line, for a suite that is unknown, damaged, or of other images or
             classes than the run.
    """

    def __init__(
        self,
        config: EvaluationConfig | None,
        data: DataConfig,
        learned: DataSet,
        num_steps_per_epoch: int,
        world: World,
    ) -> None:
        self._config, self._world = config, world
        self._opened, self._every = Opened({}, {}), 1
        if config is None:
            return
        shape = learned.train.image_shape
        self._opened = open_suites(
            config.suites,
            Path(config.data_root),
            picture_format(data, shape[-1]),
            world.device,
            label_map=None if config.label_map is None else Path(config.label_map),
            limit=config.limit,
        )
        check_suites(self._opened, shape, learned.num_classes)
        self._every = max(1, round(config.every_epochs * num_steps_per_epoch))

    @property
    def warnings(self) -> list[str]:
        """A line for each suite whose data are not there."""
        return [f"evaluation.suites: {name}: {why}" for name, why in self._opened.gaps.items()]

    def row(self, student: nn.Module, step: int, eval_every: int) -> dict[str, float]:
        """The student's scores, `<suite>_<score>`; nothing where no turn has come since the last
        evaluation.

        Args:    step: how many are done. eval_every: steps between the run's evaluations.
        """
        if step // self._every == (step - eval_every) // self._every or not self._opened.suites:
            return {}
        return in_one_row(survey(student, None, self._opened, self._world).student)

    def finish(
        self, student: nn.Module, teacher: nn.Module | None, teacher_name: str | None, run_dir: Path
    ) -> tuple[dict[str, float], dict[str, float]]:
        """The final scores of student and teacher as rows; evaluation.json in the run's directory
        holds all of them."""
        if self._config is None:
            return {}, {}
        found = survey(student, teacher, self._opened, self._world)
        if self._world.is_main:
            tree = result_tree(
                found,
                self._opened,
                model=str(run_dir),
                teacher=teacher_name,
                paper=self._config.paper,
                limit=self._config.limit,
                versions=versions(self._world.device),
            )
            write_result(tree, run_dir / FILE_NAME)
        return in_one_row(found.student), in_one_row(found.teacher or {})
