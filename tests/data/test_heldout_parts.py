"""What is held out of few files and few records: disjoint, everything, the same each time, and no id of it in a training row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stackwise import BuildContext, DataError
from stackwise_providers_data.files import FileDocuments
from stackwise_providers_data.options import TextFilesOptions
from stackwise_providers_data.record_files import build_records
from stackwise_providers_data.record_options import JsonlOptions
from stackwise_providers_data.splits import Part, is_heldout
from stackwise_providers_data.text_blocks import least_bytes, stretches
from stackwise_providers_data.text_files import build_text_files
from stackwise_providers_data.tokenizer_options import TokenizerOptions

SEPARATOR = 0


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def context(split: str, *, whole: bool = False) -> BuildContext:
    return BuildContext(seed=1, split=split, max_length=1, whole=whole)


def ids_of(options: TextFilesOptions, split: str, *, whole: bool = False) -> list[int]:
    loader: Any = build_text_files(options, context(split, whole=whole))
    ids: list[int] = loader.take(1, loader.epoch_size().entries)["tokens"][0].tolist()
    return ids


def word_vocabulary(words: int) -> None:
    """Every word of the corpus is an id of its own: 0 is unknown."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"?": 0, **{f"w{i}": i for i in range(1, words + 1)}}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save("words.json")


@pytest.mark.parametrize("heldout", [0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("files", [1, 2, 3])
def test_no_id_of_a_held_out_block_is_in_a_training_row(files: int, heldout: float) -> None:
    """Every line stands once in the corpus and has an id of its own, so that ids tell where text went."""
    lines = 600
    word_vocabulary(lines)
    names = [name for name in (f"{i}.txt" for i in range(400)) if not is_heldout(name, 0.9)][:files]
    for i, name in enumerate(names):
        Path(name).write_text("".join(f"w{n}\n" for n in range(1, lines + 1) if n % files == i))
    options = TextFilesOptions(paths=tuple(names), heldout=heldout, tokenizer=TokenizerOptions(file="words.json"), shuffle=False)
    train, held = (ids_of(options, split) for split in ("train", "any"))
    assert not set(train) & set(held)
    assert sorted(train + held) == list(range(1, lines + 1))
    assert abs(len(held) / lines - heldout) < 0.04
    assert ids_of(options, "another") == held
    assert sorted(ids_of(options, "any", whole=True)) == sorted(held)  # the share that it says, also in an evaluation's own sources


@example(content=("a" + "😀" * 100).encode(), share=0.5)
@given(
    content=st.text(alphabet="aé€😀\n", min_size=0, max_size=400).map(str.encode) | st.binary(max_size=400),
    share=st.floats(0.01, 0.99),
)
def test_blocks_are_all_of_a_file_and_cut_no_character(tmp_path_factory: pytest.TempPathFactory, content: bytes, share: float) -> None:
    path = tmp_path_factory.mktemp("blocks") / "a"
    path.write_bytes(content)
    parts: tuple[Part, ...] = ("training", "heldout")
    pieces = sorted(piece for part in parts for piece in stretches(path, len(content), share, part))
    assert [start for start, _ in pieces[1:]] == [stop for _, stop in pieces[:-1]]
    assert (pieces[0][0], pieces[-1][1]) == (0, len(content))
    assert all(start < stop for start, stop in pieces) or not content
    cut_off = len(content) < least_bytes(share)
    assert bool(stretches(path, len(content), share, "heldout")) != cut_off
    try:
        content.decode()
    except UnicodeDecodeError:
        return
    for start, stop in pieces:
        content[start:stop].decode()


def test_large_files_are_cut_at_ends_of_lines_and_evenly(here: Path) -> None:
    line = b"a line of some length\n"
    content = line * 200_000
    Path("a.txt").write_bytes(content)
    held = stretches(Path("a.txt"), len(content), 0.05, "heldout")
    assert all(content[start - 1 : start] in (b"", b"\n") and content[stop - 1 : stop] == b"\n" for start, stop in held)
    assert len(held) == round(0.05 * (len(content) // (64 << 10)))
    assert 0.03 < sum(stop - start for start, stop in held) / len(content) < 0.07


@pytest.mark.parametrize("tokenizer", ["bytes", TokenizerOptions(bpe=270)], ids=["bytes", "learnt"])
def test_the_size_of_an_epoch_of_blocks_is_known(tokenizer: Any) -> None:
    if tokenizer != "bytes":
        pytest.importorskip("tokenizers")
    Path("a.txt").write_text("some words of text\n" * 200)
    options = TextFilesOptions(paths=("a.txt",), heldout=0.2, tokenizer=tokenizer)
    for split in ("train", "any"):
        built: Any = build_text_files(options, context(split))
        assert options.count_epoch(split) == built.epoch_size()
        assert tokenizer != "bytes" or options.epoch_size(split) == built.epoch_size()
    assert built.fingerprint()["pieces"] == 4  # every fifth of 20 blocks


def test_files_go_by_their_paths_where_that_leaves_some_on_both_sides() -> None:
    paths = {f"{i}.txt": Path(f"{i}.txt") for i in range(40)}
    assert not FileDocuments("texts", paths, 0.3).by_blocks
    assert FileDocuments("texts", dict(list(paths.items())[:1]), 0.3).by_blocks
    for share in (0.0, 1.0):
        assert not FileDocuments("texts", dict(list(paths.items())[:1]), share).by_blocks


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize("heldout", [None, 0.3, 0.9])
def test_few_records_leave_some_for_both_parts(rows: int, heldout: float | None) -> None:
    lines = [{"text": f"line number {i}", "label": i} for i in range(rows)]
    Path("a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0]]))
    options = JsonlOptions(paths=("a.jsonl",), text="text", label="label", heldout=heldout, shuffle=False)

    def labels(split: str, *, whole: bool = False) -> list[int]:
        loader: Any = build_records(options, context(split, whole=whole))
        delivered: list[int] = loader.take(loader.epoch_size().rows, 30)["label"].tolist()
        return delivered

    train = labels("train")
    if heldout is None:
        assert sorted(labels("any", whole=True)) == sorted([0, *range(rows)])
    if rows == 1:
        with pytest.raises(DataError, match="sources"):
            labels("any")
        return
    held = labels("any")
    assert train and held and not set(train) & set(held)
    assert sorted(train + held) == sorted([0, *range(rows)])


@pytest.mark.parametrize("heldout", [0.05, 0.5])
def test_a_file_too_small_to_be_cut_has_a_way_out(heldout: float) -> None:
    Path("a.txt").write_text("tiny")
    options = TextFilesOptions(paths=("a.txt",), heldout=heldout)
    assert len(ids_of(options, "train")) == 4
    with pytest.raises(DataError, match="heldout: 0"):
        ids_of(options, "any")
    assert len(ids_of(TextFilesOptions(paths=("a.txt",), heldout=0), "any", whole=True)) == 4


@pytest.mark.parametrize("heldout", [None, 0])
def test_a_source_of_an_evaluation_alone_is_read_whole(heldout: float | None) -> None:
    for i in range(30):
        Path(f"{i}.txt").write_text(f"<{i}>")
    options = TextFilesOptions(paths=("*.txt",), heldout=heldout, shuffle=False)
    whole = bytes(ids_of(options, "any", whole=True)).decode()
    assert sorted(whole.split("\0")) == sorted(f"<{i}>" for i in range(30))
