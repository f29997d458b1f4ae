"""The virtual token stream, against a plain simulation of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from stackwise import BatchSpec, DataError, TensorSpec
from stackwise_providers_data import order
from stackwise_providers_data.permutation import Permutation
from stackwise_providers_data.token_stream import TokenStream

SPEC = BatchSpec(fields={"tokens": TensorSpec("batch time", "int64")})


def _stream(tokens: int = 103, *, page: int | None = 10, seed: int = 5, shuffle: bool = True) -> TokenStream:
    corpus = np.arange(tokens, dtype=np.uint16)
    return TokenStream(corpus, SPEC, seed=seed, page_tokens=page, shuffle=shuffle, fingerprint={"bytes": tokens}, name="corpus")


def _simulated(tokens: int, page: int, seed: int, epochs: int) -> list[int]:
    """Page after page, epoch after epoch, one token at a time."""
    stream: list[int] = []
    for epoch in range(epochs):
        for number in Permutation(tokens // page, seed=seed, epoch=epoch)(np.arange(tokens // page)).tolist():
            stream += range(number * page, (number + 1) * page)
    return stream


requests = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 12)), min_size=1, max_size=8)


@settings(max_examples=examples(60), deadline=None)
@given(tokens=st.integers(12, 150), page=st.integers(1, 12), seed=st.integers(0, 9), asked=requests)
def test_rows_are_the_stream_cut_up_whatever_the_lengths(tokens: int, page: int, seed: int, asked: list[tuple[int, int]]) -> None:
    stream = _stream(tokens, page=page, seed=seed)
    total = sum(rows * length for rows, length in asked)
    expected = _simulated(tokens, page, seed, total // (tokens // page * page) + 1)
    read: list[int] = []
    for rows, length in asked:
        batch = stream.take(rows, length)["tokens"]
        assert (batch.dtype, tuple(batch.shape)) == (torch.int64, (rows, length))
        read += batch.flatten().tolist()
    assert read == expected[:total]


def test_no_token_comes_twice_in_an_epoch_and_the_partial_page_not_at_all() -> None:
    stream = _stream(103, page=10)
    read = [token for length in (3, 7, 10, 5) for token in stream.take(4, length)["tokens"].flatten().tolist()]
    assert sorted(read) == list(range(100))
    assert stream.state_dict() == {"epoch": 1, "position": 0}


def test_every_epoch_has_an_order_of_its_own() -> None:
    stream = _stream(100)
    first, second = (stream.take(10, 10)["tokens"].flatten().tolist() for _ in range(2))
    assert first != second
    assert sorted(first) == sorted(second)


def test_unshuffled_pages_stay_where_they_are() -> None:
    assert _stream(shuffle=False).take(4, 9)["tokens"].flatten().tolist() == list(range(36))


def test_orders_longer_than_a_held_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _stream(100, page=4).take(30, 5)["tokens"]
    monkeypatch.setattr(order, "_CHUNK", 3)
    assert torch.equal(_stream(100, page=4).take(30, 5)["tokens"], whole)


@settings(max_examples=examples(30), deadline=None)
@given(asked=requests, cut=st.integers(0, 8))
def test_a_stream_put_back_at_any_cut_goes_on_the_same(asked: list[tuple[int, int]], cut: int) -> None:
    whole, first, second = _stream(), _stream(), _stream()
    expected = [whole.take(*request)["tokens"] for request in asked]
    for request in asked[:cut]:
        first.take(*request)
    second.take(3, 3)
    second.load_state_dict(first.state_dict())
    for request, rows in zip(asked[cut:], expected[cut:], strict=False):
        assert torch.equal(second.take(*request)["tokens"], rows)


@pytest.mark.parametrize(
    "state", [{}, {"epoch": 0}, {"epoch": 0, "position": 100}, {"epoch": -1, "position": 0}, {"epoch": "0", "position": 0}]
)
def test_places_that_are_none(state: dict[str, object]) -> None:
    with pytest.raises(DataError):
        _stream().load_state_dict(state)


@pytest.mark.parametrize(("rows", "length", "key"), [(None, 4, "batch_size"), (4, None, "seq_len")])
def test_a_stream_has_no_rows_of_its_own(rows: int | None, length: int | None, key: str) -> None:
    with pytest.raises(DataError, match=f"declare data.{key}"):
        _stream().take(rows, length)


def test_fewer_tokens_than_one_row() -> None:
    with pytest.raises(DataError, match="9 tokens are fewer than the 10 of one row"):
        _stream(9)


def test_without_a_longest_row_a_page_has_a_size_of_its_own() -> None:
    assert _stream(103, page=None).page_tokens == 103
    assert _stream(5000, page=None).page_tokens == 1024


def test_reading_leaves_the_corpus_alone() -> None:
    stream = _stream(shuffle=False)
    stream.take(1, 10)["tokens"].zero_()
    assert _stream(shuffle=False).take(1, 10)["tokens"].flatten().tolist() == list(range(10))
    stream.load_state_dict({"epoch": 0, "position": 0})
    assert stream.take(1, 10)["tokens"].flatten().tolist() == list(range(10))


@pytest.mark.parametrize("length", [4, 8])
@pytest.mark.parametrize("marked", [False, True])
def test_packed_rows_without_a_target_are_counted(length: int, marked: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """A target is a token of a document that is not its first in the row, and that is learnt where the corpus says which are."""
    random = np.random.default_rng(5)
    starts = np.flatnonzero(np.concatenate([[True], random.random(799) < 0.75])).astype(np.int64)
    beside = {"loss_mask": random.random(800) < 0.3} if marked else None
    source = TokenStream(
        np.arange(800), SPEC, seed=0, page_tokens=8, shuffle=False, fingerprint={}, name="text", starts=starts, beside=beside
    )
    batch = source.take(800 // length, length)
    targets = batch["segments"][:, 1:] == batch["segments"][:, :-1]
    if marked:
        targets &= batch["loss_mask"][:, 1:]
    missing = int((~targets.any(dim=1)).sum())
    (told,) = capsys.readouterr().err.splitlines()
    assert missing and f"{missing} of {800 // length} packed rows" in told
    source.take(1, length)
    assert not capsys.readouterr().err
