"""Every file in configs/: it is understood, says what it is, shrinks, and runs shrunk."""

import re

import pytest
import timm
import torch

from hard_fast.augment import build_augmentor
from hard_fast.augment.autoencoder import build_generator
from hard_fast.data import load_data
from hard_fast.data.readers import Cifar10Config
from hard_fast.evals.runner import evaluate
from hard_fast.models.taps import Tapped
from hard_fast.models.zoo import NetworkConfig, build_network
from hard_fast.runtime.configfile import CONFIG_FOLDER, find, read
from hard_fast.runtime.dist import World
from hard_fast.study_plan import load_study
from hard_fast.train import load_config, train
from hard_fast.train_config import check_batches

CPU = torch.device("cpu")
NAMES = [
    str(file.relative_to(CONFIG_FOLDER).with_suffix(""))
    for file in sorted(CONFIG_FOLDER.rglob("*.toml"))
]
TABLES = [
    *("mnist_table1", "mnist_table1_vit"),
    *("cifar10_table2", "cifar10_table2_r101_vit", "cifar10_table2_r101_r18"),
    *("imagenet_table3_r18", "imagenet_table3_vit_s"),
]


def runs_of(name, *overrides):
    """Every run of a file by its row: of a study those of its first seed, else one named run."""
    if "study" not in read(name).tree:
        return {"run": load_config(name, list(overrides))}
    found = {}
    for run in load_study(name, list(overrides))[1]:
        found.setdefault(run.row, run.config)
    return found


def makers(augmentor):
    """The kinds of an augmentor and of its parts, with the networks in them."""
    if augmentor.kind == "compose":
        return [kind for part in augmentor.parts for kind in makers(part)]
    return [augmentor.kind, *([augmentor.net] if augmentor.kind == "autoencoder" else [])]


def smoke_runs():
    """File and row of every run; all are slow but the first of each kind."""
    seen = set()
    for name in NAMES:
        for row, config in runs_of(name, "smoke=true").items():
            kind = (config.data.kind, *makers(config.augmentor), config.objective.kind)
            marks = [pytest.mark.slow] if kind in seen else []
            seen.add(kind)
            yield pytest.param(name, row, marks=marks, id=f"{name}:{row}")


def generators(augmentor):
    """The autoencoders of an augmentor, without their files."""
    if augmentor.kind == "compose":
        return [found for part in augmentor.parts for found in generators(part)]
    if augmentor.kind != "autoencoder":
        return []
    return [augmentor.model_copy(update={"checkpoint": None})]


def group_of(config):
    """How many images the augmentor of a run mixes together."""
    part = load_data(config.data, CPU).train
    return build_augmentor(config.augmentor, part.image_shape, part.is_picture).group


@pytest.mark.parametrize("name", NAMES)
def test_every_run_is_understood_and_its_batches_can_be_cut(name):
    whole, small = runs_of(name), runs_of(name, "smoke=true")
    assert whole.keys() == small.keys()
    for row, config in whole.items():
        # Shrinking keeps groups, and spares building large generators.
        group = group_of(small[row])
        check_batches(config.train, num_processes=8 if "imagenet" in name else 1, group=group)
        check_batches(small[row].train, num_processes=2, group=group)
        assert small[row].train.steps == 3 and small[row].data.kind in ("line", "synthetic")
        kinds = (makers(config.augmentor), config.objective.kind, config.schedule.kind)
        shrunk = (makers(small[row].augmentor), small[row].objective.kind, small[row].schedule.kind)
        assert kinds == shrunk


@pytest.mark.parametrize("name", NAMES)
def test_a_header_has_the_command_what_to_expect_and_the_hardware(name):
    file = CONFIG_FOLDER / f"{name}.toml"
    lines = file.read_text().splitlines()
    header = " ".join(line.removeprefix("#") for line in lines[: lines.index("")])
    program = "study" if "study" in read(name).tree else "train"
    commands = re.findall(r"-m hard_fast\.(\w+)\s+--config (\S+)", header)
    assert commands and all(found == program for found, _ in commands)
    assert all(find(config) == file for _, config in commands)
    assert re.search(r"\b[Ee]xpected\b", header)
    assert re.search(r"\bGPUs?\b|\bcores\b", header)


def test_every_row_of_a_table_has_the_papers_number_beside_it():
    for name in TABLES:
        tree = read(name).tree
        assert tree["study"]["paper"].keys() == tree["rows"].keys()
        for numbers in tree["study"]["paper"].values():
            assert set(numbers) == set(tree["study"]["metrics"])


