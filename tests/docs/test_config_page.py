"""`docs/config.md` documents the keys that the config classes know, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest

from stackwise.config import DataConfig, EnterConfig, EvaluateConfig, Experiment, GroupConfig, ModelConfig, OptimizerConfig, RunConfig
from stackwise.config.experiment import EMAConfig, LRScaleConfig, StartConfig, WeightAdapterConfig
from stackwise.config.timeline import _IN_PHASE, _SECTIONS
from stackwise.options import config_key
from stackwise.schedules import TAGS

PAGE = (Path(__file__).parents[2] / "docs" / "config.md").read_text(encoding="utf-8")
ROWS = {key: line for line in PAGE.splitlines() if (key := "".join(re.findall(r"^\| `([\w.]+)` \|", line)))}

CLASSES: dict[str, tuple[type, frozenset[str]]] = {
    "run.": (RunConfig, frozenset()),
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
