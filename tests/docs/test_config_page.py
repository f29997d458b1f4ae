"""`docs/reference/config.md` holds the tables that the config classes give, and the schema knows the same keys."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from stackwise import discover
from stackwise.config import Experiment, OptimizerConfig, RunConfig
from stackwise.config.reader import read_yaml
from stackwise.config.schema import config_schema
from stackwise.contracts.options import config_key
from stackwise.host.provider import KINDS
from stackwise.timeline.schedules import TAGS

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))

import config_keys  # noqa: E402  # a script of that folder, which is on the path only now

PAGE = (DOCS / "reference" / "config.md").read_text(encoding="utf-8")
ROWS = {key: line for line in PAGE.splitlines() if (key := "".join(re.findall(r"^\| `([\w.]+)` \|", line)))}

OPTIMIZER_OWN = tuple(a.name for a in attrs.fields(OptimizerConfig) if a.name != "part")
OWNED: dict[str, tuple[str, ...]] = {
    "task": ("auxiliary", "reference"),
    "optimizer": OPTIMIZER_OWN,
    "growth": ("moments",),
    "weight-adapter": ("select",),
}
"""Kind → keys beside a component's own options that the core reads."""


def test_the_tables_are_those_that_the_classes_give() -> None:
    assert config_keys.rendered(PAGE) == PAGE, "the tables are stale: make docs"


def test_a_key_that_is_not_documented_is_no_row() -> None:
    @attrs.frozen
    class Silent:
        loud: int = 3

    with pytest.raises(KeyError, match=r"run\.loud is not documented"):
        list(config_keys._rows_of(Silent, "run."))


def test_a_changed_class_makes_the_page_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    @attrs.frozen(kw_only=True)
    class Longer(RunConfig):
        further: int = attrs.field(default=3, metadata={"doc": "one more", "minimum": 1, "examples": ("4",)})

    monkeypatch.setattr(config_keys, "RunConfig", Longer)
    assert "| `run.further` | whole number ≥ 1 | 3 | one more | `4` |" in config_keys.rendered(PAGE)


def test_a_page_without_a_mark_for_a_table_is_refused() -> None:
    with pytest.raises(KeyError, match="no mark for evaluate"):
        config_keys.rendered(PAGE.replace("<!-- keys: evaluate -->", ""))


def in_schema() -> set[str]:
    """Every key of the core in the schema that editors check with: walked through its references, component options left out."""
    schema = config_schema(discover())
    found: set[str] = set()

    def walk(node: Any, path: str) -> None:
        if "$ref" in node:
            name = node["$ref"].removeprefix("#/$defs/")
            if name == "schedule":
                return
            kind, _, form = name.rpartition("-")
            if form in ("component", "delta") and kind in KINDS:
                if owned := OWNED.get(kind):
                    component = next(schema["$defs"][key] for key in schema["$defs"] if key.startswith(f"{kind}:"))
                    walk({"properties": {key: component["properties"][key] for key in owned}}, path)
                return
            walk(schema["$defs"][name], path)
        for arm in node.get("anyOf", ()):
            walk(arm, path)
        for key, inner in node.get("properties", {}).items():
            if key == "replace":
                continue  # a word on merging, which stands in every map of chosen names
            if path.endswith((".adapters.", ".precision.")) or (path == "optimizer.groups.NAME." and key != "select"):
                continue
            named = f"{path}{'SIZE' if path == 'optimizer.lr_scaling.' else key}"
            found.add(named.removesuffix(".SIZE"))
            walk(inner, f"{named}.")
        if isinstance(entry := node.get("additionalProperties"), dict):
            walk(entry, f"{path}{'SIZE' if path == 'optimizer.lr_scaling.' else 'NAME'}.")

    walk({"properties": schema["properties"]}, "")
    return {key for key in found if not re.match(r"phases\.NAME\.(task|data|model|optimizer)\b", key)}


def test_the_schema_has_every_documented_key_and_no_other() -> None:
    tags = {key for key in ROWS if key.partition(".")[0] in TAGS} | {"over"}
    assert in_schema() == set(ROWS) - tags


def test_what_the_schema_says_of_a_key_is_what_its_class_says() -> None:
    run = config_schema(discover())["properties"]["run"]["properties"]
    for attribute in attrs.fields(RunConfig):
        shown = run[config_key(attribute)]
        assert shown["description"].startswith(attribute.metadata["doc"])
        assert len(shown["examples"]) == len(attribute.metadata["examples"])


def test_the_experiment_holds_nothing_else() -> None:
    assert {a.name for a in attrs.fields(Experiment)} == {"run", "phases", "evaluate", "observers", "resolved", "problems", "tree"}


@pytest.mark.parametrize("key", sorted(ROWS))
def test_a_row_has_all_its_cells(key: str) -> None:
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", ROWS[key])[1:-1]]
    assert len(cells) == 5 and all(cells[:4])


def examples() -> list[tuple[str, str]]:
    found = [(row.key, row.example) for rows in config_keys.rows().values() for row in rows]
    return [(key, text) for key, cell in found for text in re.findall(r"`([^`]+)`", cell) if key.partition(".")[0] not in TAGS]


@pytest.mark.parametrize(("key", "text"), examples())
def test_an_example_is_yaml(key: str, text: str) -> None:
    assert read_yaml(text, key) is not None
