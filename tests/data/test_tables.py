"""Rows of Parquet and CSV against plain readers of the same files: values, order, epochs, resumption, and what is refused."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stackwise import BuildContext, DataError, EpochSize, UserError
from stackwise_providers_data import table_files
from stackwise_providers_data.table_files import build_table
from stackwise_providers_data.table_options import CsvOptions, ParquetOptions, TableOptions

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = [
    {
        "id": i,
        "x": i * i / 7 - 3,
        "kind": ["oak", "pine", "ash, old", 'a "b"'][i % 4],
        "code": i % 3,
        "y": 1000.0 + 5 * i,
        "class": ["no", "yes"][i % 2],
        "text": f"line {i}\nof two, with é",
    }
    for i in range(40)
]
TABLE: dict[str, Any] = {"numbers": ("id", "x"), "categories": {"kind": 10, "code": ("2", "0")}, "target": ("y",)}
Read = Callable[[], list[dict[str, Any]]]


def _write_parquet(rows: list[dict[str, Any]], name: str, **options: Any) -> None:
    pq.write_table(pa.Table.from_pylist(rows), name, **{"row_group_size": 7, **options})


def _write_csv(rows: list[dict[str, Any]], name: str) -> None:
    with Path(name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _read_parquet() -> list[dict[str, Any]]:
    return [row for name in ("a.parquet", "b.parquet") for row in pq.read_table(name).to_pylist()]


def _read_csv() -> list[dict[str, Any]]:
    rows = []
    for name in ("a.csv", "b.csv"):
        with Path(name).open(newline="", encoding="utf-8") as file:
            rows += [
                {**row, "id": int(row["id"]), "x": float(row["x"]), "y": float(row["y"]), "code": int(row["code"])}
                for row in csv.DictReader(file)
            ]
    return rows


FORMS: dict[str, tuple[type[TableOptions], tuple[str, ...], Read]] = {
    "parquet": (ParquetOptions, ("*.parquet",), _read_parquet),
    "csv": (CsvOptions, ("*.csv",), _read_csv),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    for name, rows in {"a": ROWS[:25], "b": ROWS[25:]}.items():
        _write_parquet(rows, f"{name}.parquet")
        _write_csv(rows, f"{name}.csv")
    return tmp_path


def _options(form: str, **options: Any) -> TableOptions:
    kind, paths, _ = FORMS[form]
    return kind(**{"paths": paths, "heldout": 0.0, **options})


def _build(form: str, *, split: str = "train", seed: int = 3, **options: Any) -> Any:
    made = _options(form, **options)
    loader = build_table(made, BuildContext(seed=seed, split=split, max_length=40))
    assert loader.get_batch_spec() == made.to_spec()
    return loader


def _table(form: str, **options: Any) -> Any:
    return _build(form, **{**TABLE, **options})


def _expected(rows: list[dict[str, Any]], training: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What each row is delivered as, computed from the rows of a plain reader."""
    counts = Counter(str(row["kind"]) for row in training)
    kinds = [value for value, _ in sorted(counts.items(), key=lambda each: (-each[1], each[0]))]

    def scaled(column: str, row: dict[str, Any]) -> Any:
        values = np.array([each[column] for each in training], dtype=np.float64)
        return np.float32((row[column] - values.mean()) / values.std())

    def ids(row: dict[str, Any]) -> list[int]:
        return [0, 3 + kinds.index(row["kind"]), {2: 13, 0: 14}.get(row["code"], 2)]

    return [([scaled("id", row), scaled("x", row)], ids(row), [scaled("y", row)]) for row in rows]


def _delivered(batch: dict[str, torch.Tensor]) -> list[tuple[Any, ...]]:
    return list(zip(batch["features"].tolist(), batch["categories"].tolist(), batch["target"].tolist(), strict=True))


def _both_parts() -> list[list[tuple[Any, ...]]]:
    loaders = [_table("csv", heldout=0.3, shuffle=False, split=split) for split in ("train", "final")]
    return [_delivered(loader.take(loader.epoch_size().rows, None)) for loader in loaders]


def _same(delivered: list[tuple[Any, ...]], expected: list[tuple[Any, ...]]) -> bool:
    if [ids for _, ids, _ in delivered] != [ids for _, ids, _ in expected]:
        return False
    pairs = zip(delivered, expected, strict=True)
    return all(np.allclose(one[0] + one[2], other[0] + other[2], rtol=1e-6, atol=1e-6) for one, other in pairs)


