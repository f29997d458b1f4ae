"""Growth by linear combination: a third party's average of blocks, and its learnt projection of widths (LiGO, arXiv 2303.00980)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from stackwise import ProviderError, cli
from stackwise.assembly.machine import assemble
from stackwise.config import experiment
from stackwise.contracts.events import PhaseEntered, StepDone
from stackwise.host.discovery import discover
from stackwise.plan import make_plan

CODE = """
import random
from attrs import frozen
from stackwise import BlockOrigin, Combine, Component, CopyOf, hookimpl, option

@frozen(kw_only=True)
class Options:
    state: str = option("map", doc="what becomes of moments", choices=("map", "reset"))

class Between:
    preserves_function = False

    def __init__(self, options):
        self.options = options

    def map_blocks(self, request):
        (stack, old), = request.old_stacks.items()
        if request.new_stacks[stack] != 2 * old - 1:
            raise ValueError("a block comes between every two: from n to 2n - 1")
        return {(stack, i): BlockOrigin(source=(stack, i // 2)) for i in range(2 * old - 1)}

    def map_parameters(self, old, new, request):
        # blocks go by their new names: 0, 2, … are the old ones, and between them stands their average
        origins = {}
        for name in new:
            start, _, rest = name.partition("rack.stacks.base.")
            index, _, inside = rest.partition(".")
            if start == "" and index.isdigit() and int(index) % 2:
                sides = (f"rack.stacks.base.{int(index) + side}.{inside}" for side in (-1, 1))
                origins[name] = Combine([(CopyOf(source=side), 0.5) for side in sides], moments=self.options.state)
        return origins

@frozen(kw_only=True)
class Nothing: pass

def matrix(rows, columns):
    chance = random.Random(rows)  # where LiGO would have learnt it
    return tuple(tuple(chance.gauss(0, columns**-0.5) for _ in range(columns)) for _ in range(rows))

class Project:
    preserves_function = False

    def map_blocks(self, request):
        return {(s, i): BlockOrigin(source=(s, i)) for s, n in request.new_stacks.items() for i in range(n)}

    def map_parameters(self, old, new, request):
        grown = {name: [d for d, sizes in enumerate(zip(old[name], new[name])) if sizes[0] != sizes[1]] for name in new if name in old}
        return {
            name: Combine([(CopyOf(source=name, project={d: matrix(new[name][d], old[name][d]) for d in dims}), 1.0)])
            for name, dims in grown.items() if dims
        }

class Wrong(Between):
    def map_parameters(self, old, new, request):
        return {name: 0.5 for name in new}

def between(options, context): return Between(options)
def project(options, context): return Project()
def wrong(options, context): return Wrong(options)

@hookimpl
def stackwise_growth_operators():
    yield Component(name="between", options="fake_mixer:Options", factory="fake_mixer:between")
    yield Component(name="project", options="fake_mixer:Nothing", factory="fake_mixer:project")
    yield Component(name="wrong", options="fake_mixer:Options", factory="fake_mixer:wrong")
"""


@pytest.fixture
def mixer(site: Any) -> None:
    site.install("mixer", CODE)


def config(growth: dict[str, Any], rack: dict[str, Any]) -> dict[str, Any]:
    decoder = {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 2}]}
    tokens = [(7 * i + i // 5) % 11 for i in range(400)]
    return {
        "run": {"name": "mixed", "horizon": "12 steps", "device": "cpu", "seed": 1},
        "task": {"use": "transformer.causal-lm"},
        "data": {"sources": {"a": {"use": "data.memory", "arrays": {"tokens": tokens}, "vocab": 11}}, "batch_size": 2, "seq_len": 8},
        "model": {"embedding": {"use": "transformer.token"}, "rack": decoder, "head": {"use": "transformer.lm"}},
        "optimizer": {"use": "optim.adamw", "lr": 1e-2},
        "phases": {"small": {"until": "50%"}, "large": {"model": {"rack": rack}, "enter": {"growth": growth}}},
    }


DEEPER, WIDER = {"stacks": [{"base": 3}]}, {"width": 12}


def crossed(tree: dict[str, Any]) -> tuple[dict[str, torch.Tensor], Any, Any, PhaseEntered]:
    """Weights and moments before the boundary, and the machine and the event right behind it."""
    machine = assemble(make_plan(experiment(tree), discover()))
    for event in (walk := machine.train()):
        if isinstance(event, StepDone) and event.step == 5:
            weights = {name: p.detach().clone() for name, p in machine.model.model.named_parameters()}
            moments = {n: {k: v.clone() for k, v in e.items()} for n, e in machine.optimizer.state_by_name().items()}
        if isinstance(event, PhaseEntered) and event.step == 6:
            machine.walk = walk  # type: ignore[attr-defined]  # so that it goes on
            return weights, moments, machine, event
    raise AssertionError


@pytest.mark.usefixtures("mixer")
@pytest.mark.parametrize("moments", ["map", "reset"])
def test_a_block_between_two_is_their_average_and_so_are_its_moments(moments: str) -> None:
    weights, held, machine, entered = crossed(config({"use": "mixer.between", "state": moments}, DEEPER))
    now, state = dict(machine.model.model.named_parameters()), machine.optimizer.state_by_name()
    inside = [name.removeprefix("rack.stacks.base.0.") for name in weights if name.startswith("rack.stacks.base.0.")]
    assert entered.copied == len(inside) and entered.fresh == 0
    for name in inside:
        first, last, middle = (f"rack.stacks.base.{i}.{name}" for i in (0, 1, 1))
        torch.testing.assert_close(now[middle].detach(), (weights[first] + weights[last]) / 2, rtol=0, atol=1e-7)
        assert torch.equal(now[f"rack.stacks.base.2.{name}"].detach(), weights[last])
        if moments == "reset":
            assert middle not in state
            continue
        one, two = held[first], held[last]
        torch.testing.assert_close(state[middle]["exp_avg"], (one["exp_avg"] + two["exp_avg"]) / 2)
        bound = ((one["exp_avg_sq"].sqrt() + two["exp_avg_sq"].sqrt()) / 2).square()
        torch.testing.assert_close(state[middle]["exp_avg_sq"], bound)
        assert float(state[middle]["step"]) == float(one["step"])


@pytest.mark.usefixtures("mixer")
def test_a_projection_of_every_width_is_that_of_its_matrices() -> None:
    import fake_mixer  # type: ignore[import-not-found]  # of the fixture

    weights, _, machine, entered = crossed(config({"use": "mixer.project"}, WIDER))
    assert entered.fresh == 0 and entered.copied > 0
    up = torch.tensor(fake_mixer.matrix(12, 8))
    now = dict(machine.model.model.named_parameters())
    for name, old in weights.items():
        expected = old
        for dim, (before, after) in enumerate(zip(old.shape, now[name].shape, strict=True)):
            if before != after:
                by = torch.tensor(fake_mixer.matrix(after, before)) if (after, before) != (12, 8) else up
                expected = (expected.movedim(dim, -1) @ by.T).movedim(-1, dim)
        torch.testing.assert_close(now[name].detach(), expected, rtol=1e-5, atol=1e-6)
    rest = [event for event in machine.walk if isinstance(event, StepDone)]
    assert len(rest) == 6 and all(event.loss < 10 for event in rest)


@pytest.mark.usefixtures("mixer")
def test_the_plan_says_how_many_are_combined_and_a_branch_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    import yaml

    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(yaml.safe_dump(config({"use": "mixer.between"}, DEEPER), sort_keys=False))
    call = CliRunner().invoke
    asked = call(cli.main, ["plan", "c.yaml", "--json"])
    assert asked.exit_code == 0, asked.output
    plan = json.loads(asked.stdout)
    transition = plan["phases"][1]["transition"]
    assert transition["combined"] == transition["copied"] > 0
    saving = ["--set", "run.checkpoint.every=2 steps", "--set", "run.checkpoint.keep_last=10"]
    assert call(cli.main, ["run", "c.yaml", *saving]).exit_code == 0
    for step in (6, 8):
        done = call(cli.main, ["branch", "runs/mixed-001", "--at", f"step {step}", "--output", f"runs/from-{step}"])
        assert done.exit_code == 0, done.output
        digests = [(Path("runs") / run / "final" / "weights.safetensors").read_bytes() for run in ("mixed-001", f"from-{step}")]
        assert digests[0] == digests[1]


@pytest.mark.usefixtures("mixer")
def test_an_answer_that_is_no_origin_is_the_providers() -> None:
    with pytest.raises(ProviderError, match="Combine"):
        crossed(config({"use": "mixer.wrong"}, DEEPER))
