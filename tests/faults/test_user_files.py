"""What users' text files and records may be: each is read as it is, or refused with the file, the place and the way out.

The table in README.md says what is right of each.
"""

from __future__ import annotations

import bz2
import gzip
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stackwise import BuildContext, DataError
from stackwise_providers_data.options import TextFilesOptions
from stackwise_providers_data.record_files import build_records
from stackwise_providers_data.record_options import JsonlOptions
from stackwise_providers_data.text_files import build_text_files
from stackwise_providers_data.tokenizer_options import TokenizerOptions

GOOD = b"text of some length, again and again\n" * 4
ROW = json.dumps({"text": "text of some length"}).encode() + b"\n"
BPE = TokenizerOptions(bpe=270)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    Path("good.txt").write_bytes(GOOD)
    return tmp_path


def text_of(paths: str = "*.txt", tokenizer: Any = "bytes", split: str = "train", heldout: float = 0.0) -> bytes:
    options = TextFilesOptions(paths=(paths,), heldout=heldout, shuffle=False, tokenizer=tokenizer)
    loader: Any = build_text_files(options, BuildContext(seed=1, split=split, max_length=1))
    ids = loader.take(1, loader.epoch_size().entries)["tokens"][0].tolist()
    if tokenizer == "bytes":
        return bytes(ids)
    kept = options.make_tokenizer([options])
    assert kept is not None
    return options.codec_of(kept).decode(ids).encode()


def records_of(content: bytes, **options: Any) -> list[str]:
    Path("a.jsonl").write_bytes(content)
    declared = JsonlOptions(paths=("a.jsonl",), text="text", heldout=0, shuffle=False, rows="padded", **options)
    loader: Any = build_records(declared, BuildContext(seed=1, max_length=64))
    batch = loader.take(loader.epoch_size().rows, 64)
    return [bytes(ids[mask].tolist()).decode() for ids, mask in zip(batch["tokens"], batch["mask"], strict=True)]


def zipped() -> None:
    with zipfile.ZipFile("bad.txt", "w") as archive:
        archive.writestr("a.txt", GOOD)


def folder() -> None:
    Path("bad.txt").mkdir()
    Path("good.txt").unlink()


def alone(content: bytes) -> Callable[[], object]:
    def write() -> None:
        Path("good.txt").unlink()
        Path("bad.txt").write_bytes(content)

    return write


WRONG_TEXT: dict[str, tuple[Callable[[], object], Any, str]] = {
    "gzip": (lambda: Path("bad.txt").write_bytes(gzip.compress(GOOD)), "bytes", r"'bad.txt' is compressed \(gzip\)"),
    "bzip2": (lambda: Path("bad.txt").write_bytes(bz2.compress(GOOD)), BPE, r"'bad.txt' is compressed \(bzip2\)"),
    "zip": (zipped, "bytes", r"'bad.txt' is compressed \(zip\)"),
    "not UTF-8": (lambda: Path("bad.txt").write_bytes(GOOD + b"\xe9"), BPE, rf"'bad.txt' is not UTF-8 at byte {len(GOOD)}"),
    "UTF-16": (lambda: Path("bad.txt").write_bytes("text".encode("utf-16")), BPE, r"'bad.txt' is not UTF-8 .*UTF-16"),
    "a folder": (folder, "bytes", r"'bad.txt' is a folder: write 'bad.txt/\*\*/\*'"),
    "a loop of links": (lambda: Path("bad.txt").symlink_to("bad.txt"), "bytes", r"'bad.txt' cannot be read"),
    "a link to nothing": (lambda: Path("bad.txt").symlink_to("nothing"), "bytes", r"'bad.txt' cannot be read"),
    "a link to another": (lambda: Path("bad.txt").symlink_to("good.txt"), "bytes", "'bad.txt' and 'good.txt' are one file"),
    "a hard link": (lambda: Path("bad.txt").hardlink_to("good.txt"), "bytes", "'bad.txt' and 'good.txt' are one file"),
    "an empty file alone": (alone(b""), "bytes", "give more data"),
}


@pytest.mark.parametrize("case", WRONG_TEXT)
def test_text_files_that_cannot_be_read_are_named(case: str) -> None:
    write, tokenizer, words = WRONG_TEXT[case]
    write()
    with pytest.raises(DataError, match=words):
        text_of(tokenizer=tokenizer)


