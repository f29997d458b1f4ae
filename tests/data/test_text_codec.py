"""Text ↔ ids: what a loader delivered comes back as text, and a prompt becomes what the loader would have delivered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackwise import BuildContext, UserError
from stackwise_providers_data.options import StdlibOptions, TextFilesOptions
from stackwise_providers_data.record_files import build_records
from stackwise_providers_data.record_options import JsonlOptions
from stackwise_providers_data.text_codec import ByteCodec
from stackwise_providers_data.text_files import build_text_files
from stackwise_providers_data.tokenizer_options import BpeTraining, TokenizerOptions

TEXT = "naïve cats — sat on the mat, 3 times\n"
BPE = TokenizerOptions(bpe=BpeTraining(vocab=290))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    Path("a.txt").write_text(TEXT * 4, encoding="utf-8")
    Path("a.jsonl").write_text(f"{json.dumps({'text': TEXT * 4})}\n", encoding="utf-8")
    return tmp_path


def codec_of(declared: Any) -> Any:
    """Text ↔ ids as the run would keep it."""
    return declared.codec_of(declared.make_tokenizer([declared]))


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
    assert codec_of(StdlibOptions()).encode("né") == [110, 0xC3, 0xA9]


@pytest.mark.parametrize("tokenizer", ["bytes", BPE], ids=["bytes", "bpe"])
@pytest.mark.parametrize(("options", "build"), [(files, build_text_files), (records, build_records)], ids=["files", "records"])
def test_a_loader_and_its_codec_agree(here: Path, options: Any, build: Any, tokenizer: Any) -> None:
    if tokenizer != "bytes":
        pytest.importorskip("tokenizers")
    declared = options(tokenizer)
    loader = build(declared, BuildContext(seed=1, split="train", max_length=1))
    codec = codec_of(declared)
    ids = loader.take(1, len(codec.encode(TEXT * 4)))["tokens"][0].tolist()
    assert ids == codec.encode(TEXT * 4) and codec.decode(ids) == TEXT * 4
    assert (len(ids) < len(TEXT.encode() * 4)) == (tokenizer != "bytes")


def test_what_is_no_text_has_none(here: Path) -> None:
    pytest.importorskip("tokenizers")
    with pytest.raises(UserError, match="not UTF-8 at character 1"):
        codec_of(files(BPE)).encode(b"a\xff".decode(errors="surrogateescape"))
    assert JsonlOptions(paths=("a.jsonl",), features="x", label="y").tokenizer_settings() is None


@given(st.text())
def test_the_tokenizer_of_bytes_gives_others_the_same_ids(text: str) -> None:
    """The tokenizers library, given the file that a run over bytes holds."""
    tokenizers = pytest.importorskip("tokenizers")
    kept = StdlibOptions().make_tokenizer(None)
    assert kept is not None
    tokenizer = tokenizers.Tokenizer.from_buffer(kept.files["tokenizer.json"])
    ids = tokenizer.encode(text).ids
    assert ids == list(text.encode()) and tokenizer.decode(ids) == text
    assert tokenizer.get_vocab_size() == 256
