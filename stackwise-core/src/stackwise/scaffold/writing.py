"""Templates → the files of a new distribution."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template

import yaml
from attrs import frozen

from stackwise import __version__
from stackwise.contracts.components import Kind
from stackwise.errors import UserError
from stackwise.scaffold.blueprints import Blueprint, read_blueprint, read_template

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_PREFIX = "stackwise-providers-"
_TAKEN = frozenset({"core", "stackwise"})

_SHARED = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "readme.md",
    ".gitignore": "gitignore",
    ".github/workflows/checks.yml": "checks.yml",
    "src/$package/__init__.py": "package.py",
    "src/$package/provider.py": "provider.py",
    "tests/test_conformance.py": "test_conformance.py",
}
"""File → the template that it is written from; these are the same for every kind."""

_FACTORY = '''

def build(options: Options, context: BuildContext) -> {artifact}:
    """The factory of `$provider.$component`."""
    return {builds}
'''


@frozen
class Names:
    """What a new provider is called: `waves`, its distribution `stackwise-providers-waves`, its package `stackwise_providers_waves`."""

    provider: str

    @classmethod
    def of(cls, text: str) -> Names:
        """Read the name of a provider or of its distribution.

        Raises:
            UserError: the text is not a provider name, or the name is the core's own.
        """
        provider = text.removeprefix(_PREFIX)
        if not _NAME.fullmatch(provider):
            raise UserError(
                f"{text!r} is not a provider name: lower-case letters and digits in words joined by '-', a letter first (waves)"
            )
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
    paths = []
    for name, text in files_of(names, kind).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return tuple(paths)


def files_of(names: Names, kind: Kind) -> Mapping[str, str]:
    """File name → text of a new distribution with one component of a kind."""
    blueprint = read_blueprint(kind)
    sources = {
        **{name: read_template(template) for name, template in _SHARED.items()},
        "example.yaml": blueprint.config(names.provider),
        "src/$package/py.typed": "",
        "src/$package/options.py": _module("Options of the component. Nothing here imports torch.", blueprint.options),
        f"src/$package/{blueprint.module}.py": _component(blueprint),
    }
    values = _values(names, blueprint)
    return {Template(name).substitute(values): Template(text).substitute(values) for name, text in sources.items()}


def _component(blueprint: Blueprint) -> str:
    """The module of the component: its imports, the options and the code of its template, and the factory."""
    imports, _, code = blueprint.code.partition("\n\n\n")
    factory = ""
    if blueprint.builds:
        artifact = blueprint.builds.partition("(")[0]
        factory = _FACTORY.format(artifact=artifact, builds=blueprint.builds)
    headline = f"$headline. {blueprint.note}".rstrip()
    return _module(headline, f"{imports}\n\nfrom $package.options import Options\n\n\n{code}{factory}")


def _module(headline: str, code: str) -> str:
    return f'"""{headline}"""\n\nfrom __future__ import annotations\n\n{code}'


def _values(names: Names, blueprint: Blueprint) -> dict[str, str]:
    node = {"use": f"{names.provider}.{blueprint.component}", **blueprint.example}
    return {
        "provider": names.provider,
        "distribution": names.distribution,
        "package": names.package,
        "core": __version__,
        "kind": blueprint.kind,
        "hook": blueprint.hook,
        "component": blueprint.component,
        "module": blueprint.module,
        "summary": blueprint.summary,
        "headline": blueprint.summary[0].upper() + blueprint.summary[1:],
        "example": json.dumps(blueprint.example),
        "node": yaml.safe_dump(node, default_flow_style=True, sort_keys=False, width=1000).strip(),
    }
