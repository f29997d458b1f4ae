"""The loaders of files of text."""

from __future__ import annotations

from stackwise import BuildContext
from stackwise_providers_data.corpus import open_corpus
from stackwise_providers_data.options import FileCorpusOptions, StdlibOptions, TextFilesOptions
from stackwise_providers_data.splits import part_of
from stackwise_providers_data.text_rows import TextRows, check_pad, cut_rows
from stackwise_providers_data.tokenizer_options import pad_id, vocab_size


def build_python_stdlib(options: StdlibOptions, context: BuildContext) -> TextRows:
    """The factory of `python-stdlib`.

    Raises:
        DataError: no sources where the library says they are, or a split without files.
    """
    return _build(options, context)


def build_text_files(options: TextFilesOptions, context: BuildContext) -> TextRows:
    """The factory of `text-files`.

    Raises:
        DataError: a glob without a match, a file that cannot be read, a split without files, fewer tokens than one row.
        UserError: a tokenizer whose library is missing, or a cache that cannot be written.
    """
    return _build(options, context)


def _build(options: FileCorpusOptions, context: BuildContext) -> TextRows:
    check_pad(options.pad, vocab_size(options.tokenizer))
    corpus = open_corpus(options.documents(), options.tokenizer, part_of(context, options.heldout))
    return cut_rows(corpus, options, options.to_spec(), context, pad=pad_id(options.pad, options.tokenizer))
