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
from shown_runs import HOSTILE, Page, log, make_hostile, make_run

from stackwise.cli import main
from stackwise.contracts.events import ConfigChanged, Event, Reacted, Rewound, RunStarted, Stopped
from stackwise.errors import UserError
from stackwise.reports.page import tables
from stackwise.reports.page.render import render_page
from stackwise.reports.record import read_run
from stackwise.reports.summary import Summary
from stackwise.runs.run import Result
from stackwise.storage.logs import lines_of

OURS = ("step", "phase", "tokens", "seconds", "skipped", "why", "metrics", "rates", "flops")


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


def test_every_other_table_says_what_log_and_plan_say(run: Path, page: Page):
    events, steps = log(run, "events.jsonl"), [line for line in log(run, "metrics.jsonl") if "evaluation" not in line]
    evaluated = [event for event in events if event["event"] == "evaluated"]
    by_head = {" ".join(table[0]): table[1:] for table in page.tables}
    shown = by_head["step phase evaluation at loss bits per token seconds"]
    assert shown == [
        [str(e["step"]), e["phase"], e["name"], e["at"], *(f"{value:.5g}" for value in (*e["metrics"].values(), e["seconds"]))]
        for e in evaluated
    ]
    (head, rows), *others = [(head, rows) for head, rows in by_head.items() if head.startswith("step loss")]
    assert not others and head == "step loss grad norm lr tokens seconds bits per token"
    assert rows == [
        [str(line["step"]), *(f"{line[key]:.5g}" for key in ("loss", "grad_norm", "lr")), str(line["tokens"])]
        + [f"{value:.5g}" for value in (line["seconds"], line["metrics"]["bits_per_token"])]
        for line in steps
    ]
    phases = json.loads((run / "plan.json").read_text())["phases"]
    ends = {(e["phase"], e["at"]): e["metrics"]["bits_per_token"] for e in evaluated}
    peaks = json.loads((run / "status.json").read_text())["peak_bytes"]
    assert next(rows for head, rows in by_head.items() if head.startswith("phase steps")) == [
        [p["name"], f"{p['start']}–{p['stop']}", f"{p['tokens']:,}", f"{p['parameters']:,}", f"{p['trainable']:,}"]
        + [f"{p['training_flops']:.2e}" if p["training_flops"] else "–", f"{p['lr']['entry']:.2g} → {p['lr']['exit']:.2g}"]
        + [f"{ends[p['name'], at]:.5g}" for at in ("entry", "exit")]
        + [tables.size(peaks[p["name"]])]
        for p in phases
    ]
    manifests = [json.loads(path.read_text()) for path in sorted((run / "checkpoints").glob("step-*/manifest.json"))]
    assert [(row[0].split()[0], row[1]) for row in by_head["step size stays because"]] == [
        (str(each["step"]), tables.size(sum(file["bytes"] for file in each["files"].values()))) for each in manifests
    ]
    text = " ".join(" ".join(page.texts).split())
    assert f"{len(steps)} of {phases[-1]['stop']} steps · {steps[-1]['tokens']} tokens" in text


def test_every_axis_counts_what_the_log_counts(run: Path, page: Page):
    """FLOPs are the plan's, step by step, as the log has them too."""
    shown, steps = page.data["runs"][0]["x"], [line for line in log(run, "metrics.jsonl") if "evaluation" not in line]
    assert shown["flops"] == pytest.approx([0, *(line["flops"] for line in steps)], rel=1e-5)


def test_whatever_happened_beside_steps_is_said_and_marked(run: Path, tmp_path: Path):
    told: dict[Event, str] = {
        RunStarted(24, "cpu", "float32", (), step=6): "step 6: the run went on from a checkpoint",
        Rewound(3, 5, "ten losses were not finite"): "step 3: back from step 5: ten losses were not finite",
        RunStarted(24, "cpu", "float32", (), step=3): "",
        ConfigChanged(6, "optimizer.lr", 0.01, 0.02): "step 6: optimizer.lr 0.01 → 0.02",
        Reacted(8, "small", 1.0, 0.5, "it stalls"): "step 8: learning rates × 0.5 (were × 1): it stalls",
        ConfigChanged(12, "phases.small.until.ended", "(nothing)", "12 steps"): "phases.small.until.ended (nothing) → 12 steps",
        RunStarted(24, "cpu", "float32", (), step=12): "",
        Stopped(20, "grown", "held.loss rests"): "step 20: the run stopped, as held.loss rests",
    }
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    with (copy / "events.jsonl").open("a") as file:
        file.writelines(f"{line}\n" for event in told for _, line in lines_of(event))
    lines = log(copy, "metrics.jsonl")
    missed = next(line for line in lines if line["step"] == 9 and "evaluation" not in line)
    missed |= {"skipped": True, "why": "its loss is nan", "loss": "nan"}
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(render_page([read_run(copy)]))
    text = " ".join("".join(page.texts).split())
    for sentence in (*told.values(), "step 9: skipped, as its loss is nan"):
        assert sentence in text
    marks = page.data["runs"][0]["marks"]
    found = {kind: [each["step"] for each in marks[kind]] for kind in ("resumes", "rewinds", "changes", "reactions", "stops", "skipped")}
    assert found == {"resumes": [6], "rewinds": [3], "changes": [6, 12], "reactions": [8], "stops": [20], "skipped": [9]}


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
    hostile = make_hostile(run, tmp_path)
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
    reached = next(table for table in both.tables if table[0][0] == "evaluation")
    ends = [
        [e for e in log(each, "events.jsonl") if e["event"] == "evaluated" and (e["step"], e["at"]) == (12, "exit")]
        for each in (run, other)
    ]
    assert reached[1] == ["held loss", "12", *(f"{evaluated[0]['metrics']['loss']:.5g}" for evaluated in ends)]
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
