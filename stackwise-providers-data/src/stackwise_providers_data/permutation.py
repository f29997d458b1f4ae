"""A pseudo-random order of n items that costs no memory: a keyed Feistel network with cycle walking.

The network permutes the 2^b numbers of the smallest b bits that hold n - 1; a result of n or more goes through again until it is below n,
which leaves a permutation of the n (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, section 4).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Words = np.ndarray[Any, np.dtype[np.uint64]]
Indices = npt.NDArray[np.int64]

_ROUNDS = 8  # even, because the halves trade places (and, for odd b, sizes) at every round
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # finaliser of SplitMix64 (Steele et al., OOPSLA 2014)
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


class Permutation:
    """The order of `count` indices in an epoch; a pure function of (seed, epoch, index).

    Args:
        count: n, at least 1.
        seed: key of the family of orders.
        epoch: which order of the family.
    """

    def __init__(self, count: int, *, seed: int, epoch: int) -> None:
        self.count = count
        bits = max(2, (count - 1).bit_length())
        self._sizes = (bits - bits // 2, bits // 2)
        self._keys = np.random.SeedSequence([seed % 2**64, epoch]).generate_state(_ROUNDS, np.uint64)

    def __call__(self, indices: Indices) -> Indices:
        """Places (0..n-1) → the indices at these places, int64 of the same shape."""
        values = self._encrypt(indices.astype(np.uint64))
        while len(outside := np.flatnonzero(values >= self.count)):
            values[outside] = self._encrypt(values[outside])
        return values.astype(np.int64)

    def _encrypt(self, values: Words) -> Words:
        left_size, right_size = self._sizes
        left = values >> np.uint64(right_size)
        right = values & _mask(right_size)
        for key in self._keys:
            left, right = right, left ^ (scramble(right, key) & _mask(left_size))
            left_size, right_size = right_size, left_size
        return (left << np.uint64(right_size)) | right


def _mask(size: int) -> np.uint64:
    return np.uint64((1 << size) - 1)


def scramble(values: Words, key: np.uint64) -> Words:
    """The finaliser of SplitMix64 over `values` and a key."""
    mixed = values ^ key
    mixed = (mixed ^ (mixed >> _SHIFTS[0])) * _MIX[0]
    mixed = (mixed ^ (mixed >> _SHIFTS[1])) * _MIX[1]
    return mixed ^ (mixed >> _SHIFTS[2])
