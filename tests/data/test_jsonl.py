"""Lines of JSON, each kind of example against its lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve

from stackwise import BuildContext, DataError, EpochSize, UserError
from stackwise_providers_data.examples import Examples
from stackwise_providers_data.record_files import build_records
from stackwise_providers_data.record_options import JsonlOptions

LINES = [
    {
        "text": f"text {i}",
        "kind": ["good", "bad"][i % 2],
        "id": i % 3,
        "x": [float(i), i / 2],
        "q": f"why {i}? " * (i % 3 + 1),
        "a": f"so {i}.",
        "b": f"no {i}.",
    }
    for i in range(30)
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    for name, lines in {"a.jsonl": LINES[:20], "b.jsonl": LINES[20:]}.items():
        Path(name).write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    return tmp_path


def _build(*, split: str = "train", **options: Any) -> Any:
    made = JsonlOptions(**{"paths": ("*.jsonl",), "heldout": 0.0, "shuffle": False, **options})
    loader = build_records(made, BuildContext(seed=3, split=split, max_length=40))
    fields = {
        name: spec if made.classes or name != "label" else evolve(spec, bounds=None)
        for name, spec in loader.get_batch_spec().fields.items()
    }
    assert fields == made.to_spec().fields
    return loader


def _text(ids: torch.Tensor, mask: torch.Tensor | None = None) -> str:
    return bytes((ids if mask is None else ids[mask]).tolist()).decode()


def test_text_is_a_stream_of_documents() -> None:
    loader = _build(text="text")
    whole = "\0".join(str(line["text"]) for line in LINES)
    assert _text(loader.take(2, 40)["tokens"].flatten()) == whole[:80]
    assert loader.fingerprint()["lines"] == 30
    batch = _build(text="text", rows="padded").take(30, 10)
    assert [_text(ids, mask) for ids, mask in zip(batch["tokens"], batch["mask"], strict=True)] == [line["text"] for line in LINES]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"text": "text"}, "entries"),
        ({"text": "text", "rows": "packed", "repeat": False}, "entries"),
        ({"text": "text", "rows": "padded"}, "rows"),
        ({"text": "text", "label": "id"}, "rows"),
        ({"features": "x", "label": "id", "repeat": False}, "rows"),
        ({"prompt": "q", "response": "a"}, "rows"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "rows"),
    ],
)
def test_an_epoch_is_counted_before_a_loader_is_built(options: dict[str, Any], size: str) -> None:
    """Every line is in one of the splits; of texts in a row, every character and the separators between two."""
    made, counts = JsonlOptions(paths=("*.jsonl",), heldout=0.3, **options), []
    for split in ("train", "final"):
        counted = made.count_epoch(split)
        assert counted == build_records(made, BuildContext(seed=3, split=split, max_length=1)).epoch_size()
        counts.append(getattr(counted, size))
    assert sum(counts) == (30 if size == "rows" else sum(len(str(line["text"])) for line in LINES) + 28)
    assert min(counts) > 0


def test_counting_needs_no_torch() -> None:
    code = (
        "import sys; from stackwise_providers_data.record_options import JsonlOptions as O\n"
        "for o in ({'text': 'text'}, {'prompt': 'q', 'response': 'a'}): print(O(paths=('*.jsonl',), **o).count_epoch('train').repeats)\n"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == [
        "True",
        "True",
        "False",
    ]


def test_files_without_a_line_are_told_as_such() -> None:
    Path("empty.jsonl").write_text("\n\n", encoding="utf-8")
    with pytest.raises(DataError, match="jsonl: there are no lines, the data are empty: give some"):
        build_records(JsonlOptions(paths=("empty.jsonl",), text="text"), BuildContext(seed=1))


def test_equal_lines_lie_in_one_split_and_every_line_in_one() -> None:
    Path("c.jsonl").write_text(Path("a.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    options = {"text": "text", "rows": "padded", "heldout": 0.3}
    seen: dict[str, list[str]] = {}
    for split in ("train", "final"):
        loader = _build(split=split, **options)
        batch = loader.take(loader.epoch_size().rows, 10)
        seen[split] = [_text(ids, mask) for ids, mask in zip(batch["tokens"], batch["mask"], strict=True)]
    assert sorted(seen["train"] + seen["final"]) == sorted(str(line["text"]) for line in LINES + LINES[:20])
    assert not set(seen["train"]) & set(seen["final"])
    assert 5 <= len(seen["final"]) <= 30  # of 50 lines at 0.3


def test_labelled_text() -> None:
    batch = _build(text="text", label="kind", classes=("bad", "good")).take(30, 12)
    assert batch["label"].tolist() == [1, 0] * 15
    assert [_text(ids, mask) for ids, mask in zip(batch["tokens"], batch["mask"], strict=True)] == [line["text"] for line in LINES]
    assert _build(text="text", label="id").take(30, 12)["label"].tolist() == [0, 1, 2] * 10


@pytest.mark.parametrize("fields", [{"text": "text", "label": "id"}, {"features": "x", "label": "id"}])
def test_the_loader_says_which_labels_there_are(fields: dict[str, Any]) -> None:
    """So a label beyond the classes of the head is refused before the run, wherever it stands."""
    assert _build(**fields).get_batch_spec().fields["label"].bounds == (0, 3)


@pytest.mark.parametrize("classes", [(), ("a", "a")])
def test_classes_are_told_apart(classes: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="classes: "):
        _build(text="text", label="kind", classes=classes)


def test_labelled_features() -> None:
    loader = _build(features="x", label="id", shuffle=True)
    batch = loader.take(30, None)
    assert batch["features"].dtype == torch.float32
    assert sorted(batch["features"].tolist()) == [line["x"] for line in LINES]
    assert [int(x) % 3 for x, _ in batch["features"].tolist()] == batch["label"].tolist()
    assert loader.epoch_size() == EpochSize(rows=30)
    with pytest.raises(DataError, match="features have no time axis: leave seq_len out"):
        loader.take(2, 5)


@pytest.mark.parametrize("length", [8, 14, 40])
def test_a_prompt_and_its_response_in_one_row(length: int) -> None:
    batch = _build(prompt="q", response="a", pad=1).take(30, length)
    for i, line in enumerate(LINES):
        whole = (str(line["q"]) + str(line["a"]) + "\0").encode()[:length]
        assert batch["tokens"][i].tolist() == [*whole, *[1] * (length - len(whole))]
        assert batch["mask"][i].tolist() == [j < len(whole) for j in range(length)]
        assert int(batch["prefix"][i]) == min(length, len(str(line["q"])))


def test_a_prompt_and_its_response_in_two_rows() -> None:
    batch = _build(prompt="q", response="a", layout="separate").take(30, 30)
    assert set(batch) == {"prompt", "prompt_mask", "response", "response_mask"}
    assert [_text(ids, mask) for ids, mask in zip(batch["prompt"], batch["prompt_mask"], strict=True)] == [line["q"] for line in LINES]
    said = [_text(ids, mask) for ids, mask in zip(batch["response"], batch["response_mask"], strict=True)]
    assert said == [f"{line['a']}\0" for line in LINES]


@pytest.mark.parametrize("prompt", [None, "q"])
@pytest.mark.parametrize("length", [8, 12, 40])
def test_two_responses_to_compare(prompt: str | None, length: int) -> None:
    batch = _build(prompt=prompt, chosen="a", rejected="b").take(30, length)
    for i, line in enumerate(LINES):
        given = str(line["q"]) if prompt else ""
        for side, field in (("chosen", "a"), ("rejected", "b")):
            whole = (given + str(line[field]) + "\0").encode()[:length]
            assert batch[side][i].tolist() == [*whole, *[0] * (length - len(whole))]
            assert batch[f"{side}_mask"][i].tolist() == [j < len(whole) for j in range(length)]
        assert int(batch["prefix"][i]) == min(length, len(given))


@pytest.mark.parametrize(
    "options",
    [
        {"text": "text", "label": "id"},
        {"prompt": "q", "response": "a", "difficulty": "length", "exposed": 0.5},
        {"features": "x", "label": "id"},
    ],
)
def test_examples_go_on_where_they_were(options: dict[str, Any]) -> None:
    whole, first, second = (_build(**options, shuffle=True) for _ in range(3))
    assert isinstance(whole, Examples)
    length = None if "features" in options else 20
    expected = [whole.take(rows, length) for rows in (7, 40, 9)]
    assert all(torch.equal(found, expected[0][name]) for name, found in first.take(7, length).items())
    second.take(11, length)
    second.load_state_dict(first.state_dict())
    for rows, batch in zip((40, 9), expected[1:], strict=True):
        assert all(torch.equal(found, batch[name]) for name, found in second.take(rows, length).items())


def test_short_examples_come_first_by_length() -> None:
    loader = _build(prompt="q", response="a", difficulty="length", exposed=0.3)
    sizes = [len(str(line["q"])) + len(str(line["a"])) + 1 for line in LINES]
    assert {int(mask.sum()) for mask in loader.take(200, 60)["mask"]} == set(sorted(sizes)[:9])


@pytest.mark.parametrize(
    ("line", "options", "words"),
    [
        ("{", {"text": "text"}, r"c.jsonl:2: this line is not JSON: .*: mend or remove it"),
        ("[1]", {"text": "text"}, "c.jsonl:2: this line holds a list"),
        ('{"t": 1}', {"text": "text"}, "c.jsonl:2: there is no field 'text'; this one has t"),
        ('{"text": 3}', {"text": "text"}, "c.jsonl:2: 'text' holds 3 where text is wanted"),
        ('{"text": "\\ud800"}', {"text": "text"}, "c.jsonl:2: 'text' holds half a character at 0"),
        ('{"text": "a", "id": "x"}', {"text": "text", "label": "id"}, "c.jsonl:2: the label 'x' is not an id"),
        ('{"text": "a", "id": -1}', {"text": "text", "label": "id"}, "c.jsonl:2: the label -1 is not an id"),
        ('{"text": "a", "id": 1000000000000000000000}', {"text": "text", "label": "id"}, "c.jsonl:2: the label 10+ is not an id"),
        ('{"text": "a", "kind": 1}', {"text": "text", "label": "kind", "classes": ("good", "bad")}, "none of the classes good, bad"),
        ('{"x": [1], "id": 0}', {"features": "x", "label": "id"}, "c.jsonl:2: 'x' holds 1 numbers, 2 are wanted"),
        ('{"x": [1, "a"], "id": 0}', {"features": "x", "label": "id"}, "c.jsonl:2: 'x' is not a list of numbers"),
        ('{"x": [1, NaN], "id": 0}', {"features": "x", "label": "id"}, "c.jsonl:2: 'x' holds NaN or infinity"),
        ('{"text": "", "id": 0}', {"text": "text", "label": "id"}, "example 20 of 31 of this part holds no text"),
    ],
)
def test_lines_that_cannot_be_used_are_named(line: str, options: dict[str, Any], words: str) -> None:
    Path("c.jsonl").write_text(f"\n{line}\n", encoding="utf-8")
    paths = ("a.jsonl", "c.jsonl", "b.jsonl") if "example 20" not in words else ("*.jsonl",)
    if "example 20" in words:
        Path("c.jsonl").rename("ab.jsonl")
    with pytest.raises(DataError, match=words):
        _build(**options, paths=paths)


def test_features_of_another_width_than_the_model_takes() -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:1: 'x' holds 2 numbers, 3 are wanted"):
        _build(features="x", label="id", width=3)


def test_no_lines_for_a_split() -> None:
    with pytest.raises(DataError, match="jsonl: a heldout of 0 leaves none of 30 lines for the evaluations"):
        _build(text="text", split="final")
    with pytest.raises(DataError, match="no file matches"):
        _build(text="text", paths=("*.json",))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "the fields named are none"),
        ({"prompt": "q"}, "the fields named are prompt: name those of one kind of example"),
        ({"text": "t", "prompt": "q"}, "prompt, text"),
        ({"text": "t", "layout": "joined"}, "layout: it has no effect on text alone"),
        ({"text": "t", "label": "l", "rows": "packed"}, "rows: packed rows run through documents"),
        ({"features": "x", "label": "l", "pad": 1}, "pad: it has no effect"),
        ({"features": "x", "label": "l", "tokenizer": "byte"}, "tokenizer: 'byte' is none"),
        ({"text": "t", "overflow": "split"}, "overflow: only padded rows"),
        ({"text": "t", "paths": ()}, "is not a list of globs"),
    ],
)
def test_options_that_make_no_example(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        JsonlOptions(**{"paths": ("*.jsonl",), **options})


def _pairs(**options: Any) -> Any:
    """Prompts of 3, 6 and 9 bytes; a response of 2 and the end."""
    lines = [{"q": "abc" * (i % 3 + 1), "a": "so", "b": "no", "n": i} for i in range(9)]
    Path("pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return _build(paths=("pairs.jsonl",), prompt="q", **options)


@pytest.mark.parametrize("options", [{"response": "a"}, {"chosen": "a", "rejected": "b"}], ids=["responses", "preferences"])
@pytest.mark.parametrize(("length", "missing"), [(10, 0), (9, 3), (6, 6)])
def test_responses_that_are_cut_away_are_counted(
    options: dict[str, Any], length: int, missing: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prompt as long as the row leaves no room for its response."""
    loader = _pairs(**options)
    for _ in range(3):
        loader.take(2, length)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == (missing > 0)
    assert all(f"{missing} of 9 examples" in line for line in told)


def test_rows_too_short_for_any_response_are_refused() -> None:
    loader = _pairs(response="a")
    with pytest.raises(DataError, match="none of its 9 examples has a token of its response in rows of 3"):
        loader.take(2, 3)
    assert _pairs(response="a", layout="separate").take(2, 3)["response_mask"].all()


@pytest.mark.parametrize(("texts", "missing"), [(["a", "b", "cd"], 2), (["ab", "cd"], 0)])
def test_documents_without_a_second_token_are_counted(texts: list[str], missing: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing stands before their only token to predict it from."""
    Path("short.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    loader = _build(paths=("short.jsonl",), text="text", rows="padded")
    for length in (4, 4):
        loader.take(2, length)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == (missing > 0) and all(f"{missing} of {len(texts)} documents have no second token" in line for line in told)
