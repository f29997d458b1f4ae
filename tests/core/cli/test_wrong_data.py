"""Data that cannot be trained on ends a run before its first step, with exit code 2, what is wrong, where, and the fix."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from record_configs import numbers
from tiny_walks import plan_of

import stackwise
from stackwise.cli import main

IDS = [i % 8 for i in range(200)]


def memory(**arrays: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"use": "data.memory", "arrays": arrays}


def files(**options: Any) -> dict[str, Any]:
    return {"use": "data.text-files", "paths": ["*.txt"], "heldout": 0.0, **options}


def empty_file() -> dict[str, Any]:
    Path("a.txt").write_text("")
    return files()


def no_file() -> dict[str, Any]:
    return files(paths=["nowhere/*.txt"])


def short_file() -> dict[str, Any]:
    Path("a.txt").write_text("tiny")
    return files()


def one_unreadable_of_many() -> dict[str, Any]:
    for i in range(20):
        Path(f"{i}.txt").write_text("some text of some length, again and again " * 5)
    Path("13.txt").unlink()
    Path("13.txt").symlink_to("13.txt")  # a file that not even root can open
    return files()


def one_without_text() -> dict[str, Any]:
    for i in range(20):
        Path(f"{i}.txt").write_bytes(b"some text " * 20 if i != 7 else b"\xff\xfe\x00broken")
    return files(tokenizer={"bpe": {"vocab": 300}})


def record_without_its_field() -> dict[str, Any]:
    lines = [json.dumps({"text": "a line of text, long enough"}) for _ in range(30)]
    lines[17] = json.dumps({"body": "misnamed"})
    Path("a.jsonl").write_text("\n".join(lines))
    return {"use": "data.jsonl", "paths": ["a.jsonl"], "text": "text", "heldout": 0.0}


def broken_line() -> dict[str, Any]:
    Path("a.jsonl").write_text('{"text": "fine, and long enough"}\n{"text": "cut\n')
    return {"use": "data.jsonl", "paths": ["a.jsonl"], "text": "text", "heldout": 0.0}


def damaged_array() -> dict[str, Any]:
    np.save("a.npy", np.arange(4000) % 8)
    Path("a.npy").write_bytes(Path("a.npy").read_bytes()[:-100])
    return {"use": "data.array-files", "files": {"tokens": "a.npy"}, "vocab": 8}


def fractions_for_ids() -> dict[str, Any]:
    np.save("a.npy", np.linspace(0, 1, 400).reshape(50, 8).astype(np.float32))
    return {"use": "data.array-files", "files": {"tokens": "a.npy"}, "time": ["tokens"]}


CASES: dict[str, tuple[Callable[[], dict[str, Any]], list[str]]] = {
    "no rows": (memory(tokens=[]), ["arrays.tokens", "holds no row", "give at least one"]),
    "empty file": (empty_file, ["text-files", "0 tokens", "give more data or shorten seq_len"]),
    "no file": (no_file, ["nowhere/*.txt", "paths"]),
    "shorter than a row": (memory(tokens=[1, 2, 3]), ["arrays.tokens", "3 tokens are fewer than the 9", "shorten seq_len"]),
    "file shorter than a row": (short_file, ["text-files", "4 tokens are fewer than the 9", "shorten seq_len"]),
    "rows too short": (memory(tokens=[[1, 2, 3]] * 9), ["arrays.tokens", "[9, 3]", "has no 9 entries", "shorter seq_len"]),
    "id outside the vocabulary": (memory(tokens=[*IDS, 8]), ["arrays.tokens", "holds the id 8", "[0, 8)"]),
    "id below zero": (memory(tokens=[*IDS, -1]), ["arrays.tokens", "holds the id -1"]),
    "ragged": (memory(tokens=[[1] * 9, [1] * 8]), ["arrays.tokens", "ragged", "same length"]),
    "unequal fields": (memory(tokens=[[1] * 9] * 4, id=[1, 2, 3]), ["unequal numbers of rows", "tokens 4, id 3"]),
    "no numbers": (memory(tokens=["a", "b"]), ["arrays.tokens", "more than numbers"]),
    "missing field": (memory(words=[[1] * 9] * 4, chars=[[1] * 9] * 4), ["tokens", "words", "rename"]),
    "missing field of a record": (record_without_its_field, ["a.jsonl", "18", "text"]),
    "broken line": (broken_line, ["a.jsonl", "2"]),
    "fractions for ids": (fractions_for_ids, ["tokens", "float32", "int64"]),
    "damaged array": (damaged_array, ["a.npy"]),
    "a file among many that cannot be opened": (one_unreadable_of_many, ["13.txt"]),
    "a file among many that is not text": (one_without_text, ["7.txt"]),
    "exhausted": (
        lambda: {"use": "data.memory", "arrays": {"tokens": IDS[:150]}, "repeat": False},
        ["data.sources.a", "one epoch of 150 entries", "repeat"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_data_is_refused_with_what_where_and_how(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    make, told = CASES[case]
    text = json.dumps(config(make()))
    Path("exp.yaml").write_text(text)
    done = CliRunner().invoke(main, ["run", "exp.yaml", "--output", "out"])
    assert done.exit_code == 2, done.output
    assert not [word for word in told if word not in done.output], done.output
    assert not Path("out").exists()


def config(source: dict[str, Any]) -> dict[str, Any]:
    vocab = {"vocab": 8} if source["use"] in ("data.memory", "data.array-files") else {}
    return {
        "run": {"horizon": "20 steps", "device": "cpu"},
        "task": {"use": "transformer.causal-lm"},
        "data": {"sources": {"a": source}, "batch_size": 2, "seq_len": 8},
        "model": {
            "embedding": {"use": "transformer.token", **vocab},
            "rack": {"use": "transformer.decoder", "width": 4, "heads": 1, "stacks": [{"base": 1}]},
            "head": {"use": "transformer.lm"},
        },
        "optimizer": {"use": "optim.adamw"},
    }


@pytest.mark.parametrize("entry", [float("nan"), float("inf"), "half"], ids=str)
def test_features_that_are_no_finite_numbers_name_their_record(entry: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    broken = numbers()
    broken["data"]["sources"]["a"]["heldout"] = 0
    lines = [json.dumps({"numbers": [0.5, 1.0, entry if i == 3 else 2.0], "label": 0}) for i in range(20)]
    Path("one.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(stackwise.DataError, match=r"one\.jsonl.*4.*numbers"):
        next(event for event in stackwise.assemble(plan_of(broken)).train() if isinstance(event, stackwise.StepDone))
