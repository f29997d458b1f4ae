"""What a third party may rely on, and what it is told when it breaks its side: `waves` and a few faulty neighbours in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from distributions import Site
from torch import nn

import stackwise
from stackwise import Built, ConfigError, DataError, Plan, ProviderError, UserError
from stackwise.assembly.pricing import price
from stackwise.assembly.workshop import Workshop
from stackwise.curriculum.transitions import Transition
from stackwise.host.registry import Registry
from stackwise.runs.run import run
from stackwise.saved.provenance import changed_files

SOURCE = Path(__file__).parent / "waves-for-stackwise"

FAULTY = """
from attrs import frozen
from stackwise import BatchSpec, BlockOrigin, Component, RackSpec, TensorSpec, dimension, hookimpl, option, scheduled

@frozen(kw_only=True)
class Rate:
    rate: float = scheduled(1.0, doc="a number")

@frozen(kw_only=True)
class Hasty:
    width: int = dimension("width", doc="features")
    def to_spec(self):
        return RackSpec(input=TensorSpec(("batch", "time", 2 * self.width)))

@frozen(kw_only=True)
class Mode:
    mode: str = option(doc="what is wrong with it")
    def to_spec(self):
        return BatchSpec(fields={"levels": TensorSpec("batch time", "float32")})
    def count_epoch(self, split):
        return 1 // (self.mode != "countless") * None

def no_values(options, context):
    return lambda batch, moment, generator: batch

class Keeps:
    preserves_function = False
    def __init__(self, rate):
        self.rate = rate
    def map_blocks(self, request):
        if self.rate == 0:
            raise TypeError("rate zero")
        return {(s, i): BlockOrigin(source=(s, 0)) for s, n in request.new_stacks.items() for i in range(n)}

def grow(options, context):
    return Keeps(options.rate)

def observe(options, context):
    return lambda event, rate=options.rate: None

class Loader:
    def __init__(self, mode):
        self.mode = mode
        self.taken = 0
    def get_batch_spec(self):
        return BatchSpec(fields={"levels": TensorSpec("batch time", "float32")})
    def take(self, rows, length):
        import torch
        self.taken += 1
        if self.mode.isdigit() and self.taken > int(self.mode):
            raise RuntimeError("the well is dry")
        return {"levels": torch.zeros(rows - (self.mode == "few"), length - (self.mode == "short"))}
    def state_dict(self):
        return {}
    def load_state_dict(self, state):
        pass

def load(options, context):
    return Loader(options.mode)

@hookimpl
def stackwise_transforms():
    return [Component(name="mute", options=__name__ + ":Rate", factory=__name__ + ":no_values")]

@hookimpl
def stackwise_growth_operators():
    return [Component(name="grow", options=__name__ + ":Rate", factory=__name__ + ":grow")]

@hookimpl
def stackwise_observers():
    return [Component(name="watch", options=__name__ + ":Rate", factory=__name__ + ":observe")]

@hookimpl
def stackwise_loaders():
    return [Component(name="load", options=__name__ + ":Mode", factory=__name__ + ":load")]

@hookimpl
def stackwise_racks():
    return [Component(name="hasty", options=__name__ + ":Hasty", factory=__name__ + ":load")]
"""

Make = Callable[..., Plan]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """`waves` from its source, `faulty` beside it, and the core's own."""
    folder = tmp_path / "site"
    folder.mkdir()
    site = Site(folder)
    site.install("waves", None, value="waves_for_stackwise.provider", distribution="waves-for-stackwise")
    site.install("faulty", FAULTY)
    monkeypatch.syspath_prepend(str(SOURCE / "src"))
    monkeypatch.syspath_prepend(str(folder))
    yield stackwise.discover(allow={"core", "waves", "faulty", "transformer"})


