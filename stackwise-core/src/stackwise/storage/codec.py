"""Nested state ↔ named tensors and a plain document, without loss: files hold the one or the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stackwise.errors import ProviderError

TENSOR, MAP, TUPLE = "$tensor", "$map", "$tuple"
"""The one key of the maps that stand for what JSON does not have."""


def split_state(state: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """Set the tensors of a nested state apart.

    Args:
        state: dicts, lists, tuples, tensors, numbers, texts, None.

    Returns:
        The tensors as they are, by their path with slashes, and the rest: maps with text keys, lists, texts, numbers, None.

    Raises:
        ProviderError: something else is in it; the sentence says where.
    """
    tensors: dict[str, torch.Tensor] = {}
    return tensors, _encode(state, (), tensors)


def join_state(tensors: Mapping[str, torch.Tensor], document: Any) -> Any:
    """The state that `split_state` took apart.

    Raises:
        KeyError: a tensor that the document names is missing.
    """
    if isinstance(document, list):
        return [join_state(tensors, entry) for entry in document]
    if not isinstance(document, Mapping):
        return document
    tag = next(iter(document)) if len(document) == 1 else None
    if tag == TENSOR:
        return tensors[document[TENSOR]]
    if tag == TUPLE:
        return tuple(join_state(tensors, entry) for entry in document[TUPLE])
    if tag == MAP:
        return {_hashable(join_state(tensors, key)): join_state(tensors, value) for key, value in document[MAP]}
    return {key: join_state(tensors, value) for key, value in document.items()}


def _encode(value: Any, path: tuple[str, ...], tensors: dict[str, torch.Tensor]) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, torch.Tensor):
        return {TENSOR: _named(value.detach(), "/".join(path), tensors)}
    if isinstance(value, Mapping):
        return _encode_map(value, path, tensors)
    if type(value) in (list, tuple):
        entries = [_encode(entry, (*path, str(i)), tensors) for i, entry in enumerate(value)]
        return entries if type(value) is list else {TUPLE: entries}
    raise ProviderError(
        f"the state at {'.'.join(path)} is a {type(value).__name__}, which no file of ours can hold: "
        "a state_dict is made of dicts, lists, tuples, tensors, numbers, texts and None"
    )


def _encode_map(value: Mapping[Any, Any], path: tuple[str, ...], tensors: dict[str, torch.Tensor]) -> Any:
    entries = [(key, _encode(inner, (*path, str(key)), tensors)) for key, inner in value.items()]
    if all(type(key) is str and not key.startswith("$") for key in value):
        return dict(entries)
    return {MAP: [[_encode(key, path, tensors), inner] for key, inner in entries]}


def _named(tensor: torch.Tensor, name: str, tensors: dict[str, torch.Tensor]) -> str:
    while name in tensors:  # keys that hold slashes themselves may meet
        name += "'"
    tensors[name] = tensor
    return name


def _hashable(key: Any) -> Any:
    return tuple(map(_hashable, key)) if isinstance(key, Sequence) and not isinstance(key, str) else key
