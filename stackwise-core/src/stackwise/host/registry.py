"""The registry: which component every installed provider offers, and why a provider that offers nothing is broken.

A broken provider is data here; it becomes an error only when one of its components is asked for.
"""

from __future__ import annotations

import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs
from attrs import define, field

from stackwise.contracts.answers import WrongAnswer, callback_of
from stackwise.contracts.components import Kind
from stackwise.errors import (
    ProviderError,
    StackwiseError,
    UnknownComponentError,
    UserError,
    bytes_asked,
    did_you_mean,
    lacks_memory,
    near_names,
)
from stackwise.host.admission import ProviderList, refusal
from stackwise.host.offers import Offer
from stackwise.host.provider import KINDS, Provider, Registered, explain
from stackwise.host.survey import survey


@define
class Registry:
    """All installed providers, and the components of the working ones by kind and id.

    Args:
        loaded: providers that are imported already.
        offers: provider name → what is installed under it, loaded when the name is asked for.
        refused: provider name → why it is not to be imported.
    """

    _loaded: tuple[Provider, ...] = ()
    _offers: Mapping[str, Sequence[Offer]] = field(factory=dict, kw_only=True)
    _refused: Mapping[str, str] = field(factory=dict, kw_only=True)
    _known: dict[str, tuple[Provider, ...]] = field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        self._known = {}
        for provider in self._loaded:
            self._known[provider.name] = (*self._known.get(provider.name, ()), self._kept_or_refused(provider))

    def under(self, lists: Iterable[ProviderList]) -> Registry:
        """The same registry, in which these lists are observed: what they refuse is not imported.

        Raises:
            UserError: a list allows a name that nobody has, or blocks one that is nearly somebody's, who would then be imported.
        """
        lists, names = tuple(lists), sorted({*self._known, *self._offers})
        if not lists:
            return self
        for each in lists:
            for name in sorted(each.names.difference(names)):
                if each.allows or near_names(name, names):
                    raise UserError(f"{each.source}: no provider '{name}' is installed{did_you_mean(name, names)}")
        refused = {name: reason for name in names if (reason := refusal(name, lists)) is not None}
        loaded = [provider for claimants in self._known.values() for provider in claimants]
        return Registry(tuple(loaded), offers=self._offers, refused={**self._refused, **refused})

    @property
    def providers(self) -> tuple[Provider, ...]:
        """Every provider, by name; this loads them all."""
        self._known |= survey({name: offers for name, offers in self._offers.items() if name not in self._known}, self._resolve)
        return tuple(p for name in sorted({*self._known, *self._offers}) for p in self.claimants(name))

    def claimants(self, name: str) -> tuple[Provider, ...]:
        """The providers of that name: none, one, or several that are in each other's way."""
        if name not in self._known:
            self._known[name] = self._resolve(name)
        return self._known[name]

    def _resolve(self, name: str) -> tuple[Provider, ...]:
        """The providers of one name: refused, in each other's way, or loaded."""
        offers = self._offers.get(name, ())
        claims = sorted((offer.claim for offer in offers), key=lambda claim: claim.distribution)
        if name in self._refused:
            return tuple(map(self._kept_or_refused, claims))
        if len(claims) > 1:
            return tuple(attrs.evolve(claim, status=clash_sentence(name, claims)) for claim in claims)
        return tuple(offer.load() for offer in offers)

    def _kept_or_refused(self, provider: Provider) -> Provider:
        reason = self._refused.get(provider.name)
        return provider if reason is None else attrs.evolve(provider, refused=True, status=reason, components=(), starters=())

    def __iter__(self) -> Iterator[Registered]:
        """Every usable component, by kind and then id; this loads every provider."""
        usable = [c for name in sorted({p.name for p in self.providers}) for c in self._usable(name)]
        return iter(sorted(usable, key=lambda c: (KINDS.index(c.kind), c.id)))

    def of_kind(self, kind: Kind) -> tuple[Registered, ...]:
        """The usable components of one kind, by id."""
        return tuple(c for c in self if c.kind == kind)

    def named(self, id: str) -> tuple[Registered, ...]:
        """The usable components with this id, one a kind at most."""
        components = [c for c in self._usable(id.partition(".")[0]) if c.id == id]
        return tuple(sorted(components, key=lambda c: KINDS.index(c.kind)))

    def provider(self, name: str) -> Provider | None:
        """The provider of that name; of several the first; None when none is installed."""
        return next(iter(self.claimants(name)), None)

    def _usable(self, name: str) -> tuple[Registered, ...]:
        claimants = self.claimants(name)
        return claimants[0].components if len(claimants) == 1 and claimants[0].ok else ()

    def get(self, kind: Kind, id: str) -> Registered:
        """The component of that kind and id.

        Raises:
            UnknownComponentError: nothing installed offers it; the sentence says what is near and what may be missing.
            ProviderError: its provider is installed but broken, or two distributions claim the provider's name.
        """
        for component in self._usable(id.partition(".")[0]):
            if (component.kind, component.id) == (kind, id):
                return component
        self.check_provider(id)
        raise self.unknown(kind, id)

    def check_provider(self, id: str) -> None:
        """Refuse an id whose provider is installed but cannot be used.

        Raises:
            ProviderError: the provider is broken, or two distributions claim its name.
            UnknownComponentError: the provider was left out by the caller's allow or block list.
        """
        name = id.partition(".")[0]
        claimants = self.claimants(name)
        if len(claimants) > 1:
            raise ProviderError(
                f"'{id}' cannot be resolved: {clash_sentence(name, claimants)}", provider=name, distribution=claimants[0].distribution
            )
        for p in claimants:
            if p.refused:
                raise UnknownComponentError(
                    f"'{id}' cannot be used: provider '{name}' ({p.distribution} {p.version}) was {p.status}", id=id
                )
            if not p.ok:
                raise ProviderError(
                    f"'{id}' cannot be used: provider '{name}' ({p.distribution} {p.version}) is broken: {p.status}",
                    provider=name,
                    distribution=p.distribution,
                )

    def unknown(self, kind: Kind | None, id: str) -> UnknownComponentError:
        """The error for an id that no working provider offers; `kind` None: any kind was welcome."""
        return UnknownComponentError(f"unknown {kind or 'component'} '{id}': {self._why_unknown(kind, id)}", id=id, kind=kind)

    def _why_unknown(self, kind: Kind | None, id: str) -> str:
        """The rest of the sentence: near names, another kind, or what may be missing."""
        provider, dot, _ = id.partition(".")
        known = [c.id for c in self if kind in (None, c.kind)]
        near = near_names(id, known)
        if not dot:
            endings = {c.partition(".")[2]: c for c in known}
            near = [endings[n] for n in near_names(id, endings)]
            hint = did_you_mean(near[0], near) if near else did_you_mean(id, known)
            return f"a component id has the form '<provider>.<component>'{hint}"
        if others := [c.kind for c in self.named(id)]:
            return f"there is a component of this name, but it is of kind {' and '.join(others)}"
        if self.provider(provider) is not None:
            hint = did_you_mean(id, known if near else [c for c in known if c.startswith(f"{provider}.")])
            return f"provider '{provider}' is installed, but has no {kind or 'component'} of this name{hint}"
        guess = did_you_mean(id, known) if near else "."
        return (
            f"no provider '{provider}' is installed{guess} "
            f"If the name is right, install its distribution, by convention: pip install stackwise-providers-{provider}"
        )


