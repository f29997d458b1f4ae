"""What a task and a loader implement so that a run can generate text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from attrs import frozen

from stackwise.errors import UserError

if TYPE_CHECKING:
    import torch

from stackwise.contracts.protocols import Batch


@frozen(kw_only=True)
class GenerationSettings:
    """How a model continues a prompt.

    Raises:
        UserError: a value out of its range.
    """

    tokens: int
    """Number of tokens to generate."""
    temperature: float = 1.0
    """Logits are divided by it before a token is drawn; 0: the most likely token is taken."""
    top_k: int | None = None
    """Draw only among the k most likely tokens."""
    top_p: float | None = None
    """Draw only among the smallest set of most likely tokens whose probabilities sum to at least this."""
    steps: int | None = None
    """Number of forward passes of a task that fills in several tokens at once; None: as many as tokens."""
    cache: bool = True
    """Whether keys and values of earlier tokens are kept, if the model supports it."""
    ids: int | None = None
    """Only ids below this one (those of the loader) may be generated; None: all ids of the model."""
    stop: tuple[int, ...] = ()
    """Ids that end a continuation; the one that does is its last."""
    hear: Callable[[int, int], bool | None] | None = None
    """Called with (number of the prompt, id) as each token is drawn; the continuation ends where it returns True."""

    def __attrs_post_init__(self) -> None:
        rules = (
            ("tokens", self.tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "a finite number of at least 0"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("steps", self.steps is None or self.steps >= 1, "at least 1"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise UserError(f"{name}: {getattr(self, name)} is out of range: it is {rule}")


@runtime_checkable
class Generates(Protocol):
    """A task whose model can continue a prompt."""

    def generate(
        self,
        model: Callable[[Batch], Mapping[str, torch.Tensor]],
        prompt: torch.Tensor,
        settings: GenerationSettings,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """The prompt [T] with `settings.tokens` tokens after it, fewer where `stop` or `hear` end it; int64; every draw comes from the
        generator.

        Raises:
            UserError: a prompt that is empty where one is needed, or too long; a setting that has no effect on this task.
        """
        ...


@runtime_checkable
class GeneratesFields(Protocol):
    """A task whose model makes rows that are not text, such as images."""

    def generate_fields(
        self, model: Callable[[Batch], Mapping[str, torch.Tensor]], count: int, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """New rows by field, [count, …]; every draw comes from the generator."""
        ...


@runtime_checkable
class GeneratesRows(Protocol):
    """A task that continues several prompts at once."""

    def generate_rows(
        self,
        model: Callable[[Batch], Mapping[str, torch.Tensor]],
        prompts: Sequence[torch.Tensor],
        settings: GenerationSettings,
        generators: Sequence[torch.Generator],
    ) -> Sequence[torch.Tensor]:
        """What `generate` gives for each prompt [T] with its own generator, whatever the other prompts are. `hear` gets its number."""
        ...


@runtime_checkable
class Scores(Protocol):
    """A task that can compute the likelihood of a given continuation."""

    def score(
        self, model: Callable[[Batch], Mapping[str, torch.Tensor]], rows: Sequence[torch.Tensor], given: Sequence[int]
    ) -> Sequence[tuple[float, bool]]:
        """For every row the log-probability of its continuation in nats, and whether each token of it is the most likely one in its place.

        Args:
            model: the model in evaluation mode.
            rows: token ids, int64 [T], of any lengths.
            given: how many entries of each row are context, at least one and fewer than all; the rest is the continuation.
        """
        ...


class TextCodec(Protocol):
    """Text ↔ the token ids of a loader. A codec with an attribute `start` says by it which id stands before text that nothing precedes."""

    def encode(self, text: str) -> Sequence[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


@runtime_checkable
class HasTextCodec(Protocol):
    """The options of a loader whose ids stand for text, where no tokenizer of the run says it (`HasTokenizer`).

    ```python
    class Letters:
        def encode(self, text):
            return [ord(letter) - ord("a") for letter in text]

        def decode(self, ids):
            return "".join(chr(ord("a") + id) for id in ids)


    class LettersOptions:
        def text_codec(self, fingerprint):
            return Letters()
    ```
    """

    def text_codec(self, fingerprint: Mapping[str, Any]) -> TextCodec | None:
        """The codec of the ids that the loader delivers; None where these options deliver no text.

        Args:
            fingerprint: what the loader said of its data when the model was trained; empty where nothing is known.

        Raises:
            DataError: what the codec is made from is gone, or is not what it was.
        """
        ...
