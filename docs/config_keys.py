"""`make docs` writes the tables of docs/reference/config.md from the classes that read configs; the text between them is written by hand.

A table stands between `<!-- keys: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import attrs

from stackwise.config import (
    CheckpointConfig,
    DataConfig,
    EnterConfig,
    EvaluateConfig,
    GroupConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    Ref,
    RunConfig,
    StopConfig,
    UntilConfig,
)
from stackwise.config.keys import IN_PHASE, SECTIONS, Key
from stackwise.config.planes import EMAConfig, LRScaleConfig, ReferenceConfig, StartConfig, TaskConfig, WeightAdapterConfig
from stackwise.config.run import ProvidersConfig
from stackwise.contracts.options import config_key
from stackwise.timeline.duration import Duration
from stackwise.timeline.schedules import TAGS, Schedule

PAGE = Path(__file__).parent / "reference" / "config.md"
MARK = re.compile(r"(<!-- keys: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
HEAD = "| key | type | default | meaning | example |\n|---|---|---|---|---|\n"

Class = type[attrs.AttrsInstance]

NESTED: Mapping[tuple[Class, str], tuple[str, Class]] = {
    (RunConfig, "checkpoint"): ("", CheckpointConfig),
    (RunConfig, "stop"): ("", StopConfig),
    (RunConfig, "parallel"): ("", ParallelConfig),
    (RunConfig, "providers"): ("", ProvidersConfig),
    (ModelConfig, "weight_adapters"): ("NAME.", WeightAdapterConfig),
    (ModelConfig, "start"): ("", StartConfig),
    (TaskConfig, "reference"): ("", ReferenceConfig),
    (OptimizerConfig, "groups"): ("NAME.", GroupConfig),
    (OptimizerConfig, "lr_scaling"): ("SIZE.", LRScaleConfig),
    (OptimizerConfig, "ema"): ("", EMAConfig),
}
"""Class and key that holds a map of the core's own → what stands between the key and those of the map, and the map's class."""

NO_KEYS: Mapping[Class, frozenset[str]] = {
    OptimizerConfig: frozenset({"part"}),
    TaskConfig: frozenset({"part"}),
    WeightAdapterConfig: frozenset({"part"}),
    GroupConfig: frozenset({"name", "options"}),
    EvaluateConfig: frozenset({"name"}),
}
"""Attributes that are no keys."""


class Row(NamedTuple):
    """One key as it is printed."""

    key: str
    form: str
    default: str
    meaning: str
    example: str

    def __str__(self) -> str:
        cells = (f"`{self.key}`", *(cell.replace("|", r"\|") for cell in self[1:]))
        return "| " + " | ".join(cells).rstrip() + " |" if self.example else "| " + " | ".join(cells[:4]) + " | |"


def rows() -> dict[str, list[Row]]:
    """Name of a table → its rows."""
    entered = list(_rows_of(EnterConfig, "phases.NAME.enter."))
    moments = next(row for row in entered if row.key.endswith(".moments"))
    beside = moments._replace(key="phases.NAME.enter.growth.moments", meaning="`enter.moments`, written beside the operator")
    until, enter = (_row_of(f"phases.NAME.{name}", key) for name, key in IN_PHASE.items())
    tables = {
        "top": [_row_of(name, key) for name, key in SECTIONS.items()],
        "run": list(_rows_of(RunConfig, "run.")),
        "task": list(_rows_of(TaskConfig, "task.")),
        "data": list(_rows_of(DataConfig, "data.")),
        "model": list(_rows_of(ModelConfig, "model.")),
        "optimizer": list(_rows_of(OptimizerConfig, "optimizer.")),
        "evaluate": list(_rows_of(EvaluateConfig, "evaluate.NAME.")),
        "phases": [until, *_rows_of(UntilConfig, "phases.NAME.until."), enter, entered[0], beside, *entered[1:]],
    }
    schedules = [row for tag, cls in TAGS.items() for row in _rows_of(cls, f"{tag}.")]
    over = next(row for row in schedules if row.key.endswith(".over"))
    tables["schedules"] = [*(row for row in schedules if not row.key.endswith(".over")), over._replace(key="over")]
    return tables


def rendered(page: str) -> str:
    """The page with its tables drawn anew.

    Raises:
        KeyError: a table of a name that there is none of, or one that no mark stands for.
    """
    tables = {name: HEAD + "".join(f"{row}\n" for row in found) for name, found in rows().items()}
    if left_out := set(tables) - {match[2] for match in MARK.finditer(page)}:
        raise KeyError(f"the page has no mark for {', '.join(sorted(left_out))}")
    return MARK.sub(lambda match: f"{match[1]}{tables[match[2]]}{match[3]}", page)


def _rows_of(cls: Class, prefix: str) -> Iterator[Row]:
    types = get_type_hints(cls)
    for attribute in attrs.fields(cls):
        if not attribute.init or attribute.name in NO_KEYS.get(cls, ()):
            continue
        key = prefix + config_key(attribute)
        yield _row(key, attribute, types[attribute.name])
        between, inner = NESTED.get((cls, attribute.name), ("", None))
        if inner is not None:
            yield from _rows_of(inner, f"{key}.{between}")


def _row(key: str, attribute: attrs.Attribute[Any], wanted: Any) -> Row:
    about = attribute.metadata
    if not about.get("doc"):
        raise KeyError(f"{key} is not documented: give its field a doc")
    form = about.get("form") or _form(wanted, about.get("minimum"), about.get("above"))
    examples = ", ".join(f"`{text}`" for text in about.get("examples", ()))
    return Row(
        key, form, about.get("absent") or _default(attribute.default), about["doc"], examples or ("see below" if form == "map" else "")
    )


def _row_of(name: str, key: Key) -> Row:
    return Row(name, key.form, key.absent, key.doc, f"`{key.example}`" if key.example else "see below")


def _default(default: Any) -> str:
    if default is attrs.NOTHING:
        return "required"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, int | float):
        return f"{default:g}"
    return f"`{default}`" if isinstance(default, str | Duration) else "none"


def _form(wanted: Any, minimum: float | None = None, above: float | None = None) -> str:
    """What may be written, by the type."""
    shape, arms = get_origin(wanted) or wanted, [arm for arm in get_args(wanted) if arm is not NoneType]
    if shape is Literal:
        return ", ".join(f"`{arm}`" for arm in arms)
    if shape in (Union, UnionType):
        return " or ".join(_form(arm, minimum, above) for arm in arms)
    if shape is tuple:
        return "list of components" if arms[0] is Ref else "list"
    if shape in (dict, Mapping):
        return f"name → {_form(arms[1])}"
    names = {
        int: "whole number",
        float: "number",
        bool: "true or false",
        str: "text",
        Duration: "duration",
        Schedule: "schedule",
        Ref: "component",
    }
    bound = f" ≥ {minimum:g}" if minimum is not None else f" > {above:g}" if above is not None else ""
    return names.get(shape, "map") + bound


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
