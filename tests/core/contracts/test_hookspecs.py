"""The hooks: each is documented by an example that runs as it stands."""

from __future__ import annotations

import inspect
import re
from typing import Any, get_args

import pytest
import torch

from stackwise import BuildContext, GrowthRequest, ParameterGroup
from stackwise.contracts import hookspecs
from stackwise.contracts.components import Kind
from stackwise.host.discovery import discover
from stackwise.host.registry import Registered

HOOKS = {name: function for name, function in vars(hookspecs).items() if hasattr(function, f"{hookspecs.PROJECT}_spec")}


def example(hook: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", inspect.getdoc(HOOKS[hook]) or "", re.DOTALL)
    assert len(blocks) == 1, f"{hook} is documented by exactly one example"
    return str(blocks[0])


def test_there_is_one_hook_a_kind() -> None:
    assert sorted(HOOKS) == sorted(hookspecs.HOOKS)
    assert sorted(hookspecs.HOOKS.values()) == sorted(get_args(Kind))


@pytest.mark.parametrize("hook", sorted(HOOKS))
def test_a_hook_takes_nothing_and_says_what_it_returns(hook: str) -> None:
    signature = inspect.signature(HOOKS[hook])
    assert not signature.parameters
    assert signature.return_annotation == "Iterable[Component]"
    assert "factory is called with" in (inspect.getdoc(HOOKS[hook]) or "")


def build(found: Registered) -> Any:
    options = found.load_options()(**found.component.example)
    factory = found.load_factory()
    context = BuildContext(seed=0)
    if found.kind == "optimizer":
        weight = torch.nn.Parameter(torch.ones(2))
        return factory(options, context, [ParameterGroup(name="default", parameters={"weight": weight}, values={"lr": 0.5})])
    if found.kind == "weight-adapter":
        return factory(options, context, torch.ones(3, 4))
    return factory(options, context)


@pytest.mark.parametrize("hook", sorted(HOOKS))
def test_the_example_is_a_provider_that_works(site: Any, hook: str) -> None:
    site.install("demo", example(hook), module="demo")
    kind = hookspecs.HOOKS[hook]
    (found,) = discover(allow={"demo"}).of_kind(kind)
    assert found.kind == kind
    CHECKS[kind](build(found))


def check_embedding(embedding: Any) -> None:
    assert embedding(levels=torch.zeros(2, 3)).shape == (2, 3, 4)
    assert set(embedding.get_spec().inputs) == {"levels"}


def check_rack(rack: Any) -> None:
    assert rack(torch.zeros(2, 3, 4)).shape == (2, 3, 4)
    assert rack.to_spec().stacks == {"base": 2}
    assert {name.rsplit(".", 1)[0] for name, _ in rack.named_parameters()} == {"stacks.base.0", "stacks.base.1"}


def check_head(head: Any) -> None:
    assert head(torch.zeros(2, 3, 4))["value"].shape == (2, 3)
    assert set(head.get_spec().outputs) == {"value"}


def check_weight_adapter(adapter: Any) -> None:
    input = torch.randn(5, 4)
    assert torch.equal(adapter(input), torch.zeros(5, 3))
    with torch.no_grad():
        adapter.up.fill_(0.5)
    torch.testing.assert_close(adapter(input), input @ (adapter.merged(torch.ones(3, 4)) - 1).T)


def check_reaction(reaction: Any) -> None:
    assert reaction.watch(0, {"train.loss": 3.0}) is None
    assert reaction.watch(1, {"train.loss": 11.0})
    assert reaction.factor == 0.5
    state = reaction.state_dict()
    reaction.factor = 1.0
    reaction.load_state_dict(state)
    assert reaction.factor == 0.5


def check_task(task: Any) -> None:
    batch = task.prepare({"levels": torch.ones(2, 3)}, None, torch.Generator().manual_seed(0))
    total, weight, _ = task.loss({"value": torch.zeros(2, 3)}, batch)
    assert (float(total), weight) == (6.0, 6)
    assert not torch.equal(batch["levels"], batch["clean"])


def check_optimizer(optimizer: Any) -> None:
    (group,) = optimizer.param_groups
    assert (group["group"], group["lr"]) == ("default", 0.5)
    (weight,) = group["params"]
    weight.grad = torch.ones(2)
    optimizer.step()
    assert weight.tolist() == [0.5, 0.5]


def check_loader(loader: Any) -> None:
    loader.take(1, 4)
    state = loader.state_dict()
    second = loader.take(2, 4)["levels"]
    loader.load_state_dict(state)
    assert torch.equal(loader.take(2, 4)["levels"], second)
    assert second[0, 1].item() == pytest.approx(1.0)  # row 1, position 1: a quarter of a wave of 8


def check_transform(transform: Any) -> None:
    assert transform({"levels": torch.ones(1, 2)}, None, torch.Generator())["levels"].tolist() == [[0.5, 0.5]]


def check_adapter(adapter: Any) -> None:
    assert adapter(torch.zeros(2, 3, 4)).shape == (2, 3, 8)
    assert adapter.get_spec().output.dims == ("batch", "time", "wide")


def check_growth(operator: Any) -> None:
    blocks = operator.map_blocks(GrowthRequest(old_stacks={"base": 2}, new_stacks={"base": 3}))
    assert {block: origin.source for block, origin in blocks.items()} == {
        ("base", 0): ("base", 0),
        ("base", 1): ("base", 1),
        ("base", 2): ("base", 0),
    }


def check_observer(observer: Any) -> None:
    assert callable(observer)


CHECKS = {
    "embedding": check_embedding,
    "rack": check_rack,
    "head": check_head,
    "task": check_task,
    "optimizer": check_optimizer,
    "loader": check_loader,
    "transform": check_transform,
    "adapter": check_adapter,
    "growth": check_growth,
    "reaction": check_reaction,
    "weight-adapter": check_weight_adapter,
    "observer": check_observer,
}
