"""A nested state of a run, taken apart into named tensors and a JSON document."""

from __future__ import annotations

from typing import Any

import torch

from stackwise.storage.codec import TENSOR, EncodingError, encode


def split_state(state: Any, name: str = "the state") -> tuple[dict[str, torch.Tensor], Any]:
    """Take the tensors out of a nested state; `codec.join_state` puts them back.

    Args:
        state: dicts, lists, tuples, tensors, text, numbers, booleans, None.
        name: what an error calls the state.

    Returns:
        The tensors themselves, without gradients, by their path with slashes; and the rest as JSON can hold it.

    Raises:
        EncodingError: the state holds something else.
    """
    tensors: dict[str, torch.Tensor] = {}

    def write_tensor(value: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(value, torch.Tensor):
            raise EncodingError(".".join((name, *path)), type(value).__name__)
        key = "/".join(path)
        while key in tensors:  # two paths can read the same where keys hold slashes
            key += "'"
        tensors[key] = value.detach() if value.requires_grad else value
        return {TENSOR: key}

    return tensors, encode(state, name, write_tensor)
