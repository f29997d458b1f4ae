"""Options of the subtle components. Nothing here imports torch."""

from __future__ import annotations

from typing import Any

from attrs import evolve, field, frozen

from stackwise import BatchSpec, TaskSpec, TensorSpec, Tokenizer, option
from victims.broken_options import Words
from victims.sound_options import LoaderOptions, ReactionOptions, TaskOptions


@frozen(kw_only=True)
class TableOptions(LoaderOptions):
    def to_spec(self) -> BatchSpec:
        return BatchSpec(fields={"numbers": TensorSpec("batch 3"), "target": TensorSpec("batch")})


@frozen(kw_only=True)
class MaskedTaskOptions(TaskOptions):
    def to_spec(self) -> TaskSpec:
        return evolve(super().to_spec(), optional={"mask": TensorSpec("batch time", "bool")})


@frozen(kw_only=True)
class HeldoutOptions(ReactionOptions):
    def watches(self) -> tuple[str, ...]:
        return ("heldout.loss",)


@frozen(kw_only=True)
class WordOptions(LoaderOptions):
    """Has a tokenizer, without which its loader is not built."""

    tokenizer: Tokenizer | None = field(default=None, init=False)

    def tokenizer_settings(self) -> dict[str, Any]:
        return {"words": 2}

    def make_tokenizer(self, sources: Any) -> Tokenizer:
        return Tokenizer(vocabulary="two words", files={"words.txt": b"yes no"})

    def with_tokenizer(self, tokenizer: Tokenizer) -> WordOptions:
        given = evolve(self)
        object.__setattr__(given, "tokenizer", tokenizer)
        return given

    @staticmethod
    def codec_of(tokenizer: Tokenizer) -> Words:
        return Words()


@frozen(kw_only=True)
class ForgetfulWordOptions(WordOptions):
    """Forgets the scale once it has a tokenizer."""

    louder: bool = option(False, doc="whether levels are ten times as high")

    def with_tokenizer(self, tokenizer: Tokenizer) -> WordOptions:
        return WordOptions.with_tokenizer(evolve(self, louder=False), tokenizer)
