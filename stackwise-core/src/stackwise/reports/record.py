"""Reads a run directory for reports: config, plan, logs, status and checkpoints. It needs no torch and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import SEEK_END
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from attrs import Factory, frozen

from stackwise.errors import UserError
from stackwise.storage import codec
from stackwise.storage.lock import is_held
from stackwise.storage.logs import EVENTS, METRICS, Log
from stackwise.storage.regular import open_regular, read_regular
from stackwise.timeline.spent import Spent

CONFIG, PLAN, STATUS, CHECKPOINTS = "config.yaml", "plan.json", "status.json", "checkpoints"
MOST_KEYS = 2000
"""At most so many keys of a config are compared and shown."""
_TAIL_BYTES = 1 << 16
_CORE_COLUMNS = ("loss", "grad_norm", "lr", "tokens", "seconds")


@frozen
class Steps:
    """The metrics log as columns, with one entry for each step."""

    step: np.ndarray
    columns: Mapping[str, np.ndarray]
    """`loss`, `grad_norm`, `lr`, `tokens`, `seconds`, `metrics.<name>`, `rates.<group>.<key>`; nan where a line has no value."""
    skipped: Mapping[int, str] = Factory(dict)
    """Step whose update was skipped → why."""
    passed_over: int = 0
    """Number of lines that are neither a step nor an evaluation."""

    @property
    def positions(self) -> Mapping[str, np.ndarray]:
        """Steps, tokens and training seconds consumed before each step, and as last entry those before the step that would be next."""
        before = {name: np.concatenate([[0.0], self.columns[name]]) for name in ("tokens", "seconds")}
        last = self.step[-1:] + 1
        return {
            "steps": np.concatenate([self.step, last]),
            "tokens": before["tokens"][: len(self.step) + 1],
            "seconds": np.cumsum(np.nan_to_num(before["seconds"])),
        }

    @property
    def tokens_before(self) -> Mapping[int, int]:
        """Step → tokens consumed before it, including the step that would be next."""
        positions = self.positions
        return dict(zip(map(int, positions["steps"]), map(int, positions["tokens"]), strict=True))


@frozen(kw_only=True)
class RunRecord:
    """One run, as its directory describes it."""

    path: Path
    config: Mapping[str, str]
    """Dotted key → value, as text."""
    config_text: str
    plan: Mapping[str, Any]
    status: str
    """As `status.json` says; `running` only while a process holds the directory, else `killed`."""
    parent: Mapping[str, Any] | None
    """The run and step that it was branched from, if any."""
    events: tuple[Mapping[str, Any], ...]
    """All events but steps, each with its kind under `event`."""
    checkpoints: tuple[Mapping[str, Any], ...]
    """The manifests of the checkpoints on disk, by step."""
    bytes: int
    """Size of the directory on disk."""
    began: float
    """When its config was last written, in seconds since 1970."""
    passed_over: int = 0
    """Number of lines of the event log that could not be read."""
    peaks: Mapping[str, Any] = Factory(dict)
    """Phase → its peak memory in bytes."""

    @property
    def name(self) -> str:
        """Name of the run directory."""
        return self.path.resolve().name

    @property
    def phases(self) -> tuple[Mapping[str, Any], ...]:
        """The planned phases, in order."""
        return tuple(self.plan.get("phases", ()))

    def of_kind(self, *kinds: str) -> Iterator[Mapping[str, Any]]:
        """The events of these kinds, in order."""
        return (event for event in self.events if event.get("event") in kinds)

    @property
    def evaluations(self) -> list[Mapping[str, Any]]:
        """The events of all evaluations, in order."""
        return list(self.of_kind("evaluated"))

    @property
    def last_step(self) -> int:
        """Number of steps done, from the last line of the metrics; 0 before the first."""
        for line in reversed(_last_lines(self.path / METRICS)):
            if "evaluation" not in line and isinstance(line.get("step"), int):
                return int(line["step"]) + 1
        return 0

    @property
    def phase(self) -> str | None:
        """The phase of its last step; None before the first."""
        step = self.last_step - 1
        return next((phase["name"] for phase in self.phases if phase["start"] <= step < phase["stop"]), None)

    @property
    def best(self) -> tuple[str, bool] | None:
        """The metric that decides which checkpoint is best, and whether higher is better; None where the config names none."""
        declared = self.config.get("run.checkpoint.best")
        if not declared:
            return None
        name, _, direction = declared.partition(" ")
        return name, direction == "(max)"

    @property
    def best_step(self) -> int | None:
        """Step of the best checkpoint on disk by that metric."""
        if self.best is None:
            return None
        name, most = self.best
        scored = [(each["metrics"][name], each["step"]) for each in self.checkpoints if _is_number(each.get("metrics", {}).get(name))]
        return None if not scored else (max(scored) if most else min(scored))[1]


@contextmanager
def understood(paths: Sequence[Path]) -> Iterator[None]:
    """Run code that reads documents of run directories: if one of them has another shape than runs write, the user hears which files.

    Raises:
        UserError: a document has another shape.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        places = ", ".join(map(str, paths))
        raise UserError(
            f"{places}: {PLAN}, {STATUS} or a log is not as a run writes it ({type(error).__name__}: {error}): put the file back, or leave "
            "the run out; if nobody has changed the files, this is a bug to report"
        ) from error


