"""Several runs side by side."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner
from scipy import stats
from shown_runs import log, make_run

from stackwise.cli import main
from stackwise.errors import UserError
from stackwise.reports.comparison import Interval, Reached, compare, crossing, differing_keys, paired_differences, seed_groups
from stackwise.reports.record import RunRecord, read_run
from stackwise.storage.lock import RunLock


@pytest.fixture(scope="module")
def records(run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[RunRecord]:
    folder = tmp_path_factory.mktemp("several")
    runs = [Path(shutil.copytree(run, folder / "one")), make_run(folder, "two", seed=4), make_run(folder, "three", lr=5e-2, steps=12)]
    return [read_run(run) for run in runs]


def test_only_the_keys_that_differ_are_listed(records: list[RunRecord]):
    assert differing_keys(records) == {
        "run.seed": ["3", "4", "3"],
        "run.horizon": ["24 steps", "24 steps", "12 steps"],
        "optimizer.lr.wsd.peak": ["0.01", "0.01", "0.05"],
    }


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("[{base: 4}]", "[{base: 4}]"),
        ("[a, 0.2, {use: x.y, rate: 1e-3}]", "[a, 0.2, {use: x.y, rate: 1e-3}]"),
        ("['a, b', ' c', \"\"]", '["a, b", " c", ""]'),
        ("{}", "{}"),
    ],
)
def test_a_list_is_shown_as_it_is_written(run: Path, tmp_path: Path, written: str, shown: str):
    """Numbers without quotes; what a quote keeps together keeps it."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "config.yaml").write_text(f"model: {{rack: {{stacks: {written}}}}}\n")
    assert read_run(copy).config == {"model.rack.stacks": shown}


def test_rows_without_tokens_are_not_compared_at_tokens(records: list[RunRecord], tmp_path: Path):
    copy = Path(shutil.copytree(records[0].path, tmp_path / "rows"))
    lines = log(copy, "metrics.jsonl")
    (copy / "metrics.jsonl").write_text("".join(json.dumps({**line, "tokens": 0}) + "\n" for line in lines))
    with pytest.raises(UserError, match="tokens"):
        compare([records[1], read_run(copy)], "tokens")
    assert compare([records[1], read_run(copy)], "steps")


def test_runs_that_differ_in_their_seed_alone_are_one_group(records: list[RunRecord]):
    assert seed_groups(records) == [0, 0, 1]


@pytest.mark.parametrize("axis", ["steps", "tokens"])
def test_metrics_are_compared_where_all_have_come(records: list[RunRecord], axis: str):
    row = next(row for row in compare(records, axis) if row.metric == "loss")  # type: ignore[arg-type]
    assert (row.at, row.steps) == (12 if axis == "steps" else 96, (12, 12, 12))
    for record, value in zip(records, row.values, strict=True):
        assert value in [
            e["metrics"]["loss"] for e in log(Path(record.path), "events.jsonl") if e["event"] == "evaluated" and e["at"] == "exit"
        ]


def test_intervals_are_students():
    values = [2.0, 3.5, 1.0, 4.25]
    low, high = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / 4, scale=stats.sem(values))
    interval = Interval.of(values)
    assert (interval.mean, interval.count) == (2.6875, 4)
    assert interval.half_width == pytest.approx((high - low) / 2, rel=1e-3)
    assert Interval.of([2.0]).half_width is None
    for count in range(2, 40):
        spread = Interval.of([0.0] * (count - 1) + [1.0]).half_width
        expected = stats.t.ppf(0.975, count - 1) * stats.sem([0.0] * (count - 1) + [1.0])
        assert spread == pytest.approx(expected, rel=1e-3 if count < 32 else 0.05)


def test_runs_lists_what_each_has_reached(records: list[RunRecord]):
    done = CliRunner().invoke(main, ["runs", str(records[0].path.parent), "--json"])
    assert done.exit_code == 0, done.output
    rows = {row["name"]: row for row in json.loads(done.output)}
    assert list(rows) == ["one", "two", "three"]  # as they began
    for record in records:
        row, evaluated = rows[record.name], [e for e in log(Path(record.path), "events.jsonl") if e["event"] == "evaluated"]
        steps = {"one": 24, "two": 24, "three": 12}[record.name]
        assert (row["status"], row["phase"], row["step"], row["steps"], row["parent"]) == ("finished", "grown", steps, steps, None)
        metric = row["last"]["metric"]
        assert (row["last"]["evaluation"], row["last"]["value"]) == ("held", evaluated[-1]["metrics"][metric])
        assert row["best"]["value"] == min(e["metrics"]["loss"] for e in evaluated)
        assert row["bytes"] == sum(path.stat().st_size for path in Path(record.path).rglob("*") if path.is_file())
    text = CliRunner().invoke(main, ["runs", str(records[0].path.parent)]).output
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["one", "two", "three"]


def test_a_run_whose_process_is_gone_is_not_called_running(records: list[RunRecord], tmp_path: Path):
    shutil.copytree(records[0].path, tmp_path / "gone")
    (tmp_path / "gone" / "status.json").write_text('{"status": "running", "steps": 3}')
    assert read_run(tmp_path / "gone").status == "killed"
    lock = RunLock(tmp_path / "gone")
    assert read_run(tmp_path / "gone").status == "running"
    lock.release()


