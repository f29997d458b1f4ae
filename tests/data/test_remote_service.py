"""`s3://` against a service on this machine (moto, by s3fs): found, copied once, copied anew when changed, named when not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stackwise import DataError, UserError
from stackwise_providers_data.remote_files import located_files

s3fs = pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket with two files of text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in (("AWS_ENDPOINT_URL", f"http://{host}:{port}"), ("AWS_ACCESS_KEY_ID", "some"), ("AWS_SECRET_ACCESS_KEY", "some")):
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem()
    store.mkdir("texts")
    store.pipe("texts/books/a.txt", b"one")
    store.pipe("texts/books/b.txt", b"two")
    yield store
    s3fs.S3FileSystem.clear_instance_cache()
    running.stop()


def test_objects_of_a_bucket_are_copied_once_and_anew_when_they_change(bucket: Any, tmp_path: Path) -> None:
    first = located_files(("s3://texts/books/*.txt",))
    assert [path.read_bytes() for path in first] == [b"one", b"two"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert located_files(("s3://texts/books/*.txt",)) == first
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    bucket.pipe("texts/books/b.txt", b"three")
    bucket.invalidate_cache()
    assert [path.read_bytes() for path in located_files(("s3://texts/books/*.txt",))] == [b"one", b"three"]
    with pytest.raises((DataError, UserError), match="nothing"):
        located_files(("s3://texts/nothing/*.txt",))
