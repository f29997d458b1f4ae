"""`examples/five-stages.yaml`, run small: what each stage reads, what it learns from, how it is entered."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path
from typing import Any

import pytest
from tiny_walks import registry

import stackwise
from stackwise import PhaseEntered, StepDone, config

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ("run.horizon=33 steps", "data.batch_size=2", "phases.preference.data.batch_size=2", "model.rack.width=32")


@pytest.mark.slow
def test_five_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "docs").symlink_to(EXAMPLES.parent / "docs")
    (tmp_path / "README.md").symlink_to(EXAMPLES.parent / "README.md")
    runpy.run_path(str(EXAMPLES / "prepare_five_stages.py"))
    lines = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert len(lines) > 1000 and all(line["chosen"] != line["rejected"] for line in lines)
    assert all(line["chosen"].startswith(line["rejected"].removesuffix("<|im_end|>").split(" ")[0]) for line in lines)  # broken off
    machine = stackwise.assemble(stackwise.make_plan(config.load(EXAMPLES / "five-stages.yaml", SMALL), registry()))
    batches: list[dict[str, Any]] = []
    loss = machine.objective.loss

    def watched(model: Any, prepared: Any) -> Any:
        if model.training:
            batches.append(prepared)
        return loss(model, prepared)

    machine.objective.loss = watched  # type: ignore[method-assign]  # one machine of one test
    events = list(machine.train())
    count = len(list(machine.model.model.parameters()))
    entered = {event.phase: event for event in events if isinstance(event, PhaseEntered)}
    assert list(entered) == ["warmup", "pretrain", "midtrain", "longer", "chat", "preference"]
    assert all((event.adopted, event.moments_kept) == (count, count) for event in list(entered.values())[1:])
    steps = [(event.phase, batch) for event, batch in zip((e for e in events if isinstance(e, StepDone)), batches, strict=True)]
    of = {phase: [batch for name, batch in steps if name == phase] for phase in entered}
    assert {phase: {batch["tokens"].shape[1] for batch in of[phase]} for phase in ("midtrain", "longer", "chat")} == {
        "midtrain": {128},
        "longer": {512},
        "chat": {512},
    }
    assert all(0 < int(batch["counted"].sum()) < batch["counted"].numel() for batch in of["chat"])  # what the assistant says
    assert all(bool((batch["segments"] > 0).any()) for batch in of["chat"])  # conversations are packed
    first = next(event for event in events if isinstance(event, StepDone) and event.phase == "preference")
    assert first.loss == pytest.approx(math.log(2), abs=1e-5)  # of DPO where the model is its own reference
