"""One example a task, run small: what it enters, what it reads, what it reports."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_walks import registry

import stackwise
from stackwise import ConfigError, Evaluated, PhaseEntered, StepDone, config
from stackwise.assembly.pricing import price

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ("run.horizon=6 steps", "data.batch_size=2", "evaluate.heldout.batches=1", "evaluate.heldout.batch_size=4")


def walked(name: str, *overrides: str) -> tuple[Any, list[Any], list[dict[str, Any]]]:
    """The machine after the run, its events, and the prepared batch of every training step."""
    plan = stackwise.make_plan(config.load(EXAMPLES / f"{name}.yaml", (*SMALL, *overrides)), registry())
    assert all(phase.flops for phase in price(plan))
    machine, batches = stackwise.assemble(plan), []
    loss = machine.objective.loss

    def watched(model: Any, prepared: Any) -> Any:
        if model.training:
            batches.append(prepared)
        return loss(model, prepared)

    machine.objective.loss = watched  # type: ignore[method-assign]  # one machine of one test
    return machine, list(machine.train()), batches


def metrics_of(events: list[Any], phase: str) -> list[set[str]]:
    return [set(event.metrics) for event in events if isinstance(event, Evaluated) and event.phase == phase]


def test_masked_to_causal() -> None:
    machine, events, batches = walked("masked-to-causal", "data.seq_len=16")
    entered = [event for event in events if isinstance(event, PhaseEntered)]
    assert [(event.phase, event.step, event.fresh, event.dropped) for event in entered[1:]] == [("causal", 5, 0, 0)]
    assert entered[1].adopted == entered[1].moments_kept == len(list(machine.model.model.parameters()))
    assert metrics_of(events, "masked") == [{"loss", "accuracy", "loss_on_masks"}] * 2
    assert metrics_of(events, "causal") == [{"loss", "bits_per_byte"}] * 2
    assert [set(batch) for batch in batches] == [{"tokens", "targets"}] * 6
    assert [bool((batch["targets"] == -100).any()) for batch in batches] == [True] * 5 + [False]
    assert all(int(batch["tokens"].max()) <= 256 for batch in batches) and int(batches[5]["tokens"].max()) < 256
    rates = machine.schedule.phases[0].state.task.curves["rate"]
    assert (rates(0.0), rates(5 / 6)) == (pytest.approx(0.3), pytest.approx(0.15))


def test_mask_diffusion() -> None:
    machine, events, batches = walked("mask-diffusion", "data.seq_len=16")
    assert machine.model.model.embedding.weight.shape[0] == 257
    assert all(names == {"loss", "bits_per_byte", "accuracy_on_masks"} for names in metrics_of(events, "train"))
    for batch in batches:
        assert set(batch) == {"tokens", "targets", "weights", "real"}
        assert ((batch["tokens"] == 256) == (batch["targets"] != -100)).all() and bool(batch["real"].all())


def test_span_corruption() -> None:
    machine, events, batches = walked("span-corruption")
    assert all(names == {"loss", "bits_per_token", "accuracy"} for names in metrics_of(events, "train"))
    assert machine.model.model.embedding.weight.shape[0] == 256 + 32 + 1
    for batch in batches:
        assert batch["source"].shape == (2, 128) and batch["tokens"].shape == batch["targets"].shape == (2, 29)
        assert (batch["source"][:, -1] == 288).all() and (batch["tokens"][:, 0] == 288).all() and (batch["targets"][:, 0] == 256).all()


def test_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "prepare_digits.py"))
    machine, events, batches = walked("digits")
    assert all(names == {"loss", "accuracy"} for names in metrics_of(events, "train"))
    assert all(batch["image"].shape == (2, 8, 8, 1) for batch in batches)
    pixels = torch.stack([batch["image"] for batch in batches]) * 16  # whole numbers from 0 to 16 but for the noise of training
    assert float((pixels - pixels.round().clamp(0, 16)).abs().mean()) > 0.1 and float(pixels.min()) > -16 and float(pixels.max()) < 32
    assert machine.model.model.embedding.positions.weight.shape == (16, 64)
    assert machine.model.model.rack.options.attention == "bidirectional"
    convolved, *_ = walked("digits", "model.rack={use: transformer.conv, width: 64, stacks: [{base: 2}]}")
    assert not convolved.model.model.rack.options.causal


def test_images_that_were_not_prepared_are_the_one_thing_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        stackwise.make_plan(config.load(EXAMPLES / "digits.yaml"), registry())
    (problem,) = caught.value.problems
    assert problem.path == "data.sources.digits"


def test_preferences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    runpy.run_path(str(EXAMPLES / "prepare_preferences.py"))
    machine, events, batches = walked("preferences", "data.seq_len=31")
    assert metrics_of(events, "supervised") == [{"loss", "bits_per_token"}] * 2
    assert metrics_of(events, "preference") == [{"loss", "accuracy", "reward_margin", "likelihood_accuracy"}] * 2
    entry = next(event for event in events if isinstance(event, Evaluated) and event.phase == "preference")
    assert entry.metrics["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert [len(batch["tokens"]) for batch in batches] == [2] * 3 + [4] * 3
    assert machine.objective.reference is not None
    losses = [event.loss for event in events if isinstance(event, StepDone) and event.phase == "preference"]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