@contextmanager
def blaming(providers: Collection[Provider]) -> Iterator[None]:
    """Run code that calls providers' components: what those raise of their own is their defect.

    Raises:
        ProviderError: an exception that was raised in the code of one of them, or in what that called.
        UserError: memory ran out, which is no defect of the provider.
    """
    try:
        yield
    except StackwiseError as error:
        completed = _completed(error, providers)
        if completed is None:
            raise
        raise completed from error
    except (Exception, SystemExit) as error:  # a provider must not end the process without a word
        if lacks_memory(error):
            raise UserError(
                f"out of memory{bytes_asked(error)}: lower data.batch_size (data.accumulate keeps the step as large) or "
                "data.seq_len, or make the model smaller; the newest checkpoint is untouched"
            ) from error
        fault = _fault_of(error, providers)
        if fault is None:
            raise
        raise fault from error


def _completed(error: StackwiseError, providers: Collection[Provider]) -> ProviderError | None:
    """A provider's fault with component, callback, distribution and version; None: it is not a provider's, or says them."""
    mark = callback_of(error)
    if not isinstance(error, WrongAnswer | ProviderError) or (isinstance(error, ProviderError) and error.distribution):
        return None
    said = error.provider if isinstance(error, ProviderError) else ""
    component, callback = mark if mark is not None else (said, "")
    provider = next((each for each in providers if each.name == component.partition(".")[0]), None)
    if provider is None:
        cause = error.__cause__
        return _fault_of(cause, providers) if isinstance(cause, Exception) and not isinstance(cause, StackwiseError) else None
    where = f"{component} of {provider.distribution} {provider.version}" + (f", in {callback}" if callback else "")
    return ProviderError(f"{where}: {error}", provider=provider.name, distribution=provider.distribution)


def _fault_of(error: Exception | SystemExit, providers: Collection[Provider]) -> ProviderError | None:
    """The error as a provider's defect; None: it is not theirs."""
    core = Path(__file__).parents[1]  # the package, as `location` of the core's own provider
    folders = {Path(provider.location): provider for provider in providers if Path(provider.location) != core}
    component, callback = callback_of(error) or ("", "")
    owner = next((each for each in providers if component and each.name == component.partition(".")[0]), None)
    for raised in (error, error.__cause__):
        frames = traceback.extract_tb(raised.__traceback__) if raised is not None else ()
        for frame in reversed(frames):
            file = Path(frame.filename)
            if core in file.parents:
                break
            provider = next((provider for folder, provider in folders.items() if folder == file or folder in file.parents), None)
            if provider is not None:
                of = f"{component} of " if owner is provider else ""
                called = f" of {callback}" if owner is provider and callback != frame.name else ""
                sentence = (
                    f"{of}{provider.distribution} {provider.version} failed in {frame.name}{called} "
                    f"({file.name}:{frame.lineno}): {explain(error)}"
                )
                return ProviderError(sentence, provider=provider.name, distribution=provider.distribution)
    if owner is None:
        return None
    sentence = f"{component} of {owner.distribution} {owner.version}: what {callback} gave cannot be used: {explain(error)}"
    return ProviderError(sentence, provider=owner.name, distribution=owner.distribution)


def clash_sentence(name: str, claimants: Iterable[Provider]) -> str:
    """Why a provider name with several owners is unusable, every owner named."""
    owners = " and ".join(f"{p.distribution} {p.version}" for p in claimants)
    return f"the provider name '{name}' is offered by {owners}; uninstall all but one of them"
