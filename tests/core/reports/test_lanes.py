"""What a plan's picture is made of: values that follow time in every plane, and blocks whose tensors came in several ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from shown_runs import Page

from stackwise.cli import main

CONFIG = """\
run: {name: lanes, horizon: 12 steps, device: cpu}
task: {use: transformer.causal-lm}
data:
  sources: {notes: {use: data.text-files, paths: [notes.txt], difficulty: rarity}}
  batch_size: 2
  seq_len: 8
model:
  embedding: {use: transformer.token}
  rack: {use: transformer.decoder, width: 8, heads: 2, ff: 16, stacks: [{base: 1}]}
  head: {use: transformer.lm}
optimizer: {use: optim.adamw, lr: 1e-2, weight_decay: {linear: {from: 0.2, to: 0.1}}}
phases:
  dense: {until: 50%, data: {sources: {notes: {exposed: {linear: {from: 0.5, to: 1.0, over: phase}}}}}}
  sparse:
    data: {sources: {notes: {exposed: 1.0}}}
    task: {auxiliary: {rack.balance: 0.01, rack.z: 0}}
    model: {rack: {experts: {count: 4, active: 2}}}
    enter: {growth: {use: transformer.upcycle}, rewarm: 50%}
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("lanes")
    (folder / "notes.txt").write_text("".join(f"{i * i} is the square of {i}.\n" for i in range(200)))
    (folder / "lanes.yaml").write_text(CONFIG)
    page: Path = folder / "plan.html"
    done = CliRunner().invoke(main, ["plan", str(folder / "lanes.yaml"), "--html", str(page), "--json"])
    assert done.exit_code == 0, done.output
    shown: dict[str, Any] = Page(page.read_text()).data["runs"][0]
    assert shown["lanes"] == json.loads(done.stdout)["lanes"]
    return shown


def test_options_of_a_source_and_of_the_optimizer_that_follow_time_are_drawn(drawn: dict[str, Any]):
    dense, sparse = drawn["lanes"]
    assert dense["data"]["values"]["notes exposed"] == [[step, pytest.approx(0.5 + step / 12)] for step in range(6)]
    assert sparse["data"]["values"] == {}
    decay = [pair for lane in drawn["lanes"] for pair in lane["optimizer"]["groups"]["default"]["weight_decay"]]
    assert decay == [[step, pytest.approx(0.2 - 0.1 * step / 12)] for step in range(12)]


def test_the_rate_of_fresh_parameters_that_warm_up_again_is_a_line_of_its_own(drawn: dict[str, Any]):
    dense, sparse = (lane["optimizer"]["groups"] for lane in drawn["lanes"])
    assert dense.keys() == {"default"} and sparse.keys() == {"default", "default.fresh"}
    assert sparse["default.fresh"] == {"lr": [[6 + step, pytest.approx(1e-2 * min(1, step / 3))] for step in range(6)]}


def test_a_block_whose_tensors_came_in_several_ways_says_how_many_in_each(drawn: dict[str, Any]):
    embedding, block, head = drawn["lanes"][1]["model"]["bars"]
    planned = drawn["phases"][1]["transition"]
    assert (embedding["from"], head["from"], block["from"]) == ("kept", "kept", "copied")
    assert block["tensors"]["copied"] == planned["copied"] > 0 and block["tensors"]["fresh"] == planned["fresh"] == 1  # its router
    assert block["tensors"]["kept"] > 0 and "tensors" not in embedding
    assert all("tensors" not in bar for bar in drawn["lanes"][0]["model"]["bars"])
