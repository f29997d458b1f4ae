"""The files that providers offer to begin with: by name, with the paths of their sample data filled in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from attrs import frozen

from stackwise.contracts.components import Starter
from stackwise.errors import ProviderError, UserError, did_you_mean
from stackwise.host.isolation import guarded
from stackwise.host.provider import Provider, article, explain
from stackwise.host.registry import Registry

FOLDER = '"FOLDER'


@frozen
class OfferedStarter:
    """A starter with the provider that answers for it."""

    starter: Starter
    provider: Provider

    @property
    def id(self) -> str:
        """`<provider>.<starter>`."""
        return f"{self.provider.name}.{self.starter.name}"

    def text(self, folder: str | None = None, place: Path = Path()) -> str:
        """The file, with the paths of its sample data and of the model's folder where it names them.

        Raises:
            ProviderError: the text cannot be loaded, or does not name what it says it needs.
        """
        text = self._load("text", self.starter.text)
        if not isinstance(text, str):
            raise self._fault("text", self.starter.text, "it is bytes")
        needs = {f'"{name}': str(place / name) for name in self.starter.files} | ({FOLDER: str(folder)} if self.starter.folder else {})
        for mark, path in needs.items():
            if mark not in text:
                raise self._fault("text", self.starter.text, f"it does not name {mark}")
            text = text.replace(mark, json.dumps(path, ensure_ascii=False)[:-1])  # more may stand after it, as in "rows.npz:image"
        return text

    def files(self) -> Mapping[str, bytes]:
        """Name → content of each file of sample data.

        Raises:
            ProviderError: one cannot be loaded.
        """
        contents = {name: self._load(f"file {name}", target) for name, target in self.starter.files.items()}
        return {name: content.encode() if isinstance(content, str) else content for name, content in contents.items()}

    def _load(self, what: str, target: str) -> str | bytes:
        module, _, attribute = target.partition(":")
        try:
            with guarded():
                value: Any = getattr(import_module(module), attribute)
        except Exception as error:
            raise self._fault(what, target, explain(error)) from error
        if not isinstance(value, str | bytes):
            raise self._fault(what, target, f"it is {article(value)}")
        return value

    def _fault(self, what: str, target: str, reason: str) -> ProviderError:
        p = self.provider
        sentence = f"the {what} '{target}' of starter '{self.id}' from {p.distribution} {p.version} cannot be used: {reason}"
        return ProviderError(sentence, provider=p.name, distribution=p.distribution)


def starters_in(registry: Registry) -> tuple[OfferedStarter, ...]:
    """Every starter of the working providers, in the order in which each offers them."""
    names = sorted({provider.name for provider in registry.providers})
    alone = [claimants[0] for name in names if len(claimants := registry.claimants(name)) == 1 and claimants[0].ok]
    return tuple(OfferedStarter(starter, provider) for provider in alone for starter in provider.starters)


def starter_named(name: str, registry: Registry) -> OfferedStarter:
    """The starter of a name, or of an id where several providers offer that name.

    Raises:
        UserError: there is none, or several.
    """
    offered = starters_in(registry)
    matches = [each for each in offered if name in (each.id, each.starter.name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"several providers offer a starter '{name}': give {' or '.join(each.id for each in matches)}")
    known = [each.starter.name for each in offered]
    raise UserError(f"no installed provider offers a starter '{name}'{did_you_mean(name, known)} `stackwise init` lists them")
