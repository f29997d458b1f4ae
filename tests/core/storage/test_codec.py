"""The codec: a state comes back as it was, with its types, and whatever else it is given is refused as no document of ours."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stackwise.storage.codec import EncodingError, from_json, join_state, refuse_tensor, to_json
from stackwise.storage.nested_state import split_state

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.builds(lambda n: torch.arange(n), st.integers(0, 3))
marks = st.sampled_from(["$tensor", "$map", "$tuple", "$float", "$int", "$", "$$tensor", "a/b", "a", "b"])
keys = st.text() | marks | st.integers() | st.booleans() | st.none() | st.tuples(st.integers(), st.text())
states = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Equal with types, the order of keys, nan and the sign of zero."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return list(map(repr, one)) == list(map(repr, other)) and all(map(same, one.values(), other.values()))
    if isinstance(one, list | tuple) and type(one) is type(other):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and repr(one) == repr(other)


@given(state=states)
def test_a_state_comes_back_with_its_types(state: Any) -> None:
    tensors, document = split_state(state)
    text = json.dumps(document, allow_nan=False)
    assert same(join_state(json.loads(text), tensors.__getitem__), state)


def test_long_integers_come_back() -> None:
    for number in (2**64 + 1, -(7**20_000), 10**400):
        assert from_json(to_json({"n": number}))["n"] == number


def test_tensors_are_named_by_their_path_and_names_that_meet_are_told_apart() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    tensors, document = split_state({"a/b": one, "a": {"b": two, "list": [three := torch.ones(3)]}})
    assert [name for name, tensor in tensors.items() if tensor.data_ptr() == three.data_ptr()] == ["a/list/0"]
    assert len(tensors) == 3 and torch.equal(join_state(document, tensors.__getitem__)["a"]["b"], two)


@pytest.mark.parametrize(("value", "kind"), [({1}, "set"), (b"x", "bytes"), (1j, "complex"), (object(), "object")])
def test_what_no_file_can_hold_is_named_with_its_place(value: object, kind: str) -> None:
    with pytest.raises(EncodingError) as caught:
        split_state({"a": [0, (value,)]}, "it")
    assert (caught.value.path, caught.value.kind) == ("it.a.1.0", kind)
    with pytest.raises(EncodingError) as caught:
        to_json({"a": {"b": torch.ones(1)}})
    assert (caught.value.path, caught.value.kind) == ("document.a.b", "Tensor")


WRONG = [
    "",
    "[]",
    "null",
    "1",
    '{"a": NaN}',
    '{"a": 1e400}',
    '{"a": ' + "9" * 5000 + "}",
    "[" * 200_000,
    '{"a":' * 200_000,
    '{"a": {"$float": []}}',
    '{"a": {"$float": "x"}}',
    '{"a": {"$int": 5}}',
    '{"a": {"$int": "ten"}}',
    '{"a": {"$tuple": 5}}',
    '{"a": {"$map": [[1]]}}',
    '{"a": {"$map": [[[], 1]]}}',
    '{"a": {"$map": {"x": 1}}}',
    '{"a": {"$tensor": "x"}}',
    '{"a": {"$tensor": []}}',
    '{"a": {"$other": 1}}',
    '{"$map": []}x',
    "\x00",
]


@pytest.mark.parametrize("text", WRONG, ids=[text[:24] for text in WRONG])
def test_what_is_no_document_of_ours_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        from_json(text.encode())


def test_a_tensor_that_is_not_there_is_refused_by_name() -> None:
    _, document = split_state({"a": torch.ones(1)})
    with pytest.raises(ValueError, match="'a'"):
        join_state(document, {}.__getitem__)
    with pytest.raises(ValueError, match="'a'"):
        join_state(document, refuse_tensor)


@given(content=st.binary(max_size=60))
def test_bytes_are_a_document_or_refused(content: bytes) -> None:
    with suppress(ValueError):
        assert isinstance(from_json(content), dict)
