"""The cache: whole entries or none, whatever happens to processes and files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from stackwise import UserError
from stackwise_providers_data import cache
from stackwise_providers_data.cache import cache_folder, obtain, read_entry, recall, remember

BUILDER = """
import sys, time
from pathlib import Path
from stackwise_providers_data.cache import obtain

def build(folder):
    with Path(sys.argv[1]).open("a") as file:
        file.write("built\\n")
    (folder / "a.bin").write_bytes(b"a" * 1000)
    if len(sys.argv) > 2:
        Path(sys.argv[2]).touch()
        time.sleep(60)
    time.sleep(0.3)
    (folder / "b.bin").write_bytes(b"b" * 1000)
    return {"size": 1000}

path, notes = obtain("entry", build)
print(path, notes["size"], len((path / "b.bin").read_bytes()))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _build(folder: Path) -> dict[str, Any]:
    (folder / "a.bin").write_bytes(bytes(range(256)) * 300)
    return {"what": "numbers"}


def _refuse(folder: Path) -> dict[str, Any]:
    raise AssertionError("it is there already")


def test_an_entry_is_built_once(folder: Path) -> None:
    path, notes = obtain("entry", _build)
    assert (path, notes) == (folder / "entry", {"what": "numbers"})
    assert obtain("entry", _refuse) == (path, notes)
    assert {file.name for file in path.iterdir()} == {"a.bin", "entry.json"}
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "no entry", "half an entry", "other json"])
def test_a_damaged_entry_is_built_anew(damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = obtain("entry", _build)
    file = path / "a.bin"
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-1])
    elif damage == "flip":
        file.write_bytes(content[:500] + b"\xff" + content[501:])
    elif damage == "gone":
        file.unlink()
    else:
        text = {"no entry": None, "half an entry": (path / "entry.json").read_text()[:20], "other json": "[1]"}[damage]
        (path / "entry.json").unlink() if text is None else (path / "entry.json").write_text(text)
    assert read_entry(path) is None
    obtain("entry", _build)
    assert file.read_bytes() == content
    assert read_entry(path) == {"what": "numbers"}
    assert "is damaged and is built anew" in capsys.readouterr().err


def test_of_a_large_file_both_ends_and_the_size_are_held_against_the_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_WHOLE_BYTES", 1000)
    path, _ = obtain("entry", _build)
    content = (path / "a.bin").read_bytes()
    for wrong in (b"x" + content[1:], content[:-1] + b"x", content + b"x", content[:-1]):
        (path / "a.bin").write_bytes(wrong)
        assert read_entry(path) is None
    (path / "a.bin").write_bytes(content)
    assert read_entry(path) is not None


def test_a_builder_that_fails_leaves_nothing(folder: Path) -> None:
    def fail(building: Path) -> dict[str, Any]:
        (building / "a.bin").write_bytes(b"half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        obtain("entry", fail)
    assert not [path for path in folder.iterdir() if not path.name.endswith(".lock")]


def test_two_processes_build_an_entry_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [subprocess.Popen([sys.executable, "-c", BUILDER, str(log)], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].split() for process in processes]
    assert said[0] == said[1] == [str(tmp_path / "cache" / "entry"), "1000", "1000"]
    assert log.read_text() == "built\n"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_builder_killed_half_way_is_cleared_up(tmp_path: Path, folder: Path) -> None:
    log, half_way = tmp_path / "log", tmp_path / "half-way"
    with subprocess.Popen([sys.executable, "-c", BUILDER, str(log), str(half_way)]) as process:
        while not half_way.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert not (folder / "entry").exists()
    assert len(list(folder.glob(".entry.building-*"))) == 1
    done = subprocess.run([sys.executable, "-c", BUILDER, str(log)], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split()[1:] == ["1000", "1000"]
    assert not list(folder.glob(".entry.building-*"))
    assert read_entry(folder / "entry") == {"size": 1000}


def test_small_values_are_kept_by_name(folder: Path) -> None:
    assert recall("value.json") is None
    remember("value.json", {"a": 1})
    remember("value.json", {"a": 2})
    assert recall("value.json") == {"a": 2}
    (folder / "value.json").write_text("{")
    assert recall("value.json") is None
    (folder / "value.json").write_text(json.dumps([1]))
    assert recall("value.json") is None


def test_the_usual_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STACKWISE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / "home" / ".cache" / "stackwise"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "stackwise"


def test_a_home_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "tmp").mkdir()
    monkeypatch.delenv("STACKWISE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    found = cache_folder()
    assert found.parent == tmp_path / "tmp"
    assert found.stat().st_mode & 0o777 == 0o700 or os.name == "nt"
    assert "cannot be written to" in capsys.readouterr().err
    found.rmdir()
    found.symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"set STACKWISE_CACHE"):
        cache_folder()


def test_a_folder_that_was_asked_for_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"STACKWISE_CACHE: '.*' cannot be written to: Not a directory"):
        cache_folder()


def test_a_disk_that_is_full(folder: Path) -> None:
    def full(building: Path) -> dict[str, Any]:
        raise OSError(28, os.strerror(28))

    with pytest.raises(UserError, match="cannot be written: No space left on device: make room, or set STACKWISE_CACHE"):
        obtain("entry", full)
