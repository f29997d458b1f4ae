"""Randomness that no test run has seen before, for statements that hold for every seed.

The seed is printed, so that a failure can be repeated. Tolerances of tests that draw freshly are five standard errors or wider: one
run in a million fails by chance.
"""

from __future__ import annotations

import secrets

import torch


def fresh_generator() -> torch.Generator:
    """A generator with a seed from the system."""
    seed = secrets.randbits(62)
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


def standard_error(values: torch.Tensor) -> float:
    """Standard error of the mean of independent values."""
    return float(values.double().std() / len(values) ** 0.5)


CHI_SQUARE = {1: 23.93, 2: 27.63, 3: 30.66, 4: 33.38, 9: 45.08}
"""Degrees of freedom → the value that χ² exceeds once in a million (tables of the chi-square distribution)."""


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """Pearson's statistic of counts against expected ones."""
    return float(((counts.double() - expected.double()) ** 2 / expected.double()).sum())
