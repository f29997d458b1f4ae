"""Random streams by name: every consumer draws from a stream of its own, a pure function of (seed, consumer, step)."""

from __future__ import annotations

from hashlib import blake2b

_MASK = (1 << 64) - 1
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The constants of SplitMix64."""


def stream_key(seed: int, *consumer: object) -> int:
    """The 64-bit key of a consumer's stream (`stream_key(7, "init", "rack")`)."""
    text = "\x1f".join(map(str, (seed, *consumer)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def step_seed(key: int, step: int) -> int:
    """The 63-bit seed of a stream at one step: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014, figure 17) over key and step."""
    z = (key + GOLDEN * (step + 1)) & _MASK
    z = ((z ^ (z >> 30)) * FIRST) & _MASK
    z = ((z ^ (z >> 27)) * SECOND) & _MASK
    return (z ^ (z >> 31)) >> 1