def read_run(path: Path) -> RunRecord:
    """Read everything in a run directory except its steps.

    Raises:
        UserError: it is not a run directory.
    """
    if not (path / CONFIG).is_file():
        raise UserError(f"{path} is not a run directory: there is no {CONFIG} in it; `stackwise runs` lists those that there are")
    text = _text_of(path / CONFIG)
    status, log = _object(path / STATUS), Log(path)
    said = str(status.get("status", "began"))
    return RunRecord(
        path=path,
        config=_flat_config(text),
        config_text=text,
        plan=_object(path / PLAN),
        status="killed" if said == "running" and not is_held(path) else said,
        parent=status.get("parent"),
        events=tuple(log.documents(EVENTS)),
        checkpoints=tuple(_manifests(path / CHECKPOINTS)),
        bytes=sum(file.lstat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink()),
        began=(path / CONFIG).stat().st_mtime,
        passed_over=log.skipped_lines,
        peaks={phase: count for phase, count in _object_in(status, "peak_bytes").items() if type(count) is int and 0 <= count < 2**63},
    )


def read_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """Read several runs, for a comparison.

    Raises:
        UserError: one is not a run directory, or two are the same.
    """
    first: dict[Path, Path] = {}
    for path in paths:
        if (same := first.setdefault(path.resolve(), path)) is not path:
            also = f"{path} is given twice" if same == path else f"{same} and {path} are the same run directory"
            raise UserError(f"{also}: leave one out, as a run beside itself would count as two seeds")
    return [read_run(path) for path in paths]


