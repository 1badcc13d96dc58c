"""python -m bench.loader [--device auto|cpu|cuda] [--json FILE] [--full] [--threads N] [--root DIR]

Times what feeds training: read, decode, random resized crop, flip; `data.kind = "pictures"` beside
the loaders of torchvision, timm and FFCV. bench/README.md says what the rows mean.
"""

import contextlib
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from bench.timing import Row, Setting, command_line, make_row, note, prepare, write_rows
from hard_fast.data.dali import TrainLoader
from hard_fast.data.sources import PicturesConfig, read_pictures

NUM_PICTURES = {"cpu": 512, "cuda": 8192}
SHAPE = (375, 500)
SIZE = 224
BATCH = {"cpu": 64, "cuda": 512}
ROUNDS = {False: 4, True: 12}
STEP_BATCH = {"cpu": 16, "cuda": 512}
STEPS = {"cpu": 3, "cuda": 40}
"""Training steps in which the wait for data is measured, after as many to warm up."""

Epoch = Callable[[], int]
"""Goes once through all pictures and returns how many came."""


class Result(NamedTuple):
    """One epoch of one loader."""

    images_per_s: float
    cpu_ms: float


def write_pictures(root: Path, num: int) -> None:
    """JPEGs of 1/f noise, quality 90, about 96 KB each, in two classes."""
    generator = np.random.default_rng(0)
    rows, columns = np.meshgrid(*(np.fft.fftfreq(length) for length in SHAPE), indexing="ij")
    falloff = 1.0 / np.maximum(np.hypot(rows, columns), 1.0 / max(SHAPE))
    for part, count in (("train", num), ("val", 2)):
        for i in range(count):
            folder = root / part / f"class_{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            noise = np.fft.fft2(generator.standard_normal((3, *SHAPE))) * falloff
            picture = np.fft.ifft2(noise).real
            picture = 128 + 48 * picture / picture.std()
            picture = picture.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
            Image.fromarray(picture).save(folder / f"{i:05d}.jpg", quality=90)


def ours(root: Path, threads: int, batch_size: int, device: torch.device) -> Epoch:
    """The training pipeline of `data.kind = "pictures"`."""
    config = PicturesConfig(root=str(root), val_share=0.0, threads=threads)
    samples = read_pictures(config).train
    loader = TrainLoader(samples, config, batch_size=batch_size, seed=0, device=device)

    def epoch() -> int:
        for _ in range(loader.num_steps_per_epoch):
            loader.next_batch()
        return loader.num_steps_per_epoch * batch_size

    return epoch


def torchvision_pil(root: Path, threads: int, batch_size: int, device: torch.device) -> Epoch:
    """ImageFolder and DataLoader with PIL, as in torchvision's references: floats come out."""
    from torchvision import transforms

    chain = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()]
    chain += [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.25] * 3)]
    return _data_loader(root, threads, batch_size, device, transforms.Compose(chain), None)


def torchvision_decode(root: Path, threads: int, batch_size: int, device: torch.device) -> Epoch:
    """`decode_jpeg` and transforms v2 on uint8 tensors: the best JPEG peer, and bytes come out."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2

    chain = v2.Compose([v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()])

    def read(path: str) -> torch.Tensor:
        return decode_jpeg(read_file(path), ImageReadMode.RGB)

    return _data_loader(root, threads, batch_size, device, chain, read)


def _data_loader(root, threads, batch_size, device, transform, read) -> Epoch:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    options = {} if read is None else {"loader": read}
    data = ImageFolder(str(root / "train"), transform, **options)
    loader = DataLoader(
        data,
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=threads,
        persistent_workers=True,
    )
    return _through(loader, device)


def timm_loader(root: Path, threads: int, batch_size: int, device: torch.device) -> Epoch:
    """timm's dataset and `create_loader` with its default training transform."""
    from timm.data import create_dataset, create_loader

    data = create_dataset("", str(root / "train"))
    loader = create_loader(
        data,
        (3, SIZE, SIZE),
        batch_size,
        is_training=True,
        no_aug=False,
        color_jitter=None,
        num_workers=threads,
        use_prefetcher=device.type == "cuda",
        device=device,
        persistent_workers=True,
    )
    return _through(loader, device)


def _through(loader, device: torch.device) -> Epoch:
    def epoch() -> int:
        num = 0
        for image, _ in loader:
            num += len(image.to(device, non_blocking=True))
        return num

    return epoch


LOADERS = {
    "hard_fast": ours,
    "torchvision_pil": torchvision_pil,
    "torchvision_decode": torchvision_decode,
    "timm": timm_loader,
}


def measure(epochs: dict[str, Epoch], num_rounds: int) -> dict[str, list[Result]]:
    """Every loader's epochs, in turn; the first round of each only warms up."""
    found: dict[str, list[Result]] = {name: [] for name in epochs}
    for round_ in range(num_rounds + 1):
        for name, epoch in epochs.items():
            cpu, start = _cpu_s(), time.perf_counter()
            num = epoch()
            seconds, cpu_s = _settle() - start, _cpu_s() - cpu
            if round_:
                found[name].append(Result(num / seconds, 1e3 * cpu_s / num))
    return found


