"""The JSON Schema of configs: every example is valid, and every example with one mistake in it is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

import stackwise
from stackwise import ConfigError, cli, discover
from stackwise.config.reader import read_yaml
from stackwise.config.schema import config_schema
from stackwise.host.provider import KINDS

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
IDS = [path.stem for path in EXAMPLES]

Place = tuple[str | int, ...]


@cache
def validator() -> Draft202012Validator:
    return Draft202012Validator(config_schema(discover()))


def read(path: Path) -> Any:
    return read_yaml(path.read_text(encoding="utf-8"), path.name).plain()


def valid(config: Any) -> bool:
    return bool(validator().is_valid(config))


def places(node: Any, at: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value of a config with the keys that lead to it."""
    yield at, node
    for key, inner in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(inner, (*at, key))


def with_value(config: Any, at: Place, value: Any) -> Any:
    changed = deepcopy(config)
    node = changed
    for key in at[:-1]:
        node = node[key]
    node[at[-1]] = value
    return changed


def mistakes(config: Any) -> Iterator[tuple[str, Any]]:
    """The config with one mistake: an unknown key in a map, a map or a list for a single value, an id that nothing offers."""
    for at, node in places(config):
        name = ".".join(map(str, at)) or "top"
        if isinstance(node, dict):
            yield f"{name}: unknown key", with_value(config, (*at, "no-such-key"), {"no": [{"such": "thing"}]})
        elif isinstance(node, list):
            yield f"{name}: no list", with_value(config, at, 3.5)
        else:
            yield f"{name}: a map", with_value(config, at, {"no": {"such": "thing"}})
            yield f"{name}: a list", with_value(config, at, [[node]])
            if at[-1] == "use":
                yield f"{name}: unknown id", with_value(config, at, "nobody.nothing")
            if type(node) in (int, float) and at[-1] != "stackwise":
                yield f"{name}: text", with_value(config, at, str(node))


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(config_schema(discover()))


@pytest.mark.parametrize("path", EXAMPLES, ids=IDS)
def test_every_example_is_valid(path: Path) -> None:
    assert [error.message for error in validator().iter_errors(read(path))] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=IDS)
def test_every_example_with_a_mistake_is_not(path: Path) -> None:
    config = read(path)
    tried = list(mistakes(config))
    assert len(tried) > 20
    assert [name for name, changed in tried if valid(changed)] == []


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.rare)])
def test_what_the_schema_refuses_the_core_refuses_too(every: int) -> None:
    """Both are drawn from the same classes, so neither is stricter over types and keys."""
    registry = discover()
    accepted = []
    for name, changed in list(mistakes(read(ROOT / "examples" / "grow-bytes.yaml")))[::every]:
        try:
            stackwise.make_plan(stackwise.experiment(changed), registry)
        except ConfigError:
            continue
        accepted.append(name)
    assert accepted == []


BASE = read(ROOT / "examples" / "one-phase.yaml")