@pytest.mark.parametrize("form", FORMS)
def test_every_row_is_what_a_plain_reader_reads(form: str) -> None:
    rows = FORMS[form][2]()
    assert [row["id"] for row in rows] == list(range(40))
    loader = _table(form, shuffle=False)
    batch = loader.take(40, None)
    assert _same(_delivered(batch), _expected(rows, rows))
    assert np.allclose(batch["target_std"], np.std([row["y"] for row in rows]))
    assert loader.epoch_size() == EpochSize(rows=40) == _options(form, **TABLE).count_epoch("train")
    again = loader.take(40, None)
    assert _delivered(again) == _delivered(batch)


@pytest.mark.parametrize("form", FORMS)
def test_shuffled_epochs_and_every_resumption_deliver_the_same_rows(form: str) -> None:
    """Three epochs in batches that do not divide them; put back at any row, another loader goes on as the first did."""
    rows = FORMS[form][2]()
    known = {tuple(features): i for i, (features, _, _) in enumerate(_delivered(_table(form, shuffle=False).take(40, None)))}
    loader, states, delivered = _table(form), [], []
    for _ in range(120):
        states.append(loader.state_dict())
        delivered += _delivered(loader.take(1, None))
    expected = _expected(rows, rows)
    order = [known[tuple(features)] for features, _, _ in delivered]
    assert _same(delivered, [expected[i] for i in order])
    epochs = [order[start : start + 40] for start in (0, 40, 80)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]
    resumed = _table(form)
    for row in (*range(0, 120, 7), 39, 40, 41, 79, 80):
        resumed.load_state_dict(states[row])
        assert _delivered(resumed.take(min(33, 120 - row), None)) == delivered[row : row + 33]
    assert _delivered(_table(form, seed=4).take(40, None)) != delivered[:40]


