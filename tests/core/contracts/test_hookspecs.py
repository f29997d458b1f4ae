"""The hooks: one a kind, and a documented example that runs as it stands."""

from __future__ import annotations

import inspect
import re
from typing import Any, get_args

import pytest
import torch

from stackwise import BuildContext
from stackwise.contracts import hookspecs
from stackwise.contracts.components import Kind
from stackwise.host.discovery import discover

HOOKS = {name: function for name, function in vars(hookspecs).items() if hasattr(function, f"{hookspecs.PROJECT}_spec")}


def test_there_is_one_hook_a_kind() -> None:
    assert sorted(HOOKS) == sorted([*hookspecs.HOOKS, hookspecs.STARTERS])
    assert sorted(hookspecs.HOOKS.values()) == sorted(get_args(Kind))


@pytest.mark.parametrize("hook", sorted(hookspecs.HOOKS))
def test_a_hook_takes_nothing_and_says_what_it_returns(hook: str) -> None:
    signature = inspect.signature(HOOKS[hook])
    assert not signature.parameters
    assert signature.return_annotation == "Iterable[Component]"
    assert "factory is called with" in (inspect.getdoc(HOOKS[hook]) or "")


def test_the_hook_of_starters_takes_nothing_either() -> None:
    signature = inspect.signature(HOOKS[hookspecs.STARTERS])
    assert (len(signature.parameters), signature.return_annotation) == (0, "Iterable[Starter]")


def test_the_example_of_the_module_is_a_provider_that_works(site: Any) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", inspect.getdoc(hookspecs) or "", re.DOTALL)
    site.install("demo", example, module="demo")
    (component,) = discover(allow={"demo"}).of_kind("transform")
    scale = component.build(component.load_options()(**component.component.example), BuildContext(seed=0))
    assert scale({"levels": torch.ones(1, 2)}, None, torch.Generator())["levels"].tolist() == [[0.5, 0.5]]
