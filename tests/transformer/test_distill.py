"""Distillation, and models outside the run that a task compares with: from a run, an export or a folder, with path and digest."""

from __future__ import annotations

import io
import json
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch
from grown_models import language_model
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_walks import VOCAB, base, drive, losses, machine_of, plan_of, problems_of
from torch.utils.flop_counter import FlopCounterMode
from whole_runs import digested

import stackwise
from stackwise import BuildContext, ConfigError, UserError
from stackwise.assembly.pricing import price
from stackwise.reports.plan_text import plan_as_json, plan_as_text
from stackwise.runs.run import run
from stackwise.saved.export import export
from stackwise_providers_transformer.distill import Distill, divergence
from stackwise_providers_transformer.distill_options import DistillOptions
from stackwise_providers_transformer.format_options import HuggingFaceOptions
from stackwise_providers_transformer.hugging_face.format import build_hugging_face


@settings(max_examples=examples(25), deadline=None)
@given(st.integers(2, 7), st.floats(0.3, 5.0), st.integers(0, 2**20))
def test_the_divergence_is_that_of_loops(vocab: int, temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(3, vocab, generator=generator, dtype=torch.float64) for _ in range(2))
    found = divergence(student, teacher, temperature)
    for n in range(3):
        p, q = ([exp(v / temperature) for v in row[n].tolist()] for row in (teacher, student))
        p, q = ([v / sum(row) for v in row] for row in (p, q))
        expected = temperature**2 * sum(a * log(a / b) for a, b in zip(p, q, strict=True))
        assert found[n].item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    logits = torch.randn(5, 9, requires_grad=True)
    total = divergence(logits, logits.detach(), 2.0).sum()
    total.backward()
    assert total.item() == pytest.approx(0.0, abs=1e-6)
    assert logits.grad is not None and float(logits.grad.abs().max()) < 1e-6


def test_gradients_of_high_temperatures_are_those_of_centred_logits() -> None:
    """Towards τ → ∞ the gradient is (z - v) / V of zero-mean logits (arXiv 1503.02531, equation 4, times τ²)."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    student, teacher = student - student.mean(-1, keepdim=True), teacher - teacher.mean(-1, keepdim=True)
    student.requires_grad_()
    divergence(student, teacher, 1000.0).sum().backward()
    assert student.grad is not None
    assert torch.allclose(student.grad, (student.detach() - teacher) / 6, atol=1e-3)


def test_the_mix_is_of_both_parts_over_targets_that_count() -> None:
    task = Distill(DistillOptions(temperature=2.0, soft=0.3))
    student, teacher = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    targets, counted = torch.randint(5, (2, 4)), torch.tensor([[True, False, True, True], [False, True, True, True]])
    total, count, metrics = task.loss({"logits": student}, {"targets": targets, "counted": counted}, reference={"logits": teacher})
    hard = sum(-student[b, t].log_softmax(-1)[targets[b, t]].item() for b in range(2) for t in range(4) if counted[b, t])
    soft = divergence(student, teacher, 2.0)[counted].sum().item()
    assert count == 6 and total.item() == pytest.approx(0.3 * soft + 0.7 * hard, rel=1e-5)
    assert metrics["divergence"][0].item() == pytest.approx(soft, rel=1e-5)
    assert metrics["target_nats"][0].item() == pytest.approx(hard, rel=1e-5)
    with pytest.raises(UserError, match="vocabulary"):
        task.loss({"logits": student}, {"targets": targets}, reference={"logits": torch.zeros(2, 4, 6)})


def chain(seed: int = 0) -> dict[str, Any]:
    """Tokens of which each leads to few others."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(VOCAB, VOCAB, generator=generator).mul(3).softmax(-1)
    tokens = [0]
    for _ in range(1500):
        tokens.append(int(torch.multinomial(table[tokens[-1]], 1, generator=generator)))
    return {"use": "data.memory", "arrays": {"tokens": torch.tensor(tokens)}}


