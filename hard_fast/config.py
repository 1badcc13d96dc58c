"""RunConfig: the components' configurations in one, and the checks that cross them."""

from pydantic import Field, model_validator

from hard_fast.augment import AugmentorConfig, generates, learns, mixes
from hard_fast.augment.fixed import IdentityConfig
from hard_fast.bank import BankConfig
from hard_fast.checkpoint import CheckpointConfig
from hard_fast.data import DataConfig
from hard_fast.evals.published import paper_row
from hard_fast.evals.runner import Answer
from hard_fast.evals.surveyor import EvaluationConfig
from hard_fast.guard import GuardConfig
from hard_fast.models.zoo import NetworkConfig, TeacherConfig, members_of
from hard_fast.objectives import (
    ObjectiveConfig,
    check_reaches_all,
    compares_answers,
    reads_labels,
)
from hard_fast.optim.averaging import AverageConfig, check_tail
from hard_fast.optim.build import OptimConfig
from hard_fast.optim.schedule import ConstantRateConfig
from hard_fast.phases import JointConfig, ScheduleConfig, StudentOnlyConfig, ThresholdConfig
from hard_fast.runtime.compile import CompileConfig
from hard_fast.runtime.configfile import Config, fingerprint
from hard_fast.runtime.dist import DistributedConfig
from hard_fast.train_config import TrainConfig

# Objectives with a loss for the augmentor's own phases.
_AUGMENTOR_LOSSES = ("hard", "dafl", "cudfkd", "tst")
# Objectives that teach without a teacher.
_TEACHERLESS = ("ce", "vae", "byot", "sd_dropout", "cosub")


class RunConfig(Config):
    """One run, complete. A file in configs/ holds what differs from these defaults."""

    run_dir: str = Field(default="runs/run", min_length=1)
    """Where everything the run writes goes."""
    seed: int = Field(default=0, ge=0)
    smoke: bool = False
    """Shrink the run to three steps of small networks on synthetic data."""
    data: DataConfig
    student: NetworkConfig
    teacher: TeacherConfig | None = None
    augmentor: AugmentorConfig = IdentityConfig()
    objective: ObjectiveConfig
    schedule: ScheduleConfig = StudentOnlyConfig()
    bank: BankConfig = BankConfig()
    optim: OptimConfig
    augmentor_optim: OptimConfig | None = None
    average: AverageConfig | None = None
    evaluation: EvaluationConfig | None = None
    train: TrainConfig
    compile: CompileConfig = CompileConfig()
    distributed: DistributedConfig = DistributedConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()

    @property
    def fingerprint(self) -> str:
        """A hash that equal runs share, wherever they are stored, compiled or evaluated."""
        aside = dict.fromkeys(("run_dir", "compile", "evaluation", "guard"), True)
        aside |= {"distributed": {"timeout_s"}, "checkpoint": {"keep"}, "train": {"profile_steps"}}
        return fingerprint(self.model_dump(mode="json", exclude=aside))

    @property
    def shares_classes(self) -> bool:
        """Whether the teacher, if there is one, knows the student's classes and no others."""
        return self.teacher is None or self.teacher.num_classes is None

    @property
    def is_regression(self) -> bool:
        """Whether outputs are numbers to match rather than classes to choose."""
        return self.data.kind == "line"

    @property
    def answer(self) -> Answer:
        """What the student's outputs are."""
        if self.objective.kind == "vae":
            return "bound"
        return "values" if self.is_regression else "classes"

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        for check in (
            _check_teacher,
            _check_learning,
            _check_data_free,
            _check_targets,
            _check_schedule,
            _check_validation,
            _check_resolution,
            _check_networks,
            _check_average,
            _check_evaluation,
        ):
            check(self)
        return self


