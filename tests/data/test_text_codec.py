"""Text ↔ ids: what a loader delivered comes back as text, and a prompt becomes what the loader would have delivered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackwise import BuildContext, DataError, UserError
from stackwise_providers_data.options import StdlibOptions, TextFilesOptions
from stackwise_providers_data.record_files import build_records
from stackwise_providers_data.record_options import JsonlOptions
from stackwise_providers_data.text_codec import ByteCodec
from stackwise_providers_data.text_files import build_text_files
from stackwise_providers_data.tokenizer_options import SEPARATOR, BpeTraining, TokenizerOptions

TEXT = "naïve cats — sat on the mat, 3 times\n"
BPE = TokenizerOptions(bpe=BpeTraining(vocab=290))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    Path("a.txt").write_text(TEXT * 4, encoding="utf-8")
    Path("a.jsonl").write_text(f"{json.dumps({'text': TEXT * 4})}\n", encoding="utf-8")
    return tmp_path


def files(tokenizer: Any) -> TextFilesOptions:
    return TextFilesOptions(paths=("a.txt",), heldout=0, tokenizer=tokenizer, shuffle=False)


def records(tokenizer: Any) -> JsonlOptions:
    return JsonlOptions(paths=("a.jsonl",), text="text", heldout=0, tokenizer=tokenizer, shuffle=False)


@given(st.text())
def test_bytes_are_the_text(text: str) -> None:
    codec = ByteCodec()
    assert codec.encode(text) == list(text.encode())
    assert codec.decode(codec.encode(text)) == text


def test_bytes_that_are_no_text_are_shown_and_those_of_a_command_line_kept() -> None:
    assert ByteCodec().decode([97, 255, 0xC3, 98]) == "a\\xff\\xc3b"
    assert ByteCodec().encode(b"a\xff".decode(errors="surrogateescape")) == [97, 255]
    assert StdlibOptions().text_codec({}).encode("né") == [110, 0xC3, 0xA9]


@pytest.mark.parametrize("tokenizer", ["bytes", BPE], ids=["bytes", "bpe"])
@pytest.mark.parametrize(("options", "build"), [(files, build_text_files), (records, build_records)], ids=["files", "records"])
def test_a_loader_and_its_codec_agree(here: Path, options: Any, build: Any, tokenizer: Any) -> None:
    if tokenizer != "bytes":
        pytest.importorskip("tokenizers")
    declared = options(tokenizer)
    loader = build(declared, BuildContext(seed=1, split="train", max_length=1))
    codec = declared.text_codec(loader.fingerprint())
    ids = loader.take(1, len(codec.encode(TEXT * 4)))["tokens"][0].tolist()
    assert ids == codec.encode(TEXT * 4) and codec.decode(ids) == TEXT * 4
    assert (len(ids) < len(TEXT.encode() * 4)) == (tokenizer != "bytes")


def test_a_vocabulary_that_is_another_one_now_is_refused(here: Path) -> None:
    pytest.importorskip("tokenizers")
    known = build_text_files(files(BPE), BuildContext(seed=1, split="train", max_length=1)).fingerprint()
    path = next((here / "cache").glob("bpe-*/tokenizer.json"))
    saved = here / "kept.json"
    saved.write_bytes(path.read_bytes())
    by_file = files(TokenizerOptions(file=str(saved), separator=SEPARATOR))
    of_file = build_text_files(by_file, BuildContext(seed=1, split="train", max_length=1)).fingerprint()
    assert by_file.text_codec(of_file).encode(TEXT) == files(BPE).text_codec(known).encode(TEXT)
    content = json.loads(saved.read_text())
    content["added_tokens"][0]["lstrip"] = True
    saved.write_text(json.dumps(content))
    with pytest.raises(DataError, match="put back the file"):
        by_file.text_codec(of_file)


def test_records_say_where_a_learnt_vocabulary_is_when_the_cache_has_lost_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    known = build_records(records(BPE), BuildContext(seed=1, split="train", max_length=1)).fingerprint()
    monkeypatch.setenv("STACKWISE_CACHE", str(here / "another"))
    with pytest.raises(DataError, match="set STACKWISE_CACHE"):
        records(BPE).text_codec(known)


def test_what_is_no_text_has_none(here: Path) -> None:
    pytest.importorskip("tokenizers")
    build_text_files(files(BPE), BuildContext(seed=1, split="train", max_length=1))
    with pytest.raises(UserError, match="not UTF-8 at character 1"):
        files(BPE).text_codec({}).encode(b"a\xff".decode(errors="surrogateescape"))
    assert JsonlOptions(paths=("a.jsonl",), features="x", label="y").text_codec({}) is None
