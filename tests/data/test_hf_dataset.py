"""Datasets that save_to_disk wrote, against the rows they were made of."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from stackwise import BuildContext, DataError, UserError
from stackwise_providers_data.record_files import build_records
from stackwise_providers_data.record_options import HfDatasetOptions

ROWS = {
    "text": [f"text {i}" for i in range(25)],
    "label": [i % 4 for i in range(25)],
    "x": [[float(i), 0.5] for i in range(25)],
    "other": [None] * 25,
}


def _saved(folder: Path) -> Any:
    library = pytest.importorskip("datasets")
    library.disable_progress_bars()
    dataset = library.Dataset.from_dict(ROWS)
    dataset.save_to_disk(str(folder / "one"))
    library.DatasetDict({"train": dataset, "rest": dataset.select(range(5))}).save_to_disk(str(folder / "several"))
    return library


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def _build(split: str = "train", **options: Any) -> Any:
    made = HfDatasetOptions(**{"path": "one", "heldout": 0.0, "shuffle": False, **options})
    loader = build_records(made, BuildContext(seed=1, split=split, max_length=10))
    fields = {name: spec if name != "label" else evolve(spec, bounds=None) for name, spec in loader.get_batch_spec().fields.items()}
    assert fields == made.to_spec().fields
    return loader


def test_rows_as_documents(here: Path) -> None:
    _saved(here)
    loader = _build(text="text", rows="padded")
    batch = loader.take(25, 10)
    assert [bytes(ids[mask].tolist()).decode() for ids, mask in zip(batch["tokens"], batch["mask"], strict=True)] == ROWS["text"]
    assert loader.fingerprint()["rows"] == 25
    stream = _build(text="text")
    assert bytes(stream.take(1, 40)["tokens"][0].tolist()).decode() == "\0".join(ROWS["text"])[:40]


def test_rows_as_labelled_examples(here: Path) -> None:
    _saved(here)
    assert _build(text="text", label="label").take(25, 10)["label"].tolist() == ROWS["label"]
    batch = _build(features="x", label="label").take(25, None)
    assert batch["features"].tolist() == ROWS["x"]


def test_one_of_several(here: Path) -> None:
    _saved(here)
    assert _build(path="several", text="text", rows="padded").epoch_size().rows == 25
    assert _build(path="several", part="rest", text="text", rows="padded").epoch_size().rows == 5
    with pytest.raises(DataError, match="part: 'several' holds rest, train and no 'test'"):
        _build(path="several", part="test", text="text")


def test_splits_are_disjoint(here: Path) -> None:
    _saved(here)
    seen = []
    for split in ("train", "final"):
        loader = _build(split, text="text", rows="padded", heldout=0.4)
        batch = loader.take(loader.epoch_size().rows, 10)
        seen += [bytes(ids[mask].tolist()).decode() for ids, mask in zip(batch["tokens"], batch["mask"], strict=True)]
    assert sorted(seen) == sorted(ROWS["text"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "nowhere", "text": "text"}, "path: 'nowhere' holds no dataset"),
        ({"text": "words"}, "one: there is no field 'words'; the dataset has text, label, x, other"),
        ({"text": "other"}, "one row 0: 'other' holds None where text is wanted"),
    ],
)
def test_datasets_that_cannot_be_used(here: Path, options: dict[str, Any], words: str) -> None:
    _saved(here)
    with pytest.raises(DataError, match=words):
        _build(**options)


def test_a_damaged_dataset(here: Path) -> None:
    _saved(here)
    (file,) = (here / "one").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="path: the dataset in 'one' cannot be read"):
        _build(text="text")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"hf-dataset needs the library 'datasets' .* pip install stackwise-providers-data\[datasets\]"):
        _build(text="text")


def test_a_folder_of_parquet_files_is_read_by_part(here: Path) -> None:
    """As the hub lays them out: by the beginning of a file's name, or of its folder's."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{name: values[i] for name, values in ROWS.items()} for i in range(25)]
    for name, part in {
        "data/train-00000-of-00002.parquet": rows[:10],
        "data/train-00001-of-00002.parquet": rows[10:],
        "data/trainer-0.parquet": rows[:1],
        "rest/0000.parquet": rows[:5],
    }.items():
        (here / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(part), here / "hub" / name)
    loader = _build(path="hub", text="text", rows="padded")
    batch = loader.take(25, 10)
    assert loader.epoch_size().rows == 25  # no row of the trainer
    assert [bytes(ids[mask].tolist()).decode() for ids, mask in zip(batch["tokens"], batch["mask"], strict=True)] == ROWS["text"]
    assert _build(path="hub", part="rest", text="text", rows="padded").epoch_size().rows == 5
    assert _build(path="hub", features="x", label="label").take(25, None)["label"].tolist() == ROWS["label"]
    with pytest.raises(DataError, match=r"part: 'hub' holds Parquet files .*, and none is named after 'test'"):
        _build(path="hub", part="test", text="text")
