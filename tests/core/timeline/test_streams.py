"""Random streams by name."""

from __future__ import annotations

from hashlib import blake2b

from hypothesis import given
from hypothesis import strategies as st

from stackwise.timeline.streams import step_seed, stream_key

U64 = st.integers(0, 2**64 - 1)


def splitmix64(state: int, draws: int) -> list[int]:
    """The generator as its authors publish it: the state moves by the golden gamma, each state is mixed."""
    out = []
    for _ in range(draws):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        out.append(z ^ (z >> 31))
    return out


def test_the_reference_values_of_splitmix64() -> None:
    assert splitmix64(1234567, 2) == [6457827717110365317, 3203168211198807973]  # published with java.util.SplittableRandom's constants


@given(U64)
def test_the_seed_of_step_k_is_draw_k_of_splitmix64_without_its_lowest_bit(key: int) -> None:
    assert [step_seed(key, k) for k in range(5)] == [draw >> 1 for draw in splitmix64(key, 5)]


@given(U64, st.integers(0, 10**9))
def test_seeds_fit_what_torch_takes(key: int, step: int) -> None:
    assert 0 <= step_seed(key, step) < 2**63


def test_keys_differ_by_seed_by_consumer_and_by_where_its_parts_are_cut() -> None:
    keys = [stream_key(*parts) for parts in [(7,), (8,), (7, "a"), (7, "b"), (7, "a", "b"), (7, "ab"), (7, "a", 1), (7, "a1"), (71, "")]]
    assert len(set(keys)) == len(keys)
    assert stream_key(7, "a") == int.from_bytes(blake2b(b"7\x1fa", digest_size=8).digest(), "little")


def test_no_two_of_a_hundred_thousand_steps_share_a_seed() -> None:
    assert len({step_seed(stream_key(0, "task"), k) for k in range(100_000)}) == 100_000
