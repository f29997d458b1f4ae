"""The loader of the rows that options ask for, over a corpus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from stackwise import BatchSpec, BuildContext, DataError
from stackwise_providers_data.banded_walk import BandedWalk
from stackwise_providers_data.corpus import Corpus
from stackwise_providers_data.difficulty import rank
from stackwise_providers_data.padded_rows import PaddedRows
from stackwise_providers_data.permutation import Indices
from stackwise_providers_data.row_options import RowOptions
from stackwise_providers_data.spans import Spans
from stackwise_providers_data.token_stream import TokenStream, page_size
from stackwise_providers_data.walk import EpochWalk, Walk

TextRows = TokenStream | PaddedRows

_PIECE_TOKENS = 1024


def cut_rows(
    corpus: Corpus, options: RowOptions, spec: BatchSpec, context: BuildContext, *, pad: int | None = None, has_documents: bool = True
) -> TextRows:
    """The loader of a corpus.

    Args:
        corpus: tokens and documents.
        options: the form of the rows, their order, what is exposed.
        spec: what the loader delivers.
        context: seed, split, longest row.
        pad: id after the end of padded rows; that of the options, or 0, when left out.
        has_documents: whether the corpus says where documents begin.

    Raises:
        DataError: fewer tokens than one row, no document with a token.
        UserError: `exposed` below 1 without a difficulty.
    """
    if options.is_padded:
        return _padded(corpus, options, spec, context, (options.pad or 0) if pad is None else pad)
    size = page_size(context.max_length, len(corpus.tokens))
    pages = len(corpus.tokens) // size
    starts = corpus.starts if has_documents else None
    walk = make_walk(corpus, pages, lambda: _pages(pages, size), options, context, size=size, starts=starts) if pages else None
    return TokenStream(
        corpus.tokens,
        spec,
        seed=context.seed,
        page_tokens=context.max_length,
        shuffle=options.shuffle,
        fingerprint=corpus.fingerprint,
        name=corpus.name,
        starts=corpus.starts if options.rows == "packed" else None,
        walk=walk,
        beside=corpus.beside,
    )


def _padded(corpus: Corpus, options: RowOptions, spec: BatchSpec, context: BuildContext, pad: int) -> PaddedRows:
    spans = corpus.spans().filled()
    if not len(spans):
        raise DataError(f"{corpus.name}: no document holds a token: give documents with text")
    if options.overflow == "split":
        spans = spans.split(context.max_length or _PIECE_TOKENS)
    walk = make_walk(corpus, len(spans), lambda: spans, options, context)
    return PaddedRows(
        corpus.tokens, spans, spec, pad=pad, walk=walk, fingerprint=corpus.fingerprint, name=corpus.name, beside=corpus.beside
    )


def _pages(count: int, size: int) -> Spans:
    begins = np.arange(count, dtype=np.int64) * size
    return Spans(begins, begins + size)


def make_walk(
    corpus: Corpus,
    count: int,
    units: Callable[[], Spans],
    options: RowOptions,
    context: BuildContext,
    *,
    size: int | None = None,
    starts: Indices | None = None,
) -> Walk:
    """The ordinary walk through the units, or one from easy to hard; evaluations see everything.

    Args:
        corpus: what the units are stretches of.
        count: number of units.
        units: where they lie; called only to rank them.
        options: order, difficulty, exposure.
        context: seed and split.
        size: tokens of a page; None where units are documents, each a row.
        starts: where documents begin; None where they are not known, or are the units.
    """
    order: dict[str, Any] = {
        "size": size or 1,
        "seed": context.seed,
        "shuffle": options.shuffle,
        "repeat": options.repeat,
        "unit": "rows" if size is None else "tokens",
        "name": corpus.name,
    }
    if context.split != "train":
        return EpochWalk(count, always_whole=True, **order)
    if options.difficulty is None:
        walk = EpochWalk(count, **order)
        walk.apply_values({"exposed": options.exposed})
        return walk
    ranked = rank(options.difficulty, corpus.tokens, units(), starts, whole=size is None, name=corpus.name)
    return BandedWalk(ranked, exposed=options.exposed, **order)


def check_pad(pad: int | None, vocab: int | None) -> None:
    """Check that the id to pad with is one of the vocabulary.

    Raises:
        DataError: it is not.
    """
    if pad is not None and vocab is not None and pad >= vocab:
        raise DataError(f"pad: {pad} is not an id of a vocabulary of {vocab}: ids lie in [0, {vocab})")