def _check_teacher(config: RunConfig) -> None:
    kind = config.objective.kind
    if kind in _TEACHERLESS and config.teacher is not None:
        raise ValueError(f"teacher: objective.kind = {kind!r} does not use one; remove [teacher]")
    if kind not in _TEACHERLESS and config.teacher is None:
        raise ValueError(f"teacher: objective.kind = {kind!r} needs a [teacher]")
    clash = not config.shares_classes and compares_answers(config.objective)
    if config.student.num_classes or clash:
        raise ValueError(
            "student.num_classes, teacher.num_classes: only a teacher may know other classes, with "
            "objective.kind = 'prototypes', or 'features' or 'relations' without kd_weight"
        )
    if (kind == "vae") != (config.student.name == "tiny_vae"):
        raise ValueError(
            f"student.name = {config.student.name!r}, objective.kind = {kind!r}: student "
            "'tiny_vae' and objective 'vae' belong together"
        )
    if any(one.name == "tiny_vae" for one in members_of(config.teacher)):
        raise ValueError("teacher.name = 'tiny_vae': it has no opinion on classes")
    if kind == "vae" and (config.student.mean or config.student.std):
        raise ValueError("student.mean, student.std: 'tiny_vae' makes the pixels it is given; omit")


def _check_learning(config: RunConfig) -> None:
    maker, schedule = config.augmentor.kind, config.schedule.kind
    can_learn = learns(config.augmentor)
    if schedule == "student_only" and can_learn:
        raise ValueError(
            f"augmentor.kind = {maker!r} learns, but schedule.kind = 'student_only' never lets it; "
            "use 'threshold', 'joint', 'alternate' or 'epochs'"
        )
    if schedule != "student_only" and not can_learn:
        raise ValueError(
            f"schedule.kind = {schedule!r} trains the augmentor, but augmentor.kind = {maker!r} "
            "has nothing to learn; use 'affine', 'autoencoder', 'patch_mix' or 'noise', or "
            "schedule.kind = 'student_only'"
        )
    if is_own_phase(config.schedule) and mixes(config.augmentor) and not config.is_regression:
        raise ValueError(
            f"augmentor.kind = {maker!r} makes an image of several, so the augmentor's phase of "
            f"schedule.kind = {schedule!r} has no original to compare with; use 'joint'"
        )
    if is_own_phase(config.schedule) and config.objective.kind not in _AUGMENTOR_LOSSES:
        raise ValueError(
            f"objective.kind = {config.objective.kind!r} has no loss for the augmentor's phase of "
            f"schedule.kind = {schedule!r}; use one of {', '.join(_AUGMENTOR_LOSSES)}"
        )
    if can_learn and config.augmentor_optim is None:
        raise ValueError(
            f"augmentor_optim: augmentor.kind = {maker!r} learns and needs an optimizer; the "
            "paper's for affine is kind = 'adam', lr = 0.05"
        )
    if config.augmentor_optim is not None and not can_learn:
        raise ValueError(f"augmentor_optim: augmentor.kind = {maker!r} learns nothing; remove it")
    if config.augmentor_optim and not isinstance(config.augmentor_optim.rate, ConstantRateConfig):
        raise ValueError("augmentor_optim.rate.kind: only 'constant' so far")


def _check_data_free(config: RunConfig) -> None:
    kind, schedule = config.objective.kind, config.schedule.kind
    has_images = config.data.kind == "pictures" or config.data.train_zeros is None
    if not generates(config.augmentor):
        if not has_images:
            raise ValueError("data.train_zeros: use augmentor.kind = 'generator' to make pictures")
        if kind in ("dafl", "cudfkd"):
            raise ValueError(f"objective.kind = {kind!r}: rewards augmentor.kind = 'generator'")
        return
    if kind in ("ce", "vae", "hard", "tst"):
        raise ValueError(
            f"objective.kind = {kind!r}: what augmentor.kind = 'generator' makes has no label and "
            "no original; use 'dafl', 'cudfkd' or 'kd'"
        )
    if (kind, schedule) in (("cudfkd", "joint"), ("dafl", "threshold")):
        raise ValueError(f"schedule.kind = {schedule!r}: use 'alternate' with {kind!r}")
    if is_own_phase(config.schedule) and config.bank.capacity:
        raise ValueError(
            f"bank.capacity = {config.bank.capacity}: the student learns from the generator as it "
            "is now, whose BatchNorm statistics belong to no earlier one; set bank.capacity = 0"
        )