def test_a_name_that_a_glob_would_read_otherwise_is_told_how_to_be_written() -> None:
    Path("[x].txt").write_bytes(GOOD)
    with pytest.raises(DataError, match=r"write '\[\[\]x\].txt'"):
        text_of("[x].txt")
    assert text_of("[[]x].txt") == GOOD


@pytest.mark.parametrize("path", ["~/good.txt", "$HOME/good.txt"])
def test_a_path_that_a_shell_would_fill_in_is_told_to_be_written_out(path: str) -> None:
    with pytest.raises(DataError, match="write the whole path"):
        text_of(path)


@pytest.mark.parametrize("tokenizer", ["bytes", BPE], ids=["bytes", "learnt"])
@pytest.mark.parametrize("content", [b"one\r\ntwo\r\n" * 9, b"\xef\xbb\xbfmarked " * 9, "naïve — 😀\x00".encode() * 9, b"no end of line"])
def test_text_is_used_as_it_is(content: bytes, tokenizer: Any) -> None:
    Path("as-it-is.txt").write_bytes(content)
    assert text_of("as-it-is.txt", tokenizer) == content


def test_bytes_need_not_be_text() -> None:
    Path("any.txt").write_bytes(bytes(range(256)))
    assert text_of("any.txt") == bytes(range(256))


def test_an_empty_file_among_others_is_an_empty_document() -> None:
    Path("a.txt").touch()
    assert text_of() == b"\0" + GOOD


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (ROW * 3 + b'{"text": "cut o', r"a\.jsonl:4: this line is not JSON \(the file ends in it: it may be cut off\)"),
        (ROW + b'{"text": "cut o\n' + ROW, r"a\.jsonl:2: this line is not JSON:"),
        (ROW * 9_999 + b'{"body": "misnamed"}\n', r"a\.jsonl:10000: there is no field 'text'; this one has body"),
        (ROW + b'{"text": "caf\xe9"}\n', r"a\.jsonl:2: this line is not UTF-8 at byte 13"),
        (ROW + b'{"text": null}\n', r"a\.jsonl:2: 'text' holds None where text is wanted"),
        (ROW + b"\x00\n", r"a\.jsonl:2: this line is not JSON"),
        (ROW + b'{"text": "one", "text": "two"}\n', r"a\.jsonl:2: this line is not JSON: the field 'text' stands in it twice"),
        (b"[" + ROW + b"]", r"a\.jsonl:1: this line is not JSON"),
        (gzip.compress(ROW * 99, mtime=0), r"'a\.jsonl' is compressed \(gzip\)"),
        ('{"text": "x"}\n'.encode("utf-16"), r"a\.jsonl:1: this line is "),
        (b"", "there are no lines, the data are empty"),
        (b"\n \n", "there are no lines, the data are empty"),
        (b'{"text": ""}\n' * 3, "none of the 3 documents holds any text"),
    ],
    ids=str,
)
def test_records_that_cannot_be_read_are_named(content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        records_of(content)


@pytest.mark.parametrize(
    "content",
    [ROW * 2, b"\xef\xbb\xbf" + ROW * 2, ROW.replace(b"\n", b"\r\n") * 2, ROW + ROW.rstrip(), b"\n" + ROW + b"  \n" + ROW],
    ids=["plain", "byte-order mark", "CRLF", "no end of line", "blank lines"],
)
def test_records_are_read_however_lines_end(content: bytes) -> None:
    assert records_of(content) == ["text of some length"] * 2


def test_records_without_rights_are_named(here: Path) -> None:
    if not hasattr(os, "seteuid") or os.geteuid() != 0:
        pytest.skip("only root can put off its rights")
    Path("a.jsonl").write_bytes(ROW)
    Path("a.jsonl").chmod(0)
    here.chmod(0o755)
    options = JsonlOptions(paths=("a.jsonl",), text="text", heldout=0)
    os.seteuid(65534)
    try:
        with pytest.raises(DataError, match=r"'a\.jsonl' cannot be read: Permission denied"):
            list(options.documents().read("training"))
    finally:
        os.seteuid(0)
