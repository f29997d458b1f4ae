"""A mixture of experts: what it computes, its losses and its capacity, and how it grows."""

from __future__ import annotations

import re
from math import ceil, log
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import torch.nn.functional as F
from grown_models import VOCAB, grow, language_model
from tiny_walks import base, drive, machine_of, memory, moments, problems_of, registry, weights

import stackwise
from stackwise import BuildContext, GrowthRequest, UserError, conformance
from stackwise_providers_transformer import provider
from stackwise_providers_transformer.block_options import ExpertOptions
from stackwise_providers_transformer.expert_growth import build_add_experts, build_upcycle
from stackwise_providers_transformer.experts import Experts
from stackwise_providers_transformer.growth_options import AddExpertsOptions, UpcycleOptions

ROOT = Path(__file__).parents[2]
CONTEXT = BuildContext(seed=0)
UPCYCLE = build_upcycle(UpcycleOptions(), CONTEXT)
DECODER = next(each for each in provider.stackwise_racks() if each.name == "decoder")
SPARSE = {"width": 8, "heads": 2, "stacks": [{"base": 1}], "experts": {"count": 4, "active": 2, "capacity": 1.0}}

test_a_decoder_with_experts_conforms = conformance.parametrize({"rack": [attrs.evolve(DECODER, example=SPARSE)]})


def mixture(std: float = 0.5, **options: Any) -> Experts:
    torch.manual_seed(0)
    made = ExpertOptions(**{"count": 4, "active": 2, **options})
    return Experts(made, "swiglu", width=8, features=12, bias=True, std=std, output_std=0.5)


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("gates", ["chosen", "all"])
@pytest.mark.parametrize("active", [1, 2, 4])
def test_every_position_gets_its_experts_by_its_gates(gates: str, active: int) -> None:
    experts, x = mixture(gates=gates, active=active), drawn(2, 5, 8)
    mixed, _ = experts(x, None)
    for b in range(2):
        for t in range(5):
            scores = experts.router.weight @ x[b, t]
            best = sorted(range(4), key=lambda e, s=scores: -s[e].item())[:active]
            over = scores[best] if gates == "chosen" else scores
            shares = {e: (scores[e].exp() / over.exp().sum()).item() for e in best}
            expected = sum(share * experts.experts[e](x[b, t]) for e, share in shares.items())
            assert torch.allclose(mixed[b, t], expected, atol=1e-6)


def test_the_balance_of_a_uniform_router_is_one_and_z_the_square_of_its_logarithm() -> None:
    _, sums = mixture(std=0.0)(drawn(3, 7, 8), None)
    balance, z = (total.item() / count.item() for total, count in (sums["balance"], sums["z"]))
    assert balance == pytest.approx(1.0, abs=1e-6)
    assert z == pytest.approx(log(4) ** 2, rel=1e-6)


def test_the_balance_of_a_collapsed_router_is_the_number_of_experts() -> None:
    experts = mixture(active=1)
    with torch.no_grad():
        experts.router.weight.copy_(torch.tensor([[100.0], [0], [0], [0]]).expand(4, 8))
    _, sums = experts(torch.ones(2, 6, 8), None)
    assert sums["balance"][0].item() / sums["balance"][1].item() == pytest.approx(4.0, rel=1e-5)


def test_the_losses_are_those_of_the_formulas_row_by_row_without_padding() -> None:
    experts, x = mixture(), drawn(3, 6, 8)
    real = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    _, sums = experts(x, real)
    balance = z = 0.0
    for b in range(2):
        rows = x[b][real[b]]
        scores = rows @ experts.router.weight.T
        chosen = scores.topk(2).indices
        f = torch.tensor([(chosen == e).float().mean().item() for e in range(4)])  # share of all choices
        balance += 4 * (f * scores.softmax(-1).mean(0)).sum().item() * len(rows)
        z += scores.exp().sum(-1).log().square().sum().item()
    assert [sums[name][1].item() for name in ("balance", "z")] == [9, 9]
    assert sums["balance"][0].item() == pytest.approx(balance, rel=1e-5)
    assert sums["z"][0].item() == pytest.approx(z, rel=1e-5)


