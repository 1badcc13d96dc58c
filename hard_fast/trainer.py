"""The training loop: builds a run, steps it, and keeps its books.

One batch: `Trainer.run` -> loader -> `train_step` -> `Engine.step` -> `DistillStep.forward` ->
augmentor -> teacher, student -> objective -> `Learner` -> `PhaseController` -> `Meter` ->
`Checkpointer`.
"""

from pathlib import Path
from typing import Any

from hard_fast.bank import AugmentorBank
from hard_fast.batchnorm import gather_statistics, restore_statistics
from hard_fast.build import build_step
from hard_fast.checkpoint import BestWeights, Checkpointer
from hard_fast.config import RunConfig
from hard_fast.data import load_data
from hard_fast.data.growing import Growth
from hard_fast.examiner import Examiner
from hard_fast.journal import Journal
from hard_fast.learning import Learning
from hard_fast.metrics import Meter
from hard_fast.optim.schedule import Verdict
from hard_fast.phases import PhaseController, Switch, ThresholdConfig, advice
from hard_fast.runtime import dist, pulse, signals
from hard_fast.runtime.clock import Clock
from hard_fast.runtime.dist import World
from hard_fast.runtime.profile import Trace
from hard_fast.training_row import TrainingRow
from hard_fast.types import Phase


