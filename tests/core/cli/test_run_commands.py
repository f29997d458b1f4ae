"""`validate`, `plan` and `run` on tiny configs; as processes where a fresh one shows something more."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

import stackwise
from stackwise.cli import main
from stackwise.planes.model.module import Model
from stackwise.planes.model.state import load_named_tensors
from stackwise.storage.weights import read_weights

CONFIG = """\
run: {horizon: 8 steps, seed: 3, device: cpu}
task: {use: transformer.causal-lm}
data:
  sources: {a: {use: data.memory, arrays: {tokens: TOKENS}, heldout: 0.3}}
  batch_size: 2
  seq_len: 4
model:
  embedding: {use: transformer.token, vocab: 8}
  rack: {use: transformer.decoder, width: 8, heads: 2, stacks: [{base: 1}]}
  head: {use: transformer.lm}
optimizer: {use: optim.adamw, lr: 1e-2}
evaluate: {e: {every: 4 steps, batches: 1}}
phases:
  one: {until: 50%}
  two: {model: {rack: {stacks: [{base: 2}]}}, enter: {growth: {use: transformer.stack}}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    tokens = torch.randint(8, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    path = tmp_path / "exp.yaml"
    path.write_text(CONFIG.replace("TOKENS", str(tokens)))
    return path


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_what_happened_and_weights_that_load_into_a_model_made_in_code(
    distributions: ModuleType, config: Path, tmp_path: Path
) -> None:
    done = distributions.run_stackwise("run", str(config), "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    files = {"config.yaml", "plan.json", "events.jsonl", "metrics.jsonl", "status.json", "lock", "writer.json", "checkpoints", "final"}
    assert {path.name for path in out.iterdir()} == files
    events = lines(out / "events.jsonl")
    assert [e["event"] for e in events if e["event"] not in ("evaluated", "checkpoint_saved")] == [
        "run_started",
        "phase_entered",
        "phase_entered",
        "run_finished",
    ]
    assert [line["step"] for line in lines(out / "metrics.jsonl") if "evaluation" not in line] == list(range(8))
    assert json.loads((out / "status.json").read_text())["status"] == "finished"
    planned = json.loads((out / "plan.json").read_text())
    assert [e["parameters"] for e in events if e["event"] == "phase_entered"] == [phase["parameters"] for phase in planned["phases"]]
    assert yaml.safe_load((out / "config.yaml").read_text())["phases"]["one"] == {"until": "50%"}
    assert "two" in done.stdout and "seconds" in done.stdout and "enter two at step 4" in done.stderr
    assert f"next: stackwise report {out}, stackwise export {out} weights" in " ".join(done.stdout.split())
    machine = stackwise.assemble(stackwise.load(config, ["run.horizon=1 step", "phases=null", "model.rack.stacks=[{base: 2}]"]))
    list(machine.train())
    model = Model(*(machine.model.model.get_submodule(role) for role in ("embedding", "rack", "head")))
    saved, about = read_weights(out / "final")
    load_named_tensors(model, saved, "the final weights")
    assert about["step"] == 8 and set(about["parts"]) == {"embedding", "rack", "head"}
    assert set(about["tensors"]) == {name for name, _ in model.named_parameters()}


def test_an_output_that_exists_is_refused(config: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = call("run", config, "--output", tmp_path / "out")
    assert done.exit_code == 2 and "exists already" in done.stderr and not list((tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.rare  # two processes that import torch; test_same_stream.py holds what they read to the bit
def test_reader_processes_leave_the_same_run_behind(config: Path, tmp_path: Path) -> None:
    described = []
    for workers in (0, 2):
        out = tmp_path / f"with-{workers}"
        done = call("run", config, "--set", f"run.workers={workers}", "--output", out)
        assert done.exit_code == 0, done.stderr
        described.append(json.loads((out / "final" / "weights.json").read_text()))
    assert described[0] == described[1] and described[0]["data"]


def test_training_that_does_not_stay_finite_halts_with_its_own_code(config: Path, tmp_path: Path) -> None:
    extreme = ["--set", "optimizer.lr=1e38", "--set", "run.halt_after=2"]
    done = call("run", config, *extreme, "--output", tmp_path / "out")
    assert done.exit_code == 4, done.stderr
    assert "not finite 2 steps in a row" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "final").exists()
    status = json.loads((tmp_path / "out" / "status.json").read_text())
    assert status["status"].startswith("failed: loss or gradient was not finite")


def test_every_mistake_is_told_at_once_with_its_place(distributions: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(
        CONFIG.replace("TOKENS", "[1, 2, 3]")
        .replace("batch_size: 2", "batch_size: two")
        .replace("seq_len: 4", "seq_length: 4")
        .replace("heads: 2", "heads: 0")
        .replace("lr: 1e-2", "lr: fast")
        .replace("transformer.lm}", "transformer.lmm}")
    )
    done = distributions.run_stackwise("validate", str(path))
    assert done.returncode == 2 and done.stdout == ""
    for command in ("plan", "run"):
        other = CliRunner().invoke(main, [command, str(path)])
        assert (other.exit_code, other.stdout, other.stderr) == (2, "", done.stderr)
    places = re.findall(r"wrong\.yaml:(\d+):(\d+): ([\w.]+)", done.stderr)
    keys = {key for _, _, key in places}
    assert {"data.batch_size", "data.seq_length", "model.rack.heads", "optimizer.lr", "model.head.use"} <= keys
    rows = {key: int(line) for line, _, key in places}
    source = path.read_text().splitlines()
    for key, word in [
        ("data.batch_size", "two"),
        ("data.seq_length", "seq_length"),
        ("model.rack.heads", "heads: 0"),
        ("optimizer.lr", "fast"),
    ]:
        assert word in source[rows[key] - 1]
    assert "did you mean 'seq_len'" in done.stderr and "did you mean 'transformer.lm'" in done.stderr
    assert "Traceback" not in done.stderr


def test_cold_validation_imports_no_torch(distributions: ModuleType, config: Path) -> None:
    code = """
import sys
from stackwise.cli import main
main(sys.argv[1:], standalone_mode=False)
assert "torch" not in sys.modules
"""
    done = distributions.run_python(code, "validate", str(config), "--cold")
    assert done.returncode == 0, done.stderr
    assert "is valid: 8 steps (one 0–4, two 4–8)" in done.stdout


def test_plan_as_json_parses_and_says_what_the_text_says(config: Path) -> None:
    as_json, text = call("plan", config, "--json"), call("plan", config)
    assert as_json.exit_code == text.exit_code == 0
    told = json.loads(as_json.stdout)
    assert [phase["stacks"] for phase in told["phases"]] == [{"base": 1}, {"base": 2}]
    assert all(f"{phase['parameters']:,}" in text.stdout for phase in told["phases"])


def test_a_provider_at_fault_has_its_own_code(site: Any, config: Path) -> None:
    site.install("bad", "raise RuntimeError('no luck')")
    done = call("run", config, "--set", "task.use=bad.thing")
    assert done.exit_code == 3, done.stderr
    assert "fake-bad 1.0" in done.stderr and "no luck" in done.stderr and "Traceback" not in done.stderr


def test_a_file_that_is_not_there_is_the_users_mistake(distributions: ModuleType, tmp_path: Path) -> None:
    done = distributions.run_stackwise("validate", str(tmp_path / "nothing.yaml"))
    assert done.returncode == 2 and "nothing.yaml" in done.stderr


OBSERVERS = """
from attrs import frozen
from stackwise import Component, hookimpl, option

@frozen(kw_only=True)
class Options:
    path: str = option("", doc="where to write")

def build_writer(options, context):
    def write(event):
        with open(options.path, "a") as file:
            file.write(type(event).__name__ + "\\n")
    return write

def build_raiser(options, context):
    def fail(event):
        raise ValueError("tired")
    return fail

@hookimpl
def stackwise_observers():
    return [
        Component(name="writer", options=__name__ + ":Options", factory=__name__ + ":build_writer", example={"path": "x"}),
        Component(name="raiser", options=__name__ + ":Options", factory=__name__ + ":build_raiser"),
    ]
"""


def test_a_declared_observer_hears_everything_and_one_that_raises_is_dropped(site: Any, config: Path, tmp_path: Path) -> None:
    site.install("watch", OBSERVERS)
    observers = f"observers=[{{use: watch.raiser}}, {{use: watch.writer, path: '{tmp_path / 'heard'}'}}]"
    with pytest.warns(RuntimeWarning, match="tired; it is dropped and the run goes on") as told:
        done = call("run", config, "--set", observers, "--output", tmp_path / "out")
    assert done.exit_code == 0 and len(told) == 1, done.stderr
    heard = (tmp_path / "heard").read_text().split()
    assert heard[:2] == ["RunStarted", "PhaseEntered"] and heard[-1] == "RunFinished" and heard.count("StepDone") == 8
    assert call("run", config, "--output", tmp_path / "plain").exit_code == 0
    strip = [{k: v for k, v in line.items() if k != "seconds"} for line in lines(tmp_path / "out" / "metrics.jsonl")]
    assert strip == [{k: v for k, v in line.items() if k != "seconds"} for line in lines(tmp_path / "plain" / "metrics.jsonl")]


def test_a_terminal_without_unicode_is_no_reason_to_fail(distributions: ModuleType, config: Path, tmp_path: Path) -> None:
    environment = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    one_phase = ["--set", "phases=null", "--set", "run.horizon=1 step"]
    done = distributions.run_stackwise("run", str(config), *one_phase, "--output", str(tmp_path / "out"), environment=environment)
    assert done.returncode == 0, done.stderr
    assert "UnicodeEncodeError" not in done.stderr and done.stderr.isascii()


def test_quiet_prints_the_directory_and_says_what_each_phase_took(config: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["run", str(config), "--output", str(tmp_path / "run"), "-q"])
    assert done.exit_code == 0
    assert (done.stdout, done.stderr) == (f"{tmp_path / 'run'}\n", "")
    status, plan = (json.loads((tmp_path / "run" / name).read_text()) for name in ("status.json", "plan.json"))
    assert status["peak_bytes"].keys() == {phase["name"] for phase in plan["phases"]}
    assert all(1e7 < count < 1e11 for count in status["peak_bytes"].values())
    again = CliRunner().invoke(main, ["resume", str(tmp_path / "run"), "--quiet"])
    assert (again.stdout, again.stderr) == (f"{tmp_path / 'run'}\n", "")
