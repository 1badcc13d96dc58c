"""One of two gloo processes that torchrun starts for test_parallel.py; it runs the named checks."""

import copy
import sys

import torch
from torch import Tensor, nn

from hard_fast.runtime import dist, parallel
from hard_fast.runtime.dist import World


class Scaled(nn.Module):
    """A network with all that is awkward: blocks in lists, a lone weight, a scalar parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        block = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.blocks = nn.Sequential(*(nn.Sequential(*copy.deepcopy(block)) for _ in range(3)))
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.head = nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B,5]."""
        return self.head(self.blocks(self.stem(image)).mean((2, 3))) * self.scale


def network() -> nn.Module:
    torch.manual_seed(0)
    return Scaled().to(memory_format=torch.channels_last)


def images(world: World, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(10 * step + world.rank)
    return torch.randn(4, 3, 6, 6, generator=generator)


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


def check_overlap(world: World, gradient_dtype: str, is_compiled: bool) -> None:
    """Student and augmentor phases in turn, with a frozen stem: gradients are those of mean_."""
    expected, student = network(), network()
    learning = [
        [p for name, p in net.named_parameters() if not name.startswith("stem")]
        for net in (expected, student)
    ]
    for net in (expected, student):
        net.stem.requires_grad_(False)
    wrapped = parallel.overlapped(student, world, gradient_dtype)
    call, call_bare = wrapped, student
    if is_compiled:
        call, call_bare = (torch.compile(n, backend="aot_eager") for n in (wrapped, student))
    optimizers = [torch.optim.SGD(parameters, lr=0.1) for parameters in learning]
    exactness = {"rtol": 1e-6, "atol": 1e-6}
    if gradient_dtype == "bf16":
        exactness = {"rtol": 2**-6, "atol": 2**-9}
    for step, is_student_phase in enumerate([True, False, True, False, True, True]):
        if step == 2:
            # Both phases are known now.
            torch.compiler.set_stance("fail_on_recompile")
        image = images(world, step).requires_grad_(not is_student_phase)
        for parameter in sum(learning, []):
            parameter.requires_grad_(is_student_phase)
        expected(image).square().sum().backward()
        image_grad, image.grad = image.grad, None
        (call if is_student_phase else call_bare)(image).square().sum().backward()
        if not is_student_phase:
            torch.testing.assert_close(image.grad, image_grad, **exactness)
            assert not gradients(student)
            continue
        dist.mean_(gradients(expected))
        assert len(gradients(student)) == len(learning[0]) == 15
        for got, want in zip(gradients(student), gradients(expected), strict=True):
            torch.testing.assert_close(got, want, **exactness)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        # The next step compares gradients at the same weights.
        student.load_state_dict(expected.state_dict())
    torch.compiler.set_stance("default")


def check_accumulation(world: World, is_compiled: bool) -> None:
    """Parts of a batch inside no_sync, a second forward, and one without gradient beside it."""
    expected, student = network(), network()
    wrapped = parallel.overlapped(student, world)
    call = torch.compile(wrapped, backend="aot_eager") if is_compiled else wrapped
    parts = [images(world, step) for step in range(3)]
    for part in parts[:2]:
        with wrapped.no_sync():
            call(part).square().sum().backward()
    with torch.no_grad():
        call(parts[0])
    (call(parts[2]).square().sum() + call(parts[1]).sum()).backward()
    for part in parts[:2]:
        expected(part).square().sum().backward()
    expected(parts[0])
    (expected(parts[2]).square().sum() + expected(parts[1]).sum()).backward()
    dist.mean_(gradients(expected))
    for got, want in zip(gradients(student), gradients(expected), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    own, total = student.blocks[0][1].running_mean, student.blocks[0][1].running_mean.clone()
    dist.sum_(total)
    assert not torch.equal(total, 2 * own), "statistics are each process's own"


def check_sharded(world: World, dtype: torch.dtype) -> None:
    """Outputs and image gradients of the replicated teacher, from half of its bytes."""
    whole = network().to(dtype).requires_grad_(False).eval()
    sharded = copy.deepcopy(whole)
    parallel._MIN_BLOCK_BYTES = 512
    assert len(list(parallel._blocks(sharded))) == 3
    parallel.shard_(sharded, world)
    assert parallel.is_sharded(sharded) and not parallel.is_sharded(whole)
    local = [p.to_local() if hasattr(p, "to_local") else p for p in sharded.parameters()]
    num_bytes = sum(p.numel() * p.element_size() for p in local)
    all_bytes = sum(p.numel() * p.element_size() for p in whole.parameters())
    # The head has five rows, so that one process holds three of them.
    assert 0.45 * all_bytes < num_bytes < 0.58 * all_bytes, (num_bytes, all_bytes)
    for step in range(2):
        image = images(world, step).to(dtype).requires_grad_()
        found = []
        for net in (whole, sharded):
            output = net(image)
            (grad,) = torch.autograd.grad(output.square().sum(), image)
            found.append((output, grad))
        tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype is torch.float32 else {}
        torch.testing.assert_close(found[1], found[0], **tolerance)
    with torch.no_grad():
        # This process has three batches, the other one.
        own = [images(world, step).to(dtype) for step in range(3 if world.is_main else 1)]
        seen = [sharded(torch.zeros_like(own[0]) if b is None else b) for b in dist.in_step(own)]
        assert len(seen) == 3
        torch.testing.assert_close(seen[0], whole(own[0]), **tolerance)


def check(name: str, world: World) -> None:
    """Run one of the checks; an assertion fails if it does not hold."""
    match name:
        case "overlap":
            check_overlap(world, "fp32", is_compiled=False)
            check_overlap(world, "bf16", is_compiled=False)
            check_accumulation(world, is_compiled=False)
        case "compiled":
            check_overlap(world, "fp32", is_compiled=True)
            check_accumulation(world, is_compiled=True)
        case "sharded":
            check_sharded(world, torch.float32)
            check_sharded(world, torch.bfloat16)
        case _:
            raise ValueError(name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    check(sys.argv[1], here := dist.join("cpu", timeout_s=60))
    dist.barrier()
    print(f"rank {here.rank} is through")
    dist.end(0)
