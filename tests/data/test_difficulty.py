"""Rankings by difficulty, against measures written out."""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackwise import DataError
from stackwise_providers_data import difficulty
from stackwise_providers_data.difficulty import rank
from stackwise_providers_data.spans import Spans

tokens_of = st.lists(st.integers(0, 5), min_size=4, max_size=60).map(lambda ids: np.array(ids, dtype=np.uint16))


def _pages(tokens: np.ndarray, size: int) -> Spans:
    begins = np.arange(len(tokens) // size) * size
    return Spans(begins, begins + size)


def _ranked(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (round(scores[i], 9), i))


@given(tokens=tokens_of, size=st.integers(1, 4), chunk=st.integers(1, 7))
def test_rarity_is_the_sum_of_surprisals(tokens: np.ndarray, size: int, chunk: int) -> None:
    pages, counts = _pages(tokens, size), Counter(tokens.tolist())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(difficulty, "_CHUNK", chunk)
        found = rank("rarity", tokens, pages, None, whole=False, name="corpus").tolist()
    scores = [sum(-log(counts[t] / len(tokens)) for t in tokens[a:b].tolist()) for a, b in zip(pages.starts, pages.stops, strict=True)]
    assert all(scores[a] <= scores[b] + 1e-9 for a, b in itertools.pairwise(found))
    assert sorted(found) == list(range(len(scores)))


@given(tokens=tokens_of, size=st.integers(1, 4))
def test_compression_is_the_ratio_of_zlib(tokens: np.ndarray, size: int) -> None:
    pages = _pages(tokens, size)
    raw = [tokens[a:b].tobytes() for a, b in zip(pages.starts, pages.stops, strict=True)]
    expected = _ranked([len(zlib.compress(page)) / len(page) for page in raw])
    assert rank("compression", tokens, pages, None, whole=False, name="corpus").tolist() == expected


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=10), size=st.integers(1, 5))
def test_length_of_a_page_is_the_mean_over_its_tokens(sizes: list[int], size: int) -> None:
    tokens = np.zeros(sum(sizes), dtype=np.uint8)
    starts = np.cumsum([0, *sizes[:-1]])
    length_at = [length for length in sizes for _ in range(length)]
    pages = _pages(tokens, size)
    if len(pages):
        scores = [sum(length_at[a:b]) / size for a, b in zip(pages.starts, pages.stops, strict=True)]
        assert rank("length", tokens, pages, starts, whole=False, name="corpus").tolist() == _ranked(scores)


def test_length_of_documents() -> None:
    spans = Spans(np.array([0, 5, 7, 10]), np.array([5, 7, 10, 12]))
    assert rank("length", np.zeros(12), spans, None, whole=True, name="corpus").tolist() == [1, 3, 2, 0]


def test_length_of_pages_needs_documents() -> None:
    with pytest.raises(DataError, match="corpus: a difficulty by length needs documents"):
        rank("length", np.zeros(8), _pages(np.zeros(8), 2), None, whole=False, name="corpus")
