"""Text as bytes, as a learnt vocabulary, and by a file; and the corpora that are kept of it."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stackwise import BuildContext, DataError, EpochSize, TensorSpec, UserError
from stackwise_providers_data import corpus as corpora
from stackwise_providers_data.files import FileDocuments
from stackwise_providers_data.options import TextFilesOptions
from stackwise_providers_data.splits import Part, is_heldout
from stackwise_providers_data.text_files import build_text_files
from stackwise_providers_data.tokenizer_options import SEPARATOR, BpeTraining, TokenizerOptions

BPE = TokenizerOptions(bpe=BpeTraining(vocab=300))
TEXTS = {f"{i}.txt": f"the cat number {i} sat on the mat, naïve — and spelt {SEPARATOR} \x00 twice\n" * 3 for i in range(12)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpora, "_RACY_NS", -1)  # as if the files below were old
    for name, text in TEXTS.items():
        Path(name).write_text(text, encoding="utf-8")
    return tmp_path


def _build(tokenizer: Any = BPE, *, split: str = "train", **changes: Any) -> Any:
    options = TextFilesOptions(**{"paths": ("*.txt",), "heldout": 0.3, "shuffle": False, "tokenizer": tokenizer, **changes})
    return build_text_files(options, BuildContext(seed=1, split=split, max_length=1))


def _ids(loader: Any) -> list[int]:
    count = loader.epoch_size().entries
    assert count is not None
    return list(loader.take(1, count)["tokens"][0].tolist())


def _library() -> Any:
    return pytest.importorskip("tokenizers")


def test_a_learnt_vocabulary_gives_the_text_back(here: Path) -> None:
    tokenizers = _library()
    for split in ("train", "final"):
        ids = _ids(_build(split=split))
        (path,) = (here / "cache").glob("bpe-*/tokenizer.json")
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        edges = [-1, *(i for i, token in enumerate(ids) if token == 0), len(ids)]
        read = [tokenizer.decode(ids[a + 1 : b], skip_special_tokens=False) for a, b in itertools.pairwise(edges)]
        assert read == [TEXTS[name] for name in sorted(TEXTS) if is_heldout(name, 0.3) == (split != "train")]
        assert 257 < max(ids) < 300


def test_a_vocabulary_that_the_text_does_not_fill_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`here` has little text: far fewer than 5,000 pairs occur twice."""
    few, many = (TextFilesOptions(paths=("*.txt",), tokenizer=TokenizerOptions(bpe=BpeTraining(vocab=vocab))) for vocab in (258, 5000))
    assert few.make_tokenizer([few]) is not None and not capsys.readouterr().err
    tokenizer = many.make_tokenizer([many])
    assert tokenizer is not None
    learnt = len(json.loads(tokenizer.files["tokenizer.json"])["model"]["vocab"])
    (told,) = capsys.readouterr().err.splitlines()
    assert 258 < learnt < 5000 and f"{learnt:,} tokens where 5,000 were asked for" in told


def test_batches_that_are_tokenized_ahead_keep_their_order(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _library()
    at_once = _ids(_build())
    monkeypatch.setattr(corpora, "_BATCH_DOCUMENTS", 1)
    monkeypatch.setenv("STACKWISE_CACHE", str(here / "another"))
    assert _ids(_build()) == at_once
    broken = next(name for name in sorted(TEXTS, reverse=True) if not is_heldout(name, 0.3))
    tokenizer = next((here / "cache").glob("bpe-*")) / "tokenizer.json"
    Path(broken).write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=f"'{broken}' is not UTF-8"):
        _build(TokenizerOptions(file=str(tokenizer)))


def test_the_vocabulary_is_learnt_from_the_training_split_alone(here: Path) -> None:
    _library()
    trained = _ids(_build(split="final"))
    (path,) = (here / "cache").glob("bpe-*/tokenizer.json")
    for name in TEXTS:
        if is_heldout(name, 0.3):
            Path(name).write_text("zqzqzqzq" * 40, encoding="utf-8")
    assert _ids(_build(split="final")) != trained
    assert list((here / "cache").glob("bpe-*/tokenizer.json")) == [path]


