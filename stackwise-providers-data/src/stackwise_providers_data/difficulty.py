"""Difficulty of stretches of tokens, by measures that need no model."""

from __future__ import annotations

import zlib
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stackwise import DataError
from stackwise_providers_data.permutation import Indices
from stackwise_providers_data.progress_lines import ProgressLines
from stackwise_providers_data.spans import Spans

Score = Literal["length", "compression", "rarity"]
Scores = npt.NDArray[np.float64]

_CHUNK = 1 << 20


def rank(score: Score, tokens: npt.NDArray[Any], units: Spans, starts: Indices | None, *, whole: bool, name: str) -> Indices:
    """Units in rising order of difficulty; equal ones stay in their order.

    Args:
        score: `length`: tokens of a document, for a page the mean of that over its tokens; `compression`: size after zlib over size
            before, the more compressible the easier; `rarity`: sum of -log of the tokens' frequencies in the corpus (Platanios et
            al., arXiv 1903.09848, section 4.1).
        tokens: ids, one axis.
        units: pages or documents, none empty.
        starts: where each document begins, from 0 and rising; None where documents are not known.
        whole: whether the units are documents.
        name: the corpus, for messages.

    Raises:
        DataError: `length` of pages where there are no documents.
    """
    begins, ends = units.starts, units.stops
    if score == "rarity":
        scores = _rarity(tokens, begins, ends, name)
    elif score == "compression":
        scores = _compression(tokens, begins, ends, name)
    elif whole:
        scores = (ends - begins).astype(np.float64)
    elif starts is not None:
        scores = _mean_length(begins, ends, starts, len(tokens))
    else:
        raise DataError(f"{name}: a difficulty by length needs documents: name their starts, or rank by compression or rarity")
    return np.argsort(scores, kind="stable").astype(np.int64, copy=False)


def _mean_length(begins: Indices, ends: Indices, starts: Indices, total: int) -> Scores:
    lengths = np.diff(np.append(starts, total)).astype(np.float64)
    before = np.concatenate([[0.0], np.cumsum(lengths**2)])

    def length_sum(places: Indices) -> Scores:
        """Sum of the document lengths of all tokens before each place."""
        documents = np.searchsorted(starts, places, side="right") - 1
        return before[documents] + (places - starts[documents]) * lengths[documents]

    return np.asarray((length_sum(ends) - length_sum(begins)) / (ends - begins), dtype=np.float64)


def _rarity(tokens: npt.NDArray[Any], begins: Indices, ends: Indices, name: str) -> Scores:
    progress = ProgressLines(f"{name}: counting tokens", len(tokens))
    counts = np.zeros(1, dtype=np.int64)
    for first in range(0, len(tokens), _CHUNK):
        chunk_counts = np.bincount(tokens[first : first + _CHUNK])
        counts = np.pad(counts, (0, max(0, len(chunk_counts) - len(counts))))
        counts[: len(chunk_counts)] += chunk_counts
        progress.reached(first)
    with np.errstate(divide="ignore"):
        nats = -np.log(counts / len(tokens))
    step = max(1, _CHUNK // max(1, int(np.max(ends - begins))))
    scores = np.empty(len(begins), dtype=np.float64)
    for first in range(0, len(begins), step):
        batch = slice(first, first + step)
        lengths = ends[batch] - begins[batch]
        places = np.repeat(begins[batch] - np.cumsum(lengths) + lengths, lengths) + np.arange(int(lengths.sum()))
        scores[batch] = np.add.reduceat(nats[tokens[places]], np.cumsum(lengths) - lengths)
    return scores


def _compression(tokens: npt.NDArray[Any], begins: Indices, ends: Indices, name: str) -> Scores:
    progress = ProgressLines(f"{name}: compressing", len(begins))
    scores = np.empty(len(begins), dtype=np.float64)
    for i, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
        raw = tokens[begin:end].tobytes()
        scores[i] = len(zlib.compress(raw, 6)) / len(raw)
        progress.reached(i)
    return scores
