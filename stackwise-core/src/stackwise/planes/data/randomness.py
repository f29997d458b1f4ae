"""The process-wide generators: torch's, numpy's and Python's, seeded for code of the user's and put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.random import mtrand  # np.random has both functions, its stubs do not


def seed_process(seed: int) -> None:
    """Seed the generators that user code draws from without naming one (torch's on the CPU)."""
    torch.default_generator.manual_seed(seed)
    seed_others(seed)


def seed_others(seed: int) -> None:
    """Seed numpy's and Python's."""
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


_OWN_BITS = np.random.MT19937()
"""Put in the place of numpy's while user code runs: much cheaper than copying its state out and in again."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run user code on generators of its own: what it draws depends on the seed alone, and nobody else's draws change."""
    before = torch.default_generator.get_state(), random.getstate(), mtrand.get_bit_generator()
    mtrand.set_bit_generator(_OWN_BITS)
    seed_process(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before[0])
        random.setstate(before[1])
        mtrand.set_bit_generator(before[2])
