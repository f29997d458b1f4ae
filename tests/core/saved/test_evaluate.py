"""The model of a finished run, evaluated again, says what its log says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from shown_runs import log, make_run
from tiny_walks import base

from stackwise.cli import main
from stackwise.errors import DataError, UserError
from stackwise.saved.evaluate import evaluate

SOURCE = {"use": "data.memory", "heldout": 1, "arrays": {"tokens": [1, 2, 3, 4, 5, 6, 7] * 8}}
OTHER = f"evaluate.other={json.dumps({'batches': 3, 'sources': {'x': SOURCE}})}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("evaluated"))


def test_a_finished_run_repeats_its_last_figures(run: Path):
    logged = [event for event in log(run, "events.jsonl") if event["event"] == "evaluated"][-1]
    (again,) = evaluate(run)
    assert (again.name, again.step, again.phase, again.metrics) == ("held", 24, "grown", logged["metrics"])


def test_a_run_on_its_way_is_evaluated_at_its_newest_checkpoint(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "half")
    (tmp_path / "half" / "status.json").write_text('{"status": "stopped by SIGTERM"}')
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "step-000000024")
    logged = next(e for e in log(run, "events.jsonl") if e["event"] == "evaluated" and e["step"] == 18)
    (again,) = evaluate(tmp_path / "half")
    assert (again.step, again.metrics) == (18, logged["metrics"])


def test_another_evaluation_is_declared_as_in_a_config(run: Path):
    done = CliRunner().invoke(main, ["evaluate", str(run), "--set", OTHER, "--only", "other", "--json"])
    assert done.exit_code == 0, done.output
    (told,) = json.loads(done.output)
    assert told["evaluation"] == "other" and told["loss"] > 0


def test_what_cannot_be_said_any_more_is_refused(run: Path):
    with pytest.raises(UserError, match=r"data\.seq_len=8"):
        list(evaluate(run, ["data.seq_len=8"]))
    with pytest.raises(UserError, match="'held'"):
        list(evaluate(run, only=["hold"]))


def test_other_data_under_the_same_name_are_refused(run: Path, tmp_path: Path):
    """A loader that fingerprints its data notices that they are others; here the run is told to have had others."""
    shutil.copytree(run, tmp_path / "moved")
    about = tmp_path / "moved" / "final" / "weights.json"
    description = json.loads(about.read_text())
    (name, fingerprint), *_ = description["data"].items()
    key = next(iter(fingerprint))
    description["data"][name][key] = "another"
    about.write_text(json.dumps(description))
    with pytest.raises(DataError, match=f"'{name}'"):
        list(evaluate(tmp_path / "moved"))


@pytest.mark.parametrize("form", ["evaluation", "config"])
def test_data_of_a_file_are_another_evaluation(run: Path, tmp_path: Path, form: str):
    declared = {"batches": 3, "sources": {"x": SOURCE}}
    file = tmp_path / "Other Data.yaml"
    file.write_text(json.dumps(declared if form == "evaluation" else {"run": {"seed": 1}, "data": {**declared, "mix": {"x": 1}}}))
    done = CliRunner().invoke(main, ["evaluate", str(run), "--data", str(file), "--json"])
    assert done.exit_code == 0, done.output
    (told,) = json.loads(done.output)
    batches = 3 if form == "evaluation" else 16
    (same,) = evaluate(run, [f"evaluate.other={json.dumps({**declared, 'batches': batches})}"], ["other"])
    assert (told["evaluation"], told["loss"]) == ("other-data", same.metrics["loss"])


@pytest.mark.parametrize("text", ["[1]", "run: {seed: 1}", "data: {sources: [1]}", "a: [", ""])
def test_a_file_without_data_is_refused(run: Path, tmp_path: Path, text: str):
    (tmp_path / "other.yaml").write_text(text)
    assert CliRunner().invoke(main, ["evaluate", str(run), "--data", str(tmp_path / "other.yaml")]).exit_code == 2


def test_evaluations_of_phases_that_had_another_task_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A classifier first, then a language model: the evaluation of labels has nothing to say about the latter."""
    monkeypatch.chdir(tmp_path)
    tokens = [[1, 2, 3, 4, 5, 6, 7, 0]] * 8
    labelled = {"use": "data.memory", "arrays": {"tokens": tokens, "label": [0, 1] * 4}}
    others = {"use": "data.memory", "arrays": {"tokens": [row[::-1] for row in tokens], "label": [1, 0] * 4}}
    text = {"use": "data.memory", "arrays": {"tokens": [3, 1] * 40}, "heldout": 0.5}
    heads = [{"use": "transformer.classifier", "classes": 2}, {"use": "transformer.lm"}]
    phases = {
        "classes": {"until": "50%", "task": {"use": "transformer.classification", "attention": "causal"}, "model": {"head": heads[0]}},
        "language": {
            "task": {"use": "transformer.causal-lm"},
            "data": {"sources": {"replace": {"text": text}}},
            "model": {"head": heads[1]},
        },
    }
    declared = base(data={"sources": {"rows": labelled}, "batch_size": 2, "seq_len": 8}, phases=phases)
    declared["run"] |= {"name": "two", "horizon": "4 steps"}
    declared["evaluate"] = {
        "classes": {"at": ["1 steps"], "batches": 1, "sources": {"others": others}},
        "text": {"at": ["100%"], "batches": 1, "sources": {"more": {**text, "arrays": {"tokens": [5, 2] * 40}}}},
    }
    del declared["task"], declared["model"]["head"]
    Path("two.yaml").write_text(json.dumps(declared))
    main(["run", "two.yaml", "--output", "two"], standalone_mode=False)
    assert [event.name for event in evaluate(Path("two"))] == ["text"]
    with pytest.raises(UserError, match="'classes'"):
        list(evaluate(Path("two"), only=["classes"]))
