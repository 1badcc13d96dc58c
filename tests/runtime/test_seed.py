import torch

from hard_fast.runtime.seed import default_generator, derive_seed, reseed


def test_seed_depends_on_every_argument_and_on_nothing_else():
    seeds = {
        derive_seed(0, "a"),
        derive_seed(1, "a"),
        derive_seed(0, "b"),
        derive_seed(0, "a", 1),
        derive_seed(0, "a", 0, 1),
    }
    assert len(seeds) == 5
    assert derive_seed(3, "noise", 7, 2) == derive_seed(3, "noise", 7, 2)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seed_is_the_same_on_every_machine():
    assert derive_seed(0, "noise", 5) == 6142490200584083408


def test_reseed_restarts_the_stream():
    generator = torch.Generator()
    first = torch.rand(3, generator=reseed(generator, 1, "x", 2))
    torch.rand(5, generator=generator)
    assert torch.equal(first, torch.rand(3, generator=reseed(generator, 1, "x", 2)))


def test_dropout_is_a_function_of_the_seed_given_to_the_default_generator():
    generator = default_generator(torch.device("cpu"))
    ones = torch.ones(64)
    drops = []
    for step in (1, 2, 1):
        reseed(generator, 0, "network", step)
        drops.append(torch.nn.functional.dropout(ones))
    assert torch.equal(drops[0], drops[2]) and not torch.equal(drops[0], drops[1])
