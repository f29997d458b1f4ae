"""The loaders of records: lines of JSON, and rows of a dataset on disk."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from stackwise import BatchSpec, BuildContext, DataError
from stackwise_providers_data.array_shapes import with_bounds
from stackwise_providers_data.chat import Conversations, open_conversations
from stackwise_providers_data.corpus import Corpus
from stackwise_providers_data.examples import Assemble, Examples, Fields, TextColumns
from stackwise_providers_data.permutation import Indices
from stackwise_providers_data.record_options import RecordOptions
from stackwise_providers_data.records import RecordDocuments, open_texts
from stackwise_providers_data.spans import Spans
from stackwise_providers_data.splits import Part, part_of
from stackwise_providers_data.text_rows import TextRows, check_pad, cut_rows, make_walk
from stackwise_providers_data.tokenizer_options import pad_id, vocab_size
from stackwise_providers_data.walk import EpochWalk


def build_records(options: RecordOptions, context: BuildContext) -> TextRows | Examples:
    """The factory of `jsonl` and of `hf-dataset`.

    Raises:
        DataError: no files or records, a record that does not hold what is asked, a split without records.
        UserError: a library that is missing, or a cache that cannot be written.
    """
    documents, part = options.documents(), part_of(context, options.heldout)
    mode = options.mode
    if mode == "features":
        return _features(documents, options, context, part)
    check_pad(options.pad, vocab_size(options.tokenizer))
    pad = pad_id(options.pad, options.tokenizer)
    if mode == "text":
        return cut_rows(open_texts(documents, part), options, options.to_spec(), context, pad=pad)
    if isinstance(documents, Conversations):
        return cut_rows(open_conversations(documents, part), options, options.to_spec(), context, pad=pad)
    corpus = open_texts(documents, part)
    columns, spec = TextColumns(corpus, options.columns, pad), options.to_spec()
    digest = corpus.fingerprint["sha256"]
    if mode == "labelled":
        labels = documents.labels(part)
        digest = hashlib.sha256(digest.encode() + labels.tobytes()).hexdigest()
        assemble: Assemble = columns.labelled(labels)
        spec = _with_labels(spec, options, labels)
    elif mode == "preference":
        assemble = columns.preference
    else:
        assemble = columns.separate if options.layout == "separate" else columns.joined
    units = _whole_examples(corpus, len(options.columns))
    walk = make_walk(corpus, len(units), lambda: units, options, context)
    fingerprint = {**corpus.fingerprint, "sha256": digest}
    is_cut = mode in ("reply", "preference") and options.layout != "separate"
    responses = columns.responses if is_cut else None
    return Examples(assemble, spec, walk=walk, fingerprint=fingerprint, name=documents.name, responses=responses)


def _with_labels(spec: BatchSpec, options: RecordOptions, labels: npt.NDArray[np.int64]) -> BatchSpec:
    """The spec with the labels that there are, so that one too large for the model is refused before the run."""
    return spec if options.classes is not None else with_bounds(spec, {"label": (int(labels.min()), int(labels.max()))})


def _whole_examples(corpus: Corpus, columns: int) -> Spans:
    """From the first token of each example's first column to the last of its last.

    Raises:
        DataError: an example without a token.
    """
    spans = corpus.spans()
    units = Spans(spans.starts[::columns], spans.stops[columns - 1 :: columns])
    if len(empty := np.flatnonzero(units.stops <= units.starts)):
        raise DataError(f"{corpus.name}: example {int(empty[0])} of {len(units)} of this part holds no text: remove it")
    return units


def _features(documents: RecordDocuments, options: RecordOptions, context: BuildContext, part: Part) -> Examples:
    features, labels = documents.numbers(part, options.width), documents.labels(part)
    digest = hashlib.sha256(features.tobytes() + labels.tobytes()).hexdigest()

    def assemble(examples: Indices, length: int) -> Fields:
        return {"features": features[examples], "label": labels[examples]}

    walk = EpochWalk(len(labels), seed=context.seed, shuffle=options.shuffle, repeat=options.repeat, unit="rows", name=documents.name)
    if part == "training":
        walk.apply_values({"exposed": options.exposed})
    fingerprint: dict[str, Any] = {documents.records.noun: len(labels), "sha256": digest}
    spec = _with_labels(options.to_spec(), options, labels)
    return Examples(assemble, spec, walk=walk, fingerprint=fingerprint, name=documents.name)