def _check_targets(config: RunConfig) -> None:
    objective = config.objective
    has_distance = objective.kind in ("kd", "hard")
    if config.is_regression and not (has_distance and objective.distance == "mse"):
        raise ValueError(
            "objective.distance: data.kind = 'line' is regression; use objective.kind = 'kd' or "
            "'hard' with distance = 'mse'"
        )
    if config.is_regression and reads_labels(objective):
        raise ValueError("data.kind = 'line' has no labels: no ce_share, reference = 'teacher'")


def _check_schedule(config: RunConfig) -> None:
    schedule, objective = config.schedule, config.objective
    is_share = objective.kind != "hard" or objective.distance == "kl"
    if isinstance(schedule, ThresholdConfig) and is_share and schedule.l_max >= 1:
        raise ValueError(
            f"schedule.l_max = {schedule.l_max}: the error is a share of the images, below 1"
        )
    if config.is_regression and config.augmentor.kind not in ("identity", "mixup", "noise"):
        raise ValueError(
            f"augmentor.kind = {config.augmentor.kind!r} changes pictures; data.kind = 'line' has "
            "none; use 'identity', 'mixup' or 'noise'"
        )
    if config.bank != BankConfig() and not is_own_phase(schedule):
        raise ValueError(f"bank: schedule.kind = {schedule.kind!r} does not use it; remove it")


def is_own_phase(schedule: ScheduleConfig) -> bool:
    """Whether the augmentor learns in phases of its own."""
    return not isinstance(schedule, StudentOnlyConfig | JointConfig)


def _check_validation(config: RunConfig) -> None:
    chooses = config.train.select == "best" or config.optim.rate.kind == "plateau"
    if chooses and (config.data.val_share == 0.0 or config.answer != "classes"):
        raise ValueError(
            "train.select = 'best' and optim.rate.kind = 'plateau' choose by top-1 on the "
            "validation split: set data.val_share above 0 (they are for classes alone)"
        )


def _check_resolution(config: RunConfig) -> None:
    if config.train.resolution and (config.is_regression or generates(config.augmentor)):
        raise ValueError("train.resolution: there are no pictures that could grow; remove it")


def _check_networks(config: RunConfig) -> None:
    members, is_fp16 = members_of(config.teacher), config.train.precision == "fp16"
    if config.student.precision != "auto":
        raise ValueError(
            f"student.precision = {config.student.precision!r}: a student's weights are fp32; "
            "set train.precision for its arithmetic"
        )
    if any(m.precision == "fp16" for m in members) and learns(config.augmentor) and not is_fp16:
        raise ValueError(
            "teacher.precision = 'fp16': the augmentor's gradient comes through the teacher, and "
            "vanishes there without the loss scaling of train.precision = 'fp16'; use 'bf16'"
        )
    if any(one.checkpointing for one in members) and config.schedule.kind == "student_only":
        raise ValueError(
            "teacher.checkpointing = true: no gradient passes the teacher where "
            "schedule.kind = 'student_only'; remove it"
        )
    if not members and config.distributed.teacher == "sharded":
        raise ValueError("distributed.teacher = 'sharded': there is no [teacher]; remove it")
    if config.distributed.overlap:
        check_reaches_all(config.objective)
    if config.train.augmentor_batch_size and not is_own_phase(config.schedule):
        raise ValueError(
            f"train.augmentor_batch_size: schedule.kind = {config.schedule.kind!r} has no phase "
            "of the augmentor's own; remove it"
        )


def _check_average(config: RunConfig) -> None:
    check_tail(config.average, config.optim.rate)
    if config.average and (config.train.select == "best" or config.optim.rate.kind == "plateau"):
        raise ValueError(
            "average: the result is the average of the last weights, while train.select = 'best' "
            "and optim.rate.kind = 'plateau' go back to earlier ones; remove [average] or those"
        )


def _check_evaluation(config: RunConfig) -> None:
    if config.evaluation and config.answer != "classes":
        raise ValueError(
            "evaluation: suites are for networks whose outputs are classes; remove [evaluation]"
        )
    if config.evaluation and config.evaluation.paper is not None:
        paper_row(config.evaluation.paper)
