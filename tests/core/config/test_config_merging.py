"""One merge rule for extends, phases and overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from stackwise.config.documents import override, read_file
from stackwise.config.merging import apply_replace, merge
from stackwise.config.reader import read_yaml
from stackwise.config.timeline import read_experiment
from stackwise.errors import ConfigError


def merged(under: str, over: str) -> object:
    return merge(read_yaml(under, "under"), read_yaml(over, "over")).plain()


@pytest.mark.parametrize(
    ("under", "over", "result"),
    [
        ("{a: {b: 1, c: 2}}", "{a: {c: 3, d: 4}}", {"a": {"b": 1, "c": 3, "d": 4}}),
        ("{a: [1, 2]}", "{a: [3]}", {"a": [3]}),
        ("{a: {b: 1}}", "{a: 2}", {"a": 2}),
        ("{a: 2}", "{a: {b: 1}}", {"a": {"b": 1}}),
        ("{a: {b: 1, c: 2}}", "{a: {b: null}}", {"a": {"c": 2}}),
        ("{a: 1}", "{b: null}", {"a": 1, "b": None}),
        ("{o: {use: x.adam, betas: [1]}}", "{o: {use: x.muon, lr: 1}}", {"o": {"use": "x.muon", "lr": 1}}),
        ("{o: {use: x.adam, betas: [1]}}", "{o: {use: x.adam, lr: 1}}", {"o": {"use": "x.adam", "betas": [1], "lr": 1}}),
        ("{o: {use: x.adam, lr: 1}}", "{o: {lr: 2}}", {"o": {"use": "x.adam", "lr": 2}}),
        ("{lr: {wsd: {peak: 1, warmup: 2%}}}", "{lr: {wsd: {peak: 3}}}", {"lr": {"wsd": {"peak": 3, "warmup": "2%"}}}),
        ("{lr: {wsd: {peak: 1}}}", "{lr: {cosine: {from: 1}}}", {"lr": {"cosine": {"from": 1}}}),
        ("{lr: {wsd: {peak: 1}}}", "{lr: 0.1}", {"lr": 0.1}),
        ("{n: {piecewise: {values: {0%: 1, 50%: 2}}}}", "{n: {piecewise: {values: {9%: 3}}}}", {"n": {"piecewise": {"values": {"9%": 3}}}}),
        (
            "{n: {piecewise: {values: {0%: 1}, over: phase}}}",
            "{n: {piecewise: {values: {}}}}",
            {"n": {"piecewise": {"values": {}, "over": "phase"}}},
        ),
        (
            "{data: {sources: {piecewise: {values: {a: 1}}}}}",
            "{data: {sources: {piecewise: {values: {b: 2}}}}}",
            {"data": {"sources": {"piecewise": {"values": {"a": 1, "b": 2}}}}},
        ),
        ("{phases: {linear: {}}}", "{phases: {cosine: {}}}", {"phases": {"linear": {}, "cosine": {}}}),
        ("{data: {mix: {linear: 1}}}", "{data: {mix: {cosine: 2}}}", {"data": {"mix": {"linear": 1, "cosine": 2}}}),
    ],
)
def test_the_rule(under: str, over: str, result: object) -> None:
    assert merged(under, over) == result


SOURCES = "{data: {sources: {a: {use: x.a}}, mix: {a: 1}}}"


@pytest.mark.parametrize(
    ("under", "over", "result"),
    [
        (
            SOURCES,
            "{data: {sources: {b: {use: x.b}}, mix: {b: 2}}}",
            {"sources": {"a": {"use": "x.a"}, "b": {"use": "x.b"}}, "mix": {"a": 1, "b": 2}},
        ),
        (SOURCES, "{data: {sources: {replace: {b: {use: x.b}}}}}", {"sources": {"b": {"use": "x.b"}}}),
        (SOURCES, "{data: {sources: {replace: {b: {use: x.b}}}, mix: {b: 2}}}", {"sources": {"b": {"use": "x.b"}}, "mix": {"b": 2}}),
        (SOURCES, "{data: {mix: {replace: {linear: 2}}}}", {"sources": {"a": {"use": "x.a"}}, "mix": {"linear": 2}}),
        ("{data: {rename: {x: y}}}", "{data: {rename: {replace: {z: y}}}}", {"rename": {"z": "y"}}),
        ("{data: {sources: {a: {use: x.a, replace: {k: 1}}}}}", "{}", {"sources": {"a": {"use": "x.a", "replace": {"k": 1}}}}),
    ],
)
def test_one_word_puts_names_in_the_place_of_those_that_were_there(under: str, over: str, result: object) -> None:
    assert apply_replace(merge(read_yaml(under, "under"), read_yaml(over, "over"))).plain()["data"] == result


def test_a_phase_that_replaces_does_so_whichever_file_writes_it() -> None:
    parent = "{data: {sources: {a: {use: x.a}}}, phases: {one: {until: 50%}, two: {data: {sources: {replace: {b: {use: x.b}}}}}}}"
    child = "{phases: {two: {data: {sources: {c: {use: x.c}}}}}}"
    read = read_experiment(merge(read_yaml(parent, "parent"), read_yaml(child, "child")), "run")
    assert [[*phase.data.sources] for phase in read.phases] == [["a"], ["b", "c"]]
    assert [[*phase.data.mix] for phase in read.phases] == [["a"], ["b", "c"]]
    again = "{phases: {two: {data: {sources: {replace: {d: {use: x.d}}}}}}}"
    read = read_experiment(merge(read_yaml(parent, "parent"), read_yaml(again, "child")), "run")
    assert [[*phase.data.sources] for phase in read.phases] == [["a"], ["d"]]


REPLACED = "{{{}: {{sources: {{replace: {{b: {{use: x.b, k: 1, l: 2}}, c: {{use: x.c}}}}}}}}}}"


@pytest.mark.parametrize(
    ("settings", "result"),
    [
        (["b.k=3"], {"b": {"use": "x.b", "k": 3, "l": 2}, "c": {"use": "x.c"}}),
        (["b.l=null", "c=null"], {"b": {"use": "x.b", "k": 1}}),
        (["b.use=x.d", "d.use=x.d"], {"b": {"use": "x.d"}, "c": {"use": "x.c"}, "d": {"use": "x.d"}}),
    ],
)
@pytest.mark.parametrize("section", ["data", "evaluate: {held", "phases: {two: {data"])
def test_a_setting_that_goes_through_the_word_is_laid_on_its_entries(section: str, settings: list[str], result: object) -> None:
    document = read_yaml(REPLACED.format(section) + "}" * section.count("{"), "x")
    keys = section.replace(": {", ".")
    node = override(document, [f"{keys}.sources.replace.{setting}" for setting in settings])
    assert node.nearest((*keys.split("."), "sources")).plain() == {"replace": result}


def test_a_setting_of_the_word_itself_puts_its_entries_in_the_place_of_all() -> None:
    document = read_yaml(REPLACED.format("data"), "x")
    for setting in ("data.sources.replace={d: {use: x.d}}", "data.sources={replace: {d: {use: x.d}}}"):
        assert override(document, [setting]).plain() == {"data": {"sources": {"replace": {"d": {"use": "x.d"}}}}}
    first = override(read_yaml(SOURCES, "x"), ["data.sources.replace.d.use=x.d", "data.sources.replace.d.k=1"])
    assert apply_replace(first).plain() == {"data": {"sources": {"d": {"use": "x.d", "k": 1}}}}


@pytest.mark.parametrize(
    ("sources", "path"),
    [
        ("{replaces: {b: {use: x.b}}}", "phases.two.data.sources.replaces"),
        ("{add: {b: {use: x.b}}}", "phases.two.data.sources.add"),
        ("{replace: {b: {use: x.b}}, c: {use: x.c}}", "phases.two.data.sources.replace"),
    ],
)
def test_words_near_it_are_told_of(sources: str, path: str) -> None:
    text = f"{{data: {{sources: {{}}}}, phases: {{one: {{until: 50%}}, two: {{data: {{sources: {sources}}}}}}}}}"
    problems = {problem.path: problem for problem in read_experiment(read_yaml(text, "x"), "run").problems}
    assert path in problems and problems[path].where is not None


def test_order_is_that_of_first_mention() -> None:
    assert list(merge(read_yaml("{a: 1, b: 2}", "u"), read_yaml("{c: 3, a: 4}", "o")).entries) == ["a", "b", "c"]


def test_the_later_one_owns_the_place_and_untouched_nodes_stay_the_same_objects() -> None:
    under, over = read_yaml("a: {b: 1}\nc: {d: 2}", "under"), read_yaml("a: {b: 3}", "over")
    result = merge(under, over)
    assert result.entries["a"].entries["b"].position.source == "over"
    assert result.entries["c"] is under.entries["c"]
    assert merge(under, read_yaml("{}", "over")) is under


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def test_extends_lays_files_on_each_other_in_order(tmp_path: Path) -> None:
    write(tmp_path, one="a: 1\nb: 1\nc: 1", two="b: 2\nc: 2", child="extends: [one.yaml, two.yaml]\nc: 3")
    assert read_file(tmp_path / "child.yaml").plain() == {"a": 1, "b": 2, "c": 3}


def test_extends_is_relative_to_the_file_that_says_it(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, top="extends: deep/middle.yaml\nc: 3")
    write(tmp_path / "deep", middle="extends: low.yaml\nb: 2", low="a: 1")
    assert read_file(tmp_path / "top.yaml").plain() == {"a": 1, "b": 2, "c": 3}


def test_a_shared_base_may_be_extended_twice(tmp_path: Path) -> None:
    write(tmp_path, low="a: 1", x="extends: low.yaml\nx: 1", y="extends: low.yaml\ny: 1", top="extends: [x.yaml, y.yaml]")
    assert read_file(tmp_path / "top.yaml").plain() == {"a": 1, "x": 1, "y": 1}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("extends: me.yaml", "circle"),
        ("extends: nowhere.yaml", "no file"),
        ("extends: .", "not a file"),
        ("extends: 3", "names no file"),
        ("extends: [{a: 1}]", "names no file"),
        ("extends: scalar.yaml", "map of sections"),
        ("extends: latin.yaml", "UTF-8"),
    ],
)
def test_extends_that_cannot_be_followed(tmp_path: Path, text: str, word: str) -> None:
    write(tmp_path, me=text, scalar="3")
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    with pytest.raises(ConfigError, match=word) as caught:
        read_file(tmp_path / "me.yaml")
    assert caught.value.problems[0].where is not None


def test_circles_and_towers_of_files_end(tmp_path: Path) -> None:
    write(tmp_path, a="extends: b.yaml", b="extends: a.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml → b\.yaml → a\.yaml"):
        read_file(tmp_path / "a.yaml")
    for i in range(40):
        write(tmp_path, **{f"n{i}": f"extends: [n{i + 1}.yaml, n{i + 1}.yaml]", f"n{i + 1}": "a: 1"})
    with pytest.raises(ConfigError, match="at most"):
        read_file(tmp_path / "n0.yaml")


def test_overrides_speak_yaml_and_own_their_place() -> None:
    document = read_yaml("a: {b: 1, c: 2}\nphases: {deep: {until: 100%}}", "f")
    result = override(document, ["a.b=1e-3", "a.d=[x, {y: true}]", "a.c=null", "phases.deep.until=80%", "e=a=b"])
    assert result.plain() == {"a": {"b": 0.001, "d": ["x", {"y": True}]}, "phases": {"deep": {"until": "80%"}}, "e": "a=b"}
    assert str(result.entries["a"].entries["b"].position) == "--set a.b=1e-3"


BAD_SETTINGS = (
    "a",
    "=1",
    "a=",
    "a..b=1",
    "a b=1",
    "a=[",
    "a=!!x 1",
    "extends=x",
    "a=\0",
    "a=\ud800",
    "phases.dep.until=1",
    "lr.piecewise.values.50%=1",
)


@pytest.mark.parametrize("setting", BAD_SETTINGS)
def test_bad_overrides_are_refused_with_their_text(setting: str) -> None:
    document = read_yaml("phases: {deep: {until: 100%}}", "f")
    with pytest.raises(ConfigError) as caught:
        override(document, [setting])
    assert str(caught.value.problems[0].where) == f"--set {setting}"


def test_an_override_of_an_unknown_phase_names_the_near_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'deep'"):
        override(read_yaml("phases: {deep: {}}", "f"), ["phases.dep.until=80%"])
