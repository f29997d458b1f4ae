"""Templates → the files of a new distribution."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template

from attrs import frozen

from stackwise import __version__
from stackwise.contracts.components import Kind
from stackwise.errors import UserError
from stackwise.scaffold.blueprints import BLUEPRINTS, TOKENS, Blueprint

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_PREFIX = "stackwise-providers-"
_TAKEN = frozenset({"core", "stackwise"})

_COMMON = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "readme.md",
    ".gitignore": "gitignore",
    ".github/workflows/checks.yml": "checks.yml",
    "example.yaml": "example.yaml",
    "src/$package/__init__.py": "package.py",
    "src/$package/py.typed": "py.typed",
    "src/$package/provider.py": "provider.py",
    "tests/test_conformance.py": "test_conformance.py",
}
"""File → the template it is made of; the module and the options of a kind have templates of their own."""


@frozen
class Names:
    """What a new provider is called: `waves`, its distribution `stackwise-providers-waves`, its package `stackwise_providers_waves`."""

    provider: str

    @classmethod
    def of(cls, text: str) -> Names:
        """Read the name of a provider or of its distribution.

        Raises:
            UserError: the name is none, or taken.
        """
        provider = text.removeprefix(_PREFIX)
        if not _NAME.fullmatch(provider):
            raise UserError(f"{text!r} is no provider name: lower-case letters and digits in words joined by '-', a letter first (waves)")
        if provider in _TAKEN:
            raise UserError(f"the provider name '{provider}' is the core's own: choose another")
        return cls(provider)

    @property
    def distribution(self) -> str:
        """Name of the distribution, as it is installed with pip."""
        return f"{_PREFIX}{self.provider}"

    @property
    def package(self) -> str:
        """Name of the package, as it is imported."""
        return self.distribution.replace("-", "_")


def write(names: Names, kind: Kind, folder: Path) -> tuple[Path, ...]:
    """Write a new distribution into a folder that does not exist yet.

    Returns:
        The files.

    Raises:
        UserError: the folder exists already, or cannot be made.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{folder} exists already: give another place with --output, or remove it") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}") from None
    written = []
    for name, text in files_of(names, kind).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return tuple(written)


def files_of(names: Names, kind: Kind) -> Mapping[str, str]:
    """File name → text of a new distribution with one component of a kind."""
    plan = BLUEPRINTS[kind]
    values = _values(names, kind, plan)
    sources = {
        **_COMMON,
        "src/$package/options.py": f"{kind}-options.py",
        f"src/$package/{plan.module}.py": f"{kind}.py",
    }
    return {Template(name).substitute(values): _filled(template, values) for name, template in sources.items()}


def _filled(template: str, values: Mapping[str, str]) -> str:
    text = files("stackwise.scaffold").joinpath("templates", f"{template}.tmpl").read_text(encoding="utf-8")
    return Template(text).substitute(values)


def _values(names: Names, kind: Kind, plan: Blueprint) -> dict[str, str]:
    example = "".join(f", {key!r}: {value!r}" for key, value in plan.example.items()).removeprefix(", ").replace("'", '"')
    return {
        "provider": names.provider,
        "distribution": names.distribution,
        "package": names.package,
        "core": __version__,
        "kind": kind,
        "hook": plan.hook,
        "component": plan.component,
        "module": plan.module,
        "summary": plan.summary,
        "headline": plan.summary[0].upper() + plan.summary[1:],
        "example": f"{{{example}}}",
        "node": _node(names, plan),
        "config": _config(names, plan),
    }


def _node(names: Names, plan: Blueprint) -> str:
    """The component with the options of its example, as a config writes it."""
    import yaml

    node = {"use": f"{names.provider}.{plan.component}", **plan.example}
    return yaml.safe_dump(node, default_flow_style=True, sort_keys=False, width=1000).strip()


def _config(names: Names, plan: Blueprint) -> str:
    """A config of a short run that uses the component; providers of the project stand in the other places."""
    parts = {**TOKENS, **{place: Template(text).substitute(provider=names.provider) for place, text in plan.run.items()}}
    lines = [
        f"run: {{name: {names.provider}, horizon: 40 steps, device: cpu}}",
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
    return "\n".join(lines) + parts.get("phases", "") + "\n"
