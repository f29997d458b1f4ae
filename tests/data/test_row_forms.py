"""Packed and padded rows, against simulations that go token by token."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from stackwise import BatchSpec, BuildContext, DataError, EpochSize, TensorSpec, UserError
from stackwise_providers_data.corpus import Corpus
from stackwise_providers_data.permutation import Permutation
from stackwise_providers_data.row_options import RowOptions
from stackwise_providers_data.text_rows import TextRows, cut_rows

TOKENS = TensorSpec("batch time", "int64")
INTEGERS = TensorSpec("batch time", "int64")
lengths_of_documents = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) >= 8)


def _corpus(sizes: list[int]) -> Corpus:
    """Documents 10..., 20..., with 0 between them."""
    tokens: list[int] = []
    starts: list[int] = []
    for i, size in enumerate(sizes):
        tokens += [0] if i else []
        starts.append(len(tokens))
        tokens += range(100 * (i + 1), 100 * (i + 1) + size)
    return Corpus("corpus", np.array(tokens, dtype=np.uint16), np.array(starts), 1, {"tokens": len(tokens)})


def _loader(sizes: list[int], options: RowOptions, *, longest: int | None = 4, seed: int = 2, split: str = "train") -> TextRows:
    return cut_rows(_corpus(sizes), options, options.fields(TOKENS), BuildContext(seed=seed, max_length=longest, split=split))


@settings(max_examples=examples(80))
@given(sizes=lengths_of_documents, page=st.integers(1, 6), seed=st.integers(0, 5), data=st.data())
def test_packed_rows_tell_documents_apart(sizes: list[int], page: int, seed: int, data: st.DataObject) -> None:
    corpus = _corpus(sizes)
    packed, stream = (_loader(sizes, RowOptions(rows=form), longest=page, seed=seed) for form in ("packed", "stream"))
    document_of = [sum(start <= place for start in corpus.starts) for place in range(len(corpus.tokens))]
    pages = len(corpus.tokens) // page
    places = [
        place
        for epoch in range(12)
        for number in Permutation(pages, seed=seed, epoch=epoch)(np.arange(pages)).tolist()
        for place in range(number * page, (number + 1) * page)
    ]
    first = 0
    for rows, length in data.draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), max_size=4)):
        batch = packed.take(rows, length)
        assert torch.equal(batch["tokens"], stream.take(rows, length)["tokens"])
        for row in range(rows):
            read = places[first : first + length]
            segments, positions = [0], [0]
            for before, here in itertools.pairwise(read):
                # a separator ends the document before it, so that documents begin at their first token
                goes_on = here == before + 1 and document_of[here] == document_of[before]
                segments.append(segments[-1] if goes_on else segments[-1] + 1)
                positions.append(positions[-1] + 1 if goes_on else 0)
            assert batch["segments"][row].tolist() == segments
            assert batch["positions"][row].tolist() == positions
            assert batch["tokens"][row].tolist() == corpus.tokens[read].tolist()
            first += length


def test_a_document_without_a_token_starts_nothing_of_its_own() -> None:
    batch = _loader([3, 0, 2], RowOptions(rows="packed", shuffle=False), longest=7).take(1, 7)
    assert batch["tokens"].tolist() == [[100, 101, 102, 0, 0, 300, 301]]
    assert batch["segments"].tolist() == [[0, 0, 0, 0, 1, 2, 2]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3, 0, 0, 1]]


@settings(max_examples=examples(60))
@given(
    sizes=lengths_of_documents,
    overflow=st.sampled_from([None, "truncate", "split"]),
    pad=st.sampled_from([None, 7]),
    asked=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), max_size=5),
)
def test_padded_rows_hold_one_document_each(sizes: list[int], overflow: str | None, pad: int | None, asked: list[tuple[int, int]]) -> None:
    loader = _loader(sizes, RowOptions(rows="padded", overflow=overflow, pad=pad))
    documents = [list(range(100 * (i + 1), 100 * (i + 1) + size)) for i, size in enumerate(sizes) if size]
    if overflow == "split":
        documents = [document[first : first + 4] for document in documents for first in range(0, len(document), 4)]
    total = sum(rows for rows, _ in asked)
    order = [
        number
        for epoch in range(total // len(documents) + 1)
        for number in Permutation(len(documents), seed=2, epoch=epoch)(np.arange(len(documents))).tolist()
    ]
    assert loader.epoch_size() == EpochSize(rows=len(documents))
    for rows, length in asked:
        batch = loader.take(rows, length)
        for row in range(rows):
            expected = documents[order.pop(0)][:length]
            missing = length - len(expected)
            assert batch["tokens"][row].tolist() == expected + [pad or 0] * missing
            assert batch["mask"][row].tolist() == [True] * len(expected) + [False] * missing
        assert (batch["tokens"].dtype, batch["mask"].dtype) == (torch.int64, torch.bool)


@pytest.mark.parametrize("options", [RowOptions(rows=form) for form in ("stream", "packed", "padded")], ids=lambda o: o.rows)
def test_the_spec_says_exactly_the_fields(options: RowOptions) -> None:
    added = {"stream": {}, "packed": {"segments": INTEGERS, "positions": INTEGERS}, "padded": {"mask": TensorSpec("batch time", "bool")}}
    assert options.fields(TOKENS) == BatchSpec(fields={"tokens": TOKENS, **added[options.rows or ""]})
    loader = _loader([5, 6, 7], options)
    batch = loader.take(2, 3)
    assert set(batch) == set(loader.get_batch_spec().fields)


@pytest.mark.parametrize("form", ["stream", "packed", "padded"])
@pytest.mark.parametrize("difficulty", [None, "rarity", "length", "compression"])
def test_every_form_goes_on_where_it_was(form: str, difficulty: str | None) -> None:
    options = RowOptions(rows=form, difficulty=difficulty, exposed=1.0 if difficulty is None else 0.3)
    whole, first, second = (_loader([9, 4, 6, 1, 0, 8, 3], options) for _ in range(3))
    expected = [whole.take(rows, length) for rows, length in ((2, 3), (1, 4), (5, 2), (3, 3))]
    for (rows, length), batch in zip(((2, 3), (1, 4)), expected, strict=False):
        assert all(torch.equal(found, batch[name]) for name, found in first.take(rows, length).items())
    second.take(4, 4)
    second.load_state_dict(first.state_dict())
    for (rows, length), batch in zip(((5, 2), (3, 3)), expected[2:], strict=True):
        assert all(torch.equal(found, batch[name]) for name, found in second.take(rows, length).items())


def test_exposure_opens_the_easy_documents_first() -> None:
    sizes = [9, 1, 8, 2, 7, 3, 6, 4, 5, 10]
    loader = _loader(sizes, RowOptions(rows="padded", difficulty="length", exposed=0.3), longest=10)
    assert {int(row.sum()) for row in loader.take(60, 10)["mask"]} == {1, 2, 3}
    loader.apply_values({"exposed": 0.6})
    assert {int(row.sum()) for row in loader.take(200, 10)["mask"]} == {1, 2, 3, 4, 5, 6}
    held = _loader(sizes, RowOptions(rows="padded", difficulty="length", exposed=0.3), longest=10, split="final")
    held.apply_values({"exposed": 0.3})
    assert {int(row.sum()) for row in held.take(10, 10)["mask"]} == set(range(1, 11))


def test_one_epoch_where_nothing_repeats() -> None:
    padded = _loader([3, 4, 5], RowOptions(rows="padded", repeat=False))
    padded.take(2, 4)
    with pytest.raises(DataError, match="its one epoch of 3 rows has 1 left where 2 are asked for"):
        padded.take(2, 4)
    stream = _loader([3, 4, 5], RowOptions(repeat=False))
    stream.take(3, 4)
    with pytest.raises(DataError, match="its one epoch of 12 tokens has 0 left"):
        stream.take(1, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pad": 3}, "pad: only padded rows"),
        ({"rows": "packed", "overflow": "split"}, "overflow: only padded rows"),
        ({"exposed": 1.5}, "exposed: 1.5 is above"),
    ],
)
def test_options_without_effect(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        RowOptions(**options)


def test_exposed_needs_a_difficulty() -> None:
    with pytest.raises(UserError, match="nothing ranks the data"):
        _loader([5, 6], RowOptions(exposed=0.5))


def test_padded_rows_need_a_token() -> None:
    with pytest.raises(DataError, match="no document holds a token"):
        _loader([0, 0], RowOptions(rows="padded"))
    with pytest.raises(DataError, match=r"declare data\.seq_len"):
        _loader([5, 6], RowOptions(rows="padded")).take(2, None)


@pytest.mark.parametrize("form", ["stream", "packed", "padded"])
@pytest.mark.parametrize("exposed", [None, 0.4])
@given(asked=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.booleans()), max_size=6))
def test_what_is_skipped_is_what_would_have_been_taken(form: str, exposed: float | None, asked: list[tuple[int, int, bool]]) -> None:
    options = RowOptions(rows=form, difficulty=None if exposed is None else "rarity", exposed=exposed or 1.0)
    whole, skipping = (_loader([9, 4, 6, 1, 0, 8, 3], options) for _ in range(2))
    for rows, length, skip in asked:
        batch = whole.take(rows, length)
        if skip:
            skipping.skip(rows, length)
        else:
            assert all(torch.equal(found, batch[name]) for name, found in skipping.take(rows, length).items())
        assert skipping.state_dict() == whole.state_dict()
