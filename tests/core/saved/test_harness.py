"""Tasks of lm-evaluation-harness over local questions, with no network, against sums over the model's own logits."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from watched_network import watched_environment

import stackwise
from stackwise.cli import main
from stackwise.runs.run import run

LENGTH = 17
"""Entries of the run's rows, the last target included."""
QUESTIONS = [
    {"text": "abcab", "right": 0, "choices": ["c", "a"]},
    {"text": "bca", "right": 1, "choices": ["cc", "bc"]},
    {"text": "abc " * 9, "right": 0, "choices": ["abc", "b"]},  # longer than a row, and its space is the continuation's
    {"text": "cab", "right": 1, "choices": ["ca", "aa"]},
]
CHOICE = {"output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_choice": "choices", "doc_to_target": "right"}
TASKS: dict[str, dict[str, Any]] = {
    "chosen": {**CHOICE, "target_delimiter": "", "metric_list": [{"metric": "acc"}]},
    "whole": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    },
    "written": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{choices[right]}}",
        "generation_kwargs": {"until": ["b"], "max_gen_toks": 5, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learnt a little of `abc`, the questions, and the tasks."""
    folder = tmp_path_factory.mktemp("asked")
    (folder / "text.txt").write_text("abc abcabc" * 200)
    decoder = {"use": "transformer.decoder", "width": 16, "heads": 2, "stacks": [{"base": 1}]}
    config = {
        "run": {"horizon": "12 steps", "seed": 3, "device": "cpu"},
        "task": {"use": "transformer.causal-lm"},
        "data": {
            "sources": {"text": {"use": "data.text-files", "paths": [str(folder / "*.txt")], "heldout": 0}},
            "batch_size": 4,
            "seq_len": LENGTH - 1,
        },
        "model": {"embedding": {"use": "transformer.token"}, "rack": decoder, "head": {"use": "transformer.lm"}},
        "optimizer": {"use": "optim.adamw", "lr": 0.02},
    }
    (folder / "exp.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run(folder / "exp.yaml", output=folder / "out", stream=io.StringIO())
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    (folder / "tasks").mkdir()
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}}, "test_split": "test"}
    for name, task in TASKS.items():
        (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **data, **task}))
    return folder


def nats(model: Any, given: bytes, rest: bytes) -> float:
    """ln p(rest | given), one row by itself."""
    ids = torch.tensor([list(given + rest)])[:, -LENGTH:]
    with torch.no_grad():
        logits = model({"tokens": ids[:, :-1]})["logits"].log_softmax(-1)
    return float(logits[0].gather(-1, ids[0, 1:, None])[-len(rest) :].double().sum())


def rolling(model: Any, text: bytes) -> float:
    """ln p(text) in windows: the first row whole, and every later token after as much as a row holds."""
    ids, total = b"\n" + text, 0.0
    for begin in range(1, len(ids), LENGTH - 1):
        stop = min(begin + LENGTH - 1, len(ids))
        total += nats(model, ids[max(0, stop - LENGTH) : begin], ids[begin:stop])
    return total


@pytest.mark.slow
def test_three_kinds_of_questions_are_answered_as_by_hand(trained: Path, tmp_path: Path) -> None:
    watched, attempts = watched_environment(tmp_path)
    environment = {**watched, "HF_HOME": str(trained / "cache")}
    command = ["evaluate", "out", "--tasks", ",".join(TASKS), "--include", "tasks", "--rows", "3", "--start", "10", "--json"]
    call = [sys.executable, "-c", "from stackwise.cli import main; main()", *command]
    done = subprocess.run(call, cwd=trained, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not attempts.exists()  # local questions reach no network, though nobody said that there is none
    told = {each["task"]: each for each in json.loads(done.stdout[done.stdout.index("[\n") :])}
    model = stackwise.load_exported(trained / "out" / "final")

    right = 0
    for question in QUESTIONS:
        text = question["text"].encode()
        bare = text.rstrip()
        sums = [nats(model, bare, text[len(bare) :] + choice.encode()) for choice in question["choices"]]
        right += sums.index(max(sums)) == question["right"]
    assert told["chosen"]["acc"] == right / len(QUESTIONS) and told["chosen"]["questions"] == len(QUESTIONS)

    texts = [question["text"].encode() for question in QUESTIONS]
    expected = torch.tensor(-sum(rolling(model, text) for text in texts) / sum(map(len, texts))).exp()
    assert told["whole"]["byte_perplexity"] == pytest.approx(float(expected), rel=1e-6)

    matches = 0
    for question in QUESTIONS:
        ids = list(question["text"].encode())[-(LENGTH - 5) :]
        made = stackwise.generate(trained / "out", ids, stackwise.GenerationSettings(tokens=5, temperature=0)).ids[len(ids) :]
        matches += bytes(made).decode().partition("b")[0] == question["choices"][question["right"]]
    assert told["written"]["exact_match"] == matches / len(QUESTIONS)


def refused(trained: Path, *options: str) -> str:
    done = CliRunner().invoke(main, ["evaluate", str(trained / "out"), *options])
    assert done.exit_code == 2, done.output
    return done.output


def test_what_cannot_be_asked_is_told(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--limit" in refused(trained, "--limit", "3")
    assert "--only" in refused(trained, "--tasks", "chosen", "--only", "held")
    assert "nowhere" in refused(trained, "--tasks", "chosen", "--include", "nowhere")
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    assert "stackwise-core[lm-eval]" in refused(trained, "--tasks", "chosen")
