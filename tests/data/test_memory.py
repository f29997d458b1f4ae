"""Arrays in memory: a stream of tokens, or rows of several fields."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stackwise import BatchSpec, BuildContext, DataError, TensorSpec, UserError
from stackwise_providers_data.memory import build_memory
from stackwise_providers_data.memory_options import MemoryOptions
from stackwise_providers_data.row_stream import RowStream
from stackwise_providers_data.token_stream import TokenStream


def _context(split: str = "train", **changes: Any) -> BuildContext:
    return BuildContext(seed=11, split=split, **changes)


def _rows(count: int = 10) -> dict[str, Any]:
    return {
        "tokens": np.arange(count * 6, dtype=np.int32).reshape(count, 6),
        "features": torch.arange(count * 3, dtype=torch.float32).view(count, 3),
        "label": list(range(count)),
    }


@pytest.mark.parametrize("tokens", [list(range(20)), np.arange(20, dtype=np.uint8), np.arange(20, dtype=np.uint16), torch.arange(20)])
def test_one_integer_axis_is_a_stream(tokens: Any) -> None:
    options = MemoryOptions(arrays={"tokens": tokens}, vocab=20, shuffle=False)
    loader = build_memory(options, _context(max_length=5))
    assert isinstance(loader, TokenStream)
    assert (
        loader.get_batch_spec() == options.to_spec() == BatchSpec(fields={"tokens": TensorSpec("batch time", "int64", bounds=(0, "vocab"))})
    )
    assert loader.take(2, 5)["tokens"].tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_rows_keep_their_fields_together_and_come_once_an_epoch() -> None:
    loader = build_memory(MemoryOptions(arrays=_rows()), _context())
    assert isinstance(loader, RowStream)
    batches = [loader.take(rows, None) for rows in (4, 3, 3)]
    labels = torch.cat([batch["label"] for batch in batches])
    assert sorted(labels.tolist()) == list(range(10))
    assert labels.tolist() != list(range(10))
    assert torch.equal(torch.cat([batch["tokens"] for batch in batches])[:, 0], 6 * labels)
    assert torch.equal(torch.cat([batch["features"] for batch in batches])[:, 0], 3.0 * labels)
    assert loader.state_dict() == {"epoch": 1, "position": 0}


def test_a_request_may_run_over_the_end_of_an_epoch() -> None:
    whole, parts = (build_memory(MemoryOptions(arrays=_rows()), _context()) for _ in range(2))
    labels = whole.take(25, None)["label"].tolist()
    assert labels == [label for rows in (9, 9, 7) for label in parts.take(rows, None)["label"].tolist()]
    assert sorted(labels[:10]) == sorted(labels[10:20]) == list(range(10))


def test_rows_put_back_go_on_the_same() -> None:
    first, second = (build_memory(MemoryOptions(arrays=_rows()), _context()) for _ in range(2))
    first.take(13, None)
    second.load_state_dict(first.state_dict())
    assert second.take(9, None)["label"].tolist() == first.take(9, None)["label"].tolist()


def test_the_spec_is_known_before_anything_is_built() -> None:
    options = MemoryOptions(arrays={**_rows(), "image": np.zeros((10, 2, 4)), "pairs": [[0.5, 1]] * 10, "flag": [True] * 10})
    assert options.to_spec().fields == {
        "tokens": TensorSpec("batch time", "int32"),
        "features": TensorSpec("batch 3", "float32"),
        "label": TensorSpec("batch", "int64"),
        "image": TensorSpec("batch 2 4", "float64"),
        "pairs": TensorSpec("batch 2", "float32"),
        "flag": TensorSpec("batch", "bool"),
    }
    batch = build_memory(options, _context()).take(3, None)
    for name, spec in options.to_spec().fields.items():
        assert str(batch[name].dtype) == f"torch.{spec.dtype}"
        assert batch[name].ndim == len(spec.dims)


def test_a_length_cuts_the_fields_with_a_time_axis_only() -> None:
    loader = build_memory(MemoryOptions(arrays=_rows(), shuffle=False), _context())
    batch = loader.take(2, 4)
    assert batch["tokens"].tolist() == [[0, 1, 2, 3], [6, 7, 8, 9]]
    assert batch["features"].shape == (2, 3)
    named = MemoryOptions(arrays={"x": np.zeros((4, 5, 2), dtype=np.float32)}, time=("x",))
    assert named.to_spec().fields["x"] == TensorSpec("batch time 2", "float32")
    assert build_memory(named, _context()).take(1, 3)["x"].shape == (1, 3, 2)


def test_lengths_that_cannot_be_cut() -> None:
    with pytest.raises(DataError, match=r"arrays.tokens: a shape of \[10, 6\] has no 7 entries"):
        build_memory(MemoryOptions(arrays=_rows()), _context()).take(2, 7)
    with pytest.raises(DataError, match="no field has a time axis"):
        build_memory(MemoryOptions(arrays={"x": np.zeros((4, 5))}), _context()).take(2, 3)
    with pytest.raises(DataError, match=r"declare data\.batch_size"):
        build_memory(MemoryOptions(arrays=_rows()), _context()).take(None, None)


def test_the_end_of_the_arrays_is_held_out() -> None:
    options = MemoryOptions(arrays=_rows(), heldout=0.3)
    train, held = (build_memory(options, _context(split)) for split in ("train", "final"))
    assert sorted(train.take(7, None)["label"].tolist()) == list(range(7))
    assert sorted(held.take(3, None)["label"].tolist()) == [7, 8, 9]
    assert train.fingerprint()["sha256"] != held.fingerprint()["sha256"]
    stream = MemoryOptions(arrays={"tokens": list(range(20))}, vocab=20, heldout=0.25, shuffle=False)
    assert build_memory(stream, _context("final")).take(1, 5)["tokens"].tolist() == [[15, 16, 17, 18, 19]]


def test_an_evaluation_without_rows() -> None:
    with pytest.raises(DataError, match="a heldout of 0 leaves none of 10 rows for the evaluation 'final': raise heldout"):
        build_memory(MemoryOptions(arrays=_rows()), _context("final"))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": [[1, 2], [3]]}, "arrays.x: its lists are ragged"),
        ({"x": [[1, 2], 3]}, "arrays.x: its lists are ragged"),
        ({"x": [1, 2], "y": [1, 2, 3]}, r"unequal numbers of rows \(x 2, y 3\)"),
        ({"x": []}, "holds no row"),
        ({"x": np.zeros((0, 3))}, "holds no row"),
        ({"x": np.float32(3)}, "holds no row"),
        ({"x": ["a", "b"]}, "more than numbers"),
        ({"x": np.array(["a", "b"])}, "not numbers"),
        ({"x": 3}, "a int is not an array"),
        ({"x": [[0.0], [float("nan")]]}, "arrays.x: row 1 holds NaN"),
        ({"tokens": [0, 1, 7]}, r"it holds the id 7; ids lie in \[0, 7\)"),
        ({"tokens": [0, -1, 3]}, "it holds the id -1"),
    ],
)
def test_arrays_that_cannot_be_trained_on(arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        build_memory(MemoryOptions(arrays=arrays, vocab=7), _context())


@pytest.mark.parametrize(
    ("options", "words"),
    [({"arrays": {}}, "arrays: a dict"), ({"arrays": [1]}, "arrays: a list"), ({"arrays": {"x": [1]}, "time": ("y",)}, "time")],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        MemoryOptions(**options)


def test_options_are_equal_when_they_hold_the_same_arrays() -> None:
    array = np.arange(4)
    assert MemoryOptions(arrays={"x": array}) == MemoryOptions(arrays={"x": array})
    assert MemoryOptions(arrays={"x": array}) != MemoryOptions(arrays={"x": array.copy()})
    assert MemoryOptions(arrays={"x": [1, 2]}) == MemoryOptions(arrays={"x": [1, 2]})


def test_read_only_arrays_are_fine() -> None:
    array = np.arange(12).reshape(4, 3)
    array.flags.writeable = False
    assert build_memory(MemoryOptions(arrays={"x": array}), _context()).take(4, None)["x"].sum() == 66
