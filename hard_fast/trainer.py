"""The training loop: builds a run, steps it, and keeps its books.

One batch: `Trainer.run` -> loader -> `train_step` -> `DistillStep.forward` -> augmentor -> teacher,
student -> objective -> `Learner` -> `PhaseController` -> `Meter` -> `Checkpointer`.
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hard_fast.augment import build_augmentor
from hard_fast.augment.base import draw_share
from hard_fast.bank import AugmentorBank
from hard_fast.checkpoint import BestWeights, Checkpointer
from hard_fast.config import RunConfig
from hard_fast.data import load_data
from hard_fast.evals.runner import evaluate
from hard_fast.journal import Journal
from hard_fast.metrics import Meter
from hard_fast.models.taps import Tapped
from hard_fast.models.zoo import NetworkConfig, build_network, save_weights
from hard_fast.objectives import build_objective
from hard_fast.optim.learner import Learner
from hard_fast.optim.schedule import Verdict
from hard_fast.phases import PhaseController, Switch, ThresholdConfig, advice
from hard_fast.report.figures import write_gallery
from hard_fast.runtime import dist
from hard_fast.runtime.clock import Clock
from hard_fast.runtime.compile import amp_dtype, compiled
from hard_fast.runtime.dist import World
from hard_fast.runtime.rows import is_finite
from hard_fast.runtime.seed import default_generator, derive_seed, reseed
from hard_fast.step import DistillStep
from hard_fast.types import Batch, Phase

_NUM_GALLERY_IMAGES = 10


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
        self._build_data()
        self._build_networks()
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
        self.loader = self.data.train.loader(batch_size=size, seed=config.seed, **place)
        if config.augmentor.kind in ("mixup", "cutmix") and size // world.size % 2:
            raise ValueError(
                f"train.batch_size = {size} over {world.size} processes: augmentor.kind = "
                f"{config.augmentor.kind!r} mixes pairs; make it even in each process"
            )
        per_epoch = self.loader.num_steps_per_epoch
        self.num_steps = config.train.steps or max(1, round(config.train.epochs * per_epoch))
        self.eval_every = max(1, round(config.train.eval_every_epochs * per_epoch))
        saves = config.checkpoint
        self.save_every = saves.every_steps or max(1, round(saves.every_epochs * per_epoch))

    def _build_networks(self) -> None:
        config, world = self.config, self.world
        objective = build_objective(config.objective)
        needs = [objective.needs(phase) for phase in Phase]
        taps = sorted({name for need in needs for name in need.student_taps})
        self.student = self._network(config.student, "student", taps)
        taps = sorted({name for need in needs for name in need.teacher_taps})
        self.teacher = self._network(config.teacher, "teacher", taps) if config.teacher else None
        torch.manual_seed(derive_seed(config.seed, "augmentor"))
        augmentor = build_augmentor(
            config.augmentor, self.data.train.image_shape, is_picture=self.data.train.is_picture
        )
        self.net = DistillStep(
            augmentor,
            self.student,
            self.teacher,
            objective,
            num_classes=self.data.num_classes,
            amp_dtype=amp_dtype(config.train.precision, world.device),
        ).to(world.device)
        dist.broadcast_module(self.net)
        self.forward = compiled(self.net, config.train.compile, world.device)

    def _network(self, network: NetworkConfig, role: str, taps: list[str]) -> nn.Module:
        torch.manual_seed(derive_seed(self.config.seed, role))
        channels, height, width = self.data.train.image_shape
        sizes = {"in_channels": channels, "image_size": height}
        try:
            if height != width:
                raise ValueError(f"needs square pictures, and these are {height}x{width}")
            built = build_network(network, num_classes=self.data.num_classes, **sizes)
            return Tapped(built, tuple(taps)).to(memory_format=torch.channels_last)
        except ValueError as error:
            raise ValueError(f"[{role}] {error}") from error

    def _build_learning(self) -> None:
        config, net = self.config, self.net
        per_epoch = self.loader.num_steps_per_epoch
        length = {"num_steps": self.num_steps, "num_steps_per_epoch": per_epoch}
        # Optimizers take what requires gradients, and in the joint phase all that can does.
        net.learn(Phase.JOINT)
        taught = nn.ModuleDict({"student": net.student, "objective": net.objective})
        self.learner = Learner(config.optim, taught.named_parameters(), **length)
        self.best = BestWeights(taught)
        self.augmentor_learner = self.bank = None
        if config.augmentor_optim:
            parameters = net.augmentor.named_parameters()
            self.augmentor_learner = Learner(config.augmentor_optim, parameters, **length)
            folder, is_main = self.run_dir / "bank", self.world.is_main
            self.bank = AugmentorBank(
                net.augmentor, folder, config.bank, seed=config.seed, is_main=is_main
            )
        self.controller = PhaseController(config.schedule, per_epoch)
        self.noise_generator = torch.Generator(self.world.device)
        self.network_generator = default_generator(self.world.device)

    def train_step(self) -> Switch | None:
        """One batch, one update of the networks whose turn it is; the switch it led to, if any."""
        step, phase, seed = self.step, self.controller.phase, self.config.seed
        self.last_phase = phase
        waiting_since = time.perf_counter()
        batch = self.loader.next_batch()
        self.clock.count(self.config.train.batch_size, time.perf_counter() - waiting_since)
        generator = reseed(self.noise_generator, seed, "noise", step)
        rank, num_ranks = self.world.rank, self.world.size
        noise = draw_share(self.net.augmentor, batch.image.shape, generator, rank, num_ranks)
        if self.bank is not None and phase is Phase.STUDENT:
            self.bank.draw_into(self.net.drawn, step)
        # Dropout's generator, seeded by the step, needs no place in a checkpoint.
        reseed(self.network_generator, seed, "network", step, self.world.rank)
        terms = self.forward(phase, batch, noise)
        terms.loss.backward()
        error = terms.error.clone()
        dist.mean_([p.grad for p in self.net.learners(phase) if p.grad is not None] + [error])
        if phase is not Phase.AUGMENTOR:
            self.learner.update(step)
        if phase is not Phase.STUDENT:
            self.augmentor_learner.update(step)
        if phase is Phase.AUGMENTOR:
            self.phase_meter.add(phase, terms.logs)
        self.meter.add(phase, terms.logs)
        self.phase_steps[phase.value] += 1
        self.step += 1
        return self.controller.observe(step, error)

    def run(self) -> dict[str, Any]:
        """Train to the end; returns the results, with what depends on the clock under `timing`."""
        place = {"num_steps": self.num_steps, "first_step": self.step}
        board, is_main = self.config.train.tensorboard, self.world.is_main
        with Journal(self.run_dir, **place, use_tensorboard=board, is_main=is_main) as self.journal:
            while self.step < self.num_steps and not self.is_done:
                switch = self.train_step()
                if switch:
                    self._change_phase(switch)
                self._keep_books()
            return self._finish()

    def _change_phase(self, switch: Switch) -> None:
        """Save or reset the augmentor whose turn ended, change the learner, say why."""
        change = None
        if switch.before is Phase.AUGMENTOR:
            ended = self.phase_meter.means()["augmentor"]
            change = ended["teacher_change"] if "teacher_change" in ended else None
            then = self.config.schedule.on_timeout if switch.has_timed_out else "keep"
            if then == "keep":
                self.bank.save()
            else:
                self.bank.restart(self.step, untouched=then == "identity")
                self.augmentor_learner.forget()
        self.net.learn(switch.after)
        phases = {"from": switch.before.value, "to": switch.after.value}
        row = {"reason": switch.reason, "error": switch.error, "teacher_change": change}
        self._write("switch", {**phases, **row})
        if (text := advice(switch, change)) is not None:
            self._warn(text)

    def _keep_books(self) -> None:
        """Rows, evaluation and checkpoint where they are due; a checkpoint follows its rows."""
        is_last = self.step == self.num_steps
        if self.step % self.config.train.log_every == 0 or is_last:
            learners = {"student": self.learner, "augmentor": self.augmentor_learner}
            lr = {name: learner.lr(self.step - 1) for name, learner in learners.items() if learner}
            row = {"phase": self.last_phase.value, "lr": lr, **self.meter.means()}
            self._write("train", row | {"timing": self.clock.window()})
            if not is_finite(row):
                self._warn("a loss is no finite number: the run is lost; try a lower optim.lr")
        is_threshold = isinstance(self.config.schedule, ThresholdConfig)
        if is_last and is_threshold and not self.phase_steps["augmentor"]:
            self._warn("the student never stayed below l_min, so the augmentor never learned")
        is_eval = self.step % self.eval_every == 0 or is_last
        is_save = self.step % self.save_every == 0 or is_last
        if is_eval or is_save:
            # BatchNorm statistics and sums differ between ranks; scores and files hold their mean.
            dist.mean_([b for b in self.student.buffers() if b.is_floating_point()])
            self.meter.share()
            self.phase_meter.share()
        if is_eval:
            self._evaluate()
        if is_save or self.is_done:
            if self.world.is_main:
                self.checkpointer.save(self.step, self._parts())
            dist.barrier()

    def _evaluate(self) -> None:
        metrics = self._scores(self.student, with_val=True)
        self.net.learn(self.controller.phase)
        self._write("eval", metrics)
        if self.config.train.gallery and self.journal.is_main:
            self._save_gallery()
        if "val_top1" not in metrics:
            return
        verdict = self.learner.rate.observe(metrics["val_top1"])
        if verdict is Verdict.NEW_BEST:
            self.best.remember(self.step)
        elif verdict is not Verdict.GO_ON:
            self.best.restore()
        self.is_done = verdict is Verdict.STOP

    def _scores(self, network: nn.Module, *, with_val: bool = False) -> dict[str, float]:
        if self.config.is_regression:
            return evaluate(network, self.data.test, self.world, truth=self.teacher)
        val = {"val": self.data.val} if with_val and self.data.val else {}
        return evaluate(network, val | self.data.test, self.world)

    def _save_gallery(self) -> None:
        part = next(iter(self.data.test.values()), self.data.val)
        if part is None or not part.is_picture or part.num < 2:
            return
        batch = next(part.batches(_NUM_GALLERY_IMAGES))
        # An even number, since mixing pairs neighbours.
        batch = Batch(*(value[: len(batch.label) // 2 * 2] for value in batch))
        generator = reseed(self.noise_generator, self.config.seed, "gallery", self.step)
        noise = self.net.augmentor.draw_noise(batch.image.shape, generator)
        with torch.no_grad():
            made = self.net.make_view(Phase.AUGMENTOR, batch, noise).image
        path = self.run_dir / "gallery" / f"step_{self.step:08d}.png"
        write_gallery(path, batch.image, made)
        self.journal.picture("augmented", path, self.step)

    def _finish(self) -> dict[str, Any]:
        is_best = self.config.train.select == "best" or self.is_done
        if is_best:
            self.best.restore()
        if self.world.is_main:
            save_weights(self.student.network, self.run_dir / "student.safetensors")
        return {
            "metrics": self._scores(self.student),
            "teacher": self._scores(self.teacher) if self.teacher else None,
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
        self.journal.write(kind, self.step, self.step / self.loader.num_steps_per_epoch, row)

    def _parts(self) -> dict[str, Any]:
        # Noise, order and dropout are functions of the step, so no generator is among them.
        own = ("student", "learner", "augmentor_learner", "bank", "controller", "loader", "best")
        parts = {name: getattr(self, name) for name in (*own, "meter", "phase_meter", "clock")}
        parts |= {"run": self, "objective": self.net.objective, "augmentor": self.net.augmentor}
        return {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> dict[str, Any]:
        """The run's own counters; the other parts save themselves."""
        return {"step": self.step, "is_done": self.is_done, "phase_steps": dict(self.phase_steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from saved counters."""
        self.step, self.is_done = state["step"], state["is_done"]
        self.phase_steps = dict(state["phase_steps"])
