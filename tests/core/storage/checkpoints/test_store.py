"""A store gives back bit for bit what it was given, or says why not, and finds the newest that is whole."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faulty_disk import check_whole, hidden_entries, ruled, save, tensors_of
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from stackwise.errors import DiskError, ProviderError, UserError
from stackwise.storage.checkpoints.store import CheckpointStore, verify
from stackwise.storage.codec import EncodingError

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64, torch.int64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path: Path, asynchronous: bool) -> None:
    """Random bits, so that nan payloads and negative zeros count too; the library reads the same file."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for dtype in DTYPES:
        for shape in ((), (0,), (3,), (2, 3), (1, 1, 5), (2, 0, 4)):
            raw = torch.randint(
                2 if dtype is torch.bool else 256, (*shape, torch.empty((), dtype=dtype).element_size()), generator=generator
            )
            tensors[f"{dtype} {shape}"] = raw.to(torch.uint8).view(dtype).reshape(shape)
    store = CheckpointStore(tmp_path / "c")
    store.save(3, tensors, {}, asynchronous=asynchronous)
    store.close()
    loaded, by_library = store.at(3).load_state(), load_file(store.at(3).path / "tensors.safetensors")
    for name, tensor in tensors.items():
        for found in (loaded[name], by_library[name]):
            assert (found.dtype, found.shape, bits(found)) == (tensor.dtype, tensor.shape, bits(tensor)), name


@pytest.mark.parametrize("asynchronous", [False, True])
def test_views_of_one_storage_come_back_as_what_they_show(tmp_path: Path, asynchronous: bool) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    views = {
        "whole": whole,
        "turned": whole.t(),
        "part": whole[1:3, 2:5],
        "strided": whole[::2, ::3],
        "spread": torch.tensor([[2.0]]).expand(3, 4),
        "flipped": whole.flip(0),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "negative": torch.randn(3, dtype=torch.complex64).conj().imag,
        "parameter": nn.Parameter(torch.ones(2)),
        "channels last": torch.randn(1, 2, 3, 3).to(memory_format=torch.channels_last),
    }
    store = CheckpointStore(tmp_path / "c")
    store.save(0, views, {}, asynchronous=asynchronous)
    store.close()
    loaded = store.at(0).load_state()
    assert all(torch.equal(loaded[name], view.detach().clone()) for name, view in views.items())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_tied_tensors_are_written_once_and_come_back_as_one(tmp_path: Path, asynchronous: bool) -> None:
    weight = torch.randn(100, 100)
    store = CheckpointStore(tmp_path / "c")
    tied = {"a": weight, "b": weight, "c": weight.view(100, 100), "turned": weight.t(), "empty": torch.zeros(0), "void": torch.zeros(0)}
    store.save(0, tied, {}, asynchronous=asynchronous)
    store.close()
    loaded = store.at(0).load_state()
    assert loaded.keys() == tied.keys() and loaded["a"] is loaded["b"] is loaded["c"] and loaded["void"] is not loaded["empty"]
    assert torch.equal(loaded["turned"], weight.t())
    assert (store.at(0).path / "tensors.safetensors").stat().st_size < 2 * weight.nbytes + 2000


def test_names_may_be_any_text_but_two_kinds_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    strange = {"": torch.ones(1), "../x": torch.ones(2), "ü \n\0 \"'": torch.ones(3), "same_as": torch.ones(4), "$": torch.ones(5)}
    store = CheckpointStore(tmp_path / "c")
    store.save(0, strange, {})
    assert {name: len(tensor) for name, tensor in store.at(0).load_state().items()} == {n: len(t) for n, t in strange.items()}
    with safe_open(store.at(0).path / "tensors.safetensors", "pt") as by_library:
        assert set(by_library.keys()) == set(strange)
    for name in ("__metadata__", "\ud800"):
        with pytest.raises(TypeError, match="cannot name a tensor"):
            store.save(1, {name: torch.ones(1)}, {})
    assert store.names() == ("step-000000000",) and hidden_entries(store.directory) == []


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    "tensor",
    [torch.ones(2, device="meta"), torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.complex128)],
    ids=["meta", "sparse", "c128"],
)
def test_a_tensor_without_a_place_in_the_format_is_named_at_once(tmp_path: Path, tensor: torch.Tensor, asynchronous: bool) -> None:
    store = CheckpointStore(tmp_path / "c")
    with pytest.raises(TypeError, match=r"rack\.odd"):
        store.save(1, {"rack.odd": tensor}, {}, asynchronous=asynchronous)
    assert store.newest() == (None, [])