@pytest.fixture
def plan(registry: Registry) -> Make:
    """A plan of two phases over a small base, with what a test changes laid on it."""

    def make(phases: Mapping[str, Any] | None = None, **sections: Any) -> Plan:
        base: dict[str, Any] = {
            "run": {"horizon": "6 steps"},
            "task": {"use": "waves.forecast"},
            "data": {"sources": {"sines": {"use": "waves.sines"}}, "batch_size": 2, "seq_len": 8},
            "model": {
                "embedding": {"use": "waves.level"},
                "rack": {"use": "waves.conv", "width": 4, "stacks": [{"base": 1}]},
                "head": {"use": "waves.level"},
            },
            "optimizer": {"use": "waves.signum", "lr": 1e-3},
            "phases": {"first": {"until": "50%"}, "second": dict(phases or {})},
        }
        return stackwise.make_plan(stackwise.experiment(base, **sections), registry)

    return make


GROW = {"model": {"rack": {"stacks": [{"base": 2}]}}}


def crossing(made: Plan) -> Transition:
    found = made.schedule.phases[1].transition
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("delta", "preserved"),
    [
        ({"model": {"rack": {"kernel": 1}}}, False),
        ({"model": {"adapters": {"rack-head": [{"use": "waves.squash", "limit": 1.0}]}}}, False),
        ({"model": {"rack": {"dropout": 0.5}}}, True),
        ({"model": {"freeze": ["embedding"]}}, True),
        ({"optimizer": {"use": "waves.signum", "lr": 0.1, "momentum": 0.5}}, True),
        ({**GROW, "enter": {"growth": {"use": "transformer.identity"}}}, True),
        ({**GROW, "enter": {"growth": {"use": "waves.repeat"}}}, False),
    ],
)
def test_a_plan_says_truly_whether_the_function_is_preserved(plan: Make, delta: dict[str, Any], preserved: bool) -> None:
    assert crossing(plan(delta)).preserves_function is preserved


def test_options_that_may_follow_time_reach_what_lives_at_one_instant(plan: Make) -> None:
    made = plan({**GROW, "enter": {"growth": {"use": "faulty.grow", "rate": 3.0}}}, observers=[{"use": "faulty.watch", "rate": 5.0}])
    operator: Any = crossing(made).operator
    assert operator.rate == 3.0
    observer: Any = Workshop(made).observer(made.observers[0])
    assert observer.__defaults__ == (5.0,)
    with pytest.raises(ConfigError, match=r"observers.0.rate: .* has no time to follow here: give a number"):
        plan(observers=[{"use": "faulty.watch", "rate": {"linear": {"from": 1, "to": 0}}}])


def test_a_growth_operator_that_breaks_is_the_providers_fault(plan: Make) -> None:
    with pytest.raises(ProviderError, match=r"'faulty.grow' \(fake-faulty 1.0\) failed: TypeError: rate zero"):
        plan({**GROW, "enter": {"growth": {"use": "faulty.grow", "rate": 0}}})


def test_a_spec_that_computes_with_an_open_size_is_explained(plan: Make) -> None:
    with pytest.raises(ProviderError, match=r"to_spec\(\) of rack 'faulty.hasty' .*still None, so a spec names dimensions"):
        plan(model={"embedding": {"use": "waves.level", "width": 4}, "rack": {"use": "faulty.hasty"}})


@pytest.mark.parametrize("mode", ["countless", "counting"])
def test_counting_an_epoch_that_breaks_is_the_providers_fault(plan: Make, mode: str) -> None:
    with pytest.raises(
        ProviderError, match=r"count_epoch\(\) of loader 'faulty.load' \(fake-faulty 1.0\) failed: (TypeError|ZeroDivisionError)"
    ):
        plan(run={"horizon": "2 epochs"}, data={"sources": {"sines": {"use": "faulty.load", "mode": mode}}})


def test_a_transform_whose_values_cannot_arrive_is_refused(plan: Make) -> None:
    with pytest.raises(ProviderError, match=r"faulty.mute declares options that follow time"):
        list(stackwise.assemble(plan(data={"transforms": [{"use": "faulty.mute"}]})).train())


