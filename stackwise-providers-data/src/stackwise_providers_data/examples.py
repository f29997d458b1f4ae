"""Rows that hold one example each: a text and its class, a prompt and its response, or two responses to compare."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stackwise import BatchSpec, DataError
from stackwise_providers_data.corpus import Corpus
from stackwise_providers_data.padded_rows import gather_padded
from stackwise_providers_data.permutation import Indices
from stackwise_providers_data.walk import Walk, WalkedLoader

Fields = dict[str, npt.NDArray[Any]]
Assemble = Callable[[Indices, int], Fields]
"""Examples and the length of a row → the fields of a batch."""


class Examples(WalkedLoader):
    """A loader of rows that hold one example each.

    Args:
        assemble: makes the fields.
        spec: what they are.
        walk: the way through the examples.
        fingerprint: what they were read from.
        name: the source, for messages.
        responses: length of a row → whether each example has a token of its response in it, bool [examples]; None where nothing is cut off.
    """

    def __init__(
        self,
        assemble: Assemble,
        spec: BatchSpec,
        *,
        walk: Walk,
        fingerprint: Mapping[str, Any],
        name: str,
        responses: Callable[[int], npt.NDArray[np.bool_]] | None = None,
    ) -> None:
        super().__init__(walk, spec, fingerprint=fingerprint, name=name)
        self._assemble, self._responses = assemble, responses
        self._lengths: set[int] = set()
        """Lengths of rows whose responses have been looked at."""
        self._needs_length = any("time" in field.dims for field in spec.fields.values())

    def take(self, rows: int | None, length: int | None) -> dict[str, torch.Tensor]:
        """The next examples; fields with a time axis are `length` long.

        Raises:
            DataError: no number of rows, no length where texts are padded to it, one where nothing has it; or the end, where
                nothing repeats; or rows too short for any response.
        """
        self._look_at_responses(length or 0)
        chosen, _ = self._walk.advance(self._entries(rows, length))
        return {name: torch.from_numpy(array) for name, array in self._assemble(chosen, length or 0).items()}

    def _look_at_responses(self, length: int) -> None:
        """Say how many examples have no token of their response in rows of this length, once for each length.

        Raises:
            DataError: none has one.
        """
        if self._responses is None or length in self._lengths:
            return
        self._lengths.add(length)
        present = self._responses(length)
        if not (missing := int((~present).sum())):
            return
        if missing == len(present):
            raise DataError(
                f"{self.name}: none of its {missing} examples has a token of its response in rows of {length}, as responses are empty or "
                "prompts fill the rows: no response would be read: raise seq_len or shorten the prompts"
            )
        left = f"{missing} of {len(present)} examples have no token of their response in rows of {length}"
        print(f"data: {self.name}: {left}: no target, where the response alone counts", file=sys.stderr)

    def _entries(self, rows: int | None, length: int | None) -> int:
        if self._needs_length and not length:
            raise DataError(f"{self.name}: texts are padded to a declared size: declare data.seq_len")
        if length and not self._needs_length:
            raise DataError(f"{self.name}: rows of {length} entries are asked for, but features have no time axis: leave seq_len out")
        return super()._entries(rows, length)


class TextColumns:
    """Texts of a corpus whose documents are columns of examples, one example after another.

    Args:
        corpus: the texts; what follows a prompt ends with a separator of its own.
        columns: names of the columns of an example.
        pad: id after the end of a row.
    """

    def __init__(self, corpus: Corpus, columns: tuple[str, ...], pad: int) -> None:
        spans = corpus.spans()
        self._tokens, self._pad = corpus.tokens, pad
        self._starts = {name: spans.starts[i :: len(columns)] for i, name in enumerate(columns)}
        self._stops = {name: spans.stops[i :: len(columns)] for i, name in enumerate(columns)}

    def alone(self, column: str, examples: Indices, length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Ids and mask of one column."""
        starts = self._starts[column][examples]
        return gather_padded(self._tokens, starts, self._stops[column][examples] - starts, length, self._pad)

    def labelled(self, labels: npt.NDArray[np.int64]) -> Assemble:
        """`tokens`, `mask` and `label`."""

        def assemble(examples: Indices, length: int) -> Fields:
            tokens, mask = self.alone("text", examples, length)
            return {"tokens": tokens, "mask": mask, "label": labels[examples]}

        return assemble

    def separate(self, examples: Indices, length: int) -> Fields:
        """`prompt` and `response`, each with its mask."""
        prompt, prompt_mask = self.alone("prompt", examples, length)
        response, response_mask = self.alone("response", examples, length)
        return {"prompt": prompt, "prompt_mask": prompt_mask, "response": response, "response_mask": response_mask}

    def joined(self, examples: Indices, length: int) -> Fields:
        """`tokens`, the prompt with the response after it, their `mask`, and the prompt's length as `prefix`."""
        tokens, mask = self._behind_prompt("response", examples, length)
        return {"tokens": tokens, "mask": mask, "prefix": self._prefix(examples, length)}

    def preference(self, examples: Indices, length: int) -> Fields:
        """`chosen` and `rejected`, each after the prompt where there is one, their masks, and the prompt's length as `prefix`."""
        chosen, chosen_mask = self._behind_prompt("chosen", examples, length)
        rejected, rejected_mask = self._behind_prompt("rejected", examples, length)
        prefix = self._prefix(examples, length)
        return {"chosen": chosen, "chosen_mask": chosen_mask, "rejected": rejected, "rejected_mask": rejected_mask, "prefix": prefix}

    def responses(self, length: int) -> npt.NDArray[np.bool_]:
        """Whether each example has a token of a response in a row of this length, bool [examples]."""
        columns = [column for column in self._starts if column != "prompt"]
        filled = np.any([self._stops[column] > self._starts[column] for column in columns], axis=0)
        if "prompt" not in self._starts:
            return np.asarray(filled)
        return np.asarray(filled & (self._stops["prompt"] - self._starts["prompt"] < length))

    def _prefix(self, examples: Indices, length: int) -> npt.NDArray[np.int64]:
        if "prompt" not in self._starts:
            return np.zeros(len(examples), dtype=np.int64)
        counts: Indices = self._stops["prompt"][examples] - self._starts["prompt"][examples]
        return np.minimum(counts, length)

    def _behind_prompt(self, column: str, examples: Indices, length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        tokens, mask = self.alone(column, examples, length)
        if "prompt" not in self._starts:
            return tokens, mask
        given, given_mask = self.alone("prompt", examples, length)
        places = np.arange(length) - self._prefix(examples, length)[:, None]
        behind = np.maximum(places, 0)
        tokens = np.where(places < 0, given, np.take_along_axis(tokens, behind, axis=1))
        return tokens, np.where(places < 0, given_mask, np.take_along_axis(mask, behind, axis=1))
