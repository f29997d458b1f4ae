"""What a new provider of a kind contains at first: `templates/kinds/<kind>.tmpl`, one component and a run that uses it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from string import Template
from typing import Any

import yaml
from attrs import Factory, frozen

from stackwise.contracts.components import Kind
from stackwise.contracts.hookspecs import HOOKS

_HOOK_OF = {kind: hook for hook, kind in HOOKS.items()}

_USUAL = {
    "task": "{use: transformer.causal-lm}",
    "loader": "{use: data.python-stdlib}",
    "embedding": "{use: transformer.token}",
    "rack": "{use: transformer.decoder, width: 16, heads: 2, stacks: [{base: 1}]}",
    "head": "{use: transformer.lm}",
    "optimizer": "{use: optim.adamw, lr: 2e-3}",
}
"""Place in a config → the part that stands there in a first run unless the template names another."""


@frozen(kw_only=True)
class Blueprint:
    """One component of a new provider: the header of its template, and the text of its two modules."""

    kind: Kind
    component: str
    summary: str
    note: str = ""
    """Further sentences for the docstring of the component's module, after the summary."""
    builds: str = ""
    """What a factory `(options, context)` returns, as code; empty: the template has a factory of its own."""
    example: Mapping[str, Any] = Factory(dict)
    run: Mapping[str, str]
    """Place in a config → the part that stands there in the first run instead of the default; `$provider` is the provider's name."""
    options: str
    code: str

    @property
    def hook(self) -> str:
        """The hook that names components of the kind."""
        return _HOOK_OF[self.kind]

    @property
    def module(self) -> str:
        """Name of the component's module."""
        return self.kind.replace("-", "_")

    def config(self, provider: str) -> str:
        """A config of a short run that uses the component; the other parts come from the project's own providers."""
        parts = {**_USUAL, **{place: Template(text).substitute(provider=provider) for place, text in self.run.items()}}
        lines = [
            f"run: {{name: {provider}, horizon: 40 steps, device: cpu}}",
            f"task: {parts['task']}",
            "data:",
            f"  sources: {{first: {parts['loader']}}}",
            "  batch_size: 4",
            "  seq_len: 32",
            *([f"  transforms: {parts['transforms']}"] if "transforms" in parts else []),
            "model:",
            *(f"  {place}: {parts[place]}" for place in ("embedding", "rack", "head", "adapters", "weight_adapters") if place in parts),
            f"optimizer: {parts['optimizer']}",
            *([f"observers: {parts['observers']}"] if "observers" in parts else []),
        ]
        return "\n".join(lines) + "\n" + parts.get("phases", "")


def read_template(name: str) -> str:
    """The text of a file below `templates/`."""
    return files("stackwise.scaffold").joinpath("templates", f"{name}.tmpl").read_text(encoding="utf-8")


def read_blueprint(kind: Kind) -> Blueprint:
    """The blueprint of a kind."""
    header, _, modules = read_template(f"kinds/{kind}").partition("--- options\n")
    options, _, code = modules.partition("--- component\n")
    return Blueprint(kind=kind, options=options, code=code, **yaml.safe_load(header))