def config(steps: int, **sections: Any) -> dict[str, Any]:
    rack = {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 1}]}
    model = {"embedding": {"use": "transformer.token", "vocab": VOCAB}, "rack": rack, "head": {"use": "transformer.lm"}}
    run_section = {"name": "d", "seed": 3, "horizon": f"{steps} steps", "device": "cpu"}
    return base(run=run_section, model=model, data={"sources": {"a": chain()}, "batch_size": 8, "seq_len": 8}, **sections)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a wider model."""
    directory = tmp_path_factory.mktemp("teachers") / "teacher"
    wide = config(150)
    wide["model"]["rack"] |= {"width": 16, "stacks": [{"base": 2}]}
    run(stackwise.experiment(wide), output=directory, stream=io.StringIO())
    return directory


def distilled(teacher: Path | str, steps: int = 6, **task: Any) -> dict[str, Any]:
    return config(steps, task={"use": "transformer.distill", "reference": {"from": str(teacher)}, **task})


def test_a_smaller_model_learns_from_a_run(teacher: Path) -> None:
    machine = machine_of(distilled(teacher, 80, temperature=2.0, soft=0.9))
    steps = [event for event in drive(machine) if isinstance(event, stackwise.StepDone)]
    assert steps[-1].metrics["divergence"] < 0.25 * steps[0].metrics["divergence"]
    assert steps[-1].metrics["agreement"] > 0.5
    reference = machine.objective.reference
    assert isinstance(reference, stackwise.Model) and reference.rack.options.width == 16
    saved = load_file(teacher / "final" / "weights.safetensors")
    assert all(torch.equal(parameter, saved[name]) for name, parameter in reference.named_parameters())
    assert not reference.training and not any(parameter.requires_grad for parameter in reference.parameters())


def test_path_and_digest_stand_in_plan_log_and_checkpoint(teacher: Path, tmp_path: Path) -> None:
    digest = json.loads((teacher / "final" / "weights.json").read_text())["sha256"]
    plan = plan_of(distilled(teacher))
    planned = plan_as_json(plan, prices := price(plan))["phases"][0]["reference"]
    assert planned == {"from": str(teacher), "sha256": digest}
    assert f"compares  with {teacher} (sha256 {digest[:12]}" in plan_as_text(plan, prices)
    run(stackwise.experiment(distilled(teacher)), output=tmp_path / "r", stream=io.StringIO())
    log = (tmp_path / "r" / "events.jsonl").read_text()
    assert f"sha256:{digest}" in log and str(teacher) in log
    machine = machine_of(distilled(teacher))
    drive(machine)
    assert machine.state()["reference"] == {"phase": 0, "from": str(teacher), "sha256": digest}


def test_a_restored_machine_goes_on_alike_and_refuses_another_teacher(teacher: Path) -> None:
    machine, states = machine_of(distilled(teacher)), {}
    for event in machine.train():
        if isinstance(event, stackwise.StepDone):
            states[machine.step] = digested(machine.state()), machine.state()
            break
    one = machine_of(distilled(teacher))
    whole = losses(drive(one))
    again = machine_of(distilled(teacher))
    again.restore(states[1][1])
    assert digested(again.state()) == states[1][0]
    assert losses(drive(again)) == whole[1:]
    changed = states[1][1] | {"reference": {**states[1][1]["reference"], "sha256": "0" * 64}}
    with pytest.raises(UserError, match="sha256"):
        machine_of(distilled(teacher)).restore(changed)


def test_an_export_and_a_folder_of_transformers_teach_too(teacher: Path, tmp_path: Path) -> None:
    export(teacher, tmp_path / "exported")
    first = losses(drive(machine_of(distilled(teacher, 2))))
    assert losses(drive(machine_of(distilled(tmp_path / "exported", 2)))) == first
    (tmp_path / "folder").mkdir()
    build_hugging_face(HuggingFaceOptions(), BuildContext(seed=0)).write(language_model(vocab=VOCAB), tmp_path / "folder", None, {})
    assert losses(drive(machine_of(distilled(tmp_path / "folder", 2))))[0][1] != first[0][1]


def test_phases_change_their_teacher_and_the_model_at_entry_is_one(teacher: Path, tmp_path: Path) -> None:
    export(teacher, tmp_path / "exported")
    made = distilled(teacher, 6)
    made["phases"] = {
        "one": {"until": "2 steps"},
        "two": {"until": "4 steps", "task": {"reference": {"from": "phase entry"}}},
        "three": {"task": {"reference": {"from": str(tmp_path / "exported")}}},
    }
    machine, seen = machine_of(made), {}
    for event in machine.train():
        if isinstance(event, stackwise.StepDone):
            seen.setdefault(event.phase, (machine.objective.reference, event.metrics["divergence"]))
    assert len({id(model) for model, _ in seen.values()}) == 3
    assert seen["two"][1] == pytest.approx(0.0, abs=1e-5) and seen["one"][1] > 0.01


def test_what_is_missing_or_not_asked_for_is_refused(teacher: Path, tmp_path: Path) -> None:
    (problem,) = problems_of(config(4, task={"use": "transformer.distill"}))
    assert problem.path == "task.reference" and "from" in problem.message
    (problem,) = problems_of(distilled(tmp_path / "nowhere"))
    assert problem.path == "task.reference"
    (problem,) = problems_of(config(4, task={"use": "transformer.causal-lm", "reference": {"from": str(teacher)}}))
    assert problem.path == "task.reference"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no weights"):
        drive(machine_of(distilled(tmp_path / "empty")))
    with pytest.raises(ValueError, match="reference"):
        stackwise.TaskSpec(batch={}, inputs={}, outputs={}, reference="runs/a")  # type: ignore[arg-type]
    misspelt = problems_of(config(4, task={"use": "transformer.distill", "reference": {"fro": "x"}}))
    assert {problem.path for problem in misspelt} == {"task.reference.fro", "task.reference.from"}


def forward_flops(model: torch.nn.Module, rows: int, length: int) -> int:
    """Of one forward pass, counted on the model itself; without memory, as kernels of a processor count attention otherwise."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.to("meta")({"tokens": torch.zeros(rows, length, dtype=torch.long, device="meta")})
    return counter.get_total_flops()


def test_the_forward_pass_of_a_teacher_is_priced(teacher: Path, tmp_path: Path) -> None:
    alone = price(plan_of(config(6)))[0].flops
    data = config(6)["data"]
    batch = data["batch_size"], data["seq_len"]
    folder = tmp_path / "hf"
    export(teacher, tmp_path / "exported")
    export(teacher, folder, form="hf")
    extra = 6 * forward_flops(stackwise.load_exported(teacher / "final"), *batch)
    assert alone is not None and extra > 0
    for place in (teacher, tmp_path / "exported", folder):
        assert price(plan_of(distilled(place)))[0].flops == alone + extra, place


def test_a_copy_at_entry_is_priced_as_it_was_then() -> None:
    """The model grows later; what it compares with stays as small as it was."""
    made = distilled("phase entry", 6)
    made["phases"] = {
        "one": {"until": "3 steps"},
        "two": {"model": {"rack": {"stacks": [{"base": 3}]}}, "enter": {"growth": {"use": "transformer.identity"}}},
    }
    plain = {**made, "task": config(6)["task"]}
    extra = [with_copy.flops - without.flops for with_copy, without in zip(price(plan_of(made)), price(plan_of(plain)), strict=True)]  # type: ignore[operator]
    assert extra[0] == extra[1] > 0
