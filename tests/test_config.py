import pytest

from hard_fast.config import RunConfig
from hard_fast.runtime.configfile import CONFIG_FOLDER, ConfigError, Source, merge, parse, read
from hard_fast.smoke import shrink


def parse_tree(tree):
    return parse(RunConfig, shrink(Source(tree, dict.fromkeys(tree, "run.toml"))))


def test_a_whole_run_is_understood(tiny_run):
    config = parse_tree(tiny_run)
    assert config.augmentor.kind == "affine" and config.schedule.lag == 1
    assert config.bank.capacity == 64 and config.optim.kind == "adam"


def test_what_is_mixed_before_anything_learns_is_the_original(tiny_run):
    mixed_first = {"kind": "compose", "parts": [{"kind": "cutmix"}, {"kind": "affine"}]}
    assert parse_tree(tiny_run | {"augmentor": mixed_first}).augmentor.kind == "compose"


def test_fingerprint_sees_settings_and_not_the_place(tiny_run):
    base = parse_tree(tiny_run).fingerprint
    assert parse_tree(tiny_run | {"run_dir": "elsewhere"}).fingerprint == base
    faster = {"compile": {"mode": "default"}, "distributed": {"timeout_s": 60.0}}
    assert parse_tree(tiny_run | faster).fingerprint == base
    assert parse_tree(tiny_run | {"seed": 1}).fingerprint != base


FIXED = {"augmentor": {"kind": "identity"}, "schedule": {"kind": "student_only"}}
LINE = {"kind": "line"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": None}, "needs a [teacher]"),
        ({"objective": {"kind": "ce"}}, "does not use one"),
        ({"schedule": {"kind": "student_only"}}, "never lets it"),
        ({"augmentor": {"kind": "identity"}}, "nothing to learn"),
        ({"objective": {"kind": "kd"}}, "no loss for the augmentor"),
        ({"augmentor_optim": None}, "needs an optimizer"),
        (FIXED, "learns nothing; remove it"),
        ({"train": {"batch_size": 4}}, "exactly one of train.epochs and train.steps"),
        ({"train": {"steps": 3, "epochs": 1}}, "exactly one"),
        ({"data": LINE}, "regression"),
        (
            {"data": LINE, "objective": {"kind": "hard", "distance": "mse", "reference": "label"}},
            "label",
        ),
        (
            {"train": {"steps": 3, "select": "best"}, "data": {"kind": "digits", "val_share": 0.0}},
            "val_share",
        ),
        ({"student": {"name": "mlp", "num_classes": 4}}, "only a teacher may know other classes"),
        ({"teacher": {"name": "cnn", "num_classes": 4}}, "only a teacher may know other classes"),
        (
            {"teacher": {"name": "cnn", "num_classes": 4}, "augmentor_optim": None, **FIXED}
            | {"objective": {"kind": "features", "layers": [["a", "b"]], "kd_weight": 0.5}},
            "student.num_classes, teacher.num_classes: ",
        ),
        ({"teacher": {"name": "cnn", "watermark": {"key": 1, "strength": 0.0}}}, "strength"),
        ({"schedule": {"kind": "threshold", "l_max": 1.0}}, "a share of the images"),
        ({"schedule": {"kind": "threshold", "max_augmentor_steps": 3}}, "ends the turn before"),
        ({"data": LINE, "objective": {"kind": "hard", "distance": "mse"}}, "changes pictures"),
        ({"schedule": {"kind": "joint"}, "bank": {"capacity": 3}}, "does not use it"),
        ({"objective": {"kind": "hard", "temperature": float("inf")}}, "objective.temperature"),
        ({"run_dir": ""}, "run_dir"),
        ({"data": {"kind": "digitz"}}, "did you mean 'digits'"),
        ({"augmentor": {"kind": "affine", "stdd": 1}}, "did you mean 'std'"),
        ({"optim": {"lr": 0.1, "rate": {"kind": "cosin"}}}, "did you mean 'cosine'"),
        ({"schedule": {"kind": "threshold", "l_min": 0.5, "l_max": 0.4}}, "must be below"),
        ({"augmentor": {"kind": "patch_mix"}}, "no original to compare with"),
        (
            {"augmentor": {"kind": "compose", "parts": [{"kind": "affine"}, {"kind": "cutmix"}]}},
            "no original to compare with",
        ),
        ({"student": {"name": "tiny_vae"}}, "belong together"),
        ({"teacher": {"name": "tiny_vae"}}, "no opinion on classes"),
        (
            {"student": {"name": "tiny_vae", "mean": [0.5]}, "objective": {"kind": "vae"}}
            | {"teacher": None, "augmentor_optim": None, **FIXED},
            "makes the pixels it is given",
        ),
        ({"student": {"name": "mlp", "precision": "bf16"}}, "student's weights are fp32"),
        ({"teacher": {"name": "cnn", "precision": "fp16"}}, "use 'bf16'"),
        (
            {"augmentor_optim": None, **FIXED, "objective": {"kind": "kd"}}
            | {"teacher": {"name": "resnet18", "checkpointing": True}},
            "no gradient passes the teacher",
        ),
        (
            {"teacher": None, "augmentor_optim": None, "objective": {"kind": "ce"}, **FIXED}
            | {"distributed": {"teacher": "sharded"}},
            "there is no [teacher]",
        ),
        (
            {"schedule": {"kind": "joint"}}
            | {"train": {"steps": 3, "batch_size": 8, "augmentor_batch_size": 4}},
            "no phase of the augmentor's own",
        ),
        (
            {"average": {}, "train": {"steps": 3, "batch_size": 8, "select": "best"}},
            "average: the result",
        ),
    ],
)
def test_impossible_combinations_end_in_one_line(tiny_run, changes, words):
    tree = {key: value for key, value in (tiny_run | changes).items() if value is not None}
    with pytest.raises(ConfigError) as error:
        parse_tree(tree)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_every_shipped_run_is_valid_and_says_what_it_is():
    files = sorted(CONFIG_FOLDER.rglob("*.toml"))
    assert len(files) >= 5
    for file in files:
        assert file.read_text().startswith("# "), f"{file}: no header comment"
        source = read(str(file))
        if "study" not in source.tree and "student" in source.tree:
            parse(RunConfig, source)


