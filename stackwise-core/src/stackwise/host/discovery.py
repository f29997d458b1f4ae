"""Discovery: installed entry points become a registry, and every failure on the way becomes data.

Metadata is judged before anything of a provider is imported. A provider is imported when somebody asks for it, alone, under a
guard for global state, so that a broken one affects only those who ask for it; a listing asks for all.
"""

from __future__ import annotations

from collections.abc import Collection
from types import ModuleType
from typing import Any

from stackwise.contracts.components import BuildContext
from stackwise.errors import ProviderError
from stackwise.host.admission import lists_in_force
from stackwise.host.hooks import Broken, Hooks
from stackwise.host.offers import Offer, read_offers
from stackwise.host.provider import Provider, Registered
from stackwise.host.registry import Registry


def discover(*, allow: Collection[str] | None = None, block: Collection[str] | None = None) -> Registry:
    """Find the installed providers. Entry points are read now; the rest of a provider's metadata is read, and the provider
    imported, checked and asked, when somebody asks for it.

    Args:
        allow: names of the only providers to import; None: all that the lists of the command line and the environment allow.
        block: names of providers not to import.

    Returns:
        The registry. Providers that are refused or broken are in it, with the reason as their status.
    """
    offers: dict[str, list[Offer]] = {}
    for offer in read_offers(Hooks()):
        offers.setdefault(offer.name, []).append(offer)
    refused = {name for name in offers if (allow is not None and name not in allow) or (block is not None and name in block)}
    reasons = dict.fromkeys(refused, "left out by the caller's list of providers")
    return Registry(offers=offers, refused=reasons).under(lists_in_force())


def components_of(module: ModuleType, *, name: str) -> tuple[Registered, ...]:
    """The components that a module's hooks name, as if it were installed as provider `name`.

    Raises:
        ProviderError: a hook breaks its contract.
    """
    try:
        return Hooks().ask(module, Provider(name=name, distribution=name, version="0"))[0]
    except Broken as reason:
        raise ProviderError(f"module {module.__name__}: {reason}", provider=name) from None


def build_loader(id: str, options: Any, context: BuildContext) -> Any:
    """A registered loader, built in a process of its own, which imports its provider and nothing of how runs are planned.

    Raises:
        ProviderError: the provider cannot be used, or its factory is at fault.
    """
    return discover(allow={id.partition(".")[0]}).get("loader", id).build(options, context)