def _object_in(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return value if isinstance(value := document.get(key), Mapping) else {}


def spent_by(plan: Mapping[str, Any]) -> Spent | None:
    """The training FLOPs of a plan's steps, from `plan.json`; None where it has none or is damaged."""
    try:
        stretches = [stretch for phase in plan.get("phases", ()) for stretch in phase.get("step_flops", ())]
        costs = [(start, None if flops is None else flops["training"]) for start, flops in stretches]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    whole = all(type(start) is int and (cost is None or _is_number(cost)) for start, cost in costs)
    return Spent.of(costs) if whole else None


def flops_at(plan: Mapping[str, Any], steps: Iterable[float], tokens: Iterable[float]) -> list[float] | None:
    """Training FLOPs spent before each step; None where the plan does not count them.

    A plan without the FLOPs of single steps has those of whole phases, which are then spread over the tokens of each phase.

    Args:
        plan: the document `plan.json`.
        steps: positions in steps.
        tokens: the same positions in tokens.
    """
    phases = plan.get("phases", ())
    if (spent := spent_by(plan)) is not None:
        return [float(f"{spent.before(step):.6g}") for step in steps]
    if not phases or any(phase.get("training_flops") is None for phase in phases):
        return None
    token_edges, step_edges, sums = [0.0], [0.0], [0.0]
    for phase in phases:
        token_edges.append(token_edges[-1] + phase["tokens"])
        step_edges.append(float(phase["stop"]))
        sums.append(sums[-1] + phase["training_flops"])
    where, edges = (tokens, token_edges) if token_edges[-1] else (steps, step_edges)
    return [float(f"{value:.6g}") for value in np.interp(list(where), edges, sums).tolist()]


def read_steps(path: Path) -> Steps:
    """The steps in the metrics log of a run directory, as columns. Where a step was logged twice, the last line counts."""
    log, rows, damaged = Log(path), {}, 0
    for line in log.documents(METRICS):
        if not _is_count(line.get("step")) or not ("evaluation" in line or _is_step(line)):
            damaged += 1
        elif "evaluation" not in line:
            rows[line["step"]] = line
    lines = [rows[step] for step in sorted(rows)]
    names: dict[str, None] = dict.fromkeys(_CORE_COLUMNS)
    for line in lines:
        for group in ("metrics", "rates"):
            names |= dict.fromkeys(f"{group}.{key}" for key in _object_in(line, group))
    return Steps(
        np.array([line["step"] for line in lines], dtype=np.int64),
        {name: np.array([_value(line, name) for line in lines], dtype=np.float64) for name in names},
        {line["step"]: str(line.get("why", "")) for line in lines if line.get("skipped")},
        damaged + log.skipped_lines,
    )


def _value(line: Mapping[str, Any], name: str) -> float:
    group, _, key = name.partition(".")
    value = line.get(name) if not key else _object_in(line, group).get(key)
    return float(value) if value is not None and _is_number(value) else float("nan")


def _is_step(line: Mapping[str, Any]) -> bool:
    return _is_number(line.get("loss")) and _is_count(line.get("tokens", 0))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and value.bit_length() < 64) or value in ("nan", "inf", "-inf")


def _text_of(path: Path) -> str:
    try:
        return read_regular(path).decode(errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _object(path: Path) -> dict[str, Any]:
    try:
        return codec.read_object(read_regular(path))
    except (OSError, ValueError):
        return {}


def _flat_config(text: str) -> dict[str, str]:
    """Dotted keys and the text of their values; lists stay whole."""
    try:
        tree = yaml.load(text, Loader=yaml.BaseLoader)  # scalars stay text, and no tag makes an object
    except (yaml.YAMLError, RecursionError):
        return {}
    flat: dict[str, str] = {}
    _flatten(tree, "", flat)
    return dict(list(flat.items())[:MOST_KEYS])


def _flatten(value: Any, path: str, flat: dict[str, str]) -> None:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            _flatten(inner, f"{path}.{key}" if path else str(key), flat)
    else:
        flat[path] = value if isinstance(value, str) else _flow(value)


def _flow(value: Any) -> str:
    """A list or mapping as one line of YAML; text that would otherwise be read as several things is quoted."""
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_flow(key)}: {_flow(inner)}' for key, inner in value.items())}}}"
    return json.dumps(value, ensure_ascii=False) if not value or value != value.strip() or set(value) & set(",:[]{}\"'#\n") else str(value)


def _last_lines(path: Path) -> list[dict[str, Any]]:
    """The objects within the last bytes of a log."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = []
    for line in text.splitlines():
        with suppress(ValueError):  # the first and the last one may be cut
            lines.append(codec.read_object(line.encode()))
    return lines


def _manifests(folder: Path) -> Iterator[dict[str, Any]]:
    """The manifests of the checkpoints, unverified; `stackwise doctor` verifies them."""
    for path in sorted(folder.glob("step-*/manifest.json")):
        content = _object(path)
        if isinstance(content.get("step"), int):
            files = content.get("files", {}).values()
            yield {**content, "bytes": sum(int(file.get("bytes", 0)) for file in files)}