class Trainer:
    """One run, from a configuration to trained weights.

    Args:    resume: continue from the newest whole checkpoint in the run's directory.
    Raises:  ValueError, one line, if the configuration cannot be built.
    """

    def __init__(self, config: RunConfig, world: World, *, resume: bool = True) -> None:
        self.config, self.world = config, world
        self.run_dir = Path(config.run_dir)
        self.step, self.is_done, self.is_settled = 0, False, True
        self.phase_steps = {phase.value: 0 for phase in Phase}
        self.clock, self.meter = Clock(), Meter()
        self._build_data()
        self._build_learning()
        folder, keep = self.run_dir / "checkpoints", config.checkpoint.keep
        self.checkpointer = Checkpointer(folder, keep, self.bank)
        newest = self.checkpointer.to_resume() if resume and world.is_main else None
        newest = dist.broadcast_object(newest)
        if newest is not None:
            self.checkpointer.load(newest, self._parts(), world.device)
        else:
            self.learning.begin()
        self.net.learn(self.controller.phase)

    def _build_data(self) -> None:
        config, world = self.config, self.world
        self.data = load_data(config.data, world.device)
        given = {"batch_size": config.train.batch_size, "seed": config.seed}
        given |= {"rank": world.rank, "world_size": world.size}
        self._new_loader = lambda **more: self.data.train.loader(**given, **more)
        self.loader = self._new_loader()
        per_epoch = self.loader.num_steps_per_epoch
        self.num_steps = config.train.steps or max(1, round(config.train.epochs * per_epoch))
        self.growth = Growth(config.train.resolution, self.data.train, self.num_steps)
        if config.train.resolution:
            self.loader = self._new_loader(size_at=self.growth.at)
        saves = config.checkpoint
        self.save_every = saves.every_steps or max(1, round(saves.every_epochs * per_epoch))

    def _build_learning(self) -> None:
        config, world = self.config, self.world
        per_epoch = self.loader.num_steps_per_epoch
        self.net = build_step(config, self.data, world, self.growth.sizes[:-1])
        self.student, self.teacher = self.net.student, self.net.teacher
        place, given = self.run_dir / "bank", {"seed": config.seed, "is_main": world.is_main}
        self.learning = Learning(
            config,
            self.net,
            world,
            num_steps=self.num_steps,
            num_steps_per_epoch=per_epoch,
            make_bank=lambda maker: AugmentorBank(maker, place, config.bank, **given),
            warn=self._warn,
        )
        self.engine, self.bank = self.learning.engine, self.learning.bank
        self.rescue = self.learning.rescue
        self.best = BestWeights(self.engine.taught)
        parts = (self.data, self.engine, self.bank, self._new_loader)
        self.examiner = Examiner(config, *parts, per_epoch, world)
        self._late_row = TrainingRow(self.engine, self.meter, self.clock, per_epoch)

    @property
    def controller(self) -> PhaseController:
        """Whose turn it is."""
        return self.learning.controller

    def train_step(self) -> Switch | None:
        """One batch, one update of the networks whose turn it is; the switch it led to, if any."""
        step, phase = self.step, self.controller.phase
        self.last_phase = phase
        pulse.beat(step * len(Phase) + list(Phase).index(phase), signals.asked())
        with self.clock.waiting(self.engine.num_images(phase)):
            batch = self.loader.next_batch()
        noise = self.learning.draw(step, batch)
        self.asked = pulse.agreed(f"step {step} ({phase.value})")
        result, switch = self.learning.learn(step, batch, noise)
        self.meter.add(phase, result.logs, result.is_skipped)
        self.phase_steps[phase.value] += 1
        self.step += 1
        return switch

    def run(self) -> dict[str, Any]:
        """Train to the end; returns the results, with what depends on the clock under `timing`."""
        place = {"num_steps": self.num_steps, "first_step": self.step}
        board, is_main = self.config.train.tensorboard, self.world.is_main
        num_traced, device = is_main * self.config.train.profile_steps, self.world.device
        with (
            Journal(self.run_dir, **place, use_tensorboard=board, is_main=is_main) as self.journal,
            Trace(self.run_dir, num_traced, device, self.journal.say) as trace,
        ):
            self.journal.say(self.engine.describe())
            if said := self.growth.describe():
                self.journal.say(said)
            for text in self.examiner.warnings:
                self._warn(text)
            if not self.is_settled:
                self._settle()
            if not self.step:
                # Something to go back to.
                self._save(is_alike=True)
            while self.step < self.num_steps and not self.is_done:
                if notice := self.engine.notice(self.controller.phase, self.growth.at(self.step)):
                    self.journal.say(notice)
                switch = self.train_step()
                trace.step()
                if switch:
                    self._change_phase(switch)
                self._keep_books()
            return self._finish()

    def _change_phase(self, switch: Switch) -> None:
        """End the turn of what learned, and say why."""
        change = self.learning.end_turn(self.step, switch)
        phases = {"from": switch.before.value, "to": switch.after.value}
        row = {"reason": switch.reason, "error": switch.error, "teacher_change": change}
        self._write("switch", {**phases, **row})
        if (text := advice(switch, change)) is not None:
            self._warn(text)

    def _keep_books(self) -> None:
        """Rows, evaluation and checkpoint where they are due; a checkpoint follows its rows.

        Raises:  Stopped after a last checkpoint, if a signal has asked for it.
        """
        is_last = self.step == self.num_steps
        is_row_due = self.step % self.config.train.log_every == 0 or is_last
        if self._has_gone_back(is_row_due):
            return
        if self._late_row.is_due(self.step):
            self._late_row.write(self.journal)
        if is_row_due:
            self._late_row.begin(self.journal, self.step, self.last_phase)
        is_threshold = isinstance(self.config.schedule, ThresholdConfig)
        if is_last and is_threshold and not self.phase_steps["augmentor"]:
            self._warn("the student never stayed below l_min, so the augmentor never learned")
        self.is_settled = not (self._is_due(self.examiner.every) or self._is_due(self.save_every))
        if self.asked:
            self._save()
            dist.barrier()  # Who ended sooner would have the launcher end rank 0 while it writes.
            raise signals.Stopped(self.asked)
        if not self.is_settled:
            self._settle()

    def _has_gone_back(self, is_row_due: bool) -> bool:
        """Act on what the guard has seen; whether the run is at a checkpoint again."""
        if (back := self.rescue.heed(self.step, is_row_due=is_row_due)) is None:
            return False
        text = self.rescue.go_back(back, self.checkpointer, self._parts())
        self._late_row.forget()
        self.net.learn(self.controller.phase)
        self.journal.cut(self.step)
        self._warn(text)
        # Whoever continues from here must know of it.
        self._save()
        if not self.is_settled:
            self._settle()
        return True

    def _settle(self) -> None:
        """The evaluation and the checkpoint that are due, also of a run stopped before them."""
        self._late_row.write(self.journal)
        # BatchNorm statistics differ between ranks; scores and files hold their mean.
        dist.mean_(self.engine.statistics())
        if self._is_due(self.examiner.every):
            try:
                self._evaluate()
            except signals.Stopped:
                # The others may not have been asked, so nothing here waits for them.
                self._save(is_alike=True)
                raise
            except RuntimeError:
                # Rank 0 has left; what it was asked, this process was asked as well.
                signals.stop_if_asked()
                raise
        self.is_settled = True
        is_over = self.is_done or self.step == self.num_steps
        # Weights that no longer give finite numbers are nothing to go back to.
        if is_over or (self._is_due(self.save_every) and self.engine.guard.is_calm()):
            self._save(is_alike=True)
            dist.barrier()

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.num_steps

    def _save(self, *, is_alike: bool = False) -> None:
        """Write a checkpoint, also between the steps at which all ranks' statistics are alike."""
        pulse.at(f"step {self.step} (checkpoint)")
        self._late_row.write(self.journal)
        self._statistics = [] if is_alike else gather_statistics(self.engine.statistics())
        if self.world.is_main:
            self.checkpointer.save(self.step, self._parts())

    def _evaluate(self) -> None:
        metrics = self.examiner.row(self.step, is_last=self.step == self.num_steps)
        self.net.learn(self.controller.phase)
        self._write("eval", metrics)
        if self.world.is_main and (path := self.examiner.picture(self.step)):
            self.journal.picture("augmented", path, self.step)
        if "val_top1" not in metrics:
            return
        verdict = self.engine.learner.rate.observe(metrics["val_top1"])
        if verdict is Verdict.NEW_BEST:
            self.best.remember(self.step)
        elif verdict is not Verdict.GO_ON:
            self.best.restore()
        self.is_done = verdict is Verdict.STOP

    def _finish(self) -> dict[str, Any]:
        is_best = self.config.train.select == "best" or self.is_done
        if is_best:
            self.best.restore()
        self.engine.guard.judge(self.step)
        metrics, teacher = self.examiner.finish()
        return {
            "metrics": metrics,
            "teacher": teacher,
            "steps": self.step,
            "bad_samples": self.loader.num_bad,
            **self.engine.guard.counts,
            "epochs": self.step / self.loader.num_steps_per_epoch,
            "phases": {name: num for name, num in self.phase_steps.items() if num},
            "selected_step": self.best.step if is_best else self.step,
            "timing": self.clock.totals(),
        }

    def _warn(self, text: str) -> None:
        self._write("warning", {"text": text})

    def _write(self, kind: str, row: dict[str, Any]) -> None:
        self._late_row.write(self.journal)
        self.journal.write(kind, self.step, self._epoch(self.step), row)

    def _epoch(self, step: int) -> float:
        return step / self.loader.num_steps_per_epoch

    def _parts(self) -> dict[str, Any]:
        # Noise, order and dropout are functions of the step, so no generator is among them.
        own = {name: getattr(self, name) for name in ("loader", "best", "meter", "clock")}
        # Last the run: it sets what this rank's own statistics were.
        return self.learning.parts() | own | {"run": self}

    def state_dict(self) -> dict[str, Any]:
        """The run's own counters; the other parts save themselves."""
        return {
            "step": self.step,
            "is_done": self.is_done,
            "is_settled": self.is_settled,
            "phase_steps": dict(self.phase_steps),
            "statistics": self._statistics,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from saved counters."""
        self.step, self.is_done = state["step"], state["is_done"]
        self.is_settled = state["is_settled"]
        restore_statistics(self.engine.statistics(), state["statistics"], self.world)
        self.phase_steps = dict(state["phase_steps"])