def test_merge_of_a_row_replaces_the_augmentor_of_another_kind(tiny_run):
    merged = merge(tiny_run, {"augmentor": {"kind": "noise"}})
    assert parse_tree(merged).augmentor.std == 0.05


@pytest.mark.parametrize(
    "objective",
    [
        {"kind": "features", "layers": [["a", "b"]]},
        {"kind": "prototypes", "student_layer": "a", "teacher_layer": "b"},
        {"kind": "relations", "student_layer": "a", "teacher_layer": "b"},
    ],
)
def test_a_teacher_of_other_classes_teaches_by_inner_layers(tiny_run, objective):
    tree = {key: value for key, value in tiny_run.items() if key != "augmentor_optim"} | FIXED
    mark = {"key": 3, "label": 2}
    teacher = {"name": "cnn", "num_classes": 7, "watermark": mark}
    for smoke in (False, True):
        changes = {"teacher": teacher, "objective": objective, "smoke": smoke}
        config = parse_tree(tree | changes)
        assert config.teacher.num_classes == 7 and config.teacher.watermark.key == 3
        assert not config.shares_classes
    assert parse_tree(tiny_run).shares_classes


INNER = [
    {"kind": "features", "layers": [["a", "b"]]},
    {"kind": "relations", "student_layer": "a", "teacher_layer": "b"},
]


@pytest.mark.parametrize("objective", INNER)
def test_gradients_that_overlap_need_a_loss_of_the_answers(tiny_run, objective):
    tree = {key: value for key, value in tiny_run.items() if key != "augmentor_optim"} | FIXED
    tree["distributed"] = {"overlap": True}
    for weight in ("ce_weight", "kd_weight"):
        assert parse_tree(tree | {"objective": objective | {weight: 0.1}}).distributed.overlap
    parse_tree(tree | {"objective": objective, "distributed": {}})
    with pytest.raises(ConfigError) as caught:
        parse_tree(tree | {"objective": objective})
    told = str(caught.value)
    assert "distributed.overlap = true: " in told and "set ce_weight or kd_weight" in told
    assert "\n" not in told


GENERATOR = {"augmentor": {"kind": "generator"}, "schedule": {"kind": "joint"}}
NONE = {"data": {"kind": "digits", "val_share": 0.0, "train_zeros": 64}}


@pytest.mark.parametrize("objective", ["dafl", "kd"])
def test_a_generator_needs_no_data(tiny_run, objective):
    config = parse_tree(tiny_run | GENERATOR | NONE | {"objective": {"kind": objective}})
    assert config.data.train_zeros == 64 and not config.data.reads_train


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (NONE, "data.train_zeros: use augmentor.kind = 'generator'"),
        ({"objective": {"kind": "dafl"}}, "rewards augmentor.kind = 'generator'"),
        (GENERATOR, "has no label and no original"),
        (GENERATOR | {"objective": {"kind": "cudfkd"}}, "use 'alternate' with 'cudfkd'"),
        (
            GENERATOR | {"objective": {"kind": "dafl"}, "schedule": {"kind": "threshold"}},
            "use 'alternate' with 'dafl'",
        ),
        (
            GENERATOR | {"objective": {"kind": "cudfkd"}, "schedule": {"kind": "alternate"}},
            "set bank.capacity = 0",
        ),
        ({"objective": {"kind": "cudfkd"}, "data": LINE}, "rewards augmentor.kind = 'generator'"),
    ],
)
def test_what_does_not_fit_a_generator_is_one_line(tiny_run, changes, words):
    with pytest.raises(ConfigError) as caught:
        parse_tree(tiny_run | changes)
    assert words in str(caught.value) and "\n" not in str(caught.value)
