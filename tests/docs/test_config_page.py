"""`docs/config.md` documents the keys that the config classes know, and no others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
import pytest

from stackwise import discover
from stackwise.config import (
    CheckpointConfig,
    DataConfig,
    EnterConfig,
    EvaluateConfig,
    Experiment,
    GroupConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
)
from stackwise.config.experiment import EMAConfig, LRScaleConfig, ProvidersConfig, StartConfig, WeightAdapterConfig
from stackwise.config.timeline import _IN_PHASE, _SECTIONS
from stackwise.options import config_key
from stackwise.registry import KINDS
from stackwise.schedules import TAGS
from stackwise.schema import config_schema

PAGE = (Path(__file__).parents[2] / "docs" / "config.md").read_text(encoding="utf-8")
ROWS = {key: line for line in PAGE.splitlines() if (key := "".join(re.findall(r"^\| `([\w.]+)` \|", line)))}

CLASSES: dict[str, tuple[type, frozenset[str]]] = {
    "run.": (RunConfig, frozenset()),
    "run.checkpoint.": (CheckpointConfig, frozenset()),
    "run.providers.": (ProvidersConfig, frozenset()),
    "data.": (DataConfig, frozenset()),
    "model.": (ModelConfig, frozenset()),
    "optimizer.": (OptimizerConfig, frozenset({"part"})),
    "optimizer.groups.NAME.": (GroupConfig, frozenset({"name", "options"})),
    "model.weight_adapters.NAME.": (WeightAdapterConfig, frozenset({"part"})),
    "model.start.": (StartConfig, frozenset()),
    "optimizer.lr_scaling.SIZE.": (LRScaleConfig, frozenset()),
    "optimizer.ema.": (EMAConfig, frozenset()),
    "evaluate.NAME.": (EvaluateConfig, frozenset({"name"})),
    "phases.NAME.enter.": (EnterConfig, frozenset()),
}
"""Prefix → class, and its attributes that are no keys."""

OPTIMIZER_OWN = tuple(a.name for a in attrs.fields(OptimizerConfig) if a.name != "part")
OWNED: dict[str, tuple[str, ...]] = {"optimizer": OPTIMIZER_OWN, "growth": ("moments",), "weight-adapter": ("select",)}
"""Kind → keys beside a component's own options that the core reads."""


def keys_of(cls: type, left_out: frozenset[str] = frozenset()) -> set[str]:
    return {config_key(a) for a in attrs.fields(cls) if a.init} - left_out


def known() -> set[str]:
    """Every key that some class reads."""
    keys = set(_SECTIONS) | {"over"}
    keys |= {prefix + key for prefix, (cls, left_out) in CLASSES.items() for key in keys_of(cls, left_out)}
    keys |= {f"{tag}.{key}" for tag, cls in TAGS.items() for key in keys_of(cls) - {"over"}}
    keys |= {f"phases.NAME.{key}" for key in set(_IN_PHASE) - set(_SECTIONS)}
    return keys | {"phases.NAME.enter.growth.moments"}


def test_every_key_is_documented_and_every_documented_key_is_known() -> None:
    assert set(ROWS) == known()


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
        assert run[config_key(attribute)]["description"] == attribute.metadata["doc"]


def test_an_entered_phase_and_an_experiment_hold_nothing_else() -> None:
    assert keys_of(Experiment) == {"run", "phases", "evaluate", "observers", "resolved", "problems"}


@pytest.mark.parametrize("key", sorted(ROWS))
def test_a_row_has_all_its_cells(key: str) -> None:
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", ROWS[key])[1:-1]]
    assert len(cells) == 5 and all(cells[:4])


def defaults() -> list[tuple[str, object]]:
    """Keys whose default is a plain value."""
    found = []
    for prefix, (cls, left_out) in CLASSES.items():
        for a in attrs.fields(cls):
            if config_key(a) not in left_out and isinstance(a.default, int | float | str) and not isinstance(a.default, bool):
                found.append((prefix + config_key(a), a.default))
    return found


@pytest.mark.parametrize(("key", "default"), defaults())
def test_a_default_is_the_one_written(key: str, default: object) -> None:
    assert ROWS[key].split("|")[3].strip().strip("`") == str(default)
