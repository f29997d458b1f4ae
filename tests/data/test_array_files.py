"""Arrays in files, against the arrays they were written from."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from stackwise import BatchSpec, BuildContext, DataError, EpochSize, TensorSpec, UserError
from stackwise_providers_data import array_contents
from stackwise_providers_data.array_files import build_array_files
from stackwise_providers_data.array_headers import find_array
from stackwise_providers_data.array_options import ArrayFilesOptions
from stackwise_providers_data.row_stream import RowStream
from stackwise_providers_data.token_stream import TokenStream

IDS = (np.arange(97) * 31 % 50).astype(np.uint16)
DTYPES = ["bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float16", "float32", "float64"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def _save(**arrays: np.ndarray) -> None:
    """Every array in every format: its own npy, and all in one npz, one packed npz, one safetensors."""
    for name, array in arrays.items():
        np.save(f"{name}.npy", array)
    np.savez("all.npz", **arrays)
    np.savez_compressed("packed.npz", **arrays)
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, "all.safetensors")


def _build(files: dict[str, str], *, split: str = "train", longest: int | None = 5, **options: Any) -> Any:
    made = ArrayFilesOptions(files=files, **{"shuffle": False, **options})
    loader = build_array_files(made, BuildContext(seed=7, split=split, max_length=longest))
    told, declared = loader.get_batch_spec().fields, made.to_spec().fields
    assert {field: (spec.dims, spec.dtype) for field, spec in told.items()} == {f: (spec.dims, spec.dtype) for f, spec in declared.items()}
    return loader


@pytest.mark.parametrize("where", ["a.npy", "all.npz:a", "packed.npz:a", "all.safetensors:a"])
def test_one_integer_axis_is_a_stream(where: str) -> None:
    _save(a=IDS, other=np.zeros(3, dtype=np.uint8))
    loader = _build({"ids": where}, vocab=50)
    assert isinstance(loader, TokenStream)
    assert loader.get_batch_spec() == BatchSpec(fields={"ids": TensorSpec("batch time", "int64", bounds=(0, "vocab"))})
    assert loader.take(4, 5)["ids"].flatten().tolist() == IDS[:20].tolist()
    assert loader.epoch_size() == EpochSize(entries=95)
    assert ArrayFilesOptions(files={"ids": where}).epoch_size("train") == EpochSize(entries=97)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["npy", "npz", "safetensors"])
def test_every_dtype_is_read_as_it_is(dtype: str, form: str) -> None:
    x = (np.arange(24).reshape(4, 3, 2) % 2).astype(dtype)
    _save(x=x, odd=np.zeros(1, dtype=np.uint8))
    loader = _build({"x": {"npy": "x.npy", "npz": "all.npz:x", "safetensors": "all.safetensors:x"}[form]}, time=())
    batch = loader.take(4, None)["x"]
    assert str(batch.dtype) == f"torch.{dtype}"
    assert batch.tolist() == x.tolist()
    assert loader.get_batch_spec().fields["x"] == TensorSpec("batch 3 2", dtype, bounds=(0, 2) if "int" in dtype else None)


@pytest.mark.parametrize("form", ["{}.npy", "all.npz:{}", "packed.npz:{}", "all.safetensors:{}"])
def test_rows_keep_their_fields_together(form: str) -> None:
    arrays = {"tokens": np.arange(60, dtype=np.int32).reshape(10, 6), "x": np.arange(30, dtype=np.float32).reshape(10, 3)}
    _save(**arrays, label=np.arange(10))
    loader = _build({field: form.format(field) for field in (*arrays, "label")}, shuffle=True, heldout=0.2)
    assert isinstance(loader, RowStream)
    batch = loader.take(8, 4)
    assert sorted(batch["label"].tolist()) == list(range(8))
    assert torch.equal(batch["tokens"][:, 0], 6 * batch["label"].int())
    assert torch.equal(batch["x"][:, 0], 3.0 * batch["label"])
    held = _build({"label": form.format("label"), "x": form.format("x")}, split="final", heldout=0.2)
    assert held.take(2, None)["label"].tolist() == [8, 9]
    assert ArrayFilesOptions(files={"x": form.format("x")}, heldout=0.2).epoch_size("final") == EpochSize(rows=2) == held.epoch_size()


def test_arrays_in_the_order_of_fortran() -> None:
    np.save("x.npy", np.asfortranarray(np.arange(12, dtype=np.float32).reshape(4, 3)))
    assert _build({"x": "x.npy"}).take(4, None)["x"].tolist() == np.arange(12).reshape(4, 3).tolist()


def test_a_key_may_be_left_out_where_there_is_one_array() -> None:
    np.savez("one.npz", a=IDS)
    assert _build({"tokens": "one.npz"}, vocab=50).take(1, 5)["tokens"].tolist() == [IDS[:5].tolist()]


def test_documents_of_a_stream() -> None:
    starts = np.array([0, 10, 12, 40, 90])
    _save(a=IDS, starts=starts)
    packed = _build({"tokens": "a.npy"}, documents="starts.npy", rows="packed", longest=15).take(1, 15)
    assert packed["segments"].tolist() == [[0] * 10 + [1] * 2 + [2] * 3]
    assert packed["positions"].tolist() == [[*range(10), 0, 1, 0, 1, 2]]
    padded = _build({"tokens": "a.npy"}, documents="all.npz:starts", rows="padded", longest=60).take(5, 60)
    assert [ids[mask].tolist() for ids, mask in zip(padded["tokens"], padded["mask"], strict=True)] == [
        part.tolist() for part in np.split(IDS, starts[1:])
    ]
    options = {"documents": "starts.npy", "rows": "padded", "heldout": 0.4, "longest": 60}
    train, held = (_build({"tokens": "a.npy"}, split=split, **options) for split in ("train", "final"))
    assert train.take(3, 60)["mask"].sum(1).tolist() == [10, 2, 28]
    batch = held.take(2, 60)
    assert batch["tokens"][1][batch["mask"][1]].tolist() == IDS[90:].tolist()
    np.save("closed.npy", np.append(starts, 97))
    assert _build({"tokens": "a.npy"}, documents="closed.npy", rows="padded").epoch_size() == EpochSize(rows=5)
    np.save("wrong.npy", starts[::-1])
    for wrong in ("wrong.npy", "a.npy"):
        with pytest.raises(DataError, match=r"start at 0, rise, and lie below the 97 tokens"):
            _build({"tokens": "a.npy"}, documents=wrong)
    np.save("floats.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"documents \('floats.npy'\): float64\[3\] are no places"):
        _build({"tokens": "a.npy"}, documents="floats.npy")


@pytest.mark.parametrize(
    ("array", "options", "words"),
    [
        (np.array([0, 1, 7]), {"vocab": 7}, r"files\.tokens \('x\.npy'\): it holds the id 7; ids lie in \[0, 7\)"),
        (np.array([0, -1, 3]), {}, "it holds the id -1"),
        (np.array([0, 1, 2]), {}, "3 tokens are fewer than the 5 of one row"),
        (np.zeros((0, 3)), {}, "holds no row"),
        (np.float32(3), {}, "holds no row"),
        (np.array([[0.0], [np.nan]]), {}, "row 1 holds NaN or infinity"),
        (np.array([[0.0], [1.0], [np.inf]]), {}, "row 2 holds NaN or infinity"),
        (np.array(["a", "b"]), {}, "entries of '<U1' are not numbers"),
        (np.array([1, 2], dtype=">i4"), {}, "entries of '>i4' are not numbers of this byte order"),
        (np.array([1, 2], dtype=object), {}, r"entries of '\|O' are not numbers"),
        (np.arange(10), {"heldout": 1.0}, "a heldout of 1 leaves none of 10 tokens for training: lower heldout"),
    ],
)
def test_arrays_that_cannot_be_trained_on(array: np.ndarray, options: dict[str, Any], words: str) -> None:
    np.save("x.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=words):
        _build({"tokens": "x.npy"}, **options)


def test_files_that_cannot_be_read() -> None:
    _save(a=IDS, b=np.arange(3))
    Path("cut.npy").write_bytes(Path("a.npy").read_bytes()[:-1])
    save_file({"a": IDS}, "cut.safetensors")
    Path("cut.safetensors").write_bytes(Path("cut.safetensors").read_bytes()[:-1])
    Path("text.npy").write_text("1, 2, 3", encoding="utf-8")
    Path("text.npz").write_text("1, 2, 3", encoding="utf-8")
    Path("empty.safetensors").touch()
    header = json.dumps({"x": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    Path("bf16.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    for reference, words in {
        "nowhere.npy": "it cannot be read: No such file",
        "a.txt": r"ends in \.npy, \.npz or \.safetensors",
        "cut.npy": "the file was cut off",
        "cut.safetensors": "the file was cut off",
        "text.npy": r"it is damaged, or no \.npy file",
        "text.npz": r"it is damaged, or no \.npz file",
        "empty.safetensors": "a header of 0 bytes",
        "bf16.safetensors": "entries of BF16 are not read",
        "all.npz": "it holds a, b: name one after a colon",
        "all.npz:c": "it holds no 'c' but a, b",
    }.items():
        with pytest.raises(DataError, match=rf"^files\.tokens \('{reference}'\): .*{words}"):
            find_array("tokens", reference)


def test_fields_of_unequal_numbers_of_rows() -> None:
    _save(x=np.zeros((3, 2)), y=np.zeros((4, 2)))
    with pytest.raises(DataError, match=r"files: the fields have unequal numbers of rows \(x 3, y 4\)"):
        ArrayFilesOptions(files={"x": "x.npy", "y": "y.npy"}).to_spec()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"files": {}}, "files: {} names no array"),
        ({"files": {"x": "x.npy"}, "time": ("y",)}, "time: there is no field 'y'"),
        ({"files": {"x": "x.npy"}, "rows": "packed"}, "rows: packed rows need to know where documents begin"),
        ({"files": {"x": "x.npy"}, "rows": "stream"}, "rows: it has an effect on one stream of tokens only"),
        ({"files": {"a": "a.npy"}, "time": ("a",)}, "time: it has an effect on rows only"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    _save(a=IDS, x=np.zeros((3, 2)))
    with pytest.raises(UserError, match=words):
        ArrayFilesOptions(**options).to_spec()


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_contents, "_LARGE_BYTES", 0)


def _old(name: str) -> None:
    os.utime(name, (10**9, 10**9))


def test_what_a_large_array_holds_is_read_once(all_large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(a=IDS)
    _old("a.npy")
    first = dict(_build({"tokens": "a.npy"}, vocab=50).fingerprint())
    monkeypatch.setattr(array_contents, "_scan", None)
    monkeypatch.setattr(array_contents, "_READING", {})  # as another process has it
    assert _build({"tokens": "a.npy"}, vocab=50).fingerprint() == first
    with pytest.raises(DataError, match="it holds the id 49"):
        _build({"tokens": "a.npy"}, vocab=49)


def test_rows_of_a_large_array_come_before_it_was_read() -> None:
    np.lib.format.open_memmap("a.npy", mode="w+", dtype=np.uint16, shape=(2**29,)).flush()  # a gigabyte of holes in the file
    _old("a.npy")
    loader = _build({"tokens": "a.npy"}, vocab=50, longest=64)
    assert loader.take(4, 64)["tokens"].sum() == 0
    assert list(array_contents._READING.values())[-1].known is None


def test_a_large_array_is_the_same_one_as_when_it_was_read_first(all_large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(a=IDS, x=np.arange(40, dtype=np.float32).reshape(10, 4), y=np.arange(10))
    late = [_build({"tokens": "a.npy"}).fingerprint(), _build({"x": "x.npy", "y": "y.npy"}).fingerprint()]
    assert pickle.loads(pickle.dumps(late)) == late
    monkeypatch.setattr(array_contents, "_LARGE_BYTES", 2**40)
    assert [_build({"tokens": "a.npy"}).fingerprint(), _build({"x": "x.npy", "y": "y.npy"}).fingerprint()] == late


@pytest.mark.parametrize("place", [3, 96])
@pytest.mark.parametrize("options", [{}, {"rows": "padded", "documents": "starts.npy", "longest": 97}])
def test_a_wrong_id_of_a_large_array_is_refused(all_large: None, place: int, options: dict[str, Any]) -> None:
    ids = IDS.copy()
    ids[place] = 60
    _save(a=ids, starts=np.array([0, 50]))
    with pytest.raises(DataError, match=r"files\.tokens \('a\.npy'\): it holds the id 60; ids lie in \[0, 50\)"):
        loader = _build({"tokens": "a.npy"}, vocab=50, **options)
        for _ in range(2):
            loader.take(1, 5 if not options else 97)
            loader.fingerprint()["sha256"]  # the array is read through now


def test_numbers_of_a_large_array_that_are_not_finite_are_refused(all_large: None) -> None:
    for row in (0, 9):
        x = np.zeros((10, 2), dtype=np.float32)
        x[row, 1] = np.nan
        _save(x=x)
        with pytest.raises(DataError, match=f"row {row} holds NaN or infinity"):
            loader = _build({"x": "x.npy"})
            for _ in range(2):
                loader.take(1, None)
                loader.fingerprint()["sha256"]


def test_chunks_of_a_scan_agree_with_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    _save(x=np.arange(40, dtype=np.float32).reshape(10, 4), a=IDS)
    whole = [_build({"x": "x.npy"}).fingerprint(), _build({"a": "a.npy"}, vocab=50).fingerprint()]
    monkeypatch.setattr(array_contents, "_CHUNK_ENTRIES", 7)
    assert [_build({"x": "x.npy"}).fingerprint(), _build({"a": "a.npy"}, vocab=50).fingerprint()] == whole


def test_reading_writes_nothing() -> None:
    _save(x=np.zeros((4, 2), dtype=np.float32))
    before = Path("x.npy").read_bytes()
    _build({"x": "x.npy"}).take(4, None)["x"].fill_(1)
    assert Path("x.npy").read_bytes() == before


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ids.npy")
    with pytest.raises(DataError, match="no file but a folder, pipe or device"):
        find_array("tokens", str(tmp_path / "ids.npy"))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("change", ["cut off", "written to"])
def test_a_file_that_changes_under_its_map_is_named_before_it_is_read_again(change: str, padded: bool) -> None:
    np.save("a.npy", IDS)
    np.save("ends.npy", np.array([0, 40, 70]))
    form = {"documents": "ends.npy", "rows": "padded"} if padded else {}
    loader = _build({"tokens": "a.npy"}, vocab=50, **form)
    loader.take(1, 5)
    if change == "cut off":
        os.truncate("a.npy", 64)
    else:
        os.utime("a.npy", ns=(0, 0))
    with pytest.raises(DataError, match=r"files\.tokens \('a.npy'\)"):
        loader.take(1, 5)


@pytest.mark.parametrize("way", ["removed", "replaced"])
def test_a_file_in_whose_place_another_one_stands_is_read_as_it_was(way: str) -> None:
    _save(x=np.arange(40, dtype=np.float32).reshape(10, 4))
    loader = _build({"x": "x.npy"})
    first = loader.take(5, None)["x"]
    np.save("other.npy", np.zeros((1, 4), dtype=np.float32))
    if way == "removed":
        Path("x.npy").unlink()
    else:
        Path("other.npy").replace("x.npy")
    assert torch.equal(torch.cat([first, loader.take(5, None)["x"]]), torch.arange(40, dtype=torch.float32).reshape(10, 4))
