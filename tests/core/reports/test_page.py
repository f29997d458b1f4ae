"""The page of a run: its figures are the log's, it fetches nothing, and no name of a run becomes a part of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from base64 import b64encode
from collections import Counter
from hashlib import sha256
from itertools import accumulate
from pathlib import Path

import pytest
from click.testing import CliRunner
from shown_runs import Page, log, make_run

from stackwise.cli import main
from stackwise.errors import UserError
from stackwise.reports.page.render import render_page
from stackwise.reports.record import read_run
from stackwise.reports.summary import Summary
from stackwise.runs.run import Result

OURS = ("step", "phase", "tokens", "seconds", "skipped", "why", "metrics", "rates", "flops")
HOSTILE = "</script x><script>alert(1)</script><img src=x onerror=\"alert('2')\">&lt;b&gt;"


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page(render_page([read_run(run)]))


def test_every_point_of_every_curve_is_the_logs(run: Path, page: Page):
    steps = [line for line in log(run, "metrics.jsonl") if "evaluation" not in line]
    shown = page.data["runs"][0]
    assert shown["x"]["steps"] == list(range(25))
    assert shown["x"]["tokens"] == [0, *(line["tokens"] for line in steps)]
    assert shown["x"]["seconds"] == pytest.approx([0, *accumulate(line["seconds"] for line in steps)], abs=1e-3)
    logged = {key for line in steps for key in line if key not in OURS}
    logged |= {f"{group}.{key}" for line in steps for group in ("metrics", "rates") for key in line.get(group, {})}
    drawn = {name for name in shown["curves"] if not name.endswith(".smooth")}
    assert drawn == (logged - ({"lr"} if any("rates" in line for line in steps) else set())) | {"throughput"}
    for name in drawn - {"throughput"}:
        group, _, key = name.partition(".")
        expected = [line[group][key] if key else line[group] for line in steps]
        assert shown["curves"][name]["v"] == expected
        assert [shown["x"]["steps"][row] for row in shown["curves"][name]["at"]] == [line["step"] for line in steps]


def test_evaluations_boundaries_and_checkpoints_are_the_logs(run: Path, page: Page):
    events, shown = log(run, "events.jsonl"), page.data["runs"][0]
    evaluated = [{k: e[k] for k in ("step", "name", "at", "metrics")} for e in events if e["event"] == "evaluated"]
    assert shown["evaluations"] == evaluated and len(evaluated) == 6
    best = min((e for e in evaluated if e["step"] and e["at"] != "entry"), key=lambda e: e["metrics"]["loss"])
    saved = {each["step"]: each["best"] for each in shown["marks"]["checkpoints"]}
    assert saved == {step: step == best["step"] for step in (6, 12, 18, 24)}
    entered = next(e for e in events if e["event"] == "phase_entered" and e["phase_index"] == 1)
    text = " ".join(" ".join(page.texts).split())
    assert f"{entered['adopted']} kept, {entered['copied']} copied, {entered['fresh']} fresh, {entered['dropped']} dropped" in text
    assert f"{entered['probe_loss_before']:.5g} → {entered['probe_loss_after']:.5g}" in text


def test_every_learning_rate_is_drawn_over_the_whole_run(run: Path, tmp_path: Path):
    """Where a phase has one rate alone, the log says it as `lr`; where another phase has two, they have names."""
    mixed = Path(shutil.copytree(run, tmp_path / "run"))
    lines = log(run, "metrics.jsonl")
    for line in lines:
        if line.get("phase") == "grown" and 14 <= line["step"] < 18 and "evaluation" not in line:
            line["rates"] = {"default.lr": line["lr"], "default.fresh.lr": line["lr"] / 2}
    plan = json.loads((run / "plan.json").read_text())
    plan["phases"][1]["stop"], last = 18, plan["phases"][1] | {"name": "last", "start": 18}
    plan["phases"][1]["start"], between = 14, plan["phases"][1] | {"name": "between", "stop": 14}
    plan["phases"] = [plan["phases"][0], between, plan["phases"][1], last]
    plan["lanes"] = [plan["lanes"][i] for i in (0, 1, 1, 1)]
    (mixed / "plan.json").write_text(json.dumps(plan))
    (mixed / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = Page(render_page([read_run(mixed)])).data["runs"][0]
    steps = [line for line in lines if "evaluation" not in line]
    rates = {name: curve for name, curve in shown["curves"].items() if name == "lr" or name.startswith("rates.")}
    assert rates.keys() == {"rates.default.lr", "rates.default.fresh.lr"}
    assert rates["rates.default.lr"]["v"] == [line["lr"] for line in steps]
    assert rates["rates.default.fresh.lr"] == {"at": [14, 15, 16, 17, 18], "v": [*(line["lr"] / 2 for line in steps[14:18]), None]}


def test_damaged_lines_are_passed_over_and_said(run: Path, tmp_path: Path):
    damaged = Path(shutil.copytree(run, tmp_path / "run"))
    events, metrics = ((damaged / name).read_text().splitlines() for name in ("events.jsonl", "metrics.jsonl"))
    evaluated = next(i for i, line in enumerate(events) if '"evaluated"' in line)
    events[evaluated] = json.dumps({"event": "evaluated", "step": 0, "metrics": 3})
    metrics[2], metrics[4] = "{", json.dumps(json.loads(metrics[4]) | {"loss": "much"})
    (damaged / "events.jsonl").write_text("".join(f"{line}\n" for line in events))
    (damaged / "metrics.jsonl").write_text("".join(f"{line}\n" for line in metrics))
    assert "3 lines of the logs could not be understood" in render_page([read_run(damaged)])
    assert len(read_run(damaged).evaluations) == len(read_run(run).evaluations) - 1
    assert "could not be understood" not in render_page([read_run(run)])


def test_the_tables_say_what_the_pictures_show(run: Path, page: Page):
    """Behind the pictures stand tables: every evaluation, and here every step."""
    table = next(table for table in page.tables if table[0][:4] == ["step", "phase", "evaluation", "at"])
    events = [e for e in log(run, "events.jsonl") if e["event"] == "evaluated"]
    assert [row[4:-1] for row in table[1:]] == [[f"{value:.5g}" for value in e["metrics"].values()] for e in events]
    steps = next(table for table in page.tables if table[0][:2] == ["step", "loss"])
    assert [row[1] for row in steps[1:]] == [f"{line['loss']:.5g}" for line in log(run, "metrics.jsonl") if "evaluation" not in line]


def test_the_peak_of_memory_is_the_statuss_and_a_dash_where_there_is_none(run: Path, tmp_path: Path):
    status = json.loads((run / "status.json").read_text())
    assert status["peak_bytes"].keys() == {"small", "grown"}
    changed = Path(shutil.copytree(run, tmp_path / "run"))
    (changed / "status.json").write_text(json.dumps({**status, "peak_bytes": {"small": 123_000_000, "grown": "much"}}))
    (table,) = [table for table in Page(render_page([read_run(changed)])).tables if "peak memory" in table[0]]
    assert [row[-1] for row in table[1:]] == ["123 MB", "–"]


def test_the_declared_learning_rate_is_the_one_that_was_used(run: Path, page: Page):
    used = {line["step"]: line["lr"] for line in log(run, "metrics.jsonl") if "evaluation" not in line}
    for lane in page.data["runs"][0]["lanes"]:
        samples = lane["optimizer"]["groups"]["default"]["lr"]
        assert len(samples) > 1 and all(value == pytest.approx(used[step]) for step, value in samples)


def test_the_lanes_say_where_each_block_came_from(page: Page):
    first, second = (
        [(bar["label"], bar["from"], bar.get("origin")) for bar in lane["model"]["bars"]] for lane in page.data["runs"][0]["lanes"]
    )
    assert [label for label, _, _ in first] == ["embedding", "base 0", "head"]
    assert second == [
        ("embedding", "kept", None),
        ("base 0", "kept", None),
        ("base 1", "copied", "0"),
        ("base 2", "copied", "0"),
        ("head", "kept", None),
    ]


def test_the_page_fetches_nothing(page: Page):
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; ") and "connect-src" not in policy
    code = [text for attributes, text in page.scripts if attributes.get("type") is None]
    assert re.findall(r"'sha256-([^']+)'", policy) == [b64encode(sha256(text.encode()).digest()).decode() for text in code]
    assert not [attributes for _, attributes in page.elements if {"src", "href", "srcset", "action", "style"} & attributes.keys()]
    assert "link" not in {tag for tag, _ in page.elements}
    styles = " ".join(page.texts)
    assert "@import" not in styles and "url(" not in styles


def test_no_name_becomes_an_element(run: Path, page: Page, tmp_path: Path):
    """Whatever a log, a plan, a config or a directory says is text on the page."""
    hostile = tmp_path / "\"><script>alert('x')<"
    shutil.copytree(run, hostile)
    for name in ("events.jsonl", "metrics.jsonl", "plan.json", "config.yaml"):
        text = (hostile / name).read_text()
        quoted = json.dumps(HOSTILE) if name != "config.yaml" else "'" + HOSTILE.replace("'", "''") + "'"
        for word in ("held", "grown", "transformer.stack"):
            text = text.replace(f'"{word}"', quoted) if name != "config.yaml" else text.replace(f" {word}:", f" {quoted}:")
        (hostile / name).write_text(text)
    html = render_page([read_run(hostile)])
    assert (
        "<" not in html.partition('id="data">')[2].partition("</script>\n<script>")[0]
    )  # browsers end a script in more ways than the parser here
    attacked = Page(html)
    assert Counter(tag for tag, _ in attacked.elements) == Counter(tag for tag, _ in page.elements)
    assert HOSTILE in "".join(attacked.texts)
    assert {e["name"] for e in attacked.data["runs"][0]["evaluations"]} == {HOSTILE}


def test_report_writes_one_page_for_one_run_or_several(run: Path, tmp_path: Path):
    other = make_run(tmp_path, "other", seed=4, steps=12)
    done = CliRunner().invoke(main, ["report", str(run), str(other), "-o", str(tmp_path / "both.html")])
    assert done.exit_code == 0, done.output
    both = Page((tmp_path / "both.html").read_text())
    assert [each["name"] for each in both.data["runs"]] == ["run", "other"]
    keys = next(table for table in both.tables if table[0][0] == "key")
    assert ["run.seed", "3", "4"] in keys and ["run.horizon", "24 steps", "12 steps"] in keys
    assert CliRunner().invoke(main, ["report", str(run)]).exit_code == 0
    assert (run / "report.html").stat().st_size < 300_000


def test_a_notebook_shows_a_result_as_its_page_in_a_frame(run: Path):
    shown = Page(Result(run, Summary())._repr_html_())
    ((tag, attributes),) = shown.elements
    assert tag == "iframe" and attributes["title"] == "Report of run"
    assert Page(str(attributes["srcdoc"])).data["runs"][0]["done"] == 24


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        read_run(tmp_path)


def test_a_plan_is_drawn_before_anything_ran(run: Path, tmp_path: Path):
    done = CliRunner().invoke(main, ["plan", str(run / "config.yaml"), "--html", str(tmp_path / "plan.html")])
    assert done.exit_code == 0, done.output
    drawn = Page((tmp_path / "plan.html").read_text()).data["runs"][0]
    assert drawn["lanes"] == json.loads((run / "plan.json").read_text())["lanes"]
    assert drawn["x"]["steps"] == [0, 12, 24] and drawn["x"]["tokens"] == [0, 96, 192]


@pytest.mark.slow
def test_a_long_run_is_a_small_page_and_keeps_what_stands_out(run: Path, tmp_path: Path):
    """100,000 steps below 2 MB, the one spike among them."""
    long = tmp_path / "long"
    shutil.copytree(run, long)
    lines = [line for line in log(run, "metrics.jsonl") if "evaluation" not in line]
    spike = 61_803
    with (long / "metrics.jsonl").open("w") as file:
        for step in range(100_000):
            loss = 9.5 if step == spike else 2 + lines[step % len(lines)]["loss"] / (step + 1)
            file.write(json.dumps({**lines[step % len(lines)], "step": step, "loss": loss, "tokens": 8 * (step + 1)}) + "\n")
    html = render_page([read_run(long)])
    assert len(html.encode()) < 2_000_000
    shown = Page(html).data["runs"][0]
    points = {shown["x"]["steps"][row]: value for row, value in zip(*shown["curves"]["loss"].values(), strict=True)}
    assert points[spike] == 9.5 and len(points) < 5000


def test_the_page_is_made_without_torch(run: Path):
    code = "import sys; from stackwise.cli.report import report as r; r(sys.argv[1:], standalone_mode=False)"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(run), "-o", str(run / "cold.html")], check=True, capture_output=True)
