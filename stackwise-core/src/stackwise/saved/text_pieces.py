"""What is generated, as text: piece by piece, and cut where a text ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stackwise.contracts.generation import TextCodec

Hear = Callable[[int, str | int], None]
"""Called with the number of a prompt and what was generated after it: a piece of text, or an id where prompts are ids."""


class Continuation:
    """What was generated after one prompt, as text.

    Args:
        codec: None where ids are shown as they are.
        stop: texts that end it.
    """

    def __init__(self, codec: TextCodec | None, stop: Sequence[str]) -> None:
        self._codec, self._stop = codec, stop
        self._ids: list[int] = []
        self._given = 0
        self.text = ""
        """So far, cut in front of a text that ended it."""

    def take(self, id: int) -> tuple[str | int, bool]:
        """A further id: the text that it completes, and whether a stop text ends here."""
        if self._codec is None:
            return id, False
        self._ids.append(id)
        whole = self._codec.decode(self._ids)
        ends = [place for text in self._stop if (place := whole.find(text)) >= 0]
        self.text = whole[: min(ends)] if ends else whole
        held = max((len(text) - 1 for text in self._stop), default=0) if not ends else 0
        sure = self.text.rstrip("\ufffd")  # a letter of which some bytes are missing
        upto = max(self._given, len(sure) - held)
        piece, self._given = sure[self._given : upto], upto
        return piece, bool(ends)

    def rest(self) -> str:
        """What was held back, in case it began a text to stop at."""
        piece, self._given = self.text[self._given :], len(self.text)
        return piece


def take_pieces(
    continuations: Sequence[Continuation], hear: Hear | None, also: Callable[[int, int], bool | None] | None
) -> Callable[[int, int], bool]:
    """The callback of the drawing of tokens: passes on pieces, and says whether a continuation ends.

    Args:
        continuations: one for each prompt.
        hear: gets each piece as it is known.
        also: another callback, which may end a continuation too.
    """

    def take_id(number: int, id: int) -> bool:
        piece, ends = continuations[number].take(id)
        if hear is not None and piece != "":
            hear(number, piece)
        return ends or bool(also is not None and also(number, id))

    return take_id


def numbered(hear: Callable[[int, int], bool | None], number: int) -> Callable[[int, int], bool | None]:
    """The callback for one prompt among several; it is always called with that prompt's number, whatever number the task passes."""
    return lambda _, id: hear(number, id)
