"""Two things of the third party that go from step to step: a memory in a rack, and a reaction that ends the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from distributions import Site
from safetensors.torch import load_file

import stackwise
from stackwise import cli

SOURCE = Path(__file__).parent / "waves-for-stackwise"


@pytest.fixture(autouse=True)
def _waves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    Site(tmp_path / "site").install("waves", None, value="waves_for_stackwise.provider", distribution="waves-for-stackwise")
    monkeypatch.syspath_prepend(str(SOURCE / "src"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)


def config(name: str, **optimizer: Any) -> str:
    """A file of a config: two blocks of `echo` that become four at step 8 of 16."""
    tree = {
        "run": {"name": name, "seed": 2, "horizon": "16 steps", "device": "cpu", "checkpoint": {"every": "1 step", "keep_last": 20}},
        "task": {"use": "waves.forecast"},
        "data": {"sources": {"sines": {"use": "waves.sines", "longest": 16}}, "batch_size": 4, "seq_len": 8},
        "model": {
            "embedding": {"use": "waves.level"},
            "rack": {"use": "waves.echo", "width": 8, "stacks": [{"base": 2}]},
            "head": {"use": "waves.level"},
        },
        "optimizer": {"use": "waves.signum", "lr": 1e-2, **optimizer},
        "evaluate": {"clean": {"batches": 1, "every": "3 steps"}},
        "phases": {
            "shallow": {"until": "50%"},
            "deep": {"model": {"rack": {"stacks": [{"base": 4}]}}, "enter": {"growth": {"use": "waves.repeat"}}},
        },
    }
    Path(f"{name}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return f"{name}.yaml"


def call(*arguments: str) -> None:
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == 0, done.output


def final(run: str) -> dict[str, Any]:
    return load_file(Path(run) / "final" / "weights.safetensors")


def losses(run: str) -> list[float]:
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "evaluation" not in line]


def test_a_memory_goes_on_exactly_at_a_stop_and_across_growth() -> None:
    call("run", config("echo"), "--output", "whole")
    assert bool(final("whole")["rack.memory"].any())
    for step in (5, 7, 8, 9, 12):
        call("branch", "whole", "--at", f"step {step}", "--output", f"from-{step}")
        assert losses(f"from-{step}") == losses("whole")
        one, other = final("whole"), final(f"from-{step}")
        assert one.keys() == other.keys() and all(bool((one[name] == other[name]).all()) for name in one)


def test_a_memory_that_counts_is_another_run_and_an_evaluation_leaves_it_alone() -> None:
    call("run", config("echo"), "--output", "whole")
    call("run", config("echo"), "--output", "still", "--set", "evaluate.clean=null")
    call("run", config("echo"), "--output", "other", "--set", "model.rack.keep=0.9")
    assert losses("still") == losses("whole")
    assert losses("other")[0] == losses("whole")[0] and losses("other")[2:] != losses("whole")[2:]


STEPS, ROWS = 400, 64


def levels_with_noise() -> list[dict[str, torch.Tensor]]:
    """A batch a step: row i is its own level, of variance 1 and the same in all batches, with noise of variance 1 on both entries."""
    generator = torch.Generator().manual_seed(3)
    own = torch.randn(ROWS, 1, generator=generator)
    return [{"levels": own + torch.randn(ROWS, 2, generator=generator)} for _ in range(STEPS)]


def learnt(rack: str, **options: Any) -> float:
    """The mean training loss of the last quarter: of the second entry, given the first."""
    made = stackwise.experiment(
        run={"name": "memory", "seed": 1, "horizon": f"{STEPS} steps", "device": "cpu"},
        task={"use": "waves.forecast"},
        data={"sources": {"data": levels_with_noise()}, "batch_size": ROWS},
        model={
            "embedding": {"use": "waves.level"},
            "rack": {"use": rack, "width": 16, "stacks": [{"base": 1}], **options},
            "head": {"use": "waves.level"},
        },
        optimizer={"use": "optim.adamw", "lr": 1e-2, "weight_decay": 0.0},
    )
    losses = [event.loss for event in stackwise.assemble(made).train() if isinstance(event, stackwise.StepDone)]
    assert len(losses) == STEPS
    return sum(losses[-STEPS // 4 :]) / (STEPS // 4)


def test_a_memory_learns_what_no_row_tells_alone() -> None:
    """One entry tells the level up to a variance of 1/2, so that no model without a memory comes below 1.5 but by learning the rows by
    heart; a mean over many batches tells it nearly whole, and what is left is the noise of the entry that is predicted, 1."""
    alone, remembering = learnt("waves.conv"), learnt("waves.echo", keep=0.9)
    assert alone > 1.4 and remembering < 1.3


def test_a_reaction_ends_the_run_and_a_resume_leaves_it_ended() -> None:
    call("run", config("goal"), "--output", "long")
    seen = losses("long")
    goal = sorted(seen)[len(seen) // 2]
    expected = next(step for step, loss in enumerate(seen) if loss < goal) + 1
    call("run", config("goal", reaction={"use": "waves.goal", "below": goal}), "--output", "short")
    assert losses("short") == seen[:expected] and expected < 16
    events = [json.loads(line) for line in (Path("short") / "events.jsonl").read_text().splitlines()]
    (stopped,) = [event for event in events if event.get("event") == "stopped"]
    assert stopped["step"] == expected and "the loss is below" in stopped["why"]
    assert (Path("short") / "final" / "weights.safetensors").is_file()
    call("resume", "short")
    assert losses("short") == seen[:expected]
