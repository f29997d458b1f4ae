"""Which providers may be imported: the allow and block lists of the command line, the environment and the config."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from attrs import frozen

ALLOW, BLOCK = "STACKWISE_ALLOW_PROVIDERS", "STACKWISE_BLOCK_PROVIDERS"
"""Environment variables: provider names with commas between them."""

ALWAYS = "core"
"""The core's own provider, which is part of what was installed on purpose; lists of users do not reach it."""


@frozen(kw_only=True)
class ProviderList:
    """Names from one place. A provider is imported when every allow list names it and no block list does."""

    source: str
    """Where it was written, for messages."""
    names: frozenset[str]
    allows: bool
    """Whether the list allows what it names, or blocks it."""

    def refuses(self, name: str) -> bool:
        """Whether this list keeps the provider from being imported."""
        return name != ALWAYS and (name in self.names) != self.allows


def lists_of(source: str, allow: Collection[str] | None, block: Collection[str] | None) -> tuple[ProviderList, ...]:
    """The lists that one place gives; an allow list that is left out allows everything, an empty one nothing.

    Args:
        source: the place, with `{}` for `allow` or `block`.
        allow: names of the only providers to import, or None.
        block: names of providers not to import, or None.
    """
    lists = []
    if allow is not None:
        lists.append(ProviderList(source=source.format("allow"), names=frozenset(allow), allows=True))
    if block:
        lists.append(ProviderList(source=source.format("block"), names=frozenset(block), allows=False))
    return tuple(lists)


def environment_lists(environment: Mapping[str, str] | None = None) -> tuple[ProviderList, ...]:
    """The lists of the environment; an empty variable counts as not set."""
    variables = os.environ if environment is None else environment
    lists = []
    for variable, allows in ((ALLOW, True), (BLOCK, False)):
        if names := [name.strip() for name in variables.get(variable, "").split(",") if name.strip()]:
            lists.append(ProviderList(source=variable, names=frozenset(names), allows=allows))
    return tuple(lists)


_OBSERVED: ContextVar[tuple[ProviderList, ...]] = ContextVar("observed", default=())


@contextmanager
def observing(lists: Iterable[ProviderList]) -> Iterator[None]:
    """Every discovery inside obeys these lists as well, as a command obeys those of its command line."""
    token = _OBSERVED.set((*_OBSERVED.get(), *lists))
    try:
        yield
    finally:
        _OBSERVED.reset(token)


def lists_in_force() -> tuple[ProviderList, ...]:
    """The lists of the command line and the environment."""
    return (*_OBSERVED.get(), *environment_lists())


def refusal(name: str, lists: Iterable[ProviderList]) -> str | None:
    """Why a provider may not be imported, as the end of a sentence; None when it may."""
    sources = [each.source for each in lists if each.refuses(name)]
    return f"left out by {' and '.join(sources)}" if sources else None
