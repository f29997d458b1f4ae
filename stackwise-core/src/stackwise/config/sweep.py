"""The file of a sweep: one config, and what its runs differ in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from stackwise.config.documents import read_file
from stackwise.config.keys import key
from stackwise.config.rules import broken_run_name, run_name_of
from stackwise.config.section import Section
from stackwise.errors import ConfigError, Position, Problem

MOST_RUNS = 1000
RECORD, LOGS = "sweep.json", "logs"
"""What a sweep writes beside its runs; what each printed is `logs/<run>.log`."""
_OWN = (RECORD, LOGS, "lock", "writer.json")
_LONGEST = 200
"""Bytes of a run's name, of the 255 that a file system takes."""
_UNSAFE = re.compile(r"[^\w.=%,+-]+")


@frozen(kw_only=True)
class SweepConfig:
    """What a sweep runs: every combination of a setting, a value for each key of the grid, and a seed."""

    config: str = key("", absent="that of the trunk", doc="the config that all runs share; relative to this file", example="base.yaml")
    trunk: str = key(
        "",
        absent="none: runs begin at their first step",
        doc="a run directory, relative to this file, that every run of the sweep is branched from",
        example="runs/trunk-001",
    )
    at: str = key("", absent="required with `trunk`", doc="where in the trunk, as `stackwise branch --at` takes it", example="80%")
    name: str = key(
        "", rule=lambda name: broken_run_name(name) if name else None, absent="the file's", doc="name of the sweep", example="rates"
    )
    grid: Mapping[str, tuple[Any, ...]] = key(
        factory=dict,
        form="dotted key → list of values",
        doc="keys of the config, with the values to try",
        example="{optimizer.lr: [1e-3, 2e-3]}",
    )
    settings: Mapping[str, Mapping[str, Any]] = key(
        factory=dict,
        form="name → dotted key → value",
        doc="sets of keys that go together",
        example="{wide: {model.rack.width: 128, optimizer.lr: 1e-3}, narrow: {}}",
    )
    seeds: tuple[int, ...] = key((), absent="the config's", doc="every combination runs once with each", example="[1, 2, 3, 4, 5]")

    def points(self) -> tuple[Point, ...]:
        """Every run, the seeds of one combination side by side.

        Raises:
            ConfigError: no run or too many, two of the same name, a name that is a file of the sweep, or a key that is set twice.
        """
        points = tuple(self._points())
        names = [point.name for point in points]
        problems = [
            Problem(f"two runs of the sweep would be called {name!r}", "settings") for name in {n for n in names if names.count(n) > 1}
        ]
        problems += [
            Problem(f"a run cannot be called {name!r}: the sweep has a file of that name", "settings") for name in names if name in _OWN
        ]
        problems += self._contested()
        if not 0 < len(points) <= MOST_RUNS:
            problems.append(Problem(f"a sweep has 1 to {MOST_RUNS:,} runs, not {len(points):,}", "grid"))
        if problems:
            raise ConfigError(problems)
        return points

    def _points(self) -> Iterator[Point]:
        for setting, own in (self.settings or {"": {}}).items():
            for values in product(*self.grid.values()):
                varied = dict(zip(self.grid, values, strict=True))
                for seed in self.seeds or (None,):
                    seeded = {} if seed is None else {"run.seed": seed}
                    parts = [setting, *(f"{k.rpartition('.')[2]}={_text(v)}" for k, v in {**varied, **seeded}.items())]
                    name = _UNSAFE.sub("-", ",".join(filter(None, parts))).encode()[:_LONGEST].decode(errors="ignore") or "run"
                    yield Point(re.sub(r"\A\.+", "-", name), {**own, **varied, **seeded})

    def _contested(self) -> Iterator[Problem]:
        """Keys that would be set twice: what is laid on last would win, and nobody would see it."""
        later = (*self.grid, *(("run.seed",) if self.seeds else ()))
        for setting, own in self.settings.items():
            for name, other in product(own, later):
                if name == other or name.startswith(f"{other}."):
                    message = f"{other} has values for every setting: leave it out here, or write it in each setting alone"
                    yield Problem(message, f"settings.{setting}.{name}")
        if self.seeds and "run.seed" in self.grid:
            yield Problem("`seeds` sets it too: leave one of the two out", "grid.run.seed")


@frozen
class Point:
    """One run of a sweep."""

    name: str
    values: Mapping[str, Any]
    """Dotted key → value, laid on the config."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """As `--set` takes them."""
        return tuple(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in self.values.items())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def load_sweep(path: Path) -> SweepConfig:
    """Read the file of a sweep; the paths of its config and its trunk are made absolute.

    Raises:
        ConfigError: it cannot be read, or holds what a sweep has not.
    """
    section = Section(read_file(path), (), "write config, grid, settings, seeds")
    sweep = section.build(SweepConfig, {}, {})
    if not section.faults and not sweep.config and not sweep.trunk:
        section.fault(("config",), "write the config that all runs share, or the run that they are branched from (`trunk`)", missing=True)
    if not section.faults and bool(sweep.trunk) != bool(sweep.at):
        section.fault(("at",), "`trunk`, a run, and `at`, where in it, go together")
    if section.faults:
        raise ConfigError([Problem(fault.message, ".".join(fault.path), Position(str(path))) for fault in section.faults])
    config, trunk = (str((path.parent / each).absolute()) if each else "" for each in (sweep.config, sweep.trunk))
    return evolve(sweep, config=config, trunk=trunk, name=sweep.name or run_name_of(path.stem))
