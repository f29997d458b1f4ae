"""Byte corpora: which files are read, and which of them a split sees."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from pathlib import Path

import pytest

from stackwise import BuildContext, DataError, UserError
from stackwise_providers_data.options import StdlibOptions, TextFilesOptions
from stackwise_providers_data.splits import is_heldout
from stackwise_providers_data.text_files import build_python_stdlib, build_text_files
from stackwise_providers_data.token_stream import TokenStream


def _bytes_of(loader: TokenStream, count: int) -> bytes:
    return bytes(loader.take(1, count)["tokens"].flatten().tolist())


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    monkeypatch.chdir(tmp_path)
    files = {f"texts/{folder}/{i}.txt": f"{folder} says {i}.".encode() for folder in ("a", "b") for i in range(20)}
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(text)
    return files


def test_every_file_is_in_one_split_only(corpus: dict[str, bytes]) -> None:
    options = TextFilesOptions(paths=("texts/**/*.txt",), heldout=0.3, shuffle=False)
    seen: dict[str, list[bytes]] = {}
    for split in ("train", "heldout", "final"):
        loader = build_text_files(options, BuildContext(seed=1, split=split, max_length=1))
        seen[split] = _bytes_of(loader, loader.fingerprint()["bytes"]).split(b"\0")
    assert sorted(seen["train"] + seen["final"]) == sorted(corpus.values())
    assert seen["heldout"] == seen["final"]
    assert len(seen["final"]) >= 4  # of 40 files at 0.3; fewer has a chance of 0.1 %


def test_documents_stand_in_the_order_of_their_paths(corpus: dict[str, bytes]) -> None:
    options = TextFilesOptions(paths=("texts/b/*.txt", "texts/a/*.txt", "texts/a/0.txt"), heldout=0, shuffle=False)
    loader = build_text_files(options, BuildContext(seed=1, max_length=1))
    text = b"\0".join(corpus[name] for name in sorted(corpus))
    assert loader.fingerprint() == {"files": 40, "bytes": len(text), "sha256": hashlib.sha256(text).hexdigest(), "vocabulary": "bytes"}
    assert _bytes_of(loader, len(text)) == text


def test_absolute_globs_are_fine(corpus: dict[str, bytes]) -> None:
    options = TextFilesOptions(paths=(str(Path.cwd() / "texts" / "a" / "*.txt"),), heldout=0)
    assert build_text_files(options, BuildContext(seed=1)).fingerprint()["files"] == 20


def test_the_share_held_out_is_the_share_asked_for() -> None:
    """Of 4000 paths at 0.05 a binomial count has mean 200 and deviation 13.8."""
    names = [f"module_{i}.py" for i in range(4000)]
    assert abs(sum(is_heldout(name, 0.05) for name in names) - 200) < 5 * 13.8
    assert not any(is_heldout(name, 0.0) for name in names)
    assert all(is_heldout(name, 1.0) for name in names)


def test_a_larger_share_keeps_what_was_held_out() -> None:
    names = [f"module_{i}.py" for i in range(300)]
    assert {name for name in names if is_heldout(name, 0.1)} <= {name for name in names if is_heldout(name, 0.2)}


@pytest.mark.parametrize(
    ("changes", "split", "words"),
    [
        ({"paths": ("nowhere/*.txt",)}, "train", r"paths: no file matches 'nowhere/\*.txt'"),
        ({"paths": ("texts",)}, "train", "no file matches 'texts'"),
        ({"heldout": 0.0}, "final", "a heldout of 0 leaves none of 40 files for the evaluations: write heldout: 0.05"),
        ({"heldout": 1.0}, "train", "leaves none of 40 files for training: write heldout: 0.05"),
        ({"paths": ("texts/a/0.txt",), "heldout": 0.0}, "train", "9 tokens are fewer than the 64 of one row"),
    ],
)
def test_corpora_that_cannot_be_trained_on(corpus: dict[str, bytes], changes: dict[str, object], split: str, words: str) -> None:
    options = TextFilesOptions(**{"paths": ("texts/**/*.txt",), **changes})
    with pytest.raises(DataError, match=words):
        build_text_files(options, BuildContext(seed=1, split=split, max_length=64))


def test_an_empty_file_is_no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").touch()
    with pytest.raises(DataError, match="0 tokens are fewer"):
        build_text_files(TextFilesOptions(paths=("empty.txt",), heldout=0), BuildContext(seed=1))


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="only root can put off its rights")
def test_a_file_that_cannot_be_read_is_named(corpus: dict[str, bytes]) -> None:
    Path("texts/a/0.txt").chmod(0)
    Path.cwd().chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(DataError, match=r"'texts/a/0.txt' cannot be read: Permission denied"):
            build_text_files(TextFilesOptions(paths=("texts/a/*.txt",), heldout=0), BuildContext(seed=1))
    finally:
        os.seteuid(0)


def test_nothing_is_read_before_building() -> None:
    spec = TextFilesOptions(paths=("nowhere/*",)).to_spec()
    assert spec == StdlibOptions().to_spec()
    assert (spec.fields["tokens"].bounds, spec.fields["tokens"].unit) == ((0, 256), "byte")


@pytest.mark.parametrize("paths", ["a.txt", (), ("",)])
def test_paths_that_are_no_list_of_globs(paths: object) -> None:
    with pytest.raises(UserError, match=r"paths: .* is not a list of globs"):
        TextFilesOptions(paths=paths)


def test_the_standard_library_is_read_in_place() -> None:
    train, held = (
        build_python_stdlib(StdlibOptions(shuffle=False), BuildContext(seed=1, split=s, max_length=129)) for s in ("train", "final")
    )
    root = Path(sysconfig.get_path("stdlib"))
    sources = {
        path.relative_to(root).as_posix(): path
        for path in root.rglob("*.py")
        if not {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"} & set(path.relative_to(root).parent.parts)
    }
    assert train.fingerprint()["files"] + held.fingerprint()["files"] == len(sources)
    first = min(name for name in sources if not is_heldout(name, 0.05))
    assert _bytes_of(train, 100) == sources[first].read_bytes()[:100]
    assert held.get_batch_spec() == StdlibOptions().to_spec()