@pytest.mark.parametrize("form", FORMS)
def test_a_large_table_is_mapped_and_the_same(form: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = _table(form)
    monkeypatch.setattr(table_files, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(table_files, "_RACY_S", 0.0)
    first, again = _table(form), _table(form)
    for loader in (first, again):
        loader.load_state_dict(small.state_dict())
        assert loader.fingerprint() == small.fingerprint()
    wanted = _delivered(small.take(50, None))
    assert _delivered(first.take(50, None)) == _delivered(again.take(50, None)) == wanted
    assert len(list(Path("cache").glob("table-*/entry.json"))) == 1
    mapped = _both_parts()
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert mapped == _both_parts()


def test_both_forms_deliver_the_same_and_hold_out_disjoint_rows() -> None:
    """The statistics are those of the training rows alone; the rows held out are encoded by them."""
    rows = _read_parquet()
    parts = {}
    for split in ("train", "final"):
        loader = _table("parquet", shuffle=False, heldout=0.3, split=split)
        parts[split] = _delivered(loader.take(loader.epoch_size().rows, None))
    out = _held_out(parts["final"], parts["train"], np.array([row["y"] for row in rows]))
    training = [row for i, row in enumerate(rows) if i not in out]
    assert len(training) == len(parts["train"]) and 3 <= len(out) <= 25
    assert _same(parts["train"], _expected(training, training))
    assert _same(parts["final"], _expected([rows[i] for i in sorted(out)], training))
    assert _delivered(_table("csv", shuffle=False).take(40, None)) == _delivered(_table("parquet", shuffle=False).take(40, None))


def _held_out(heldout: list[tuple[Any, ...]], training: list[tuple[Any, ...]], y: np.ndarray[Any, Any]) -> set[int]:
    """The rows that are held out, found by rank: scaled y rises with y, on one scale in both parts."""
    ranked = sorted([(each[2][0], True) for each in heldout] + [(each[2][0], False) for each in training])
    return {i for i, (_, out) in zip(np.argsort(y), ranked, strict=True) if out}


@pytest.mark.parametrize("form", FORMS)
def test_labels_and_texts(form: str) -> None:
    batch = _build(form, numbers=("x",), label="class", classes=("no", "yes"), shuffle=False).take(40, None)
    assert batch["label"].tolist() == [0, 1] * 20 and batch["categories"].tolist() == [[0]] * 40
    assert _build(form, numbers=("x",), label="code", shuffle=False).take(40, None)["label"].tolist() == [i % 3 for i in range(40)]
    texts = [row["text"] for row in FORMS[form][2]()]
    padded = _build(form, text="text", rows="padded", shuffle=False).take(40, 40)
    assert [bytes(ids[mask].tolist()).decode() for ids, mask in zip(padded["tokens"], padded["mask"], strict=True)] == texts
    stream = _build(form, text="text", shuffle=False).take(3, 40)["tokens"].flatten()
    assert bytes(stream.tolist()) == "\0".join(texts).encode()[:120]
    labelled = _build(form, text="text", label="class", classes=("no", "yes"), shuffle=False).take(40, 40)
    assert labelled["label"].tolist() == [0, 1] * 20


@pytest.mark.parametrize("form", FORMS)
def test_the_ids_of_texts_are_a_plain_reader_s_across_shuffles_epochs_and_resumption(form: str) -> None:
    """Three epochs of 40 texts, one at a time; put back at every row, another loader delivers the same rest."""
    known = {row["text"]: row["id"] for row in FORMS[form][2]()}
    states, delivered = [], []
    loader = _build(form, text="text", rows="padded")
    for _ in range(120):
        states.append(loader.state_dict())
        batch = loader.take(1, 40)
        delivered.append(bytes(batch["tokens"][batch["mask"]].tolist()).decode())
    order = [known[text] for text in delivered]
    epochs = [order[start : start + 40] for start in (0, 40, 80)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]
    resumed = _build(form, text="text", rows="padded")
    for row, state in enumerate(states):
        resumed.load_state_dict(state)
        batch = resumed.take(min(3, 120 - row), 40)
        texts = [bytes(ids[mask].tolist()).decode() for ids, mask in zip(batch["tokens"], batch["mask"], strict=True)]
        assert texts == delivered[row : row + 3]


def test_what_training_has_not_seen(capsys: pytest.CaptureFixture[str]) -> None:
    """A value beyond the room of a column, one that is not named, and cells without a value."""
    rows = [{"x": float(i), "kind": kind, "y": 0.5 * i} for i, kind in enumerate(["b", "b", "a", "c", None, "b"])]
    rows[1]["x"] = None
    _write_parquet(rows, "holes.parquet")
    table: dict[str, Any] = {"paths": ("holes.parquet",), "numbers": ("x",), "target": ("y",), "shuffle": False}
    batch = _build("parquet", **table, categories={"kind": 2}, missing="fill").take(6, None)
    assert batch["categories"].tolist() == [[0, 2], [0, 2], [0, 3], [0, 1], [0, 1], [0, 2]]
    numbers = np.array([0.0, 2.0, 3.0, 4.0, 5.0])
    assert np.allclose(np.delete(batch["features"][:, 0].numpy(), 1), (numbers - numbers.mean()) / numbers.std())
    assert float(batch["features"][1, 0]) == 0
    told = capsys.readouterr().err
    assert "1 cells of 'x' hold no value" in told and "1 cells of 'kind' hold no value" in told
    assert "1 cells of 'kind' hold none of its values ('c' at holes.parquet row 3 first)" in told
    with pytest.raises(DataError, match=r"holes.parquet row 1: 'x' holds no value: .*missing: fill"):
        _build("parquet", **table)
    with pytest.raises(DataError, match=r"holes.parquet row 3: 'kind' holds 'c', which is none of its 2 values"):
        _build("parquet", **table, categories={"kind": 2}, missing="fill", unknown="refuse")
    with pytest.raises(DataError, match=r"holes.parquet row 1: 'x' holds no value: mend or remove the row$"):
        _build("parquet", **{**table, "numbers": ("y",), "target": ("x",), "missing": "fill"})


def test_a_constant_column_is_zero_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    _write_parquet([{"x": 0.1, "y": float(i)} for i in range(3)], "flat.parquet")  # the mean of three is not 0.1
    batch = _build("parquet", paths=("flat.parquet",), numbers=("x",), target=("y",)).take(3, None)
    assert batch["features"].abs().max() == 0
    assert "'x' is the same in all rows of training" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"target 'x' is the same in all 3 rows of training: there is nothing to predict"):
        _build("parquet", paths=("flat.parquet",), numbers=("y",), target=("x",))


def test_the_encoding_belongs_to_the_run() -> None:
    """Options that got an encoding use it, whatever their own rows would teach."""
    options = _options("csv", **TABLE)
    tokenizer = options.make_tokenizer([options])
    assert tokenizer is not None and options.make_tokenizer(None) is None
    content = json.loads(tokenizer.files["table.json"])
    xs = [row["x"] for row in ROWS]
    assert content["rows"] == 40 and content["categories"]["code"] == ["2", "0"]
    assert content["numbers"]["x"] == pytest.approx({"mean": np.mean(xs), "std": np.std(xs)}, rel=1e-12)
    other = _options("csv", **{**TABLE, "target": ("y",), "paths": ("b.csv",), "shuffle": False}).with_tokenizer(tokenizer)
    loader = build_table(other, BuildContext(seed=3, split="train"))
    assert _same(_delivered(loader.take(15, None)), _expected(_read_csv()[25:], _read_csv()))
    assert loader.fingerprint()["vocabulary"] == tokenizer.vocabulary
    assert options.tokenizer_settings() == other.tokenizer_settings()
    with pytest.raises(UserError, match=r"which is not text"):
        options.codec_of(tokenizer)


def test_a_row_group_at_a_time_is_in_memory() -> None:
    """What Arrow holds at its peak is far below the file."""
    rows = [{"x": float(i), "y": 1.0 * i, "pad": f"{i:0200d}"} for i in range(20_000)]
    _write_parquet(rows, "long.parquet", row_group_size=500, compression="none", use_dictionary=False)
    usual, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.system_memory_pool())
    pa.set_memory_pool(pool)
    try:
        documents = _options("parquet", paths=("long.parquet",), text="pad").documents()
        assert sum(1 for _ in documents.records) == 20_000
    finally:
        pa.set_memory_pool(usual)
    assert 0 < pool.max_memory() < Path("long.parquet").stat().st_size / 8


