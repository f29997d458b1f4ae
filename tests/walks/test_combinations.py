"""One part of a fitting experiment exchanged for every other: what validate accepts trains, what it refuses names both sides and a fix."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_walks import VOCAB, base, drive, losses, plan_of

import stackwise
from stackwise import ConfigError
from stackwise.assembly.pricing import price

LENGTH, ROWS = 12, 40


def _ids(*shape: int, below: int = VOCAB - 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def _rows(time: tuple[str, ...] = (), **arrays: torch.Tensor) -> dict[str, Any]:
    return {"use": "data.memory", "arrays": arrays, "heldout": 0.25, **({"time": ["tokens", *time]} if time else {})}


def _jsonl(**fields: str) -> dict[str, Any]:
    return {"use": "data.jsonl", "paths": ["lines.jsonl"], "heldout": 0.3, **fields}


LONG, LABEL, PREFIX = _ids(ROWS, LENGTH + 1), _ids(ROWS, below=3), torch.full((ROWS,), 4)
SEGMENTS = (torch.arange(LENGTH + 1) // 5).expand(ROWS, -1).contiguous()
SOURCES: dict[str, dict[str, Any]] = {
    "stream": {"use": "data.memory", "arrays": {"tokens": _ids(600)}, "vocab": VOCAB, "heldout": 0.25},
    "segments": _rows(tokens=LONG, segments=SEGMENTS, time=("segments",)),
    "labels": _rows(tokens=LONG, label=LABEL),
    "labelled segments": _rows(tokens=LONG, segments=SEGMENTS, label=LABEL, time=("segments",)),
    "images": _rows(image=torch.rand(ROWS, 4, 4, 2), label=LABEL),
    "pairs": _rows(prompt=_ids(ROWS, LENGTH), response=_ids(ROWS, LENGTH, seed=1)),
    "prefixes": _rows(tokens=LONG, prefix=PREFIX),
    "prefixed segments": _rows(tokens=LONG, segments=SEGMENTS, prefix=PREFIX, time=("segments",)),
    "preferences": _rows(chosen=LONG, rejected=_ids(ROWS, LENGTH + 1, seed=1), prefix=PREFIX),
    "text": {"use": "data.text-files", "paths": ["*.txt"], "heldout": 0.5},
    "packed text": {"use": "data.text-files", "paths": ["*.txt"], "heldout": 0.5, "rows": "packed"},
    "padded text": _jsonl(text="text", rows="padded"),
    "labelled text": _jsonl(text="text", label="label"),
    "joined text": _jsonl(prompt="ask", response="tell"),
    "separate text": _jsonl(prompt="ask", response="tell", layout="separate"),
    "preferred text": _jsonl(prompt="ask", chosen="tell", rejected="text"),
}
SIZES: dict[str, Any] = {"width": 8, "stacks": [{"base": 1}]}
DECODER: dict[str, Any] = {"use": "transformer.decoder", "heads": 2, **SIZES}
RACKS: dict[str, dict[str, Any]] = {
    "decoder": DECODER,
    **{f"{attention} decoder": {**DECODER, "attention": attention} for attention in ("causal", "bidirectional", "prefix")},
    "short table": {**DECODER, "positions": "learned", "max_positions": LENGTH - 1},
    "memory": {"use": "transformer.encoder-decoder", "width": 8, "heads": 2, "stacks": [{"s": 1}, {"t": 1}], "encoder": ["s"]},
    "conv": {"use": "transformer.conv", "kernel": 3, **SIZES},
    "causal conv": {"use": "transformer.conv", "kernel": 4, "context": "causal", **SIZES},
}
EMBEDDINGS = {
    "token": {"use": "transformer.token"},
    "large": {"use": "transformer.token", "vocab": 300},
    "small": {"use": "transformer.token", "vocab": VOCAB},
    "patch": {"use": "transformer.patch", "patch": 2},
}
HEADS = {"lm": {"use": "transformer.lm"}, "classifier": {"use": "transformer.classifier", "classes": 3, "pool": "last"}}

FITTING: dict[str, tuple[dict[str, Any], str, str, str, str]] = {
    "causal-lm": ({}, "stream", "token", "decoder", "lm"),
    "masked-lm": ({}, "text", "token", "decoder", "lm"),
    "masked-lm words": ({"whole_words": True}, "text", "token", "decoder", "lm"),
    "mask-diffusion": ({}, "segments", "large", "decoder", "lm"),
    "classification": ({}, "labels", "small", "decoder", "classifier"),
    "classification causal": ({"attention": "causal"}, "labelled text", "token", "causal conv", "classifier"),
    "classification image": ({"input": "image"}, "images", "patch", "conv", "classifier"),
    "seq2seq": ({}, "prefixes", "small", "decoder", "lm"),
    "seq2seq memory": ({"form": "encoder-decoder"}, "separate text", "token", "memory", "lm"),
    "seq2seq spans": ({"pairs": "spans"}, "stream", "token", "prefix decoder", "lm"),
    "seq2seq memory of spans": ({"pairs": "spans", "form": "encoder-decoder"}, "text", "token", "memory", "lm"),
    "preference": ({}, "preferences", "small", "decoder", "lm"),
    "preference text": ({"method": "simpo"}, "preferred text", "token", "causal decoder", "lm"),
}
PLACES = ("source", "embedding", "rack", "head")
KNOWN: tuple[dict[str, Any], ...] = (SOURCES, EMBEDDINGS, RACKS, HEADS)


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Texts of bytes, in the working directory."""
    here, before = tmp_path_factory.mktemp("texts"), Path.cwd()
    for name in "ab":
        (here / f"{name}.txt").write_text("some words, and more; " * 30)
    lines = [{"text": f"text {i} of it", "label": i % 3, "ask": f"what {i}?", "tell": f"that {i}!"} for i in range(40)]
    (here / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.chdir(here)
    yield
    os.chdir(before)


def _experiment(name: str, parts: tuple[str, ...]) -> dict[str, Any]:
    source, embedding, rack, head = (deepcopy(known[part]) for known, part in zip(KNOWN, parts, strict=True))
    length = {} if parts[0] == "images" else {"seq_len": LENGTH}
    return base(
        run={"name": "one", "seed": 3, "horizon": "1 steps", "device": "cpu"},
        task={"use": f"transformer.{name.split()[0]}", **FITTING[name][0]},
        data={"sources": {"a": source}, "batch_size": 4, **length},
        model={"embedding": embedding, "rack": rack, "head": head},
        evaluate={"e": {"batches": 1}},
    )


def _exchanged(fitting: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for i, known in enumerate(KNOWN):
        yield from ((*fitting[:i], other, *fitting[i + 1 :]) for other in known if other != fitting[i])


@pytest.mark.parametrize("name", FITTING)
def test_what_fits_trains_and_what_does_not_is_told_before_the_run(name: str) -> None:
    fitting = FITTING[name][1:]
    assert len(losses(drive(stackwise.assemble(plan_of(_experiment(name, fitting)))))) == 1
    refused = 0
    for parts in _exchanged(fitting):
        try:
            plan = plan_of(_experiment(name, parts))
            price(plan)
        except ConfigError as error:
            told = [problem.message for problem in error.problems]
            both = [message for message in told if message.count("(stackwise-providers-") > 1]
            sizeless = all("says its size: set" in message for message in told)
            assert (both or sizeless) and all(problem.path for problem in error.problems), (parts, told)
            fixes = ("choose", "set", "leave", "name it", "raise", "deliver no")
            assert all(any(fix in message for fix in fixes) for message in told), (parts, told)
            refused += 1
            continue
        assert len(losses(drive(stackwise.assemble(plan)))) == 1, parts
    assert refused > len(SOURCES) // 2