def test_what_is_kept_is_not_read_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _library()
    first = _build()
    ids = _ids(first)

    def refuse(self: FileDocuments, part: Part) -> Iterator[tuple[str, bytes]]:
        raise AssertionError("it was read already")

    with monkeypatch.context() as patch:
        patch.setattr(FileDocuments, "read", refuse)
        again = _build()
    assert _ids(again) == ids
    assert again.fingerprint() == first.fingerprint()
    (folder,) = (path for path in (here / "cache").glob("tokens-*") if path.is_dir())
    (folder / "tokens.bin").unlink()
    assert _ids(_build()) == ids


def test_files_just_written_are_read_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change within the resolution of the file system's clock would go unseen."""
    _library()
    monkeypatch.setattr(corpora, "_RACY_NS", 3600 * 10**9)
    _build()
    assert not list((here / "cache").glob("listing-*"))


def test_changed_files_are_seen(here: Path) -> None:
    _library()
    before = _build().fingerprint()
    (name, *_) = (name for name in TEXTS if not is_heldout(name, 0.3))
    Path(name).write_text("something else", encoding="utf-8")
    assert _build().fingerprint() != before


def test_documents_that_change_while_they_are_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "_IN_MEMORY_BYTES", 0)
    read = FileDocuments.read
    passes = []

    def restless(self: FileDocuments, part: Part) -> Iterator[tuple[str, bytes]]:
        passes.append(part)
        for label, content in read(self, part):
            yield label, content + bytes([len(passes)])

    monkeypatch.setattr(FileDocuments, "read", restless)
    with pytest.raises(DataError, match="the documents changed while they were read"):
        _build("bytes")


@pytest.mark.parametrize("form", [None, "packed", "padded"])
def test_large_corpora_of_bytes_are_mapped_and_the_same(here: Path, monkeypatch: pytest.MonkeyPatch, form: str | None) -> None:
    in_memory = _build("bytes", rows=form)
    monkeypatch.setattr(corpora, "_IN_MEMORY_BYTES", 0)
    mapped = _build("bytes", rows=form)
    assert mapped.fingerprint() == in_memory.fingerprint()
    assert list((here / "cache").glob("tokens-*"))
    for _ in range(4):
        a, b = in_memory.take(3, 11), mapped.take(3, 11)
        assert {k: a[k].tolist() for k in a} == {k: b[k].tolist() for k in b}


@pytest.mark.parametrize("form", [None, "packed", "padded"])
def test_the_size_of_an_epoch_is_known_from_the_sizes_of_the_files(here: Path, form: str | None) -> None:
    options = TextFilesOptions(paths=("*.txt",), heldout=0.3, rows=form)
    for split in ("train", "final"):
        assert options.epoch_size(split) == build_text_files(options, BuildContext(seed=1, split=split, max_length=1)).epoch_size()
    assert TextFilesOptions(paths=("*.txt",), tokenizer=BPE).epoch_size("train") is None


@pytest.mark.parametrize("form", [None, "packed", "padded"])
@pytest.mark.parametrize("split", ["train", "final"])
def test_the_size_of_an_epoch_is_counted_where_only_the_tokenizer_can_say(here: Path, form: str | None, split: str) -> None:
    options = TextFilesOptions(paths=("*.txt",), heldout=0.3, rows=form, tokenizer=BPE)
    assert options.count_epoch(split) == build_text_files(options, BuildContext(seed=1, split=split, max_length=1)).epoch_size()


def test_pieces_of_documents_are_counted_when_the_longest_row_is_known(here: Path) -> None:
    assert TextFilesOptions(paths=("*.txt",), rows="padded", overflow="split").epoch_size("train") is None