@pytest.mark.parametrize(("mode", "said"), [("few", "asked for 1 row and delivered 0"), ("short", r"rows of 9 .*\[1, 8\]")])
def test_a_loader_that_delivers_less_than_was_asked_is_refused(plan: Make, mode: str, said: str) -> None:
    with pytest.raises(ProviderError, match=said):
        list(stackwise.assemble(plan(data={"sources": {"sines": {"use": "faulty.load", "mode": mode}}})).train())


@pytest.mark.parametrize(("takes", "began"), [(0, False), (40, True)], ids=["rehearsal", "mid-run"])
def test_what_a_provider_raises_while_it_is_used_is_its_own_fault(registry: Registry, tmp_path: Path, takes: int, began: bool) -> None:
    config = tmp_path / "x.yaml"
    config.write_text((SOURCE / "grow-waves.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    settings = ["data.sources.sines.use=faulty.load", f"data.sources.sines.mode='{takes}'", "observers=[]", "evaluate=null"]
    with pytest.raises(ProviderError, match=r"fake-faulty 1.0 failed in take \(fake_faulty.py:\d+\): RuntimeError: the well is dry"):
        run(config, settings, tmp_path / "out")
    status = tmp_path / "out" / "status.json"
    assert status.exists() == began
    assert not began or "the well is dry" in status.read_text(encoding="utf-8")


def test_plan_log_and_checkpoint_say_whose_code_ran_down_to_its_files(registry: Registry, tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    config.write_text((SOURCE / "grow-waves.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    run(config, ["run.horizon=6 steps", "observers=[]", "optimizer.lr=1e-3", "phases=null"], tmp_path / "out")
    waves = registry.provider("waves")
    assert waves is not None
    (planned,) = json.loads((tmp_path / "out" / "plan.json").read_text(encoding="utf-8"))["providers"]
    (begun, *_) = (tmp_path / "out" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    (state,) = {path.read_text(encoding="utf-8") for path in (tmp_path / "out" / "checkpoints").glob("*6/state.json")}
    assert planned == {**waves.provenance()} and len(planned["sha256"]) == 64
    assert json.loads(begun)["providers"] == [f"{waves.distribution} {waves.version} sha256:{planned['sha256']}"]
    assert json.loads(state)["about"]["providers"] == [planned]


def test_other_files_of_the_same_version_are_told_when_a_run_goes_on(plan: Make) -> None:
    made = plan()
    now = [provider.provenance() for provider in made.providers]
    assert changed_files(now, made) == []
    told = changed_files([{**row, "sha256": "0" * 64} for row in now], made)
    assert told == [
        f"provider '{row['provider']}' ({row['distribution']} {row['version']}) has other files than at the checkpoint: "
        "the rest need not be equal to the bit"
        for row in now
    ]


def test_an_evaluations_own_sources_are_joined_with_the_task(plan: Make) -> None:
    made = plan(evaluate={"slow": {"sources": {"s": {"use": "waves.sines", "shortest": 20.0}}, "batches": 1}})
    metrics = [event for event in stackwise.assemble(made).train() if isinstance(event, stackwise.Evaluated)]
    assert [event.at for event in metrics] == ["entry", "exit", "entry", "exit"]
    stream = {"use": "waves.sines", "longest": 1.0}
    with pytest.raises(ConfigError, match=r"evaluate.slow.sources.s"):
        plan(evaluate={"slow": {"sources": {"s": stream}}})


def test_an_evaluation_never_reads_on_in_the_training_stream(plan: Make) -> None:
    with pytest.raises(ConfigError, match="would read on in the finished object of training source 'data'"):
        plan(data=iter([{"levels": torch.zeros(2, 9)}]), evaluate={"clean": {}})


class Lines(nn.Module):
    """A rack of a user's own."""

    def __init__(self, width: int, stacks: Mapping[str, int]) -> None:
        super().__init__()
        self.stacks = nn.ModuleDict({name: nn.ModuleList(nn.Linear(width, width) for _ in range(n)) for name, n in stacks.items()})

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for blocks in self.stacks.children():
            for block in blocks.children():
                hidden = hidden + block(hidden)
        return hidden


WIDTHS = {"embedding": {"use": "waves.level", "width": 4}, "head": {"use": "waves.level", "width": 4}}


def test_pricing_leaves_finished_modules_as_they_are(plan: Make) -> None:
    rack = Lines(4, {"base": 1})
    before = {name: tensor.clone() for name, tensor in rack.state_dict().items()}
    prices = price(plan({"model": {"freeze": ["embedding"]}}, model={**WIDTHS, "rack": rack}))
    assert prices[0].trainable - prices[1].trainable == 8  # a weight and a bias for each of 4 features
    assert all(parameter.requires_grad for parameter in rack.parameters())
    after = rack.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_options_laid_on_a_finished_object_are_refused_by_their_own_names(plan: Make) -> None:
    with pytest.raises(ConfigError, match=r"phases.second.model.rack.stacks: a finished object takes no options: give Built"):
        plan(GROW, model={**WIDTHS, "rack": Lines(4, {"base": 1})})


def test_a_class_where_an_instance_is_meant_is_named(plan: Make) -> None:
    with pytest.raises(ConfigError, match=r"model.rack: Lines is a class: give an instance, or Built\(Lines, <option>=…\)"):
        plan(model={**WIDTHS, "rack": Lines})


def test_growth_may_be_given_in_code(plan: Make) -> None:
    from waves_for_stackwise.growth import Repeat

    for growth in (Repeat(), Built(Repeat)):
        made = plan({**GROW, "enter": {"growth": growth}}, model={**WIDTHS, "rack": Built(Lines, width=4, stacks=[{"base": 1}])})
        (entered,) = [e for e in stackwise.assemble(made).train() if isinstance(e, stackwise.PhaseEntered) and e.phase_index]
        assert (entered.adopted, entered.copied, entered.fresh) == (6, 2, 0)


def test_ready_made_batches_obey_rename_and_refuse_other_sizes(plan: Make) -> None:
    sources = {"sines": None, "data": [{"x": torch.zeros(2, 9)}]}
    machine = stackwise.assemble(plan(data={"sources": sources, "rename": {"levels": "x"}}))
    assert sum(isinstance(event, stackwise.StepDone) for event in machine.train()) == 6
    with pytest.raises(DataError, match="are 9 long where 5 were asked for"):
        list(stackwise.assemble(plan(data={"sources": sources, "rename": {"levels": "x"}, "seq_len": 4})).train())
    with pytest.raises(UserError, match="2 rows where 3 were asked for"):
        list(stackwise.assemble(plan(data={"sources": sources, "rename": {"levels": "x"}, "batch_size": 3})).train())


class Scaled(Lines):
    """A rack with a number of its own that is not to be learnt."""

    def __init__(self, width: int, stacks: Mapping[str, int]) -> None:
        super().__init__(width, stacks)
        self.scale = nn.Parameter(torch.full((width,), 0.5), requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden) * self.scale


@pytest.mark.parametrize("rack", [Built(Scaled, width=4, stacks=[{"base": 1}]), Scaled(4, {"base": 1})])
def test_a_parameter_made_without_a_gradient_is_never_thawed(plan: Make, rack: Any) -> None:
    machine = stackwise.assemble(plan({"model": {"freeze": []}}, model={**WIDTHS, "rack": rack, "freeze": ["embedding"]}))
    entered = [event for event in machine.train() if isinstance(event, stackwise.PhaseEntered)]
    assert [event.parameters - event.trainable for event in entered] == [4 + 8, 4]
    assert torch.equal(machine.model.model.get_parameter("rack.scale"), torch.full((4,), 0.5))
