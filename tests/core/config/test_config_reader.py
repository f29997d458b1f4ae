"""YAML is read by the 1.2 core schema, with places, and refuses what a config may not hold."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from stackwise.config.reader import read_yaml
from stackwise.errors import ConfigError


def problems_of(text: str) -> list[tuple[int | None, int | None, str]]:
    with pytest.raises(ConfigError) as caught:
        read_yaml(text, "run.yaml")
    assert caught.value.exit_code == 2
    places = [problem.where for problem in caught.value.problems]
    assert all(where is not None and where.source == "run.yaml" for where in places)
    return [(p.where.line, p.where.column, p.message) for p in caught.value.problems if p.where]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("2E6", 2e6),
        (".5", 0.5),
        ("1.", 1.0),
        ("-0.25", -0.25),
        ("010", 10),
        ("+7", 7),
        ("0o17", 15),
        ("0xff", 255),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("on", "on"),
        ("no", "no"),
        ("Yes", "Yes"),
        ("2020-01-01", "2020-01-01"),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ('"true"', "true"),
        ("30%", "30%"),
        ("2e6 tokens", "2e6 tokens"),
        ("nan", "nan"),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    got = read_yaml(f"k: {text}", "f").entries["k"].value
    assert got == value
    assert type(got) is type(value)


def test_places_are_those_of_the_keys() -> None:
    node = read_yaml("a: 1\nb:\n  - x\n  - {c: 2}\n", "f.yaml")
    assert str(node.entries["b"].position) == "f.yaml:2:1"
    second = node.entries["b"].child("1")
    assert second is not None
    assert str(second.position) == "f.yaml:4:5"
    assert str(second.entries["c"].position) == "f.yaml:4:6"


@pytest.mark.parametrize(
    ("text", "line", "column", "word"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, 1, "run.yaml:1:1"),
        ("a: {b: 1, b: 2}", 1, 11, "given before"),
        ("a: !!python/object/apply:os.abort []", 1, 4, "tag"),
        ("a: !!str 1", 1, 4, "tag"),
        ("a: ! 1", 1, 4, "tag"),
        ("a: {<<: {b: 1}}", 1, 5, "merge key"),
        ("a: &x 1", 1, 4, "anchor"),
        ("a: 1\nb: *x", 2, 4, "alias"),
        ("a: 1\n---\nb: 2\n", 2, 1, "second document"),
        ("", 1, 1, "nothing"),
        ("# only a remark\n", 1, 1, "nothing"),
        ("a:\n\tb: 1\n", 2, 1, "tab"),
        ("a:\n  b: .nan\n", 2, 6, "not finite"),
        ("a: -.inf", 1, 4, "not finite"),
        ("a: 1e999", 1, 4, "too large"),
        ("a: " + "9" * 5000, 1, 4, "longer"),
        ("a: x\0y", 1, 5, "not text"),
        ("a: ]", 1, 4, "not YAML"),
        ("a: b: c", 1, 5, "not YAML"),
        ("~: 1", 1, 1, "not text"),
        ("true: 1", 1, 1, "not text"),
        ("{a: 1}: 2", 1, 1, "key is text"),
        ("%YAML 1.1\n---\na: 1", 1, 1, "directive"),
        ("k" * 300 + ": 1", 1, 1, "300 characters"),
    ],
)
def test_refusals_name_line_and_column(text: str, line: int, column: int, word: str) -> None:
    first = problems_of(text)[0]
    assert first[:2] == (line, column)
    assert word in first[2]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: 1\n" * 2_000_000, "characters"),
        ("".join(f"k{i}: 1\n" for i in range(70_000)), "values"),
        ("[" * 100_000, "deep"),
        ("- " * 100_000, "deep"),
        ("".join(" " * i + "a:\n" for i in range(500)), "deep"),
        ("a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a, *a]\n" for i in range(30)), "anchor"),
    ],
)
def test_bombs_stop_at_their_budget(text: str, word: str) -> None:
    assert any(word in message for _, _, message in problems_of(text))


def test_every_refusal_of_a_file_is_told_at_once() -> None:
    assert [line for line, _, _ in problems_of("a: .nan\nb: !x 1\nc: 1\nc: 2\n")] == [1, 2, 4]


def test_a_tag_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    problems_of(f"a: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{mark}']]")
    assert not mark.exists()


def test_numbers_as_keys_are_their_text() -> None:
    assert list(read_yaml("1: a\n30%: b", "f").entries) == ["1", "30%"]


def test_plain_documents_agree_with_pyyaml() -> None:
    text = 'a: [1, 2.5, {b: "x", c: [d, e]}]\nf:\n  g: |\n    two\n    lines\n  h: true\n'
    assert read_yaml(text, "f").plain() == yaml.safe_load(text)


def test_floats_are_read_to_the_last_bit() -> None:
    assert read_yaml("a: 3.141592653589793", "f").entries["a"].value == math.pi