def _settle() -> float:
    """The moment since which nothing works any more: a queue that was full is full again.

    A loader that decodes ahead begins with batches at hand, and has to end with as many.
    """
    cpu, moment = _cpu_s(), time.perf_counter()
    while True:
        time.sleep(0.02)
        if _cpu_s() - cpu < 0.004:
            return moment
        cpu, moment = _cpu_s(), time.perf_counter()


def _cpu_s() -> float:
    """CPU seconds of this process, its threads, and its children, ended or not."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(each.ru_utime + each.ru_stime for each in used)
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError):
            # Past the name, which may hold blanks, the 12th and 13th fields are utime and stime.
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def stall_shares(root: Path, threads: int, device: torch.device) -> list[float]:
    """The share of each training step that is spent in `next_batch`, warm.

    On a GPU a ResNet50 teaches a ResNet18, batch 512, bf16; on a CPU a ResNet18 learns, batch 16.
    """
    is_gpu = device.type == "cuda"
    config = PicturesConfig(root=str(root), val_share=0.0, threads=threads)
    batch_size = STEP_BATCH[device.type]
    samples = read_pictures(config).train
    loader = TrainLoader(samples, config, batch_size=batch_size, seed=0, device=device)
    layout = {"device": device, "memory_format": torch.channels_last}
    student = timm.create_model("resnet18", num_classes=1000).to(**layout)
    teacher = timm.create_model("resnet50").to(**layout).eval() if is_gpu else None
    optimizer = torch.optim.SGD(student.parameters(), 0.01)
    shares = []
    for step in range(2 * STEPS[device.type]):
        start = time.perf_counter()
        batch = loader.next_batch()
        waited = time.perf_counter() - start
        image = batch.image.float() / 255
        with torch.autocast(device.type, torch.bfloat16, enabled=is_gpu):
            logits = student(image)
            with torch.no_grad():
                target = teacher(image) if teacher else torch.zeros_like(logits)
        loss = torch.nn.functional.kl_div(
            logits.float().log_softmax(1), target.float().softmax(1), reduction="batchmean"
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if is_gpu:
            # A wait shows only if the device has nothing left to do.
            torch.cuda.synchronize()
        if step >= STEPS[device.type]:
            shares.append(100 * waited / (time.perf_counter() - start))
    loader.close()
    return shares


def run(options: Namespace, setting: Setting, root: Path) -> list[Row]:
    """The rows of every loader that is installed."""
    device = setting.device
    threads = options.threads or min(8, len(os.sched_getaffinity(0)))
    case = (
        f"{NUM_PICTURES[device.type] if options.root is None else 'own'} JPEGs, {threads} threads"
    )
    epochs: dict[str, Epoch] = {}
    for name, build in LOADERS.items():
        try:
            epochs[name] = build(root, threads, BATCH[device.type], device)
        except ImportError as error:
            note(f"{name}: left out, not installed ({error})")
    note("ffcv: left out, it stores decoded or re-encoded pictures of its own, not JPEG files")
    rows = []
    for name, results in measure(epochs, ROUNDS[options.full]).items():
        speeds = [result.images_per_s for result in results]
        costs = [result.cpu_ms for result in results]
        rows.append(make_row("loader", case, name, "decode_crop_flip", "images/s", speeds, setting))
        rows.append(
            make_row("loader", case, name, "decode_crop_flip", "cpu_ms/image", costs, setting)
        )
    shares = stall_shares(root, threads, device)
    case = "resnet50 -> resnet18" if device.type == "cuda" else "resnet18"
    rows.append(make_row("loader", case, "hard_fast", "data_wait", "percent", shares, setting))
    return rows


def table_of(rows: list[Row]) -> Table:
    """A line per loader: pictures per second, CPU time of each, and that beside PIL's."""
    table = Table(title=f"{rows[0]['case']}, {rows[0]['device']}")
    for name in ("loader", "images/s", "CPU ms/image", "of torchvision_pil"):
        table.add_column(name, justify="left" if name == "loader" else "right")
    cost = {row["impl"]: row["p50"] for row in rows if row["unit"] == "cpu_ms/image"}
    speed = {row["impl"]: row["p50"] for row in rows if row["unit"] == "images/s"}
    for name in cost:
        share = cost[name] / cost["torchvision_pil"] if "torchvision_pil" in cost else float("nan")
        table.add_row(name, f"{speed[name]:.0f}", f"{cost[name]:.2f}", f"{share:.2f}")
    wait = rows[-1]
    table.caption = f"wait for data in a step of {wait['case']}: {wait['p50']:.2f} %"
    return table


def main(arguments: list[str] | None = None) -> int:
    """Time and print; the exit code is 0, or 2 for a mistake."""
    parser = command_line("loader", __doc__)
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder with train/ of your own")
    options = parser.parse_args(arguments)
    try:
        setting = prepare(options)
        with contextlib.ExitStack() as stack:
            root = options.root
            if root is None:
                root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                write_pictures(root, NUM_PICTURES[setting.device.type])
            rows = run(options, setting, root)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        write_rows(options.json, rows)
    Console().print(table_of(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
