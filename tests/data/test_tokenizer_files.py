"""Tokenizers of others: files and folders as Hugging Face writes them, their special tokens by name, and the size of their vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stackwise import BuildContext, DataError, UserError
from stackwise_providers_data.options import TextFilesOptions
from stackwise_providers_data.text_files import build_text_files
from stackwise_providers_data.tokenizer_files import tokenizer_at
from stackwise_providers_data.tokenizer_options import TokenizerOptions

WORDS = {"<unk>": 0, "the": 1, "cat": 2, "sat": 3}
BOS, EOS, PAD, TOOL = 4, 5, 6, 7


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tokenizer of four words, with special tokens above them."""
    tokenizers = pytest.importorskip("tokenizers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    tokenizer.enable_padding(pad_id=PAD, pad_token="<pad>", length=40)
    tokenizer.enable_truncation(2)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"].append({**content["added_tokens"][-1], "id": TOOL, "content": "<tool>"})
    place = tmp_path / "folder"
    place.mkdir()
    (place / "tokenizer.json").write_text(json.dumps(content))
    (place / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "</s>"}, "bos_token": "<s>"}))
    (place / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>", "unk_token": "<unk>", "sep_token": None}))
    Path("0.txt").write_text("the cat sat")
    Path("1.txt").write_text("the <tool> cat")
    return place


def ids_of(**tokenizer: Any) -> list[int]:
    options = TextFilesOptions(paths=("?.txt",), heldout=0, shuffle=False, tokenizer=TokenizerOptions(**tokenizer))
    loader: Any = build_text_files(options, BuildContext(seed=1, max_length=1))
    ids: list[int] = loader.take(1, loader.epoch_size().entries)["tokens"][0].tolist()
    return ids


FIRST, SECOND = [1, 2, 3], [1, TOOL, 2]


def test_a_folder_ends_documents_as_it_says() -> None:
    assert ids_of(file="folder") == [*FIRST, EOS, *SECOND]
    assert ids_of(file="folder/tokenizer.json") == [*FIRST, *SECOND]  # a file alone names no roles


@pytest.mark.parametrize(("separator", "id"), [("eos", EOS), ("bos", BOS), ("pad", PAD), ("unk", 0), ("</s>", EOS), ("<tool>", TOOL)])
def test_special_tokens_are_known_by_name_and_role(separator: str, id: int) -> None:
    assert ids_of(file="folder", separator=separator) == [*FIRST, id, *SECOND]


@pytest.mark.parametrize("separator", ["sep", "mask", "<eos>"])
def test_roles_that_are_not_named_are_no_tokens(separator: str) -> None:
    with pytest.raises(DataError, match="bos, eos, pad, unk"):
        ids_of(file="folder", separator=separator)


def test_the_vocabulary_ends_behind_the_largest_id(folder: Path) -> None:
    for place in ("folder", "folder/tokenizer.json"):
        spec = TextFilesOptions(paths=("?.txt",), tokenizer=TokenizerOptions(file=place)).to_spec()
        assert spec.fields["tokens"].bounds == (0, TOOL + 1)
    assert tokenizer_at("folder").vocabulary == tokenizer_at("folder/tokenizer.json").vocabulary


def test_padded_rows_end_in_the_pad_token_of_the_folder() -> None:
    def rows(**options: Any) -> list[list[int]]:
        declared = TextFilesOptions(paths=("?.txt",), heldout=0, shuffle=False, rows="padded", **options)
        loader: Any = build_text_files(declared, BuildContext(seed=1, max_length=5))
        delivered: list[list[int]] = loader.take(2, 5)["tokens"].tolist()
        return delivered

    folder_, file = TokenizerOptions(file="folder"), TokenizerOptions(file="folder/tokenizer.json")
    assert rows(tokenizer=folder_) == [[*FIRST, PAD, PAD], [*SECOND, PAD, PAD]]
    assert rows(tokenizer=folder_, pad=2) == [[*FIRST, 2, 2], [*SECOND, 2, 2]]
    assert rows(tokenizer=file) == [[*FIRST, 0, 0], [*SECOND, 0, 0]]


def test_a_folder_stays_what_it_is_inside_a_run() -> None:
    options = TextFilesOptions(paths=("?.txt",), heldout=0, shuffle=False, tokenizer=TokenizerOptions(file="folder"))
    kept = options.make_tokenizer(None)
    assert kept is not None
    before = ids_of(file="folder")
    for file in Path("folder").iterdir():
        file.unlink()
    bound = options.with_tokenizer(kept)
    loader: Any = build_text_files(bound, BuildContext(seed=1, max_length=1))
    assert loader.take(1, len(before))["tokens"][0].tolist() == before
    assert bound.to_spec().fields["tokens"].bounds == (0, TOOL + 1)
    assert options.codec_of(kept).decode(FIRST) == "the cat sat"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", "[1"),
        ("tokenizer_config.json", "[1]"),
        ("tokenizer_config.json", '{"eos_token": "<missing>"}'),
        ("tokenizer_config.json", '{"eos_token": ["</s>"]}'),
        ("tokenizer_config.json", '{"eos_token": {"content": {}}}'),
        ("tokenizer.json", '{"model": {"vocab": {}}}'),
        ("tokenizer.json", '{"model": {"vocab": {"a": "b"}}}'),
        ("tokenizer.json", "[" * 100_000),
        ("tokenizer.json", None),
    ],
)
def test_folders_that_are_damaged_are_named(folder: Path, name: str, content: str | None) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(DataError, match="folder"):
        ids_of(file="folder")


def test_ids_that_the_library_does_not_keep_are_refused(folder: Path) -> None:
    """It numbers added tokens one after the other, whatever the file says."""
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"][-1]["id"] = TOOL + 2
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"the id {TOOL + 2}.* as {TOOL}"):
        ids_of(file="folder")


@pytest.mark.parametrize("bpe", [256, 0, -1])
def test_a_vocabulary_smaller_than_the_bytes_is_refused(bpe: int) -> None:
    with pytest.raises(UserError, match="257"):
        TokenizerOptions(bpe=bpe)


def test_a_number_is_the_size_of_a_learnt_vocabulary() -> None:
    assert TokenizerOptions(bpe=300).settings() == {"bpe": {"vocab": 300, "min_frequency": 2}}
