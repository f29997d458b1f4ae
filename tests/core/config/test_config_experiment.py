"""A config becomes phases with effective sections, and all its mistakes are told at once."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackwise.config import Experiment, Phase, experiment, load
from stackwise.config.rules import broken_run_name, run_name_of
from stackwise.contracts.components import Built
from stackwise.errors import ConfigError
from stackwise.timeline.duration import Duration
from stackwise.timeline.schedules import Constant, Linear

BASE = """\
stackwise: 1
run: {horizon: 1200 steps, seed: 7}
task: {use: t.lm}
data:
  sources: {text: {use: d.text}, code: {use: d.code, split: 3}}
  batch_size: 16
  seq_len: 128
model:
  embedding: {use: m.token}
  rack: {use: m.decoder, width: 128, stacks: [{base: 2}]}
  head: {use: m.lm}
optimizer:
  use: o.adamw
  lr: {wsd: {peak: 2e-3}}
  clip: 1
  groups: {norms: {select: ["*.norm*"], weight_decay: 0}, rest: {select: [head], lr: 1}}
evaluate: {heldout: {every: 5%}}
"""
PHASES = """\
phases:
  shallow: {until: 50%}
  deep:
    until: 80%
    model: {rack: {stacks: [{base: 6}]}, freeze: [embedding]}
    enter: {growth: {use: m.stack, moments: reset, order: 1}}
  last: {optimizer: {lr: 0.1, clip: null}}
"""


def read(tmp_path: Path, text: str, *overrides: str) -> Experiment:
    path = tmp_path / "grow bytes.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path, overrides)


def told(experiment_read: Experiment) -> dict[str, str]:
    return {problem.path: problem.message for problem in experiment_read.problems}


def minimal(**more: Any) -> dict[str, Any]:
    part = {"use": "a.b"}
    model = {"embedding": part, "rack": part, "head": part}
    return {"run": {"horizon": "10 steps"}, "task": part, "data": {"sources": {"x": part}}, "model": model, "optimizer": part, **more}


def test_phases_inherit_what_they_do_not_mention(tmp_path: Path) -> None:
    got = read(tmp_path, BASE + PHASES)
    got.check()
    shallow, deep, last = got.phases
    assert [phase.name for phase in got.phases] == ["shallow", "deep", "last"]
    assert [phase.until for phase in got.phases] == [Duration.parse("50%"), Duration.parse("80%"), Duration.parse("100%")]
    assert shallow.model.rack.options == {"width": 128, "stacks": [{"base": 2}]}
    assert deep.model.rack.options == last.model.rack.options == {"width": 128, "stacks": [{"base": 6}]}
    assert last.model.freeze == ("embedding",)
    assert shallow.data is last.data
    assert deep.model is last.model
    assert shallow.optimizer.part.options == {"lr": {"wsd": {"peak": 0.002}}}
    assert last.optimizer.part.options == {"lr": 0.1}


def test_core_owned_keys_are_not_options(tmp_path: Path) -> None:
    shallow, deep, last = read(tmp_path, BASE + PHASES).phases
    assert (shallow.optimizer.clip, last.optimizer.clip) == (1.0, None)
    norms, rest = shallow.optimizer.groups
    assert (norms.name, norms.select, norms.options) == ("norms", ("*.norm*",), {"weight_decay": 0})
    assert (rest.name, rest.select, rest.options) == ("rest", ("head",), {"lr": 1})
    assert deep.enter.growth is not None
    assert (deep.enter.growth.use, deep.enter.growth.options, deep.enter.moments) == ("m.stack", {"order": 1}, "reset")
    assert last.enter.growth is None


def test_layers_and_places(tmp_path: Path) -> None:
    deep, last = read(tmp_path, BASE + PHASES).phases[1:]
    assert deep.declared_in("model.rack.stacks") == last.declared_in("model.rack.stacks") == 1
    assert deep.declared_in("model.rack.width") == -1
    assert (deep.declared_in("optimizer.lr"), last.declared_in("optimizer.lr")) == (-1, 2)
    assert last.declared_in("model") == 1
    assert last.declared_in("optimizer.clip") == 2
    assert str(deep.locate("model.rack.stacks")).endswith("grow bytes.yaml:22:20")
    assert str(deep.locate("enter.growth.order")).endswith(":23:52")
    assert deep.written("model.rack.stacks") == "phases.deep.model.rack.stacks"
    assert last.written("model.rack.width") == "model.rack.width"
    assert str(last.problem("optimizer.lr", "no")).endswith(":24:22: phases.last.optimizer.lr: no")


def test_a_key_with_dots_is_found() -> None:
    got = experiment(minimal(optimizer={"use": "a.b", "lr": {"piecewise": {"values": {"0%": 1, "12.5%": 2}}}}))
    assert got.phases[0].tree.nearest(("optimizer", "lr", "piecewise", "values", "12.5%")).value == 2
    assert got.phases[0].declared_in("optimizer.lr.piecewise.values.12.5%") == -1


def test_defaults(tmp_path: Path) -> None:
    got = read(tmp_path, BASE)
    assert got.run.name == "grow-bytes"
    assert (got.run.seed, got.run.device, got.run.precision, got.run.threads, got.run.halt_after) == (7, "auto", "float32", None, 3)
    assert got.run.horizon == Duration(Fraction(1200), "steps")
    (train,) = got.phases
    assert (train.name, train.until) == ("train", Duration.parse("100%"))
    assert train.data.mix == {"text": Constant(value=1.0), "code": Constant(value=1.0)}
    assert (train.data.accumulate, train.data.step_tokens) == (None, None)
    assert got.evaluate[0].batches == 16
    assert got.resolved["model"]["rack"] == {"use": "m.decoder", "width": 128, "stacks": [{"base": 2}]}


def test_overrides_reach_phases(tmp_path: Path) -> None:
    got = read(tmp_path, BASE + PHASES, "phases.deep.until=70%", "optimizer.clip=2", "run.name=x1")
    assert got.phases[1].until == Duration.parse("70%")
    assert got.phases[0].optimizer.clip == 2.0
    assert got.run.name == "x1"


BAD = """\
run: {nam: x, seed: "7", horizon: 50%, device: gpu, threads: true, halt_after: 2.0}
task: transformer.causal-lm
data:
  sources: {a: {use: d.x}}
  mix: {a: {wsd: {peek: 1, decay: 3}}, zz: 1}
  batch_size: 0
  seq_len: 12.5
