"""The logs of a run: what is written is read again by the types of its fields, and what cannot be understood is passed over and said."""

from __future__ import annotations

import json
import subprocess
import sys
from math import inf, isnan, nan
from pathlib import Path
from typing import get_args

import pytest

from stackwise.contracts.events import ConfigChanged, Evaluated, Event, PhaseEntered, Reacted, RunFinished, RunStarted, StepDone
from stackwise.storage.logs import EVENTS, METRICS, Log, lines_of, name_of

ENTERED = PhaseEntered(0, "nan", 0, 10, 10, 0, 0, 5, 0, 0, 0, 0, 0.5, probe_loss_before=nan)
STEPS = [StepDone(step, "nan", 2.0, inf, 1e-3, 8 * (step + 1), 0.1, metrics={"accuracy": nan}, rates={}) for step in range(3)]
HISTORY: list[Event] = [
    RunStarted(3, "cpu", "float32", ("a → b",)),
    ENTERED,
    Evaluated(0, "nan", "inf", "entry", {"loss": -inf}, 0.1),
    *STEPS[:2],
    Reacted(2, "nan", 1.0, 0.5, "it stalls"),
    ConfigChanged(2, "run.name", "nan", ["inf", 1]),
    STEPS[2],
    RunFinished(3, 24, 0.3, 0, {"-inf": {"rows": 3, "tokens": 24}}),
]


def written(folder: Path, events: list[Event]) -> Path:
    for event in events:
        for name, line in lines_of(event):
            with (folder / name).open("a") as log:
                log.write(line)
    return folder


def test_a_phase_called_nan_stays_text_and_a_loss_of_nan_a_number(tmp_path: Path) -> None:
    log = Log(written(tmp_path, HISTORY))
    events = list(log.events())
    assert str(events) == str(HISTORY) and log.remarks() == []  # nan is no nan by `==`
    entered = events[1]
    assert isinstance(entered, PhaseEntered) and entered.phase == "nan" and isnan(entered.probe_loss_before or 0)


def test_lines_are_plain_json_for_others(tmp_path: Path) -> None:
    written(tmp_path, HISTORY)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert lines[1]["grad_norm"] == "inf" and lines[0]["loss"] == "-inf" and lines[1]["metrics"] == {"accuracy": "nan"}
    names = [json.loads(line)["event"] for line in (tmp_path / EVENTS).read_text().splitlines()]
    assert names == ["run_started", "phase_entered", "evaluated", "reacted", "config_changed", "run_finished"]


def test_no_two_events_have_one_name() -> None:
    kinds = get_args(Event)
    assert len({name_of(kind) for kind in kinds}) == len(kinds) == 12


def test_a_log_of_another_version_is_read_as_far_as_it_is_understood(tmp_path: Path) -> None:
    written(tmp_path, HISTORY)
    old = '{"event": "run_started", "steps": 3, "device": "cpu", "precision": "float32", "bridges": []}\n'  # before it had `step`
    new = (
        json.dumps({"event": "phase_left", "step": 2}) + "\n" + json.dumps({**ENTERED._asdict(), "event": "phase_entered", "new": 1}) + "\n"
    )
    (tmp_path / EVENTS).write_text(old + new.replace("NaN", '"nan"'))
    log = Log(tmp_path)
    first, *others = log.events()
    assert first == RunStarted(3, "cpu", "float32", ()) and str(others) == str([ENTERED, *STEPS]) and log.remarks() == []


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ('{"event": "phase_entered", "step": 0}', "phase is missing"),
        ('{"event": 3, "step": 0}', "event is not a name"),
        ('{"step": 0}', "event is not a name"),
        ('{"event": {"$tensor": "a"}}', "event is not a name"),
        ('{"event": "reacted", "step": true, "phase": "a", "factor_before": 1, "factor": 1, "why": ""}', "step is true"),
        ('{"event": "reacted", "step": 1.5, "phase": "a", "factor_before": 1, "factor": 1, "why": ""}', "step is 1.5"),
        (f'{{"event": "reacted", "step": {2**63}, "phase": "a", "factor_before": 1, "factor": 1, "why": ""}}', f"step is {2**63}"),
        ('{"event": "reacted", "step": 1, "phase": null, "factor_before": 1, "factor": 1, "why": ""}', "phase is null"),
        ('{"event": "reacted", "step": 1, "phase": "a", "factor_before": "one", "factor": 1, "why": ""}', 'factor_before is "one"'),
        (
            '{"event": "evaluated", "step": 1, "phase": "a", "name": "h", "at": "exit", "metrics": {"loss": []}, "seconds": 1}',
            "metrics.loss",
        ),
        ('{"event": "run_finished", "steps": 1e400}', "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ('"event"', "not a JSON object"),
        ('{"event": "reacted", "step": 1' + "0" * 5000 + "}", "not a JSON object"),
    ],
)
def test_a_line_that_is_no_event_is_passed_over_by_file_line_and_field(tmp_path: Path, line: str, field: str) -> None:
    written(tmp_path, HISTORY)
    whole = (tmp_path / EVENTS).read_text()
    (tmp_path / EVENTS).write_text(line + "\n" + whole)
    log = Log(tmp_path)
    assert str(list(log.events())) == str(HISTORY)
    (remark,) = log.remarks()
    assert f"{tmp_path / EVENTS}:1: " in remark and field in remark


def test_steps_that_are_missing_doubled_or_out_of_order_are_said(tmp_path: Path) -> None:
    written(tmp_path, [*STEPS[:2], STEPS[1], STEPS[0], StepDone(4, "nan", 2.0, 1.0, 0.1, 40, 0.1)])
    log = Log(tmp_path)
    assert [event.step for event in log.events() if isinstance(event, StepDone)] == [0, 1, 4]
    assert [remark.split(": ")[1] for remark in log.remarks()] == [
        "step 1 is logged after step 1",
        "step 0 is logged after step 1",
        "step 4 follows step 1, so those between are missing",
    ]


def test_the_lines_before_a_step_are_kept_as_they_are_written(tmp_path: Path) -> None:
    """A newer version's lines survive an older one's resume; a line that a crash cut short does not."""
    written(tmp_path, HISTORY)
    with (tmp_path / EVENTS).open("a") as log:
        log.write('{"event": "phase_left", "step": 1, "new": [1, 2]}\n{"event": "phase_left", "step": 9}\n{"event": "phase_le')
    kept = list(Log(tmp_path).lines_before(EVENTS, 2))
    assert kept[-1] == '{"event": "phase_left", "step": 1, "new": [1, 2]}\n' and len(kept) == 4
    assert list(Log(tmp_path).events())  # the rest of a line is none, and no reason to say anything
    assert Log(tmp_path).remarks() == []


def test_the_lines_of_a_log_are_read_without_torch(tmp_path: Path) -> None:
    written(tmp_path, HISTORY)
    with (tmp_path / EVENTS).open("a") as log:
        log.write('no JSON\n{"cut short')
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; import stackwise.reports.record as record; from stackwise.storage.logs import Log\n"
        "log = Log(Path(sys.argv[1])); kinds = [line['event'] for line in log.documents('events.jsonl')]\n"
        "print(len(kinds), log.skipped_lines, *record.read_steps(Path(sys.argv[1])).step)"
    )
    shown = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["6", "1", "0", "1", "2"]