# -- what is refused ------------------------------------------------------------------------------------------------


def test_a_damaged_row_group_is_named() -> None:
    _write_parquet(ROWS, "one.parquet", compression="none", use_dictionary=False, write_page_checksum=True)
    column = pq.ParquetFile("one.parquet").metadata.row_group(2).column(1)
    content = bytearray(Path("one.parquet").read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 5] ^= 0x55
    Path("one.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"one.parquet: row group 2 of 6 \(counted from 0\) cannot be read"):
        _build("parquet", paths=("one.parquet",), numbers=("x",), target=("y",))
    whole = Path("a.parquet").read_bytes()
    for damage in (whole[:-20], whole[: len(whole) // 2], b"", b"x" * 100):
        Path("a.parquet").write_bytes(damage)
        with pytest.raises(DataError, match=r"a.parquet: this is not a whole Parquet file"):
            _table("parquet")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"bad.csv: the file is empty: its first line names the columns"),
        ("x,y\n", r"csv: there are no rows, the data are empty"),
        ("x,z\n1,2\n", r"bad.csv:1: there is no column 'y'; the file has x, z"),
        ("x,y,x\n1,2,3\n", r"bad.csv:1: two columns are called 'x'"),
        ("x,y\n1,2\n1\n", r"bad.csv:3: 1 cells in this row and 2 columns in the header"),
        ('x,y\n1,2\n"1\n,2",3,4\n', r"bad.csv:4: 3 cells in this row"),
        ("x,y\n1,2\n3,four\n", r"bad.csv:3: 'y' holds 'four', which is not a number"),
        ("x,y\n1,2\n1_000,4\n", r"bad.csv:3: 'x' holds '1_000', which is not a number"),
        ("x,y\n1,2\n,4\n", r"bad.csv:3: 'x' holds no value"),
        ("x,y\n1,2\nnan,4\n", r"bad.csv:3: 'x' holds no value"),
        ("x,y\n1,2\n1e999,4\n", r"bad.csv:3: 'x' holds inf where a finite number is wanted"),
        ('x,y\n1,2\n"3,4\n', r"bad.csv:3: this row cannot be read: unexpected end of data"),
        ("x,y\n1,2\n3,4é\n".encode("latin-1"), r"bad.csv:3: this line is not UTF-8"),
        (b"\x1f\x8b\x08" + b"0" * 20, r"bad.csv' is compressed \(gzip\)"),
    ],
)
def test_bad_csv_is_told_with_file_and_line(text: str | bytes, told: str) -> None:
    Path("bad.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError, match=told):
        _build("csv", paths=("bad.csv",), numbers=("x",), target=("y",))


def test_csv_as_other_programs_write_it() -> None:
    """A byte-order mark, semicolons, line ends of Windows, a name for what is missing, a blank line."""
    Path("other.csv").write_bytes("\ufeffx;y\r\n1;2\r\n\r\nNA;5\r\n3;8\r\n".encode())
    table: dict[str, Any] = {"paths": ("other.csv",), "numbers": ("x",), "target": ("y",), "delimiter": ";", "missing": "fill"}
    batch = _build("csv", **table, empty=("", "NA"), shuffle=False).take(3, None)
    assert batch["features"].tolist() == [[-1.0], [0.0], [1.0]]
    with pytest.raises(DataError, match=r"other.csv:4: 'x' holds 'NA', which is not a number: mend it, or name it under `empty`"):
        _build("csv", **table)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("text", "row 0: 'x' holds 'text' where a finite number"),
        ([1.0], r"row 0: 'x' holds \[1.0\] where a finite number"),
        (None, "parquet: column 'x' holds no number in the 1 rows of training"),
        (float("nan"), "parquet: column 'x' holds no number in the 1 rows of training"),
        (float("inf"), "row 0: 'x' holds inf where a finite number"),
    ],
)
def test_a_column_that_holds_no_numbers(value: Any, told: str) -> None:
    _write_parquet([{"x": value, "y": 1.0}], "c.parquet")
    with pytest.raises(DataError, match=told):
        _build("parquet", paths=("c.parquet",), numbers=("x",), target=("y",))


