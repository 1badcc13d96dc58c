"""One batch to the loss of one phase: the function that is compiled.

Letters: B images of a batch, M images the networks see, C channels, H rows, W columns, K classes.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hard_fast.augment.base import Augmentor, is_learned, to_float
from hard_fast.objectives.base import Objective
from hard_fast.objectives.looks import looks
from hard_fast.runtime.profile import named
from hard_fast.types import Batch, LossTerms, Needs, Noise, Outputs, Phase, Seen, View


class DistillStep(nn.Module):
    """Augmentor, teacher and student of one run, and the loss of each phase.

    Everything that changes between steps enters as a tensor, so each phase is one graph. `drawn`
    is the augmentor that makes the student's inputs: a copy whose trainable tensors the bank
    overwrites and whose frozen ones are shared; the learner itself where nothing is learned.
    `resting` are modules of the student that stay in eval mode while it learns.

    Args:    student, teacher: called with [M,C,H,W] images in [0,1], return Outputs, each in its
                 own precision; the teacher is None where no objective asks for it.
             num_classes: K of the soft labels made from the batch.
    """

    def __init__(
        self,
        augmentor: Augmentor,
        student: nn.Module,
        teacher: nn.Module | None,
        objective: Objective,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.augmentor, self.student = augmentor, student
        self.teacher, self.objective = teacher, objective
        self.drawn = _drawn_copy(augmentor)
        self.needs = {phase: objective.needs(phase) for phase in Phase}
        self.num_classes = num_classes
        self._routes: dict[str, Callable[[Tensor], Outputs]] = {}
        self.resting: list[nn.Module] = []
        self._student_parameters = [
            p for m in (student, objective) for p in m.parameters() if p.requires_grad
        ]
        self._augmentor_parameters = [p for p in augmentor.parameters() if p.requires_grad]
        if teacher is not None:
            teacher.requires_grad_(False)
        self.learn(Phase.STUDENT)

    def learn(self, phase: Phase) -> None:
        """Make the phase's networks trainable and freeze the idle ones.

        A frozen network costs no weight gradients, and in eval mode its BatchNorm statistics do
        not move.
        """
        student_learns = phase is not Phase.AUGMENTOR
        augmentor_learns = phase is not Phase.STUDENT
        for parameter in self._student_parameters:
            parameter.requires_grad_(student_learns)
        for parameter in self._augmentor_parameters:
            parameter.requires_grad_(augmentor_learns)
        self.train(False)
        self.student.train(student_learns)
        for module in self.resting:
            module.training = False
        self.objective.train(student_learns)
        self.augmentor.train(augmentor_learns)

    def route(self, **callables: Callable[[Tensor], Outputs]) -> None:
        """Call `student` or `teacher` through its compiled or distributed self."""
        self._routes = callables

    def learners(self, phase: Phase) -> list[nn.Parameter]:
        """The parameters that learn in this phase, in a fixed order."""
        student = self._student_parameters if phase is not Phase.AUGMENTOR else []
        return student + (self._augmentor_parameters if phase is not Phase.STUDENT else [])

    def forward(self, phase: Phase, batch: Batch, noise: Noise) -> LossTerms:
        """The loss of one phase on one batch."""
        needs = self.needs[phase]
        # A network passes gradient on to the augmentor only while the augmentor learns.
        with torch.set_grad_enabled(phase is not Phase.STUDENT):
            view = self.make_view(phase, batch, noise)
            if phase is Phase.JOINT and needs.climbs:
                # Value x, gradient -1: the student descends and the augmentor climbs in one pass.
                reversed_image = 2.0 * view.image.detach() - view.image
                view = View(reversed_image, view.target_BK, view.original)
            teacher = self._see("teacher", view.image) if needs.teacher else None
        original = batch.image if view.original is None else view.original
        if needs.keep < 1.0:
            view, teacher = self._keep(needs, view, teacher)
        is_apart = phase is Phase.JOINT and not needs.climbs
        shown = view.image.detach() if is_apart else view.image
        student = tuple(self._see("student", shown) for _ in range(needs.student_copies))
        clean_teacher = clean_student = None
        if needs.clean_teacher:
            with torch.no_grad():
                clean_teacher = self._see("teacher", to_float(original))
        if needs.clean_student:
            clean_student = self._see("student", to_float(original))
        seen = Seen(batch, view, noise, student, teacher, clean_student, clean_teacher)
        if phase is Phase.STUDENT:
            return self.objective.student_loss(seen)
        is_own = phase is Phase.AUGMENTOR
        terms = self.objective.augmentor_loss(seen) if is_own else self.objective.joint_loss(seen)
        return LossTerms(terms.loss, terms.error, {**terms.logs, **looks(seen, original)})

    def make_view(self, phase: Phase, batch: Batch, noise: Noise) -> View:
        """The augmented images of one batch with soft labels; an all-zero row is unlabelled."""
        classes = torch.arange(self.num_classes, device=batch.label.device)
        target_BK = (batch.label[:, None] == classes).float()
        maker = self.drawn if phase is Phase.STUDENT else self.augmentor
        with named("augmentor"):
            return maker(View(batch.image, target_BK), noise)

    def _see(self, name: str, image: Tensor) -> Outputs:
        call = self._routes[name] if name in self._routes else getattr(self, name)
        with named(name):
            return call(image)

    def _keep(
        self, needs: Needs, view: View, teacher: Outputs | None
    ) -> tuple[View, Outputs | None]:
        """The share of the views with the highest score, picked without gradient."""
        with torch.no_grad():
            judge = self._see("student", view.image) if needs.keep_by_student else teacher
            score_M = self.objective.keep_score(judge)
            kept = score_M.topk(max(1, round(needs.keep * len(score_M)))).indices
        image = view.image[kept].contiguous(memory_format=torch.channels_last)
        target = None if view.target_BK is None else view.target_BK[kept]
        if teacher is not None:
            taps = {name: tap[kept] for name, tap in teacher.taps.items()}
            teacher = Outputs(teacher.logits_BK[kept], taps)
        return View(image, target), teacher


def _drawn_copy(augmentor: Augmentor) -> Augmentor:
    """A frozen copy that shares what is frozen in the original."""
    if not is_learned(augmentor):
        return augmentor
    shared = [p for p in augmentor.parameters() if not p.requires_grad]
    shared += list(augmentor.buffers())
    return copy.deepcopy(augmentor, {id(tensor): tensor for tensor in shared}).requires_grad_(False)
