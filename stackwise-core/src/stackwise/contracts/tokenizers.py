"""The tokenizers of a run: what turns text into the token ids of its loaders, kept whole with the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from attrs import evolve, frozen

from stackwise.contracts.answers import calling, expect

if TYPE_CHECKING:
    from stackwise.contracts.generation import TextCodec


@frozen(kw_only=True)
class Tokenizer:
    """Everything that turns text into ids and ids into text."""

    vocabulary: str
    """What the fingerprints of loaders call the vocabulary."""
    files: Mapping[str, bytes]
    """File name → content; nothing else is needed to encode and to decode."""


@runtime_checkable
class HasTokenizer(Protocol):
    """The options of a loader whose ids come from a tokenizer, which then belongs to the run.

    Sources of one run with equal settings share one tokenizer. It lies in the run directory, beside the final weights and in every export;
    whatever goes on from there uses it as it is. Loaders are built with options that have it, so one may rely on it; a field that is no
    option of a config keeps it:

    ```python
    @frozen(kw_only=True)
    class MorseOptions:
        text: str = option(doc="what is keyed")
        kept: Tokenizer | None = field(default=None, init=False, eq=False)

        def with_tokenizer(self, tokenizer):
            bound = evolve(self)
            object.__setattr__(bound, "kept", tokenizer)
            return bound
    ```
    """

    def tokenizer_settings(self) -> Mapping[str, Any] | None:
        """What the config says of the tokenizer, as JSON, without reading anything; None where no text is tokenized."""
        ...

    def make_tokenizer(self, sources: Sequence[Any] | None) -> Tokenizer | None:
        """The tokenizer that the settings ask for.

        Args:
            sources: options of the sources with these settings whose training documents a vocabulary is learnt from, in the order in
                which the timeline names them; None while a run is planned, when no data is read.

        Returns:
            None where only the data can say, and none may be read.

        Raises:
            UserError: a file that cannot be read, or data that no vocabulary can be learnt from.
        """
        ...

    def with_tokenizer(self, tokenizer: Tokenizer) -> Any:
        """The same options, whose loader uses the tokenizer of the run."""
        ...

    @staticmethod
    def codec_of(tokenizer: Tokenizer) -> TextCodec:
        """Text ↔ ids."""
        ...


@frozen(kw_only=True)
class RunTokenizer:
    """A tokenizer of a run, and what asks for it."""

    use: str
    """A loader that uses it (`data.text-files`); its provider reads the files."""
    settings: Mapping[str, Any]
    """What the options of that loader say of it."""
    tokenizer: Tokenizer


@frozen
class Tokenizers:
    """The tokenizers of a run, one for each of the settings that its sources declare."""

    entries: tuple[RunTokenizer, ...] = ()

    def find(self, use: str, options: Any) -> Tokenizer | None:
        """The one that a loader's options ask for; None where they ask for none, or for one that is not among these."""
        if (settings := settings_of(use, options)) is None:
            return None
        return next((entry.tokenizer for entry in self.entries if shares_tokenizer((entry.use, entry.settings), (use, settings))), None)

    def bind(self, use: str, options: Any) -> Any:
        """A loader's options with the tokenizer that they ask for; unchanged where there is none."""
        tokenizer = self.find(use, options)
        if tokenizer is None:
            return options
        with calling(use, "with_tokenizer"):
            bound = options.with_tokenizer(tokenizer)
            expect(isinstance(bound, type(options)), bound, f"options as they were, a {type(options).__name__},")
        return bound

    def of_vocabulary(self, vocabulary: str) -> RunTokenizer | None:
        """The one of a vocabulary."""
        return next((entry for entry in self.entries if entry.tokenizer.vocabulary == vocabulary), None)

    def with_entry(self, entry: RunTokenizer) -> Tokenizers:
        """These and one more."""
        return evolve(self, entries=(*self.entries, entry))


def settings_of(use: str, options: Any) -> Mapping[str, Any] | None:
    """What the options of a loader say of its tokenizer; None where they have none.

    Raises:
        WrongAnswer: it is not a map.
    """
    if not isinstance(options, HasTokenizer):
        return None
    with calling(use, "tokenizer_settings"):
        settings = options.tokenizer_settings()
        expect(settings is None or isinstance(settings, Mapping), settings, "a map or None")
    return settings


def made_tokenizer(use: str, options: HasTokenizer, sources: Sequence[Any] | None) -> Tokenizer | None:
    """The tokenizer that the options of a loader make, of these sources.

    Raises:
        WrongAnswer: it is none.
    """
    with calling(use, "make_tokenizer"):
        tokenizer = options.make_tokenizer(sources)
        may_lack = sources is None
        expect(isinstance(tokenizer, Tokenizer) or (may_lack and tokenizer is None), tokenizer, "a Tokenizer")
    return tokenizer


def shares_tokenizer(one: tuple[str, Mapping[str, Any]], other: tuple[str, Mapping[str, Any]]) -> bool:
    """Whether two loaders, each given by its id and its settings, use one tokenizer: those of one provider with equal settings do."""
    (use, settings), (other_use, other_settings) = one, other
    return use.partition(".")[0] == other_use.partition(".")[0] and _plain(settings) == _plain(other_settings)


def _plain(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)
