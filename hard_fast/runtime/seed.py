"""Randomness as a pure function of (run, stream, step, rank), so that nothing random is saved."""

import hashlib

import torch


def derive_seed(run: int, stream: str, step: int = 0, rank: int = 0) -> int:
    """A 63-bit seed that depends on all four arguments and on nothing else."""
    key = f"{run}/{stream}/{step}/{rank}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def reseed(
    generator: torch.Generator, run: int, stream: str, step: int = 0, rank: int = 0
) -> torch.Generator:
    """The same generator, set to the start of the stream of (run, stream, step, rank)."""
    return generator.manual_seed(derive_seed(run, stream, step, rank))