model: {embedding: {width: 3}, rack: {use: 3}, adapters: {rack-haed: []}, freeze: embedding}
optimizer: {use: o.a, groups: {norms: {select: x}, default: {select: [a]}, none: {select: []}}, clip: -1}
evaluate: {train: {every: 1%}, h: {evry: 5%, every: 0%}}
phases:
  a: {enter: {grow: 1}}
  b: {until: 5, model: {freeze: [1]}, run: {}, untill: 3, enter: {growth: {use: x.y, moments: keep}}}
  c: {optimizer: {clip: true}}
phazes: 3
"""


def test_every_mistake_is_told_in_one_pass_with_place_and_fix(tmp_path: Path) -> None:
    got = read(tmp_path, BAD)
    with pytest.raises(ConfigError) as caught:
        got.check()
    assert caught.value.problems == got.problems
    messages = told(got)
    for path, word in {
        "run.nam": "did you mean 'name'",
        "run.seed": "'7' is not a whole number",
        "run.horizon": "steps, tokens, samples",
        "run.device": "'gpu' is none of",
        "run.threads": "true is not a whole number",
        "run.halt_after": "2.0 is not a whole number",
        "task": "write {use: transformer.causal-lm}",
        "data.mix.a.wsd.peek": "did you mean 'peak'",
        "data.mix.a.wsd.peak": "missing",
        "data.mix.a.wsd.decay": "has no unit",
        "data.batch_size": "below the minimum of 1",
        "data.seq_len": "12.5 is not a whole number",
        "model.embedding.use": "missing",
        "model.rack.use": "not a component id",
        "model.head": "missing",
        "model.adapters.rack-haed": "did you mean 'rack-head'",
        "model.freeze": "not a list",
        "optimizer.groups.norms.select": "not a list",
        "optimizer.groups.default": "taken",
        "optimizer.groups.none.select": "selects nothing",
        "optimizer.clip": "above zero",
        "evaluate.train": "taken",
        "evaluate.h.evry": "did you mean 'every'",
        "evaluate.h.every": "above zero",
        "phases.a.until": "missing",
        "phases.a.enter.grow": "did you mean 'growth'",
        "phases.b.until": "no unit",
        "phases.b.untill": "did you mean 'until'",
        "phases.b.run": "whole run",
        "phases.b.model.freeze.0": "1 is not text",
        "phases.b.enter.growth.moments": "'keep' is none of",
        "phases.c.optimizer.clip": "true is not a number",
        "phazes": "did you mean 'phases'",
    }.items():
        assert word in messages.pop(path), path
    assert not messages
    assert all(problem.where and problem.where.line for problem in got.problems)
    assert str(got.problems[-1]) == f"{tmp_path / 'grow bytes.yaml'}:15:1: phazes: unknown key — did you mean 'phases'?"


def test_a_mistake_in_the_base_is_told_once_however_many_phases_there_are() -> None:
    phases = {f"p{i}": {"until": f"{i + 1} steps", "optimizer": {"lr": i}} for i in range(20)}
    got = experiment(minimal(optimizer={"clip": "big", "groups": {"g": {"select": 3}}}, phases=phases))
    assert sorted(told(got)) == ["optimizer.clip", "optimizer.groups.g.select", "optimizer.use"]
    assert len(got.problems) == 3


@pytest.mark.parametrize("name", ["../x", "/x", "", ".x", "a/b", "a\0b", "x" * 101, "語" * 90, "a b", "x\n", "a\u202eb"])
def test_run_names_cannot_leave_their_directory(name: str) -> None:
    assert "cannot name a run" in told(experiment(minimal(run={"horizon": "5 steps", "name": name})))["run.name"]


@pytest.mark.parametrize("name", ["a", "x" * 100, "a.b-c_1", "-a", "größe", "日本語"])
def test_run_names_that_are_fine(name: str) -> None:
    experiment(minimal(run={"horizon": "5 steps", "name": name})).check()


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("größe", "größe"),
        ("gro\u0308\u00dfe", "größe"),
        ("日本 語", "日本-語"),
        ("a:b", "a-b"),
        (".x", "x"),
        ("語" * 150, "語" * 66),
        ("…", "-"),
    ],
)
def test_a_file_names_its_run_as_far_as_it_can(stem: str, name: str) -> None:
    assert run_name_of(stem) == name and broken_run_name(name) is None


def test_a_word_in_the_place_of_a_map_is_told_the_map_to_write() -> None:
    got = told(experiment(minimal(model={**minimal()["model"], "precision": "bf16"})))
    assert "`precision: {rack: bfloat16}`" in got["model.precision"]


@pytest.mark.parametrize(
    ("section", "value", "path", "word"),
    [
        ("phases", {}, "phases", "no phase"),
        ("phases", 3, "phases", "not a map"),
        ("phases", {"": {"until": "100%"}}, "phases.", "not a name"),
        ("phases", {"a.b": {}}, "phases.a.b", "not a name"),
        ("phases", {"a": 3}, "phases.a", "not a map"),
        ("stackwise", 2, "stackwise", "stackwise: 1"),
        ("stackwise", True, "stackwise", "stackwise: 1"),
        ("run", {}, "run.horizon", "missing"),
        ("run", None, "run.horizon", "missing"),
        ("run", {"horizon": 500}, "run.horizon", "no unit"),
        ("run", {"horizon": "1e999999999 steps"}, "run.horizon", "not a duration"),
        ("run", {"horizon": "9" * 5000 + " steps"}, "run.horizon", "not a duration"),
        ("run", {"horizon": "0 steps"}, "run.horizon", "above zero"),
        ("run", {"horizon": "5 steps", "seed": -1}, "run.seed", "below the minimum"),
        ("task", None, "task", "missing"),
        ("data", {"sources": {}}, "data.sources", "missing"),
        ("data", {"sources": {"x": {"use": "a.b"}}, "mix": {"x": 0}}, "data.mix", "all weights"),
        ("data", {"sources": {"x": {"use": "a.b"}}, "mix": {"x": -1}}, "data.mix.x", "below zero"),
        ("data", {"sources": {"x": {"use": "a.b"}, "y": {"use": "a.b"}}, "mix": {"x": 1}}, "data.mix", "'y' has no weight"),
        ("data", {"sources": {"x": {"use": "a.b"}}, "mix": {"y": 1, "x": 1}}, "data.mix.y", "no source"),
        ("observers", {"use": "a.b"}, "observers", "not a list"),
        ("observers", [3], "observers.0", "not a component"),
    ],
)
def test_single_mistakes(section: str, value: object, path: str, word: str) -> None:
    messages = told(experiment(minimal(**{section: value})))
    assert word in messages[path]
    assert len(messages) == 1


def test_objects_stand_where_components_stand() -> None:
    class Rack:
        pass

    rack, batches, grown = Rack(), [{"tokens": 1}], Built(Rack, width=64)
    got = experiment(
        minimal(data=batches, observers=[print], optimizer={"use": grown, "clip": 2.0}),
        model={"rack": rack},
        phases=[Phase("a", until="50%"), Phase("b", model={"rack": grown}, data={"batch_size": 4})],
    )
    got.check()
    first, second = got.phases
    assert first.model.rack.given is rack
    assert second.model.rack.given is grown
    assert first.data.sources["data"].given is batches
    assert first.data.mix == {"data": Constant(value=1.0)}
    assert second.data.sources["data"].given is batches
    assert second.data.batch_size == 4
    assert (first.optimizer.part.given, first.optimizer.clip) == (grown, 2.0)
    assert got.observers[0].given is print
    shown = str(got.resolved)
    assert "Built(" in shown
    assert "0x" not in shown


def test_phases_change_the_options_of_a_built_one_by_one() -> None:
    def make(**options: object) -> None:
        """Nothing is built here."""

    shape = (3, 3)
    rack, optimizer = Built(make, width=64, shape=shape, stacks=[{"base": 2}]), Built(make, lr=1.0)
    phases = [Phase("a", until="50%"), Phase("b", model={"rack": {"stacks": [{"base": 6}]}}, optimizer={"clip": 1, "lr": 0.5})]
    got = experiment(minimal(optimizer=optimizer, phases=phases), model={"rack": rack})
    got.check()
    first, second = got.phases
    assert first.model.rack.given is second.model.rack.given is rack
    assert first.model.rack.options == {"width": 64, "shape": shape, "stacks": [{"base": 2}]}
    assert second.model.rack.options == {"width": 64, "shape": shape, "stacks": [{"base": 6}]}
    assert second.declared_in("model.rack.stacks") == 1
    assert (second.optimizer.part.options, second.optimizer.clip) == ({"lr": 0.5}, 1.0)
    assert first.model.rack.options["shape"] is shape


def test_a_finished_object_takes_no_options() -> None:
    messages = told(experiment(minimal(optimizer={"use": object(), "lr": 1, "clip": 1})))
    assert list(messages) == ["optimizer.lr"]
    assert "Built" in messages["optimizer.lr"]


def test_schedule_and_duration_objects_are_taken_as_they_are() -> None:
    weight = Linear(to=1.0, from_=0.0)
    sections = {"run": {"horizon": Duration.parse("9 steps")}, "data": {"sources": {"x": {"use": "a.b"}}, "mix": {"x": weight}}}
    got = experiment(minimal(**sections))
    got.check()
    assert got.phases[0].data.mix["x"] is weight


@pytest.mark.parametrize(
    ("sections", "word"),
    [
        ({"phases": [Phase("a"), Phase("a")]}, "two phases"),
        ({"phases": [{"a": {}}]}, "not a phase"),
        ({"run": {3.5: 1}}, "not text"),
        ({"run": {1: 1, "1": 2}}, "given twice"),
        ({"run": {"seed": float("nan")}}, "not finite"),
    ],
)
def test_python_that_is_no_config(sections: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        experiment(minimal(), **sections)


def test_a_dict_that_holds_itself_ends() -> None:
    loop: dict[str, Any] = {}
    loop["run"] = loop
    with pytest.raises(ConfigError, match="deep"):
        experiment(loop)


def test_yaml_and_python_say_the_same(tmp_path: Path) -> None:
    from_yaml = read(tmp_path, BASE.replace("2e-3", "0.002") + PHASES)
    from_dict = experiment(yaml.safe_load(BASE.replace("2e-3", "0.002") + PHASES))
    for one, other in zip(from_yaml.phases, from_dict.phases, strict=True):
        for section in ("task", "data", "model", "optimizer", "enter"):
            assert getattr(one, section) == getattr(other, section)
    assert from_yaml.resolved == from_dict.resolved


def test_growth_of_a_thousand_phases_shares_what_is_not_touched() -> None:
    phases = {f"p{i}": {"until": f"{i + 1} steps", "optimizer": {"lr": i}} for i in range(1000)}
    got = experiment(minimal(run={"horizon": "1000 steps"}, phases=phases))
    got.check()
    assert len({id(phase.model) for phase in got.phases}) == 1
    assert got.phases[999].optimizer.part.options == {"lr": 999}


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path, "a\0b"):
        with pytest.raises(ConfigError):
            load(path)


def test_an_evaluation_of_no_source_is_refused() -> None:
    got = told(experiment(minimal(evaluate={"held": {"sources": {}}})))
    assert "names no source" in got["evaluate.held.sources"]
