import torch

from bench import trainers
from bench.trainers import PHASES, Pair
from hard_fast.models.taps import bare

CPU = torch.device("cpu")
TINY = Pair("test_resnet", "test_resnet", 32, 4)


def build(tmp_path, kind):
    networks = trainers.draw_networks(TINY, tmp_path)
    batch = trainers.draw_batch(TINY, CPU)
    trainer = trainers.build_trainer(trainers.run_tree(TINY, kind, networks, CPU), kind, batch)
    return trainer, networks, batch


def test_networks_and_batch_are_the_same_at_every_call(tmp_path):
    first, second = (trainers.draw_networks(TINY, tmp_path) for _ in range(2))
    for one, other in zip(first[:2], second[:2], strict=True):
        pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    batch, again = (trainers.draw_batch(TINY, CPU) for _ in range(2))
    assert torch.equal(batch.image, again.image) and torch.equal(batch.label, again.label)
    assert batch.image.dtype == torch.uint8
    assert batch.image.is_contiguous(memory_format=torch.channels_last)


def test_a_trainer_starts_with_the_drawn_student_and_stays_in_its_phase(tmp_path):
    for kind, phase in PHASES.items():
        trainer, networks, batch = build(tmp_path / kind, kind)
        want = networks.student.state_dict()
        got = bare(trainer.student).state_dict()
        assert all(torch.equal(got[name], value) for name, value in want.items())
        assert trainer.loader.next_batch() is batch
        for _ in range(3):
            assert trainer.train_step() is None
            assert trainer.last_phase is phase
        moved = any(
            not torch.equal(p, want[n]) for n, p in bare(trainer.student).named_parameters()
        )
        assert moved == (kind != "HARD augmentor phase")


def test_counting_leaves_no_gradients_and_grows_with_the_batch(tmp_path):
    trainer, networks, batch = build(tmp_path, "KD")
    count = trainers.count_phase(trainer, "KD", batch)
    assert all(parameter.grad is None for parameter in trainer.net.parameters())
    twice = type(batch)(*(torch.cat([values, values]) for values in batch))
    assert trainers.count_phase(trainer, "KD", twice) == 2 * count
    double = TINY._replace(batch_size=8)
    bounds = [trainers.bound_of("KD", networks, pair) for pair in (TINY, double)]
    assert bounds[1] == 2 * bounds[0]


def test_the_loss_of_a_step_is_that_of_its_phase(tmp_path):
    trainer, _, batch = build(tmp_path, "KD")
    trainer.student.train()
    want = float(trainers.phase_loss(trainer, "KD", batch).detach())
    other, _, _ = build(tmp_path, "KD")
    assert abs(trainers.step_loss(other) / want - 1) < 1e-6