def test_a_tokenizer_file(here: Path) -> None:
    tokenizers = _library()
    words = {"<pad>": 0, "<end>": 1, "<unk>": 2, "cat": 3, "the": 4, "sat": 5}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_tokens(["mat"])
    tokenizer.enable_padding(length=50)
    tokenizer.save("tokenizer.json")
    Path("0.txt").write_text("the cat\nsat mat dog", encoding="utf-8")
    Path("1.txt").write_text("cat", encoding="utf-8")
    options = {"paths": ("0.txt", "1.txt"), "heldout": 0.0}
    assert _ids(_build(TokenizerOptions(file="tokenizer.json"), **options)) == [4, 3, 5, 6, 2, 3]
    ended = TokenizerOptions(file="tokenizer.json", separator="<end>")
    assert _ids(_build(ended, **options)) == [4, 3, 5, 6, 2, 1, 3]
    spec = TextFilesOptions(paths=("*.txt",), tokenizer=ended).to_spec()
    assert spec.fields["tokens"] == TensorSpec("batch time", "int64", bounds=(0, 7))
    with pytest.raises(DataError, match=r"tokenizer\.separator: '<eos>' is not a token of .*'tokenizer\.json'"):
        _build(TokenizerOptions(file="tokenizer.json", separator="<eos>"), **options)
    with pytest.raises(DataError, match="pad: 7 is not an id of a vocabulary of 7"):
        _build(ended, rows="padded", pad=7, **options)


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot be read: No such file"), ("{", "is not a tokenizer.json"), ("[1]", "is not a tok")]
)
def test_files_that_are_no_tokenizers(here: Path, content: str | None, words: str) -> None:
    if content is not None:
        Path("tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=f"tokenizer.file: 'tokenizer.json' {words}"):
        TextFilesOptions(paths=("*.txt",), tokenizer=TokenizerOptions(file="tokenizer.json")).to_spec()


def test_a_file_with_a_vocabulary_that_the_library_cannot_read(here: Path) -> None:
    _library()
    Path("tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}), encoding="utf-8")
    with pytest.raises(DataError, match=r"tokenizer\.file: 'tokenizer\.json' is not a tokenizer\.json"):
        _build(TokenizerOptions(file="tokenizer.json"))


def test_without_the_library(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install stackwise-providers-data\[tokenizers\]"):
        _build()


def test_text_that_is_not_utf8_is_named(here: Path) -> None:
    _library()
    (name, *_) = (name for name in TEXTS if not is_heldout(name, 0.3))
    Path(name).write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=rf"'{name}' is not UTF-8 at byte 3"):
        _build()
    assert 0xE9 in _ids(_build("bytes"))


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [("byte", "tokenizer: 'byte' is none"), (BPE, None)],
)
def test_names_of_tokenizers(tokenizer: Any, words: str | None) -> None:
    if words is None:
        TextFilesOptions(paths=("*",), tokenizer=tokenizer)
        return
    with pytest.raises(UserError, match=words):
        TextFilesOptions(paths=("*",), tokenizer=tokenizer)


@pytest.mark.parametrize("options", [{}, {"bpe": BpeTraining(), "file": "a"}, {"bpe": BpeTraining(), "separator": "x"}])
def test_ways_to_a_vocabulary(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        TokenizerOptions(**options)


def test_an_epoch_of_a_mapped_stream_leaves_out_the_partial_page(here: Path) -> None:
    options = TextFilesOptions(paths=("*.txt",), heldout=0)
    total = sum(len(text.encode()) for text in TEXTS.values()) + len(TEXTS) - 1
    assert options.epoch_size("train") == EpochSize(entries=total)
    built = build_text_files(options, BuildContext(seed=1, max_length=100))
    assert built.epoch_size() == EpochSize(entries=total // 100 * 100)
    assert np.prod(built.take(2, 100)["tokens"].shape) == 200
