"""Whose fault a wrong value of a batch is: of a source, of a transform, and of their provider or their user."""

from __future__ import annotations

from collections.abc import Sequence

from stackwise.contracts.answers import mark
from stackwise.curriculum.parts import Part
from stackwise.errors import DataError, ProviderError, StackwiseError
from stackwise.planes.data.sources import Source


def fault_of(sources: Sequence[Source], transforms: Sequence[Part], fields: Sequence[str], value: int, sentence: str) -> StackwiseError:
    """The error for a value in a batch.

    A transform has made it where every source says the values of its fields and this is none of them; where no source says them,
    nobody can tell a source from a transform, and both are named.

    Args:
        sources: what the batch was mixed from.
        transforms: what it went through, in order.
        fields: that hold the value.
        value: what no place was found for.
        sentence: what is wrong with it, and what to do.
    """
    names = " and ".join(f"source '{source.name}'" for source in sources)
    said = [source.bounds(name) for source in sources for name in fields]
    outside = all(bounds is not None and not bounds[0] <= value < bounds[1] for bounds in said)
    if not transforms:
        broken = [source.part for source in sources if outside and source.part.given is None]
        return _error(broken, "take", f"{names}: {sentence}")
    made = f"the transform{'s' if transforms[1:] else ''} {', '.join(part.id for part in transforms)}"
    if outside:
        return _error([part for part in transforms if part.given is None], "a batch", f"{made} of {names}: {sentence}")
    return DataError(f"{names}, or {made}: {sentence}")


def _error(providers: Sequence[Part], callback: str, sentence: str) -> StackwiseError:
    """Of the provider of a part that breaks its word; of the user where there is none."""
    if not providers:
        return DataError(sentence)
    error = ProviderError(sentence)
    mark(error, providers[-1].id, callback)
    return error