def test_an_asynchronous_save_holds_the_values_of_the_moment_it_was_asked(tmp_path: Path) -> None:
    """Training goes on in place at once, and memory for copies is used again: neither reaches a checkpoint of before."""
    store, weight, cursor = CheckpointStore(tmp_path / "c"), torch.zeros(1 << 18), [0]
    for step in range(1, 6):
        weight.fill_(step)
        cursor[0] = step
        store.save(step, {"w": weight}, {"cursor": cursor}, asynchronous=True)
        weight.fill_(-1)
        cursor[0] = -1
    grown = torch.full((7,), 6.0)
    store.save(6, {"w": grown}, {"cursor": [6]}, asynchronous=True)
    store.close()
    for step in range(1, 7):
        found = store.at(step)
        assert found.about == {"cursor": [step]} and set(found.load_state()["w"].tolist()) == {float(step)}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.sampled_from(["$float", "$int", "$"]), inner, max_size=4),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Equal with types, nan and the sign of zero."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and repr(one) == repr(other)


@given(document=st.dictionaries(st.text(), json_values, max_size=4))
def test_a_document_comes_back_the_same(tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any]) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("c"))
    store.save(0, {}, document)
    assert same(dict(store.at(0).about), document)


def test_numbers_beyond_decimal_json_come_back(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    document = {"big": 2**64 + 1, "huge": -(7**20_000), "numpy": np.float64("nan"), "tuple": (1, 2)}
    store.save(0, {}, document)
    found = store.at(0).about
    assert found["big"] == 2**64 + 1 and found["huge"] == -(7**20_000) and repr(found["numpy"]) == "nan" and found["tuple"] == (1, 2)
    json.loads((store.at(0).path / "state.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_what_json_cannot_hold_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(EncodingError) as caught:
        CheckpointStore(tmp_path / "c").save(0, {}, {"a": {"b": [0, {1}]}})
    assert (caught.value.path, caught.value.kind) == ("about.a.b.1", "set")
    with pytest.raises(ProviderError, match=r"the state\.a\.0 is a set"):
        CheckpointStore(tmp_path / "c").save(0, {"a": [{1}]}, {})
    assert not (tmp_path / "c").exists()


class Touch:
    """Executed when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (open, (str(self.path), "w"))


def cut(content: bytes) -> bytes:
    return content[:-1]


def emptied(content: bytes) -> bytes:
    return b""


def longer(content: bytes) -> bytes:
    return content + b"\n"


@pytest.mark.parametrize("damage", [cut, emptied, longer])
@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_damaged_file_is_skipped_with_the_reason_and_the_one_before_is_found(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    store = CheckpointStore(tmp_path / "c")
    save(store, 10, 1)
    save(store, 20, 2)
    path = store.at(20).path / name
    path.write_bytes(damage(path.read_bytes()))
    newest, skipped = store.newest()
    assert newest is not None and (newest.step, check_whole(newest)) == (10, 1)
    (passed_over,) = skipped
    assert (passed_over.step, passed_over.name) == (20, "step-000000020") and name in passed_over.reason and "bytes" in passed_over.reason
    assert verify(path.parent) == [passed_over.reason]
    with pytest.raises(UserError, match=name):
        store.at(20)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_one_flipped_bit_anywhere_is_seen(tmp_path: Path, name: str) -> None:
    """In the manifest a bit may also turn one space into another kind of blank, which says the same."""
    store = CheckpointStore(tmp_path / "c")
    save(store, 10, 1, metrics={"loss": 0.5}, pin="phase boundary")
    path = store.at(10).path / name
    content = path.read_bytes()
    unseen = []
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        if not verify(path.parent):
            unseen.append(content[position : position + 1])
    assert all(name == "manifest.json" and byte.isspace() for byte in unseen)
    path.write_bytes(content)
    assert verify(path.parent) == []


def rewritten(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """A manifest changed by someone who also mends its own digest, as an attacker would."""

    def apply(directory: Path) -> None:
        path = directory / "manifest.json"
        body = json.loads(path.read_text())
        del body["sha256"]
        change(body)
        body["sha256"] = sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        path.write_text(json.dumps(body))

    return apply


def renamed_to(name: str) -> Callable[[Path], None]:
    return rewritten(lambda body: body["files"].__setitem__(name, body["files"].pop("tensors.safetensors")))


def replaced_by_a_pipe(directory: Path) -> None:
    (directory / "tensors.safetensors").unlink()
    os.mkfifo(directory / "tensors.safetensors")


def replaced_by_a_link(directory: Path) -> None:
    (directory / "tensors.safetensors").rename(directory.parent / "elsewhere")
    (directory / "tensors.safetensors").symlink_to(directory.parent / "elsewhere")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda d: (d / "manifest.json").unlink(), "has no manifest.json"),
    "cut manifest": (lambda d: (d / "manifest.json").write_bytes((d / "manifest.json").read_bytes()[:-20]), "cannot be understood"),
    "empty manifest": (lambda d: (d / "manifest.json").write_text(""), "cannot be understood"),
    "a list": (lambda d: (d / "manifest.json").write_text("[]"), "holds a list"),
    "nothing in it": (lambda d: (d / "manifest.json").write_text("{}"), "format None"),
    "deeply nested": (lambda d: (d / "manifest.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000), "nested too deeply"),
    "not text": (lambda d: (d / "manifest.json").write_bytes(b"\xff\xfe\x00"), "cannot be understood"),
    "too large": (lambda d: (d / "manifest.json").write_bytes(b" " * (1 << 21)), "1,048,576 at most"),
    "another format": (rewritten(lambda b: b.update(format=3)), "format 3"),
    "a path upwards": (renamed_to("../x"), r"names '\.\./x', which lies outside"),
    "an absolute path": (renamed_to("/etc/passwd"), "names '/etc/passwd', which lies outside"),
    "the parent": (renamed_to(".."), "outside"),
    "another file": (renamed_to("weights.pt"), "names state.json, weights.pt"),
    "another step": (rewritten(lambda b: b.update(step=11)), "that of step-000000011"),
    "no step": (rewritten(lambda b: b.update(step="10")), 'step is "10"'),
    "no size": (rewritten(lambda b: b["files"]["state.json"].update(bytes=-1)), "size is negative"),
    "edited": (lambda d: (d / "manifest.json").write_text((d / "manifest.json").read_text().replace("0.5", "0.1")), "its own sha256"),
    "no tensors": (lambda d: (d / "tensors.safetensors").unlink(), "tensors.safetensors cannot be read"),
    "no state": (lambda d: (d / "state.json").unlink(), "state.json cannot be read"),
    "a pipe": (replaced_by_a_pipe, "not a regular file"),
    "a link": (replaced_by_a_link, "not a regular file"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_checkpoint_that_is_none_is_skipped_with_the_reason(tmp_path: Path, case: str) -> None:
    change, reason = BAD[case]
    store = CheckpointStore(tmp_path / "c")
    save(store, 9, 1)
    save(store, 10, 2, metrics={"loss": 0.5})
    change(store.directory / "step-000000010")
    newest, skipped = store.newest()
    assert newest is not None and newest.step == 9 and [entry.step for entry in skipped] == [10]
    with pytest.raises(UserError, match=reason):
        store.at(10)


def test_a_pickle_with_a_right_digest_is_never_executed(tmp_path: Path) -> None:
    store, witness = CheckpointStore(tmp_path / "c"), tmp_path / "executed"
    save(store, 10, 1)
    directory = store.directory / "step-000000010"
    for content in (pickle.dumps(Touch(witness)), b"\x80\x04" * 100, (1 << 62).to_bytes(8, "little") + b"{}", b"\0" * 8):
        (directory / "tensors.safetensors").write_bytes(content)
        record = {"sha256": sha256(content).hexdigest(), "bytes": len(content)}
        rewritten(lambda body, record=record: body["files"].__setitem__("tensors.safetensors", record))(directory)
        newest, (skipped,) = store.newest()
        assert newest is None and "header cannot be read" in skipped.reason
    torch.save({"x": Touch(witness)}, directory / "tensors.safetensors")
    assert store.newest()[0] is None and not witness.exists()


def test_what_changes_after_it_was_found_is_not_loaded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    save(store, 10, 1)
    found = store.at(10)
    save_file({"x": torch.ones(3)}, found.path / "tensors.safetensors")
    with pytest.raises(UserError, match="step-000000010 cannot be loaded"):
        found.load_state()


def test_what_is_no_checkpoint_in_the_directory_is_left_alone(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c", keep_last=1)
    store.directory.mkdir()
    others = ["step-1", "step-00000001x", ".step-1.writing", "latest", "notes.txt", ".hidden"]
    for name in others:
        (store.directory / name).mkdir()
    for step in (1, 2):
        save(store, step, step)
    assert store.names() == ("step-000000002",) and all((store.directory / name).is_dir() for name in others)


def test_a_directory_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "none")
    assert (store.newest(), store.names()) == ((None, []), ())
    with pytest.raises(UserError, match=r"no checkpoint of step 5 \(there: none\)"):
        store.at(5)
    assert not (tmp_path / "none").exists()


def test_steps_of_any_size_keep_their_order(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    for step in (10**9 - 1, 10**10, 5, 0):
        save(store, step, 1)
    assert store.names() == ("step-000000000", "step-000000005", "step-999999999", "step-10000000000")
    newest, _ = store.newest()
    assert newest is not None and newest.step == 10**10


def test_reading_changes_nothing_on_disk(tmp_path: Path) -> None:
    place = tmp_path / "c"
    save(CheckpointStore(place), 1, 1)
    (place / ".step-000000002.writing").mkdir()

    def refuse(number: int, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        pytest.fail(f"{name} was called")

    with ruled(refuse):
        store = CheckpointStore(place)
        newest, skipped = store.newest()
        assert newest is not None and skipped == [] and store.at(1) and store.names() and verify(newest.path) == []
    assert tensors_of(1).keys() == newest.load_state().keys()


def test_parents_are_never_made_anew(tmp_path: Path) -> None:
    """A run directory that was moved away must not come back with nothing but a checkpoint."""
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    with pytest.raises(DiskError):
        save(store, 1, 1)
    assert not list(tmp_path.iterdir())
    (tmp_path / "run").mkdir()
    save(store, 1, 1)
    assert store.names() == ("step-000000001",)


def test_what_a_resume_passed_over_is_no_checkpoint_any_more(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    for step in (1, 2, 3):
        save(store, step, step)
    manifest = store.directory / "step-000000003" / "manifest.json"
    content = manifest.read_bytes()
    manifest.write_bytes(content[:-9])
    newest, skipped = store.newest()
    assert newest is not None and newest.step == 2
    store.set_aside(skipped)
    aside = store.directory / "step-000000003.set-aside"
    (aside / "manifest.json").write_bytes(content)  # mended, and of a course that was left
    newest, skipped = store.newest()
    assert newest is not None and newest.step == 2 and skipped == []
    save(store, 3, 9)
    assert store.names()[-1] == "step-000000003" and aside.exists()