def test_a_column_that_holds_no_categories() -> None:
    _write_parquet([{"kind": 0.5, "x": 1.0, "y": 1.0}], "c.parquet")
    with pytest.raises(DataError, match=r"row 0: 'kind' holds 0.5 where text or a whole number"):
        _build("parquet", paths=("c.parquet",), numbers=("x",), categories={"kind": 3}, target=("y",))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"numbers": ("x",)}, "target: a table has either"),
        ({"numbers": ("x",), "target": ("y",), "label": "code"}, "target: a table has either"),
        ({"target": ("y",)}, "numbers: a table has at least one column"),
        ({"numbers": ("x", "y"), "target": ("y",)}, "'y' is named twice"),
        ({"numbers": ("x",), "target": ("y",), "classes": ("a",)}, "classes: they belong to a label"),
        ({"numbers": ("x",), "target": ("y",), "text": "text"}, "text: it has no effect on a table"),
        ({"numbers": ("x",), "target": ("y",), "tokenizer": "bites"}, "tokenizer: it has no effect on a table"),
        ({"numbers": ("x",), "target": ("y",), "categories": {"kind": 0}}, "categories.kind: 0 is not a number of values"),
        ({"numbers": ("x",), "target": ("y",), "categories": {"kind": ("a", "a")}}, "categories.kind: name at least one value"),
        ({"text": "text", "missing": "fill"}, "missing: it has no effect on examples without numbers"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_options_that_make_no_table(form: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        _options(form, **options)


def test_options_of_csv_alone() -> None:
    with pytest.raises(UserError, match=r"delimiter: '::' is not one character"):
        _options("csv", text="text", delimiter="::")
    with pytest.raises(UserError, match=r"cells of a CSV hold no lists"):
        _options("csv", features="x", label="code")


def test_a_column_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"a.parquet: there is no column 'z'; the file has id, x, kind"):
        _build("parquet", numbers=("z",), target=("y",))
    with pytest.raises(DataError, match=r"no file matches 'none/\*.csv'"):
        _build("csv", paths=("none/*.csv",), numbers=("z",), target=("y",))


@pytest.mark.parametrize("form", FORMS)
def test_a_changed_cell_changes_the_fingerprint(form: str) -> None:
    """The digest by which a resume refuses data that changed between stop and resume; every column that is read counts."""
    before = {_table(form).fingerprint()["sha256"]}
    for column, value in {"x": 0.5, "kind": "pine", "y": 1.0}.items():
        changed = [{**row, column: value} if row["id"] == 11 else row for row in ROWS[:25]]
        {"parquet": _write_parquet, "csv": _write_csv}[form](changed, f"a.{form}")
        before.add(_table(form).fingerprint()["sha256"])
    assert len(before) == 4
