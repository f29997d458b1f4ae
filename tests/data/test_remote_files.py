"""Files behind URLs: copied once, copied anew when they change, and read as local ones are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stackwise import BuildContext, DataError, UserError
from stackwise_providers_data.options import TextFilesOptions
from stackwise_providers_data.record_files import build_records
from stackwise_providers_data.record_options import JsonlOptions
from stackwise_providers_data.remote_files import located
from stackwise_providers_data.table_files import build_table
from stackwise_providers_data.table_options import CsvOptions

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The files of fsspec's memory, emptied afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/a.csv", b"x,y\n1,2\n3,4\n")
    memory.pipe("/bucket/b.csv", b"x,y\n5,6\n")
    memory.pipe("/bucket/c.jsonl", json.dumps({"text": "remote"}).encode())
    yield memory
    memory.rm("/bucket", recursive=True)


def _targets(*paths: str) -> list[float]:
    options = CsvOptions(paths=paths, numbers=("x",), target=("y",), heldout=0.0, shuffle=False)
    loader = build_table(options, BuildContext(seed=0, split="train"))
    batch = loader.take(loader.epoch_size().rows, None)
    mean = sum(values := [2, 4, 6][: len(batch["target"])]) / len(values)
    return [round(float(y * std) + mean, 4) for (y,), (std,) in zip(batch["target"], batch["target_std"], strict=True)]


def test_a_glob_behind_a_url_is_read_as_a_local_one(store: Any, tmp_path: Path) -> None:
    assert _targets("memory://bucket/*.csv") == [2, 4, 6]
    assert _targets("memory://bucket/a.csv") == [2, 4]
    for name in ("a", "b"):
        Path(f"{name}.csv").write_bytes(store.cat(f"/bucket/{name}.csv"))
    assert _targets(f"file://{tmp_path}/*.csv") == _targets("*.csv") == [2, 4, 6]
    lines = build_records(JsonlOptions(paths=("memory://bucket/*.jsonl",), text="text", heldout=0.0), BuildContext(seed=0, max_length=6))
    assert bytes(lines.take(1, 6)["tokens"][0].tolist()) == b"remote"
    assert len(TextFilesOptions(paths=("memory://bucket/*",), heldout=0.0).documents().by_path) == 3


def test_a_file_is_copied_once_and_again_when_it_changed(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []
    get_file = type(store).get_file

    def counted(self: Any, path: str, *rest: Any, **more: Any) -> Any:
        copies.append(path)
        return get_file(self, path, *rest, **more)

    monkeypatch.setattr(type(store), "get_file", counted)
    first = located(["memory://bucket/a.csv"])
    assert first == located(["memory://bucket/a.csv"]) and len(copies) == 1
    ((url, path),) = first.items()
    assert url == "memory://bucket/a.csv" and path.name == "a.csv" and path.read_bytes() == b"x,y\n1,2\n3,4\n"
    store.pipe("/bucket/a.csv", b"x,y\n7,8\n9,9\n")  # of the same size
    assert located(["memory://bucket/a.csv"])[url].read_bytes() == b"x,y\n7,8\n9,9\n" and len(copies) == 2
    copy = located(["memory://bucket/a.csv"])[url]
    copy.write_bytes(b"damaged")
    assert located(["memory://bucket/a.csv"])[url].read_bytes() == b"x,y\n7,8\n9,9\n" and len(copies) == 3


def test_local_files_are_not_copied(store: Any, tmp_path: Path) -> None:
    Path("a.csv").write_bytes(b"x")
    assert list(located([f"file://{tmp_path}/a.csv"]).values()) == [tmp_path / "a.csv"]
    assert not (tmp_path / "cache").exists()


def test_urls_that_cannot_be_read(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no file matches 'memory://bucket/\*.txt'"):
        located(["memory://bucket/*.txt"])
    with pytest.raises(UserError, match=r"'nonsense://a.csv' cannot be opened: Protocol not known: nonsense"):
        located(["nonsense://a.csv"])
    monkeypatch.setattr(type(store), "get_file", lambda *_, **__: (_ for _ in ()).throw(PermissionError("no entry")))
    with pytest.raises(DataError, match=r"'memory://bucket/a.csv' cannot be read: PermissionError: no entry"):
        located(["memory://bucket/a.csv"])
    assert not list((tmp_path / "cache").glob("remote-*/"))
