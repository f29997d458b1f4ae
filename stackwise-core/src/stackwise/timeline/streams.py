"""Random streams by name: every consumer draws from a stream of its own, a pure function of (seed, consumer, step)."""

from __future__ import annotations

from hashlib import blake2b

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def stream_key(seed: int, *consumer: object) -> int:
    """The 64-bit key of a consumer's stream (`stream_key(7, "init", "rack")`)."""
    text = "\x1f".join(map(str, (seed, *consumer)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def step_seed(key: int, step: int) -> int:
    """The 63-bit seed of a stream at one step: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014, figure 17) over key and step."""
    z = (key + _GOLDEN * (step + 1)) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 1


def micro_batch_seed(key: int, step: int, index: int) -> int:
    """The 63-bit seed of a stream at one micro-batch of a step; that of the first is the seed of the step."""
    seed = step_seed(key, step)
    return step_seed(seed, index) if index else seed
