"""How rows are cut from documents, as a config says it: shared by every loader of text or token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import frozen

from stackwise import BatchSpec, EpochSize, TensorSpec, UserError, option, scheduled

if TYPE_CHECKING:
    from stackwise_providers_data.corpus import Corpus

_INTEGERS = TensorSpec("batch time", "int64")
_MASK = TensorSpec("batch time", "bool")


@frozen(kw_only=True)
class RowOptions:
    """Order, repetition, the form of the rows, and what is exposed of the data."""

    rows: Literal["stream", "packed", "padded"] | None = option(
        None,
        doc="`stream`: rows follow one another through all documents (the default); `packed`: the same, with `segments` and `positions`; "
        "`padded`: one document a row, with `mask`",
    )
    pad: int | None = option(
        None, doc="id after the end of a padded row; when left out the pad token that the tokenizer names, else 0", minimum=0
    )
    overflow: Literal["truncate", "split"] | None = option(
        None, doc="padded documents longer than the longest row: cut off (the default), or cut into several rows"
    )
    difficulty: Literal["length", "compression", "rarity"] | None = option(
        None, doc="how pages (of padded rows: documents) are ranked, easiest first: mean document length, zlib ratio, or token rarity"
    )
    exposed: float = scheduled(
        1.0, doc="share of the data that training sees, the easiest by `difficulty`; evaluations see all", minimum=0, maximum=1
    )
    shuffle: bool = option(True, doc="whether every epoch has an order of its own")
    repeat: bool = option(True, doc="whether another epoch follows the first; without, asking for more is an error")

    def __attrs_post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Check that every option has an effect.

        Raises:
            UserError: an option without effect.
        """
        for key in ("pad", "overflow"):
            if not self.is_padded and getattr(self, key) is not None:
                raise UserError(f"{key}: only padded rows have a use for it: set rows: padded, or leave it out")

    @property
    def is_padded(self) -> bool:
        """Whether a row holds one document."""
        return self.rows == "padded"

    def fields(self, tokens: TensorSpec) -> BatchSpec:
        """`tokens`, and what the form of the rows adds."""
        extra = {"packed": {"segments": _INTEGERS, "positions": _INTEGERS}, "padded": {"mask": _MASK}}.get(
            "padded" if self.is_padded else self.rows or "stream", {}
        )
        return BatchSpec(fields={"tokens": tokens, **extra})

    def epoch_in(self, corpus: Corpus) -> EpochSize | None:
        """What one epoch of a corpus holds."""
        spans = corpus.spans()
        return self.epoch_of((spans.stops - spans.starts).tolist(), corpus.between)

    def epoch_of(self, documents: list[int], between: int) -> EpochSize | None:
        """What one epoch holds, from the numbers of tokens of the documents and of the separators between two.

        The last page of a stream, when it is not full, is counted here and left out of the built loader's size.
        """
        if not self.is_padded:
            return EpochSize(entries=sum(documents) + between * max(0, len(documents) - 1), repeats=self.repeat)
        return None if self.overflow == "split" else EpochSize(rows=sum(size > 0 for size in documents), repeats=self.repeat)