@pytest.mark.parametrize(
    ("at", "value", "fits"),
    [
        (("optimizer", "lr"), {"wsd": {"peak": 1e-3, "warmup": "5%", "decay": "100 steps"}}, True),
        (("optimizer", "lr"), {"wsd": {"peak": 1e-3}, "linear": {"to": 0}}, False),
        (("optimizer", "lr"), {"wsd": {"warmup": "5%"}}, False),
        (("optimizer", "lr"), {"linear": {"to": 0, "from": 1, "over": "epoch"}}, False),
        (("optimizer", "lr"), -1, False),
        (("optimizer", "groups"), {"slow": {"select": ["embedding"], "lr": 1e-4}}, True),
        (("optimizer", "groups"), {"slow": {"select": ["embedding"], "width": 3}}, False),
        (("optimizer", "groups"), {"slow": {"select": "embedding"}}, False),
        (("optimizer", "clip"), 0, False),
        (("optimizer", "clip"), 0.5, True),
        (("run", "horizon"), "300", False),
        (("run", "horizon"), "3 epochs of stdlib", True),
        (("run", "horizon"), "3 fortnights", False),
        (("run", "device"), "tpu", False),
        (("run", "seed"), -1, False),
        (("run", "seed"), True, False),
        (("run", "providers"), {"block": ["waves"]}, True),
        (("run", "providers"), {"block": "waves"}, False),
        (("data", "mix"), {"stdlib": {"linear": {"from": 0, "to": 1}}}, True),
        (("data", "batch_size"), {"piecewise": {"values": {"0%": 4, "50%": 8}}}, True),
        (("data", "batch_size"), 2.5, False),
        (("model", "rack", "stacks"), [{"base": 2}, {"top": 1}], True),
        (("model", "rack", "stacks"), {"base": 2}, True),
        (("model", "rack", "stacks"), [{"base": 0}], False),
        (("model", "rack", "stacks"), [{"base": 1, "top": 1}], False),
        (("model", "rack", "mlp"), "relu-ish", False),
        (("model", "rack", "width"), None, True),
        (("model", "adapters"), {"rack-head": [{"use": "core.precision", "dtype": "float32"}]}, True),
        (("model", "adapters"), {"head-rack": [{"use": "core.precision", "dtype": "float32"}]}, False),
        (("model", "adapters"), {"rack-head": [{"use": "core.precision"}]}, False),
        (("evaluate",), {"heldout": {"every": "5%", "batches": 4}}, True),
        (("evaluate",), {"held out": {}}, False),
        (("phases",), {"a": {"until": "50%"}, "b": {"model": {"rack": {"dropout": 0.1}}}}, True),
        (("phases",), {"a": {"until": "50%"}, "b": {"model": {"rack": {"dropouts": 0.1}}}}, False),
        (("phases",), {"a": {"run": {"seed": 1}}}, False),
        (("phases",), {"a": {"enter": {"growth": {"use": "transformer.stack", "moments": "reset"}}}}, True),
        (("phases",), {"a": {"enter": {"growth": {"use": "transformer.stack", "moments": "lose"}}}}, False),
        (("extends",), "other.yaml", True),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else None,
)
def test_a_value_fits_or_does_not(at: Place, value: Any, fits: bool) -> None:
    assert valid(with_value(BASE, at, value)) == fits


@pytest.mark.parametrize("section", ["run", "task", "data", "model", "optimizer"])
def test_a_config_that_stands_alone_has_every_section(section: str) -> None:
    without = {key: value for key, value in BASE.items() if key != section}
    assert not valid(without)
    assert valid({**without, "extends": "base.yaml"})


def test_every_option_of_an_installed_component_is_there_with_its_doc() -> None:
    definitions = config_schema(discover())["$defs"]
    for found in discover():
        node = definitions[f"{found.kind}:{found.id}"]
        assert node["properties"]["use"]["const"] == found.id and not node["additionalProperties"]
        assert all(inner.get("description") for key, inner in node["properties"].items() if key not in ("use",))


def test_a_third_partys_options_are_in_it_and_a_broken_one_is_known_by_its_id(site: Any) -> None:
    site.install("fine")
    site.install(
        "half",
        "from stackwise import Component, hookimpl\n@hookimpl\ndef stackwise_observers():\n"
        "    return [Component(name='x', options='nowhere:O', factory='nowhere:f')]\n",
    )
    schema = config_schema(discover())
    judged = Draft202012Validator(schema)
    assert judged.is_valid({**BASE, "data": {**BASE["data"], "transforms": [{"use": "fine.thing", "size": 3}]}})
    assert not judged.is_valid({**BASE, "data": {**BASE["data"], "transforms": [{"use": "fine.thing", "size": 30}]}})
    assert judged.is_valid({**BASE, "observers": [{"use": "half.x", "anything": 1}]})


def test_the_command_prints_it_without_torch(distributions: Any, tmp_path: Path) -> None:
    code = "import sys\nfrom stackwise.cli import main\ntry: main()\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    done = distributions.run_python(code, "schema")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["$schema"].endswith("2020-12/schema")
    assert CliRunner().invoke(cli.main, ["schema"]).exit_code == 0
    assert {f"{kind}-component" for kind in KINDS} <= set(json.loads(done.stdout)["$defs"])
