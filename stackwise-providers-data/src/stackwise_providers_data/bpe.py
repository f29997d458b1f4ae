"""Byte-level BPE vocabularies that are learnt from text, once for the same text and settings."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from stackwise_providers_data.cache import obtain
from stackwise_providers_data.documents import Documents, digest_of
from stackwise_providers_data.extras import require
from stackwise_providers_data.progress_lines import ProgressLines
from stackwise_providers_data.tokenization import as_text
from stackwise_providers_data.tokenizer_files import JSON, SETTINGS, TokenizerFile
from stackwise_providers_data.tokenizer_options import SEPARATOR, BpeTraining


def learn_bpe(options: BpeTraining, texts: Sequence[Documents]) -> TokenizerFile:
    """A vocabulary learnt from training documents alone, those of all texts one after the other, equal texts once.

    Args:
        options: its size, and what is merged.
        texts: in the order in which they are read.

    Raises:
        UserError: the tokenizers library is not installed, or the cache cannot be written.
        DataError: documents that cannot be read, or that are not UTF-8.
    """
    library = require("tokenizers", "tokenizers", "tokenizer: a vocabulary larger than the bytes")
    texts = list({_identity(text): text for text in texts}.values())
    identity = f"{attrs.asdict(options)} {library.__version__} {digest_of(texts, 'training')}"
    name = f"bpe-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"
    path, notes = obtain(name, lambda folder: _train(library, options, texts, folder))
    if (learnt := int(notes["vocab"])) < options.vocab:
        print(
            f"data: {', '.join(text.name for text in texts)}: the vocabulary has {learnt:,} tokens where {options.vocab:,} were asked for: "
            f"the text has no more pairs that stand in it {options.min_frequency} times; the ids above are never read",
            file=sys.stderr,
        )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SEPARATOR, "split_special_tokens": True}
    files = {JSON: (path / JSON).read_bytes(), SETTINGS: (json.dumps(settings, indent=1) + "\n").encode()}
    return TokenizerFile("the vocabulary that was learnt", files)


def _identity(text: Documents) -> str:
    return json.dumps([text.name, [str(path.resolve()) for path in text.files()], text.identity()])


def _train(library: Any, options: BpeTraining, texts: Sequence[Documents], folder: Path) -> Mapping[str, Any]:
    byte_level = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=options.vocab,
        min_frequency=options.min_frequency,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(byte_level.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_contents(texts), trainer)
    tokenizer.save(str(folder / JSON))
    return {"vocab": tokenizer.get_vocab_size()}


def _contents(texts: Sequence[Documents]) -> Iterator[str]:
    names = ", ".join(text.name for text in texts)
    progress, read = ProgressLines(f"{names}: learning a vocabulary, megabytes read", 0, scale=10**6), 0
    for text in texts:
        for label, content in text.read("training"):
            read += len(content)
            progress.reached(read)
            yield as_text(label, content)
