"""What the run will need before its first step is looked at without one, every mistake at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tiny_walks import VOCAB, base, memory, plan_of

from stackwise import cli
from stackwise.assembly.rehearsal import rehearse
from stackwise.errors import ConfigError


def told(config: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        rehearse(plan_of(config))
    return [f"{problem.path}: {problem.message}" for problem in caught.value.problems]


def test_a_run_that_can_begin_is_left_alone():
    before = torch.random.get_rng_state()
    rehearse(plan_of(base(evaluate={"heldout": {"batches": 1}}, data={**base()["data"], "sources": {"a": memory(heldout=0.3)}})))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_every_thing_that_is_not_there_is_told_at_once(tmp_path: Path):
    bad = {"use": "data.memory", "arrays": {"tokens": [1] * 400 + [VOCAB]}}
    config = base(data={**base()["data"], "sources": {"a": bad}}, evaluate={"e": {"batches": 1, "sources": {"a": memory()}}})
    config["run"] = {**config["run"], "device": "cuda"}
    config["model"] = {**config["model"], "start": {"from": str(tmp_path / "nowhere")}}
    config["evaluate"]["e"]["sources"] = {"b": {"use": "data.memory", "arrays": {"tokens": [1, 2, 3]}}}
    device, start, data, evaluation = told(config)
    assert device.startswith("run.device: ") and start.startswith("model.start.from: ") and "nowhere" in start
    assert "data.sources.a" in data and "evaluate.e.sources.b" in evaluation


@pytest.mark.parametrize(
    "source", ["{use: data.text-files, paths: [none.txt]}", "{use: data.memory, vocab: 256, arrays: {tokens: [1, 2]}}"]
)
def test_the_own_sources_of_an_evaluation_are_placed_where_they_are_written(tmp_path: Path, source: str):
    (tmp_path / "case.yaml").write_text(
        "run: {horizon: 10 steps, device: cpu}\n"
        "task: {use: transformer.causal-lm}\n"
        "data: {sources: {a: {use: data.memory, vocab: 256, arrays: {tokens: [1, 2, 3, 4, 5, 6, 7, 8, 9]}}}, batch_size: 2, seq_len: 4}\n"
        "model: {embedding: {use: transformer.token}, rack: {use: transformer.decoder, width: 8, heads: 1, stacks: [{base: 1}]},"
        " head: {use: transformer.lm}}\n"
        "optimizer: {use: optim.adamw, lr: 1e-3}\n"
        "evaluate:\n"
        "  held:\n"
        "    batches: 1\n"
        "    sources:\n"
        f"      mine: {source}\n"
    )
    errors = CliRunner().invoke(cli.main, ["validate", str(tmp_path / "case.yaml")]).stderr
    assert "case.yaml:10:7: evaluate.held.sources.mine: " in errors and ":1:1:" not in errors


def test_rows_longer_than_the_data_are_refused():
    (problem,) = told(
        base(data={**base()["data"], "sources": {"a": {"use": "data.memory", "arrays": {"tokens": [1] * 20}}}, "seq_len": 64})
    )
    assert "data.sources.a" in problem and "20" in problem


def test_a_batch_without_a_size_is_refused_where_the_data_have_none():
    data = {key: value for key, value in base()["data"].items() if key != "batch_size"}
    (problem,) = told(base(data=data))
    assert "declare data.batch_size" in problem


@pytest.mark.parametrize(("key", "value"), [("fields", ["tokens"]), ("accept_inexact_resume", True)])
def test_a_key_for_ready_made_batches_alone_is_refused_where_there_are_none(key: str, value: Any):
    (problem,) = told(base(data={**base()["data"], key: value}))
    assert problem.startswith(f"data.{key}: ")


def test_validate_says_what_it_cannot_know(tmp_path: Path):
    (tmp_path / "case.yaml").write_text(
        "run: {horizon: 10 steps, device: cpu}\n"
        "task: {use: transformer.causal-lm}\n"
        "data: {sources: {a: {use: data.text-files, paths: [none.txt]}}, batch_size: 2, seq_len: 8}\n"
        "model: {embedding: {use: transformer.token}, rack: {use: transformer.decoder, width: 8, heads: 1, stacks: [{base: 1}]},"
        " head: {use: transformer.lm}}\n"
        "optimizer: {use: optim.adamw, lr: 1e-3}\n"
    )
    whole = CliRunner().invoke(cli.main, ["validate", str(tmp_path / "case.yaml")])
    assert whole.exit_code == 2 and "data.sources.a" in whole.output + whole.stderr
    cold = CliRunner().invoke(cli.main, ["validate", "--cold", str(tmp_path / "case.yaml")])
    assert (cold.exit_code, "not checked  shapes" in cold.output) in ((0, True), (2, False))
