"""What else is installed, and an observer that is in use, change no bit of a run: neither what is broken nor what reseeds generators."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import rogues
from distributions import Site, run_stackwise

CONFIG = """
run: {horizon: 8 steps, seed: 3, device: cpu}
task: {use: transformer.causal-lm}
data:
  sources: {text: {use: data.text-files, paths: ["*.txt"], heldout: 0.5}}
  batch_size: 2
  seq_len: 4
model:
  embedding: {use: transformer.token}
  rack: {use: transformer.decoder, width: 8, heads: 2, stacks: [{base: 1}], dropout: 0.2}
  head: {use: transformer.lm}
optimizer: {use: optim.adamw, lr: 1e-2}
evaluate: {e: {every: 4 steps, batches: 1}}
phases:
  one: {until: 50%}
  two: {model: {rack: {stacks: [{base: 2}]}}, enter: {growth: {use: transformer.identity}}}
"""
OBSERVER = """
from attrs import frozen
from stackwise import Component, hookimpl

@frozen(kw_only=True)
class Options: ...

def build(options, context):
    {factory}
    def watch(event):
        {call}
    return watch

@hookimpl
def stackwise_observers():
    return [Component(name="watch", options=__name__ + ":Options", factory=__name__ + ":build")]
"""
RESEED = "import random, numpy, torch; random.seed(1); numpy.random.seed(1); torch.manual_seed(1)"
RUDE = f"{RESEED}; torch.set_default_dtype(torch.float64)"


def metrics(folder: Path, name: str, *sites: Path, settings: Sequence[str] = ()) -> tuple[list[dict[str, Any]], bytes]:
    """The metrics stream of a run in a process of its own, and its final weights."""
    config = folder / "exp.yaml"
    config.write_text(CONFIG)
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"{i} green bottles hanging on the wall, and " * 9)
    code = [str(config), "--set", f'data.sources.text.paths=["{folder}/*.txt"]', "--output", str(folder / name)]
    code += [argument for setting in settings for argument in ("--set", setting)]
    done = run_stackwise("run", *code, sites=sites)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "cpu_seconds")} for line in lines], (
        folder / name / "final/weights.safetensors"
    ).read_bytes()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, metrics(folder, "alone")


@pytest.mark.parametrize("reseeds", [True, pytest.param(False, marks=pytest.mark.rare)])
def test_bystanders_that_are_broken_in_every_way_and_an_observer_that_reseeds_change_no_bit(
    alone: tuple[Path, Any], tmp_path: Path, reseeds: bool
) -> None:
    """The observer does where it is built and where it is called."""
    folder, expected = alone
    site = Site(tmp_path / "site")
    site.folder.mkdir()
    rogues.install_all(site)
    site.install("rude", OBSERVER.format(factory=RUDE, call=RESEED))
    found = metrics(folder, f"among-rogues-{reseeds}", site.folder, settings=["observers=[{use: rude.watch}]"] if reseeds else [])
    assert found == expected
    assert len([line for line in found[0] if "loss" in line and "evaluation" not in line]) == 8
