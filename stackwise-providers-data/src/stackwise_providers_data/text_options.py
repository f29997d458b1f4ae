"""What every loader of text declares of its tokenizer, which belongs to the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import attrs
from attrs import frozen

from stackwise import TextCodec, Tokenizer, option
from stackwise_providers_data.row_options import RowOptions
from stackwise_providers_data.tokenizer_files import byte_tokenizer
from stackwise_providers_data.tokenizer_options import BYTES, TOKENIZER_DOC, TokenizerChoice, check_tokenizer, settings_of

if TYPE_CHECKING:
    from stackwise_providers_data.documents import Documents

HELDOUT = 0.05
"""Share of the documents of a source that is held out when its options leave it open."""


@frozen(kw_only=True)
class TextOptions(RowOptions, ABC):
    """Text, tokenized."""

    tokenizer: TokenizerChoice = option(BYTES, doc=TOKENIZER_DOC)

    def check(self) -> None:
        """Check that the tokenizer is one.

        Raises:
            UserError: it is not.
        """
        super().check()
        check_tokenizer(self.tokenizer)

    @abstractmethod
    def documents(self) -> Documents:
        """The documents.

        Raises:
            DataError: none are found.
        """

    def tokenizer_settings(self) -> Mapping[str, Any] | None:
        """What the config says of the tokenizer, as JSON."""
        return settings_of(self.tokenizer)

    def make_tokenizer(self, sources: Sequence[Any] | None) -> Tokenizer | None:
        """The tokenizer of these options; a vocabulary that is learnt is learnt from the training documents of all `sources`.

        Args:
            sources: options of the sources that share it; None: no data is read, and None is returned where it would have to be.

        Raises:
            DataError: a file that cannot be read, or documents that no vocabulary can be learnt from.
            UserError: a library is missing, or the cache cannot be written.
        """
        if isinstance(self.tokenizer, str):
            return byte_tokenizer()
        file = self.tokenizer.read()
        if file is None and sources is not None and self.tokenizer.training is not None:
            from stackwise_providers_data.bpe import learn_bpe  # reads the data; the options alone read nothing

            file = learn_bpe(self.tokenizer.training, [source.documents() for source in sources])
        return None if file is None else Tokenizer(vocabulary=file.vocabulary, files=file.files)

    def with_tokenizer(self, tokenizer: Tokenizer) -> Self:
        """The same options, whose loader uses the tokenizer of the run."""
        return self if isinstance(self.tokenizer, str) else attrs.evolve(self, tokenizer=self.tokenizer.with_tokenizer(tokenizer))

    @staticmethod
    def codec_of(tokenizer: Tokenizer) -> TextCodec:
        """Text ↔ ids.

        Raises:
            UserError: the tokenizers library is not installed.
            DataError: the files are not a tokenizer.
        """
        from stackwise_providers_data.text_codec import codec_of  # numpy, which options do without

        return codec_of(tokenizer)
