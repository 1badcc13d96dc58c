"""The training loop: builds a run, steps it, and keeps its books.

One batch: `Trainer.run` -> loader -> `train_step` -> `Engine.step` -> `DistillStep.forward` ->
augmentor -> teacher, student -> objective -> `Learner` -> `PhaseController` -> `Meter` ->
`Checkpointer`.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from hard_fast.augment.base import draw_share
from hard_fast.bank import AugmentorBank
from hard_fast.batchnorm import recompute_batchnorm
from hard_fast.build import build_step
from hard_fast.checkpoint import BestWeights, Checkpointer
from hard_fast.config import RunConfig
from hard_fast.data import load_data
from hard_fast.engine import Engine
from hard_fast.evals.runner import evaluate
from hard_fast.evals.surveyor import Surveyor
from hard_fast.gallery import save_pictures
from hard_fast.journal import Journal
from hard_fast.metrics import Meter, Reading
from hard_fast.models.zoo import save_weights
from hard_fast.optim.schedule import Verdict
from hard_fast.phases import PhaseController, Switch, ThresholdConfig, advice
from hard_fast.runtime import dist
from hard_fast.runtime.clock import Clock
from hard_fast.runtime.dist import World
from hard_fast.runtime.rows import is_finite
from hard_fast.runtime.seed import default_generator, reseed
from hard_fast.types import Phase

# Steps between measuring a training row and writing it, so that the device is never waited for.
_ROW_LAG = 4


class _Row(NamedTuple):
    """A training row that is still on its way from the device."""

    step: int
    reading: Reading
    row: dict[str, Any]


class Trainer:
    """One run, from a configuration to trained weights.

    Args:    resume: continue from the newest whole checkpoint in the run's directory.
    Raises:  ValueError, one line, if the configuration cannot be built.
    """

    def __init__(self, config: RunConfig, world: World, *, resume: bool = True) -> None:
        self.config, self.world = config, world
        self.run_dir = Path(config.run_dir)
        self.step, self.is_done = 0, False
        self.phase_steps = {phase.value: 0 for phase in Phase}
        self.clock, self.meter, self.phase_meter = Clock(), Meter(), Meter()
        self._late_row: _Row | None = None
        self._build_data()
        self._build_learning()
        self.checkpointer = Checkpointer(self.run_dir / "checkpoints", config.checkpoint.keep)
        newest = self.checkpointer.newest() if resume and world.is_main else None
        newest = dist.broadcast_object(newest)
        if newest is not None:
            self.checkpointer.load(newest, self._parts(), world.device)
        elif self.bank is not None:
            self.bank.save()
        self.net.learn(self.controller.phase)

    def _build_data(self) -> None:
        config, world = self.config, self.world
        size = config.train.batch_size
        self.data = load_data(config.data, world.device)
        place = {"rank": world.rank, "world_size": world.size}
        self._load = lambda: self.data.train.loader(batch_size=size, seed=config.seed, **place)
        self.loader = self._load()
        per_epoch = self.loader.num_steps_per_epoch
        self.num_steps = config.train.steps or max(1, round(config.train.epochs * per_epoch))
        self.eval_every = max(1, round(config.train.eval_every_epochs * per_epoch))
        self.surveyor = Surveyor(config.evaluation, config.data, self.data, per_epoch, world)
        saves = config.checkpoint
        self.save_every = saves.every_steps or max(1, round(saves.every_epochs * per_epoch))

    def _build_learning(self) -> None:
        config, world = self.config, self.world
        per_epoch = self.loader.num_steps_per_epoch
        self.net = build_step(config, self.data, world)
        self.student, self.teacher = self.net.student, self.net.teacher
        self.engine = Engine(
            config, self.net, world, num_steps=self.num_steps, num_steps_per_epoch=per_epoch
        )
        self.best = BestWeights(self.engine.taught)
        self.bank = None
        if config.augmentor_optim:
            self.bank = AugmentorBank(
                self.net.augmentor,
                self.run_dir / "bank",
                config.bank,
                seed=config.seed,
                is_main=world.is_main,
            )
        self.controller = PhaseController(config.schedule, per_epoch)
        self.noise_generator = torch.Generator(world.device)
        self.network_generator = default_generator(world.device)

    def train_step(self) -> Switch | None:
        """One batch, one update of the networks whose turn it is; the switch it led to, if any."""
        step, phase, seed = self.step, self.controller.phase, self.config.seed
        self.last_phase = phase
        waiting_since = time.perf_counter()
        batch = self.loader.next_batch()
        self.clock.count(self.engine.num_images(phase), time.perf_counter() - waiting_since)
        generator = reseed(self.noise_generator, seed, "noise", step)
        rank, num_ranks = self.world.rank, self.world.size
        noise = draw_share(self.net.augmentor, batch.image.shape, generator, rank, num_ranks)
        if self.bank is not None and phase is Phase.STUDENT:
            self.bank.draw_into(self.net.drawn, step)
        # Dropout's generator, seeded by the step, needs no place in a checkpoint.
        reseed(self.network_generator, seed, "network", step, self.world.rank)
        result = self.engine.step(phase, step, batch, noise)
        if phase is Phase.AUGMENTOR:
            self.phase_meter.add(phase, result.logs)
        self.meter.add(phase, result.logs)
        self.phase_steps[phase.value] += 1
        self.step += 1
        return self.controller.observe(step, result.error)

    def run(self) -> dict[str, Any]:
        """Train to the end; returns the results, with what depends on the clock under `timing`."""
        place = {"num_steps": self.num_steps, "first_step": self.step}
        board, is_main = self.config.train.tensorboard, self.world.is_main
        with Journal(self.run_dir, **place, use_tensorboard=board, is_main=is_main) as self.journal:
            self.journal.say(self.engine.describe())
            for text in self.surveyor.warnings:
                self._warn(text)
            while self.step < self.num_steps and not self.is_done:
                if notice := self.engine.notice(self.controller.phase):
                    self.journal.say(notice)
                switch = self.train_step()
                if switch:
                    self._change_phase(switch)
                self._keep_books()
            return self._finish()

    def _change_phase(self, switch: Switch) -> None:
        """Save or reset the augmentor whose turn ended, change the learner, say why."""
        change = None
        if switch.before is Phase.AUGMENTOR:
            ended = self.phase_meter.take().means()["augmentor"]
            change = ended["teacher_change"] if "teacher_change" in ended else None
            then = self.config.schedule.on_timeout if switch.has_timed_out else "keep"
            if then == "keep":
                self.bank.save()
            else:
                self.bank.restart(self.step, untouched=then == "identity")
                self.engine.augmentor_learner.forget()
        self.net.learn(switch.after)
        phases = {"from": switch.before.value, "to": switch.after.value}
        row = {"reason": switch.reason, "error": switch.error, "teacher_change": change}
        self._write("switch", {**phases, **row})
        if (text := advice(switch, change)) is not None:
            self._warn(text)

    def _keep_books(self) -> None:
        """Rows, evaluation and checkpoint where they are due; a checkpoint follows its rows."""
        is_last = self.step == self.num_steps
        if self._late_row and self.step >= self._late_row.step + _ROW_LAG:
            self._write_late_row()
        if self.step % self.config.train.log_every == 0 or is_last:
            self._take_row()
        is_threshold = isinstance(self.config.schedule, ThresholdConfig)
        if is_last and is_threshold and not self.phase_steps["augmentor"]:
            self._warn("the student never stayed below l_min, so the augmentor never learned")
        is_eval = self.step % self.eval_every == 0 or is_last
        is_save = self.step % self.save_every == 0 or is_last
        if is_eval or is_save:
            self._write_late_row()
            # BatchNorm statistics differ between ranks; scores and files hold their mean.
            dist.mean_(self.engine.statistics())
        if is_eval:
            self._evaluate()
        if is_save or self.is_done:
            if self.world.is_main:
                self.checkpointer.save(self.step, self._parts())
            dist.barrier()

    def _take_row(self) -> None:
        """Begin a training row; it is written when its numbers have come from the device."""
        self._write_late_row()
        self.clock.count_averaging(self.engine.averager.seconds())
        row = {"phase": self.last_phase.value, "lr": self.engine.rates(self.step - 1)}
        row["timing"] = self.clock.window()
        self._late_row = _Row(self.step, self.meter.take(), row)

    def _write_late_row(self) -> None:
        if self._late_row is None:
            return
        (step, reading, row), self._late_row = self._late_row, None
        row |= reading.means()
        self.journal.write("train", step, self._epoch(step), row)
        if not is_finite(row):
            self._warn("a loss is no finite number: the run is lost; try a lower optim.lr")

    def _evaluate(self) -> None:
        metrics = self._scores(self.student, with_val=True)
        # At the end `_finish` goes through the suites, with the weights that are the result.
        turn = (self.student, self.step, self.eval_every if self.step < self.num_steps else 0)
        if self.engine.average is None:
            metrics |= self.surveyor.row(*turn)
        else:
            with self._averaged():
                found = self._scores(self.student, with_val=True) | self.surveyor.row(*turn)
            metrics |= {f"average_{name}": score for name, score in found.items()}
        self.net.learn(self.controller.phase)
        self._write("eval", metrics)
        part = next(iter(self.data.test.values()), self.data.val)
        if self.config.train.gallery and self.journal.is_main and part is not None:
            generator = reseed(self.noise_generator, self.config.seed, "gallery", self.step)
            if path := save_pictures(self.run_dir, self.step, self.net, part, generator):
                self.journal.picture("augmented", path, self.step)
        if "val_top1" not in metrics:
            return
        verdict = self.engine.learner.rate.observe(metrics["val_top1"])
        if verdict is Verdict.NEW_BEST:
            self.best.remember(self.step)
        elif verdict is not Verdict.GO_ON:
            self.best.restore()
        self.is_done = verdict is Verdict.STOP

    def _scores(self, network: nn.Module, *, with_val: bool = False) -> dict[str, float]:
        answer = self.config.answer
        val = {"val": self.data.val} if with_val and self.data.val and answer != "values" else {}
        parts = val | self.data.test
        truth = self.teacher if answer == "values" else None
        return evaluate(network, parts, self.world, answer=answer, truth=truth)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """While it lasts, the student holds its average, if the run keeps one."""
        average, config = self.engine.average, self.config
        with average.applied() if average else contextlib.nullcontext():
            if average and config.average.batchnorm_batches:
                num = config.average.batchnorm_batches
                recompute_batchnorm(self.net, self._load(), num, self.world, seed=config.seed)
            yield

    def _finish(self) -> dict[str, Any]:
        is_best = self.config.train.select == "best" or self.is_done
        if is_best:
            self.best.restore()
        with self._averaged():
            if self.world.is_main:
                save_weights(self.student.network, self.run_dir / "student.safetensors")
            metrics = self._scores(self.student)
            teacher = self._scores(self.teacher) if self.teacher else None
            name = self.config.teacher and self.config.teacher.name
            found = self.surveyor.finish(self.student, self.teacher, name, self.run_dir)
        return {
            "metrics": metrics | found[0],
            "teacher": teacher and teacher | found[1],
            "steps": self.step,
            "bad_samples": self.loader.num_bad,
            "epochs": self.step / self.loader.num_steps_per_epoch,
            "phases": {name: num for name, num in self.phase_steps.items() if num},
            "selected_step": self.best.step if is_best else self.step,
            "timing": self.clock.totals(),
        }

    def _warn(self, text: str) -> None:
        self._write("warning", {"text": text})

    def _write(self, kind: str, row: dict[str, Any]) -> None:
        self._write_late_row()
        self.journal.write(kind, self.step, self._epoch(self.step), row)

    def _epoch(self, step: int) -> float:
        return step / self.loader.num_steps_per_epoch

    def _parts(self) -> dict[str, Any]:
        # Noise, order and dropout are functions of the step, so no generator is among them.
        own = ("student", "bank", "controller", "loader", "best", "meter", "phase_meter", "clock")
        parts = {name: getattr(self, name) for name in own} | self.engine.parts()
        parts |= {"run": self, "objective": self.net.objective, "augmentor": self.net.augmentor}
        return {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> dict[str, Any]:
        """The run's own counters; the other parts save themselves."""
        return {"step": self.step, "is_done": self.is_done, "phase_steps": dict(self.phase_steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from saved counters."""
        self.step, self.is_done = state["step"], state["is_done"]
        self.phase_steps = dict(state["phase_steps"])
