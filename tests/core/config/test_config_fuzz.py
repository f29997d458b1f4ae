"""Whatever is in a file: an Experiment or a ConfigError, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from how_many import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stackwise.config import DataConfig, EvaluateConfig, Experiment, RunConfig, experiment, load, structure_options
from stackwise.errors import ConfigError

SEED = """\
stackwise: 1
run: {name: a, seed: 7, horizon: 1200 steps}
task: {use: t.lm}
data: {sources: {x: {use: d.x}}, mix: {x: {linear: {from: 1, to: 2}}}, batch_size: 16, rename: {a: b}, transforms: [{use: d.t}]}
model: {embedding: {use: m.e}, rack: {use: m.r, stacks: [{base: 2}]}, head: {use: m.h}, freeze: [], adapters: {rack-head: [{use: m.p}]}}
optimizer: {use: o.a, lr: {wsd: {peak: 2e-3}}, clip: 1, groups: {g: {select: [a], lr: 1}}}
evaluate: {h: {every: 5%, sources: {y: {use: d.y}}}}
observers: [{use: w.o}]
phases:
  a: {until: 50%}
  b: {model: {freeze: [embedding]}, enter: {growth: {use: m.s, moments: copy}}}
"""
WORDS = (
    *("use", "run", "phases", "data", "model", "optimizer", "task", "evaluate"),
    *("enter", "growth", "moments", "sources", "mix", "until", "groups", "select"),
)

keys = st.sampled_from(WORDS) | st.text(max_size=5)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | numbers | st.text(max_size=8) | st.sampled_from(["5%", "3 steps"])
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12)
quiet = settings(max_examples=examples(80), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def try_text(tmp_path: Path, text: str, *overrides: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        read = load(path, overrides)
    except ConfigError as error:
        assert error.problems
    else:
        assert isinstance(read, Experiment)
        assert read.phases
        yaml.safe_dump(read.resolved)


@quiet
@given(st.data())
def test_mutated_text(tmp_path: Path, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(SEED)))
    stop = data.draw(st.integers(start, min(len(SEED), start + 30)))
    piece = data.draw(st.text(alphabet=st.sampled_from(list("{}[]:,-&*!|>'\"#%@ \n\tabc019.~<")), max_size=8))
    try_text(tmp_path, SEED[:start] + piece + SEED[stop:])


@quiet
@given(st.text(max_size=60))
def test_any_text(tmp_path: Path, text: str) -> None:
    try_text(tmp_path, text)


@quiet
@given(st.text(max_size=30))
def test_any_override(tmp_path: Path, setting: str) -> None:
    try_text(tmp_path, SEED, setting, "optimizer.lr=" + setting)


def replaced(tree: Any, path: list[Any], value: Any) -> Any:
    if not path:
        return value
    if isinstance(tree, dict):
        return {**tree, path[0]: replaced(tree[path[0]], path[1:], value)}
    return [replaced(entry, path[1:], value) if i == path[0] else entry for i, entry in enumerate(tree)]


def places(tree: Any) -> list[list[Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [[], *([key, *rest] for key, inner in items for rest in places(inner))]


TREE = yaml.safe_load(SEED)


@settings(max_examples=examples(300), deadline=None)
@given(st.sampled_from(places(TREE)[1:]), values)
def test_any_value_in_any_place(path: list[Any], value: Any) -> None:
    try:
        read = experiment(replaced(TREE, path, value))
    except ConfigError as error:
        assert error.problems
    else:
        assert [phase.index for phase in read.phases] == list(range(len(read.phases)))
        for phase in read.phases:
            for ref in (phase.task.part, phase.model.rack, phase.optimizer.part):
                assert ref.use or ref.given is not None or read.problems
                phase.locate(ref.path)


@settings(max_examples=examples(150), deadline=None)
@given(st.dictionaries(keys, values, max_size=5) | st.dictionaries(st.sampled_from(["select", "every", "batches"]), values))
def test_any_options(raw: dict[str, Any]) -> None:
    for cls in (RunConfig, DataConfig, EvaluateConfig):
        instance, _, problems = structure_options(cls, raw, "x")
        assert (instance is None) == bool(problems)


@pytest.mark.parametrize("key", ["run", "task", "data", "model", "optimizer", "evaluate", "phases", "observers"])
def test_a_section_replaced_by_each_kind_of_value(key: str) -> None:
    for value in (None, 3, "x", True, 1.5, [], [1], {}, {"a": 1}, {"a": {"b": 2}}, object()):
        if (key, value) == ("phases", [1]):
            with pytest.raises(ConfigError):
                experiment({**TREE, key: value})
        else:
            assert isinstance(experiment({**TREE, key: value}), Experiment)