def test_an_expert_without_room_drops_the_later_positions_of_a_row_in_training_alone() -> None:
    experts, x = mixture(active=1, capacity=1.0), torch.ones(2, 8, 8)
    with torch.no_grad():
        experts.router.weight.copy_(torch.tensor([[1.0], [0], [0], [0]]).expand(4, 8))
    mixed, sums = experts.train()(x, None)
    room = ceil(1.0 * 8 / 4)
    assert torch.equal(mixed.abs().sum(-1) > 0, (torch.arange(8) < room).expand(2, 8))
    assert [part.item() for part in sums["dropped"]] == [2 * (8 - room), 16]
    mixed, sums = experts.eval()(x, None)
    assert bool((mixed.abs().sum(-1) > 0).all()) and sums["dropped"][0].item() == 0
    padded = torch.arange(8) >= 4  # padding in front takes no room
    mixed, sums = experts.train()(x, padded.expand(2, 8))
    assert torch.equal(mixed[0].abs().sum(-1) > 0, (torch.arange(8) >= 4) & (torch.arange(8) < 4 + room))
    assert [part.item() for part in sums["dropped"]] == [2 * (4 - room), 8]


def test_every_expert_has_a_gradient_even_if_nobody_chose_it() -> None:
    experts = mixture(active=1)
    with torch.no_grad():
        experts.router.weight.zero_()  # of equal scores the first is taken
    mixed, sums = experts(drawn(1, 4, 8), None)
    (mixed.sum() + sums["z"][0] + sums["balance"][0]).backward()
    assert all(parameter.grad is not None for parameter in experts.parameters())
    assert float(experts.experts[3].up.weight.grad.abs().sum()) == 0.0
    assert float(experts.router.weight.grad.abs().sum()) > 0


