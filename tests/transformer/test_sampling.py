"""Temperature, top-k and top-p against an enumeration in plain Python, and draws against the probabilities they are made with."""

from __future__ import annotations

import math

import pytest
import torch
from fresh_draws import CHI_SQUARE, chi_square, fresh_generator
from hypothesis import given
from hypothesis import strategies as st

from stackwise import GenerationSettings, UserError
from stackwise_providers_transformer.sampling import chances, draw


def by_hand(logits: list[float], temperature: float, top_k: int | None, top_p: float | None) -> list[float]:
    """Walk down the ids from the likeliest, and stop as soon as enough are taken."""
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    falling = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:top_k]
    kept, reached, whole = [], 0.0, sum(weights[i] for i in falling)
    for i in falling:
        kept.append(i)
        reached += weights[i] / whole
        if top_p is not None and reached >= top_p:
            break
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(logits))]


LOGITS = st.lists(st.integers(-40, 40).map(lambda i: i / 8), min_size=1, max_size=12)  # eighths: with ties, and exact


@given(
    LOGITS,
    st.sampled_from([0.25, 0.7, 1.0, 3.0]),
    st.none() | st.integers(1, 14),
    st.none() | st.floats(0.01, 0.99).map(lambda p: round(p, 3) + 1e-5),
)
def test_what_is_left_is_what_a_walk_by_hand_leaves(
    logits: list[float], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    found = chances(torch.tensor([logits, logits[::-1]]).double(), temperature=temperature, top_k=top_k, top_p=top_p)
    for row, given_logits in zip(found.tolist(), (logits, logits[::-1]), strict=True):
        assert row == pytest.approx(by_hand(given_logits, temperature, top_k, top_p), abs=1e-12)


def test_known_shares() -> None:
    """Shares 1/2, 1/4, 1/8, 1/8: p of 1/2 needs one id, a little more needs two; all of it keeps all."""
    logits = torch.tensor([[0.125, 0.5, 0.25, 0.125]]).log().double()

    def left(**settings: object) -> list[float]:
        return list(chances(logits, **{"temperature": 1.0, "top_k": None, "top_p": None, **settings})[0].tolist())  # type: ignore[arg-type]

    assert left(top_p=0.499) == pytest.approx([0, 1, 0, 0])
    assert left(top_p=0.6) == pytest.approx([0, 2 / 3, 1 / 3, 0])
    assert left(top_k=3) == pytest.approx([1 / 7, 4 / 7, 2 / 7, 0])
    assert left(top_k=2, top_p=0.6) == pytest.approx([0, 1, 0, 0])
    assert left(temperature=0.5) == pytest.approx([1 / 22, 16 / 22, 4 / 22, 1 / 22])
    assert left(temperature=1e-300) == [0, 1, 0, 0]


def test_draws_have_their_probabilities() -> None:
    """χ² over 40,000 draws, above its bound once in a million."""
    generator = fresh_generator()
    logits = torch.randn(5, generator=generator)
    settings = GenerationSettings(tokens=1, temperature=0.8, top_k=4)
    ids = draw(logits.expand(40_000, 5), settings, generator)
    expected = torch.tensor(by_hand(logits.tolist(), 0.8, 4, None))
    counts = torch.bincount(ids, minlength=5)
    assert counts[expected == 0].sum() == 0
    assert chi_square(counts[expected > 0], expected[expected > 0] * 40_000) < CHI_SQUARE[3]


def test_greedy_takes_the_likeliest_and_only_ids_that_may_be() -> None:
    logits, generator = torch.tensor([[0.0, 3.0, 2.0, 5.0]]), torch.Generator()
    assert draw(logits, GenerationSettings(tokens=1, temperature=0), generator).tolist() == [3]
    assert draw(logits, GenerationSettings(tokens=1, temperature=0, ids=3), generator).tolist() == [1]
    drawn = draw(logits.expand(500, 4), GenerationSettings(tokens=1, temperature=50.0, ids=3), generator.manual_seed(0))
    assert set(drawn.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_told(value: float) -> None:
    with pytest.raises(UserError, match="weights have diverged"):
        draw(torch.tensor([[0.0, value]]), GenerationSettings(tokens=1), torch.Generator())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("steps", 0),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^{name}: "):
        GenerationSettings(**{"tokens": 1, name: value})  # type: ignore[arg-type]
