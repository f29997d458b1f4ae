"""The lock of a run directory: one holder, told by pid and host, and never through what a stranger left in its place."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stackwise.errors import UserError
from stackwise.storage.lock import LOCK, WRITER, HeldError, RunLock, is_held, read_writer, refuse_held


def test_the_second_holder_is_refused_within_a_second_and_told_who_the_first_is(tmp_path: Path) -> None:
    first = RunLock(tmp_path)
    for attempt in (RunLock, refuse_held, RunLock):  # an attempt leaves the first one's sentence as it was
        started = time.monotonic()
        with pytest.raises(HeldError) as caught:
            attempt(tmp_path)
        assert time.monotonic() - started < 1
        assert caught.value.writer == {"pid": os.getpid(), "host": socket.gethostname()}
        assert str(os.getpid()) in str(caught.value) and socket.gethostname() in str(caught.value)
    assert is_held(tmp_path)
    first.release()
    assert not is_held(tmp_path)
    refuse_held(tmp_path)
    RunLock(tmp_path).release()


HOLD = "from pathlib import Path; from stackwise.storage.lock import RunLock; lock = RunLock(Path('.')); print(flush=True); input()"


def test_the_lock_goes_with_its_holder_however_it_ends(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"\n"
    with pytest.raises(HeldError) as caught:
        RunLock(tmp_path)
    assert caught.value.writer is not None and caught.value.writer["pid"] == process.pid
    process.kill()
    process.communicate()
    assert not is_held(tmp_path)


def test_a_forked_child_neither_holds_the_lock_nor_lets_it_go(tmp_path: Path) -> None:
    """A reader process that outlives training must not keep its directory locked; one that ends must not unlock it."""
    lock, (read, write) = RunLock(tmp_path), os.pipe()
    if not (child := os.fork()):
        os.close(write)
        os.read(read, 1)  # until the parent is done
        os._exit(0)
    os.close(read)
    try:
        assert is_held(tmp_path)
        lock.release()
        assert not is_held(tmp_path)
        lock = RunLock(tmp_path)
    finally:
        os.close(write)
        os.waitpid(child, 0)
    assert is_held(tmp_path)
    lock.release()


def test_nothing_is_made_where_nobody_ever_wrote(tmp_path: Path) -> None:
    assert not is_held(tmp_path) and read_writer(tmp_path) is None
    refuse_held(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not is_held(tmp_path / "nowhere")


STRANGE: dict[str, Callable[[Path, Path], object]] = {
    "link": lambda place, other: place.symlink_to(other),
    "dangling link": lambda place, other: place.symlink_to(other.with_name("nowhere")),
    "pipe": lambda place, other: os.mkfifo(place),
    "device": lambda place, other: place.symlink_to("/dev/null"),
    "directory": lambda place, other: place.mkdir(),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_file_is_never_opened_as_the_lock(tmp_path: Path, kind: str) -> None:
    other = tmp_path / "precious"
    other.write_text("x")
    run = tmp_path / "run"
    run.mkdir()
    STRANGE[kind](run / LOCK, other)
    for attempt in (RunLock, refuse_held):
        with pytest.raises(UserError, match=LOCK):
            attempt(run)
    assert not is_held(run) and other.read_text() == "x" and not other.with_name("nowhere").exists()


@pytest.mark.parametrize("kind", [kind for kind in STRANGE if kind != "directory"])
def test_who_holds_it_is_never_written_through_a_link_nor_read_from_one(tmp_path: Path, kind: str) -> None:
    other = tmp_path / "precious"
    other.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    before = other.read_text()
    run = tmp_path / "run"
    run.mkdir()
    STRANGE[kind](run / WRITER, other)
    assert read_writer(run) is None
    RunLock(run).release()
    assert other.read_text() == before and not (run / WRITER).is_symlink()
    assert read_writer(run) == {"pid": os.getpid(), "host": socket.gethostname()}


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 200_000, b'{"pid": 1'])
def test_a_holder_that_cannot_be_named_is_another_process(tmp_path: Path, content: bytes) -> None:
    lock = RunLock(tmp_path)
    (tmp_path / WRITER).write_bytes(content)
    with pytest.raises(HeldError, match="another process"):
        RunLock(tmp_path)
    lock.release()