def test_compare_prints_the_same_figures_in_every_form(records: list[RunRecord]):
    paths = [str(record.path) for record in records]
    told = json.loads(CliRunner().invoke(main, ["compare", *paths, "--json"]).output)
    assert told["groups"] == [0, 0, 1] and told["keys"] == differing_keys(records)
    loss = next(row for row in told["reached"] if row["metric"] == "loss")
    lines = list(csv.DictReader(CliRunner().invoke(main, ["compare", *paths, "--csv"]).output.splitlines()))
    assert [float(line["value"]) for line in lines if line["metric"] == "loss"] == loss["values"]
    assert loss["groups"]["0"]["mean"] == pytest.approx(sum(loss["values"][:2]) / 2)
    text = CliRunner().invoke(main, ["compare", *paths]).output
    row = next(line for line in text.splitlines() if line.startswith("held loss"))
    assert row.split()[3:6] == [f"{value:.4f}" for value in loss["values"]]


@pytest.mark.parametrize("command", [["compare"], ["report", "-o", "page.html"]])
@pytest.mark.parametrize("again", ["same", "other path", "link"])
def test_a_run_is_not_set_beside_itself(records: list[RunRecord], tmp_path: Path, command: list[str], again: str) -> None:
    one = Path(records[0].path)
    (tmp_path / "link").symlink_to(one)
    second = {"same": one, "other path": one.parent / "two" / ".." / "one", "link": tmp_path / "link"}[again]
    done = CliRunner().invoke(main, [*command, str(one), str(records[1].path), str(second)])
    assert done.exit_code == 2 and str(second) in " ".join(done.stderr.split())
    assert not Path("page.html").exists()


@pytest.mark.parametrize("log_name", ["metrics.jsonl", "events.jsonl"])
@pytest.mark.parametrize("stands", [os.mkfifo, Path.mkdir])
def test_a_run_that_cannot_be_read_hides_no_other(records: list[RunRecord], tmp_path: Path, log_name: str, stands: Any) -> None:
    for name in ("good", "odd"):
        shutil.copytree(records[0].path, tmp_path / name)
    (tmp_path / "odd" / log_name).unlink()
    stands(tmp_path / "odd" / log_name)
    done = CliRunner().invoke(main, ["runs", str(tmp_path), "--json"])
    rows = {row["name"]: row for row in json.loads(done.output)}
    assert (done.exit_code, rows["good"]["status"], rows["odd"]["status"]) == (0, "finished", "unreadable")
    assert log_name in rows["odd"]["fault"]
    lines = CliRunner().invoke(main, ["runs", str(tmp_path)]).output.splitlines()
    assert {line.split()[0] for line in lines[2:4]} == {"good", "odd"}
    assert "odd:" in lines[4]


def test_one_run_is_nothing_to_compare(records: list[RunRecord]):
    assert CliRunner().invoke(main, ["compare", str(records[0].path)]).exit_code == 2


def made(values: list[tuple[int, float]], path: Path) -> RunRecord:
    """A run of 24 steps that was evaluated at some of them."""
    record = read_run(path)
    events = tuple({"event": "evaluated", "step": step, "name": "h", "at": "cadence", "metrics": {"loss": value}} for step, value in values)
    return attrs.evolve(record, events=events)


@pytest.mark.parametrize(
    ("values", "wanted", "most", "step"),
    [
        ([(0, 4.0), (8, 2.0), (16, 1.0)], 3.0, False, 4.0),
        ([(0, 4.0), (8, 2.0), (16, 1.0)], 1.25, False, 14.0),
        ([(0, 4.0), (8, 2.0)], 5.0, False, 0.0),
        ([(0, 4.0), (8, 2.0)], 1.9, False, None),
        ([(0, 0.0), (10, 0.5)], 0.2, True, 4.0),
        ([(4, 1.0)], 2.0, False, 4.0),
    ],
)
def test_the_first_time_at_a_value_lies_on_the_line_between_two_evaluations(
    run: Path, values: list[tuple[int, float]], wanted: float, most: bool, step: float | None
) -> None:
    found = crossing(made(values, run), "h", "loss", wanted, most=most)
    assert (None if found is None else found.steps) == step
    if found is not None:
        assert found.tokens == (found.steps * 8 or None)  # 2 rows of 4 positions a step
        assert found.flops is not None and found.flops == pytest.approx(
            sum(phase["training_flops"] for phase in read_run(run).phases) * found.steps / 24, rel=0.5
        )


def test_differences_are_taken_by_seed(records: list[RunRecord]) -> None:
    """Values 1 and 5 of seeds 3 and 4, against 2 of seed 3: only what both groups have counts."""
    row = Reached(evaluation="h", metric="loss", at=1, values=(1.0, 5.0, 2.0), steps=(1, 1, 1))
    (difference,) = paired_differences(records, row, [0, 0, 1]).values()
    assert (difference.mean, difference.count) == (1.0, 1)


def test_compare_says_where_a_value_was_reached(records: list[RunRecord]) -> None:
    paths = [str(record.path) for record in records]
    name = next(event["name"] for event in records[0].evaluations)
    told = CliRunner().invoke(main, ["compare", *paths, "--json", "--at", "flops", "--to", f"{name}.loss=1000"])
    assert told.exit_code == 0, told.output
    assert [each["steps"] for each in json.loads(told.stdout)["to"]] == [0.0, 0.0, 0.0]
    assert "never" in CliRunner().invoke(main, ["compare", *paths, "--to", f"{name}.loss=0"]).stdout
    assert CliRunner().invoke(main, ["compare", *paths, "--to", "what=1"]).exit_code == 2
