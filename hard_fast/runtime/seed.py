"""Randomness as a pure function of (run, stream, step, rank), so that nothing random is saved."""

import hashlib

import torch


def derive_seed(run: int, stream: str, step: int = 0, rank: int = 0) -> int:
    """A 63-bit seed that depends on all four arguments and on nothing else."""
    key = f"{run}/{stream}/{step}/{rank}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def default_generator(device: torch.device) -> torch.Generator:
    """The generator that dropout on this device reads.

    Seeding it costs microseconds; `torch.manual_seed` visits every backend, a millisecond.
    """
    is_cuda = device.type == "cuda"
    return torch.cuda.default_generators[device.index] if is_cuda else torch.default_generator


def reseed(
    generator: torch.Generator, run: int, stream: str, step: int = 0, rank: int = 0
) -> torch.Generator:
    """The same generator, set to the start of the stream of (run, stream, step, rank)."""
    return generator.manual_seed(derive_seed(run, stream, step, rank))