def test_networks_that_shrinking_replaces_are_built_as_configured():
    runs = [config for name in NAMES for config in runs_of(name).values()]
    pictures = {"cifar10": (10, 3, 32), "pictures": (1000, 3, 224), "line": (1, 1, 1)}
    pictures["npz"] = (100, 3, 32)
    built = set()
    # Without memory, for the largest has a billion bytes.
    with torch.device("meta"):
        for config in runs:
            kind, networks = config.data.kind, [config.student, config.teacher]
            num_classes, channels, size = pictures[kind] if kind in pictures else (10, 1, 28)
            for network in filter(None, networks):
                bare = network.model_copy(
                    update={"checkpoint": None, "pretrained": False, "new_head": False}
                )
                if (key := bare.model_dump_json() + kind) not in built:
                    built.add(key)
                    sizes = {"num_classes": num_classes, "in_channels": channels}
                    build_network(bare, **sizes, image_size=size)
            for generator in generators(config.augmentor):
                if (key := generator.model_dump_json()) not in built:
                    built.add(key)
                    build_generator(generator).noise_shapes(1, size, size)
    assert len(built) >= 15


@pytest.mark.parametrize("student", ["r18", "vit_s"])
def test_a_row_on_imagenet_is_the_run_of_that_name(student):
    for row, config in runs_of(f"imagenet_table3_{student}").items():
        alone = load_config(f"imagenet/{row}_{student}", [])
        assert config.fingerprint == alone.fingerprint, row


@pytest.mark.parametrize("student", ["vit", "r18"])
def test_the_fine_tuned_teacher_is_the_same_everywhere(student):
    rows = runs_of(f"cifar10_table2_r101_{student}")
    assert rows["teacher"].fingerprint == load_config("cifar10/teacher_r101", []).fingerprint
    taught = rows["kd"].teacher
    assert taught.name == "resnet101.tv_in1k" and taught.options == {"output_stride": 8}
    assert not taught.pretrained and taught.checkpoint.endswith("student.safetensors")


def test_columns_of_table_2_share_what_does_not_depend_on_the_teacher():
    one, other = runs_of("cifar10_table2"), runs_of("cifar10_table2_r101_vit")
    for row in ("student", "standard", "random_affine"):
        assert one[row].fingerprint == other[row].fingerprint
    strict = runs_of("cifar10_table2_r101_r18")
    for row in ("hard_affine", "hard_vae", "hard_vae_affine"):
        schedule = strict[row].schedule
        assert (schedule.l_min, schedule.l_max, schedule.consecutive) == (0.05, 0.4, 10)


@pytest.mark.parametrize(("name", "row"), list(smoke_runs()))
def test_a_shrunk_run_reaches_its_end(name, row, tmp_path):
    config = runs_of(name, "smoke=true", "train.device=cpu")[row]
    summary = train(config.model_copy(update={"run_dir": str(tmp_path / "run")}))
    assert summary["steps"] == 3 and summary["metrics"]
    assert (summary["teacher"] is None) == (config.teacher is None or not config.shares_classes)
    if config.schedule.kind == "threshold":
        assert summary["phases"].keys() == {"student", "augmentor"}
    assert (tmp_path / "run" / "student.safetensors").is_file()


def test_the_robust_teachers_file_is_read_as_published(tmp_path):
    """torchvision's names behind DataParallel's prefix, beside what its training script kept."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    source = resnet50().eval()
    optimizer = torch.optim.SGD(source.parameters(), lr=0.1, momentum=0.9)
    content = {
        "epoch": 30,
        "arch": "resnet50",
        "state_dict": {f"module.{key}": value for key, value in source.state_dict().items()},
        "best_acc1": torch.tensor(75.8),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(content, tmp_path / "deepaugment_and_augmix.pth.tar")
    assert source.state_dict().keys() == timm.create_model("resnet50").state_dict().keys()

    wanted = load_config("imagenet/hard_affine_r18", []).teacher
    path = str(tmp_path / "deepaugment_and_augmix.pth.tar")
    network = NetworkConfig(name=wanted.name, checkpoint=path, options=wanted.options)
    teacher = build_network(network, num_classes=1000, in_channels=3, image_size=64, frozen=True)
    image = torch.rand(2, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = source((image - mean[:, None, None]) / std[:, None, None])
        torch.testing.assert_close(teacher(image), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "top1"), [(20, 91.73), (56, 93.39)])
def test_real_classifiers_on_all_test_pictures(real_data, depth, top1):
    (path,) = (real_data / "weights").glob(f"resnet{depth}-*.th")
    data = load_data(Cifar10Config(root=str(real_data / "cifar10")), CPU)
    network = NetworkConfig(name=f"cifar_resnet{depth}", checkpoint=str(path))
    teacher = build_network(network, num_classes=10, in_channels=3, image_size=32, frozen=True)
    found = evaluate(Tapped(teacher, ()), data.test, World(0, 1, CPU))
    # Sums in another order may turn one picture of 10,000.
    assert found["top1"] == pytest.approx(top1, abs=0.011)
