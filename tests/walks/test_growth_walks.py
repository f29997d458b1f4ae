"""Every growth operator in a whole run from YAML on bytes: what the plan says, what the boundary does, what is trained after it."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from attrs import frozen
from tiny_walks import registry

import stackwise
from stackwise import PhaseEntered, StepDone
from stackwise.assembly.pricing import price
from stackwise.plan import Plan
from stackwise.reports.plan_text import plan_as_text

CONFIG = """
run: {name: grow, seed: 3, horizon: 8 steps, device: cpu}
task: {use: transformer.causal-lm}
data:
  sources: {bytes: {use: data.text-files, paths: ["*.txt"], heldout: 0.2}}
  batch_size: 4
  seq_len: 16
model:
  embedding: {use: transformer.token, vocab: 256}
  rack: {use: transformer.decoder, width: 8, heads: 2, stacks: [{base: 2}], init_std: 0.2}
  head: {use: transformer.lm}
optimizer: {use: optim.adamw, lr: 0.01}
phases:
  small: {until: 50%}
  grown: GROWN
"""


@frozen
class Case:
    """A phase that grows, what its plan says, and the shape of the model it ends as."""

    grown: str
    says: str
    keeps: bool
    blocks: int = 2
    width: int = 8
    features: int = 24
    vocab: int = 256

    @property
    def parameters(self) -> int:
        """Embedding, two norms, four projections of attention and three of the MLP in each block, the final norm."""
        block = 2 * self.width + 4 * self.width**2 + 3 * self.width * self.features
        return self.vocab * self.width + self.blocks * block + self.width


CASES = {
    "stack": Case(
        "{model: {rack: {stacks: [{base: 4}]}}, enter: {growth: {use: transformer.stack}}}", "base keeps 2, base 2←0 3←1", False, blocks=4
    ),
    "stack right to left": Case(
        "{model: {rack: {stacks: [{under: 2}, {base: 2}]}}, enter: {growth: {use: transformer.stack, source: base}}}",
        "base keeps 2, under 0←base.0 1←base.1",
        False,
        blocks=4,
    ),
    "interleave": Case(
        "{model: {rack: {stacks: [{base: 4}]}}, enter: {growth: {use: transformer.interleave}}}",
        "base keeps 1, base 1←0 2←1 3←1",
        False,
        blocks=4,
    ),
    "middle": Case(
        "{model: {rack: {stacks: [{base: 3}]}}, enter: {growth: {use: transformer.middle}}}", "base keeps 1, base 1←0 2←1", False, blocks=3
    ),
    "identity": Case(
        "{model: {rack: {stacks: [{base: 3}, {top: 1}]}}, enter: {growth: {use: transformer.identity}}}",
        "base keeps 2, base 2←fresh, top 0←fresh",
        True,
        blocks=4,
    ),
    "identity at the start": Case(
        "{model: {rack: {stacks: [{base: 3}]}}, enter: {growth: {use: transformer.identity, at: start}}}",
        "base 0←fresh 1←0 2←1",
        True,
        blocks=3,
    ),
    "blocks": Case(
        "{model: {rack: {stacks: [{base: 4}]}}, enter: {growth: {use: transformer.blocks, map: {base: [0, 0, 1, 0]}}}}",
        "base keeps 1, base 1←0 2←1 3←0",
        False,
        blocks=4,
    ),
    "blocks that are the identity": Case(
        "{model: {rack: {stacks: [{base: 4}]}}, enter: {growth: {use: transformer.blocks, map: {base: [0, identity, 1, identity]}}}}",
        "base keeps 1, base 1←0 2←1 3←1",
        True,
        blocks=4,
    ),
    "gated": Case(
        "{model: {rack: {stacks: [{base: 3}]}}, enter: {growth: {use: transformer.gated, gate: {linear: {from: 0, to: 1, over: phase}}}}}",
        "base keeps 2, base 2←fresh",
        True,
        blocks=3,
    ),
    "gated copy": Case(
        "{model: {rack: {stacks: [{base: 4}]}},"
        " enter: {growth: {use: transformer.gated, base: copy, gate: {linear: {from: 0, to: 1, over: phase}}}}}",
        "base keeps 2, base 2←0 3←1",
        True,
        blocks=4,
    ),
    "widen-ff zero-out": Case(
        "{model: {rack: {ff: 40}}, enter: {growth: {use: transformer.widen-ff}}}",
        "model.rack.ff: – → 40",
        True,
        features=40,
    ),
    "widen-ff split": Case(
        "{model: {rack: {ff: 40}}, enter: {growth: {use: transformer.widen-ff, how: split}}}",
        "model.rack.ff: – → 40",
        True,
        features=40,
    ),
    "widen": Case(
        "{model: {rack: {width: 16, heads: 4}}, enter: {growth: {use: transformer.widen}}}",
        "model.rack.width: 8 → 16",
        True,
        width=16,
        features=48,
    ),
    "vocabulary": Case(
        "{model: {embedding: {vocab: 260}}, enter: {growth: {use: transformer.vocabulary, rows: zeros}}}",
        "model.embedding.vocab: 256 → 260",
        False,
        vocab=260,
    ),
}


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of small files, and the working directory."""
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"{i} green bottles hanging on the wall, {i * i} " * 4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def plan_of(texts: Path, grown: str) -> Plan:
    (texts / "grow.yaml").write_text(CONFIG.replace("GROWN", grown))
    return stackwise.make_plan(stackwise.load(texts / "grow.yaml"), registry())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_run_grows_as_its_plan_says(case: Case, texts: Path) -> None:
    plan = plan_of(texts, case.grown)
    prices = price(plan)
    told = plan_as_text(plan, prices)
    assert case.says in told
    assert ("the function is preserved" in told) is case.keeps
    machine = stackwise.assemble(plan)
    batch = {"tokens": torch.arange(32, 64).view(2, 16)}
    seen: list[torch.Tensor] = []
    losses = []
    for event in machine.train():
        boundary = isinstance(event, PhaseEntered) and event.phase == "grown"
        if isinstance(event, PhaseEntered) and boundary:
            expected = Case("", "", True).parameters
            assert (prices[0].parameters, prices[1].parameters, event.parameters) == (expected, case.parameters, case.parameters)
            receipt = prices[1].receipt
            assert (event.adopted, event.copied, event.fresh) == (len(receipt.adopted), len(receipt.copied), len(receipt.fresh))
        if isinstance(event, StepDone):
            losses.append(event.loss)
        if boundary or (isinstance(event, StepDone) and event.step == 3):
            with torch.no_grad():
                seen.append(machine.model.model(batch)["logits"])
    assert len(losses) == 8 and all(map(isfinite, losses))
    before, after = seen
    if after.shape == before.shape:
        assert torch.allclose(before, after, rtol=0, atol=1e-6) is case.keeps
    else:
        torch.testing.assert_close(after[..., : before.shape[-1]], before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_everything_that_grew_is_trained(case: Case, texts: Path) -> None:
    machine = stackwise.assemble(plan_of(texts, case.grown))
    values: dict[str, torch.Tensor] = {}
    for event in machine.train():
        if isinstance(event, PhaseEntered) and event.phase == "grown":
            values = {name: p.detach().clone() for name, p in machine.model.model.named_parameters()}
    assert [name for name, p in machine.model.model.named_parameters() if torch.equal(p, values[name])] == []


@pytest.mark.parametrize(
    ("grown", "says"),
    [
        ("{model: {rack: {stacks: [{top: 1}, {base: 2}]}}, enter: {growth: {use: transformer.stack}}}", "'top' is new"),
        ("{model: {rack: {stacks: [{base: 5}]}}, enter: {growth: {use: transformer.middle}}}", "at most 4"),
        ("{model: {rack: {stacks: [{base: 3}]}}, enter: {growth: {use: transformer.widen}}}", "'widen' adds no blocks"),
        ("{model: {rack: {stacks: [{base: 3}]}}, enter: {growth: {use: transformer.gated, gate: 0.5}}}", "it starts at 0.5"),
    ],
)
def test_the_plan_refuses_what_an_operator_cannot_do(grown: str, says: str, texts: Path) -> None:
    with pytest.raises(stackwise.ConfigError) as caught:
        plan_of(texts, grown)
    (problem,) = caught.value.problems
    assert says in problem.message and problem.where is not None


def test_the_cases_name_every_operator() -> None:
    named = {yaml.safe_load(case.grown)["enter"]["growth"]["use"] for case in CASES.values()}
    offered: set[Any] = {component.id for component in registry().of_kind("growth") if component.provider == "transformer"}
    of_experts = {"transformer.upcycle", "transformer.add-experts"}  # walked in tests/transformer/test_experts.py
    assert offered == named | of_experts
