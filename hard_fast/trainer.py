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
from hard_fast.bank import AugmentorBank
from hard_fast.checkpoint import BestWeights, Checkpointer
from hard_fast.config import RunConfig
from hard_fast.data import ArrayLoader, load_data
from hard_fast.evals.runner import evaluate
from hard_fast.metrics import Meter, MetricsLog, ProgressLine
from hard_fast.models.taps import Tapped
from hard_fast.models.zoo import NetworkConfig, build_network, save_weights
from hard_fast.objectives import build_objective
from hard_fast.optim.learner import Learner
from hard_fast.optim.schedule import Verdict
from hard_fast.phases import PhaseController, Switch, advice
from hard_fast.report.figures import write_gallery
from hard_fast.runtime import dist
from hard_fast.runtime.clock import Clock
from hard_fast.runtime.compile import amp_dtype, compiled
from hard_fast.runtime.dist import World
from hard_fast.runtime.seed import default_generator, derive_seed, reseed
from hard_fast.step import DistillStep
from hard_fast.types import Batch, Noise, Phase

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
        self.loader = ArrayLoader(self.data.train, batch_size=size, seed=config.seed, **place)
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
        images = self.data.train.image
        self.teacher = self._network(config.teacher, "teacher") if config.teacher else None
        self.student = self._network(config.student, "student")
        torch.manual_seed(derive_seed(config.seed, "augmentor"))
        augmentor = build_augmentor(
            config.augmentor, images.shape[1:], is_picture=images.dtype == torch.uint8
        )
        objective = build_objective(config.objective)
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

    def _network(self, network: NetworkConfig, stream: str) -> nn.Module:
        torch.manual_seed(derive_seed(self.config.seed, stream))
        num_classes, (channels, size, _) = self.data.num_classes, self.data.train.image.shape[1:]
        built = build_network(
            network, num_classes=num_classes, in_channels=channels, image_size=size
        )
        return Tapped(built).to(memory_format=torch.channels_last)

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
        waiting_since = time.perf_counter()
        batch = self.loader.next_batch()
        self.clock.count(self.config.train.batch_size, time.perf_counter() - waiting_since)
        noise = self.draw_noise(batch, step)
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
            self.phase_meter.add(phase, terms.logs)
        self.meter.add(phase, terms.logs)
        self.phase_steps[phase.value] += 1
        self.step += 1
        return self.controller.observe(step, error)

    def draw_noise(self, batch: Batch, step: int) -> Noise:
        """This rank's share of the noise of the global batch."""
        num_mine, rank = batch.image.shape[0], self.world.rank
        generator = reseed(self.noise_generator, self.config.seed, "noise", step)
        shape = torch.Size((num_mine * self.world.size, *batch.image.shape[1:]))
        mine = slice(rank * num_mine, (rank + 1) * num_mine)
        noise = self.net.augmentor.draw_noise(shape, generator)
        return {name: value[mine] if value.ndim else value for name, value in noise.items()}

    def run(self) -> dict[str, Any]:
        """Train to the end; returns the results, with what depends on the clock under `timing`."""
        self.log = None
        if self.world.is_main:
            board = self.config.train.tensorboard
            self.log = MetricsLog(self.run_dir, resume_step=self.step, use_tensorboard=board)
        with ProgressLine(self.num_steps, is_shown=self.world.is_main) as self.progress:
            if self.step:
                self.progress.say(f"resumed at step {self.step} of {self.num_steps}")
            while self.step < self.num_steps and not self.is_done:
                switch = self.train_step()
                if switch:
                    self._change_phase(switch)
                self._keep_books()
            results = self._finish()
        if self.log:
            self.log.close()
        return results

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
            self._write("warning", {"text": text})
            self.progress.say(f"warning, step {self.step}: {text}")

    def _keep_books(self) -> None:
        """Rows, evaluation and checkpoint where they are due; a checkpoint follows its rows."""
        is_last = self.step == self.num_steps
        if self.step % self.config.train.log_every == 0 or is_last:
            learners = {"student": self.learner, "augmentor": self.augmentor_learner}
            lr = {name: learner.lr(self.step - 1) for name, learner in learners.items() if learner}
            row = {"phase": self.controller.phase.value, "lr": lr, **self.meter.means()}
            self._write("train", row | {"timing": self.clock.window()})
        if self.step % self.eval_every == 0 or is_last:
            self._evaluate()
        if self.step % self.save_every == 0 or is_last or self.is_done:
            if self.world.is_main:
                self.checkpointer.save(self.step, self._parts())
            dist.barrier()

    def _evaluate(self) -> None:
        metrics = self._scores(self.student, with_val=True)
        self.net.learn(self.controller.phase)
        self._write("eval", metrics)
        if self.log and self.config.train.gallery and self.data.train.image.dtype == torch.uint8:
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
        images = next(iter(self.data.test.values()))
        batch = Batch(images.image[:_NUM_GALLERY_IMAGES], images.label[:_NUM_GALLERY_IMAGES])
        generator = reseed(self.noise_generator, self.config.seed, "gallery", self.step)
        noise = self.net.augmentor.draw_noise(batch.image.shape, generator)
        with torch.no_grad():
            made = self.net.make_view(Phase.AUGMENTOR, batch, noise).image
        path = self.run_dir / "gallery" / f"step_{self.step:08d}.png"
        write_gallery(path, batch.image, made)
        self.log.picture("augmented", path, self.step)

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
            "epochs": self.step / self.loader.num_steps_per_epoch,
            "phases": {name: num for name, num in self.phase_steps.items() if num},
            "selected_step": self.best.step if is_best else self.step,
            "timing": self.clock.totals(),
        }

    def _write(self, kind: str, row: dict[str, Any]) -> None:
        when = {"step": self.step, "epoch": self.step / self.loader.num_steps_per_epoch}
        full = {"kind": kind, **when, **row}
        if self.log:
            self.log.write(full)
        self.progress.update(full)

    def _parts(self) -> dict[str, Any]:
        # Noise, order and dropout are functions of the step, so no generator is among them.
        parts = {
            "run": self,
            "student": self.student,
            "objective": self.net.objective,
            "augmentor": self.net.augmentor,
            "learner": self.learner,
            "augmentor_learner": self.augmentor_learner,
            "bank": self.bank,
            "controller": self.controller,
            "loader": self.loader,
            "best": self.best,
            "meter": self.meter,
            "phase_meter": self.phase_meter,
            "clock": self.clock,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> dict[str, Any]:
        """The run's own counters; the other parts save themselves."""
        return {"step": self.step, "is_done": self.is_done, "phase_steps": dict(self.phase_steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from saved counters."""
        self.step, self.is_done = state["step"], state["is_done"]
        self.phase_steps = dict(state["phase_steps"])