def test_the_router_scores_in_float32_under_bfloat16() -> None:
    experts, x = mixture(), drawn(1, 6, 8)
    _, plain = experts(x, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, lowered = experts(x, None)
    assert lowered["z"][0].item() == plain["z"][0].item()


def logits(model: stackwise.Model, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model({"tokens": tokens})["logits"]


TOKENS = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("options", [{"mlp": "swiglu"}, {"mlp": "gelu", "bias": True}, {"mlp": "silu", "residual": "parallel"}])
@pytest.mark.parametrize("experts", [{"count": 4, "active": 4}, {"count": 4, "active": 2}, {"count": 3, "active": 3, "gates": "all"}])
def test_upcycling_keeps_the_function(options: dict[str, Any], experts: dict[str, Any]) -> None:
    old = language_model(**options)
    new = language_model(**options, experts=ExpertOptions(**experts), seed=5)
    if experts["active"] == experts["count"]:
        with torch.no_grad():
            for name, parameter in new.named_parameters():
                if "router" in name:
                    parameter.zero_()  # uniform gates
    maps = UPCYCLE.map_parameters(shapes(old), shapes(new), GrowthRequest(old_stacks={}, new_stacks={}))
    filled(old, new, maps)
    assert (logits(new, TOKENS) - logits(old, TOKENS)).abs().max().item() <= 1e-6
    assert sum("experts" in name for name in maps) == sum("experts" in name for name in shapes(new))


def shapes(model: stackwise.Model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def filled(old: stackwise.Model, new: stackwise.Model, maps: Any) -> None:
    """As a run fills it: what has no origin stays as it was drawn."""
    before = dict(old.named_parameters())
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            source = maps[name].source if name in maps else name
            if source in before:
                parameter.copy_(before[source])


def test_moments_are_shared_out_as_the_gradient_is() -> None:
    old = language_model()
    new = language_model(experts=ExpertOptions(count=4, active=4), seed=5)
    maps = UPCYCLE.map_parameters(shapes(old), shapes(new), GrowthRequest(old_stacks={}, new_stacks={}))
    filled(old, new, maps)
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            if "router" in name:
                parameter.zero_()
    for model in (old, new):
        F.cross_entropy(model({"tokens": TOKENS[:, :-1]})["logits"].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    dense = old.get_parameter("rack.stacks.base.0.mlp.up.weight").grad
    for e in range(4):
        name = f"rack.stacks.base.0.mlp.experts.{e}.up.weight"
        share = maps[name].gradient[0][0]
        assert torch.allclose(new.get_parameter(name).grad, share * dense, atol=1e-7)


def test_gates_that_do_not_add_up_are_refused() -> None:
    options = {"rack": {"experts": ExpertOptions(count=4, active=2, gates="all")}}
    with pytest.raises(ValueError, match="gates"):
        UPCYCLE.map_parameters({}, {}, GrowthRequest(old_stacks={}, new_stacks={}, new_options=options))
    with pytest.raises(ValueError, match="nothing to do"):
        grow(language_model(), language_model(seed=1), UPCYCLE)
    with pytest.raises(ValueError, match="same form and size"):
        grow(language_model(ff=16), language_model(ff=24, experts=ExpertOptions(count=2)), UPCYCLE)
    with pytest.raises(ValueError, match="nothing to do"):
        grow(language_model(), language_model(seed=1), build_add_experts(AddExpertsOptions(), CONTEXT))


def walk(**changes: Any) -> dict[str, Any]:
    rack = {"use": "transformer.decoder", "width": 8, "heads": 2, "ff": 12, "stacks": [{"base": 2}]}
    model = {"embedding": {"use": "transformer.token", "vocab": 16}, "rack": rack, "head": {"use": "transformer.lm"}}
    weigh = {"task": {"auxiliary": {"rack.balance": 0.01, "rack.z": 0.001}}}
    phases = {
        "dense": {"until": "4 steps"},
        "sparse": {
            "until": "8 steps",
            **weigh,
            "model": {"rack": {"experts": {"count": 3, "active": 2}}},
            "enter": {"growth": {"use": "transformer.upcycle"}},
        },
        "more": {"model": {"rack": {"experts": {"count": 5}}}, "enter": {"growth": {"use": "transformer.add-experts", **changes}}},
    }
    run = {"name": "experts", "seed": 3, "horizon": "12 steps", "device": "cpu", "probe": True}
    return base(run=run, model=model, phases=phases, data={"sources": {"a": memory()}, "batch_size": 4, "seq_len": 6})


@pytest.mark.parametrize("start", ["copy", "fresh"])
def test_a_run_upcycles_and_adds_experts_with_the_moments_of_the_old(start: str) -> None:
    machine = machine_of(walk(start=start))
    before: Any = {}
    for event in machine.train():
        if isinstance(event, stackwise.StepDone):
            before = moments(machine), weights(machine)
            if event.phase != "dense":
                assert event.metrics["rack.balance"] > 0.9 and event.metrics["rack.z"] > 0
        if isinstance(event, stackwise.PhaseEntered) and event.phase == "sparse":
            assert event.probe_change is not None and event.probe_change <= 1e-6
            old, new = before[0], moments(machine)
            for name in (name for name in new if ".experts." in name):
                dense = old[re.sub(r"experts\.\d\.", "", name)]
                assert torch.allclose(new[name]["exp_avg"], dense["exp_avg"] / 3, atol=1e-9)
                assert torch.allclose(new[name]["exp_avg_sq"], dense["exp_avg_sq"] / 9, atol=1e-12)
        if isinstance(event, stackwise.PhaseEntered) and event.phase == "more":
            (old, old_weights), new, new_weights = before, moments(machine), weights(machine)
            for name in (name for name in old if ".experts." in name):
                assert all(torch.equal(new[name][entry], old[name][entry]) for entry in old[name])
                assert torch.equal(new_weights[name], old_weights[name])
            router = "rack.stacks.base.0.mlp.router.weight"
            assert torch.equal(new[router]["exp_avg"][:3], old[router]["exp_avg"]) and new_weights[router].shape == (5, 8)
            assert torch.equal(new_weights[router][:3], old_weights[router])
            added, first = (f"rack.stacks.base.1.mlp.experts.{e}.down.weight" for e in (3, 0))
            assert torch.equal(new_weights[added], new_weights[first]) == (start == "copy")
            assert (added in new) == (start == "copy")


def test_a_run_with_experts_is_priced_by_those_that_work_and_refused_without_weights() -> None:
    from tiny_walks import plan_of

    from stackwise.assembly.pricing import price

    def flops(active: int) -> int:
        config = walk()
        del config["phases"]
        config["model"]["rack"]["experts"] = {"count": 4, "active": active}
        config["task"] = {**config["task"], "auxiliary": {"rack": {"balance": 0.01, "z": 0}}}
        counted = price(plan_of(config))[0].flops
        assert counted is not None
        return counted

    one, two, four = flops(1), flops(2), flops(4)
    assert two - one == pytest.approx((four - two) / 2, rel=0.01) and two > one
    bare = walk()
    del bare["phases"]["sparse"]["task"]
    assert {problem.path for problem in problems_of(bare)} == {"task.auxiliary"}


@pytest.mark.parametrize(("options", "key"), [({"count": 2, "active": 3}, "active"), ({"count": 2, "capacity": 0.0}, "capacity")])
def test_impossible_options_are_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        ExpertOptions(**options)


def test_a_cache_of_keys_continues_a_row_exactly() -> None:
    model = language_model(experts=ExpertOptions(count=4, active=2, capacity=0.5))
    whole = logits(model, TOKENS)
    with torch.no_grad(), model.rack.caching(9):  # type: ignore[operator]
        parts = [model({"tokens": TOKENS[:, i : i + 3]})["logits"] for i in range(0, 9, 3)]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)


@pytest.mark.slow
def test_the_example_keeps_the_function_balances_and_learns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    small = ["run.device=cpu", "run.horizon=120 steps", "data.batch_size=8", "data.seq_len=32", "evaluate.heldout.batches=4"]
    small += ["model.rack.width=32", "model.rack.heads=2", "model.rack.ff=48", "evaluate.heldout.batch_size=8"]
    machine = stackwise.assemble(stackwise.make_plan(stackwise.load(ROOT / "examples" / "experts.yaml", small), registry()))
    judged: dict[tuple[str, str], dict[str, float]] = {}
    for event in drive(machine):
        if isinstance(event, stackwise.PhaseEntered) and event.phase == "experts":
            assert event.probe_change is not None and event.probe_change < 1e-5
        if isinstance(event, stackwise.Evaluated):
            judged[event.phase, event.at] = dict(event.metrics)
    assert judged["more", "exit"]["loss"] < judged["dense", "exit"]["loss"] < judged["dense", "entry"]["loss"] - 1.0
    assert judged["experts", "exit"]["rack.balance"] < 1.3


def padded(task: str) -> dict[str, Any]:
    """Rows of nine tokens, of which the first three to nine are real."""
    generator = torch.Generator().manual_seed(5)
    rows: dict[str, Any] = {}
    for name in ("chosen", "rejected") if task == "preference" else ("tokens",):
        real = torch.arange(9) < torch.randint(3, 10, (8, 1), generator=generator)
        rows |= {name: torch.randint(1, 16, (8, 9), generator=generator) * real, "mask" if name == "tokens" else f"{name}_mask": real}
    timed = list(rows)
    if task != "causal-lm":
        rows["prefix"] = torch.full((8,), 2)
    return {"use": "data.memory", "arrays": {name: rows[name].numpy() for name in rows}, "time": timed, "heldout": 0}


@pytest.mark.parametrize(
    ("task", "options"), [("causal-lm", {}), ("seq2seq", {}), ("preference", {"method": "simpo"})], ids=lambda each: str(each)
)
def test_padding_is_in_no_sum_of_the_experts_whatever_the_task(task: str, options: dict[str, Any]) -> None:
    """Computed from what the routers are given: the balance row by row, the z-loss position by position, over real tokens alone."""
    config = walk()
    del config["phases"]
    config["task"] = {"use": f"transformer.{task}", **options, "auxiliary": {"rack.balance": 0.01, "rack.z": 0.001}}
    config["model"]["rack"]["experts"] = {"count": 4, "active": 1}
    config["data"] = {"sources": {"a": padded(task)}, "batch_size": 4, "seq_len": 8}
    machine = machine_of(config)
    scored: list[torch.Tensor] = []
    read: list[torch.Tensor] = []
    for event in (events := machine.train()):
        if isinstance(event, stackwise.PhaseEntered):
            machine.model.model.embedding.register_forward_pre_hook(lambda _m, _args, given: read.append(given["tokens"]), with_kwargs=True)
            for block in machine.model.model.get_submodule("rack.stacks.base").children():
                block.get_submodule("mlp.router").register_forward_hook(lambda _module, _given, scores: scored.append(scores.detach()))
        if isinstance(event, stackwise.StepDone):
            break
    events.close()
    real = read[0] != 0
    assert len(scored) == 2 and 0 < real.sum() < real.numel()
    balance = z = 0.0
    for scores in scored:
        for row, there in zip(scores, real, strict=True):
            chosen = torch.bincount(row[there].argmax(-1), minlength=4) / there.sum()
            balance += 4 * float((chosen * row[there].softmax(-1).mean(0)).sum()) * int(there.sum())
            z += float(row[there].exp().sum(-1).log().square().sum())
    assert event.metrics["rack.balance"] == pytest.approx(balance / (2 * int(real.sum())), rel=1e-5)
    assert event.metrics["rack.z"] == pytest.approx(z / (2 * int(real.sum())), rel=1e-5)
