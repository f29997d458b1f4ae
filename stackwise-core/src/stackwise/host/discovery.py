"""Discovery: installed entry points become a registry, and every failure on the way becomes data.

Metadata is judged before anything of a provider is imported. A provider is imported when somebody asks for it, alone, under a
guard for global state, so that a broken one hurts only who asks for it; a listing asks for all.
"""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

from attrs import evolve, frozen
from importlib_metadata import Distribution, EntryPoint
from pluggy import PluginManager

from stackwise import __version__
from stackwise.contracts import hookspecs
from stackwise.contracts.components import Component
from stackwise.errors import ProviderError, did_you_mean
from stackwise.host.admission import lists_in_force
from stackwise.host.isolation import guarded
from stackwise.host.registry import Pending, Provider, Registered, Registry, clash_sentence, explain

GROUP = "stackwise.providers"
"""The entry-point group that providers join."""

CORE = "stackwise-core"

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_FIELD = re.compile(r"^(Name|Version|Requires-Dist):(.*(?:\n[ \t].*)*)", re.IGNORECASE | re.MULTILINE)  # the email package costs 20 ms
_FORM = "lower-case letters and digits in words joined by '-', a letter first"
_TARGET = re.compile(r"[^\s:]+:[^\s:]+")
_ABOUT_CORE = re.compile(r"\s*stackwise[-_.]core(?![\w.-])", re.IGNORECASE)
_MADE_FOR_THIS_CORE = re.compile(rf"stackwise-core\s*(~=|>=|==)\s*{re.escape(__version__)}\s*")
"""A requirement that names the installed version itself, as those of a lock-step release do, is met."""


class ProviderDeprecation(FutureWarning):
    """A provider uses a part of the contract that a later release of the core will not have."""


class _Broken(Exception):
    """Why a provider is put aside, as a sentence."""


@frozen(kw_only=True)
class _Offer:
    """An entry point of the group and the distribution that has it; nothing of it is imported."""

    name: str
    distribution: Distribution
    entry_point: EntryPoint | None = None
    fault: str = ""
    """Why the entry points of the distribution cannot be read."""


@frozen(kw_only=True)
class _Claim:
    """An offer, and what the metadata of its distribution says."""

    provider: Provider
    entry_point: EntryPoint | None
    requires: tuple[str, ...] = ()


def discover(*, allow: Collection[str] | None = None, block: Collection[str] | None = None) -> Registry:
    """Find the installed providers. Entry points are read now; when somebody asks for a provider its metadata is read, and it is
    imported, checked and asked.

    Args:
        allow: names of the only providers to import; None: all that the lists of the command line and the environment allow.
        block: names of providers not to import.

    Returns:
        The registry. Providers that are refused or broken are in it, with the reason as their status.
    """
    offers: dict[str, list[_Offer]] = {}
    for offer in _read_offers():
        offers.setdefault(offer.name, []).append(offer)
    pending = {name: _pending(name, tuple(found)) for name, found in sorted(offers.items())}
    refused = {name for name in pending if (allow is not None and name not in allow) or (block is not None and name in block)}
    pending |= {name: pending[name].refused("left out by the caller's list of providers") for name in refused}
    return Registry(pending=pending).under(lists_in_force())


def _pending(name: str, offers: tuple[_Offer, ...]) -> Pending:
    return Pending(lambda: tuple(claim.provider for claim in _claims(offers)), lambda: _judge(name, _claims(offers)))


def _claims(offers: tuple[_Offer, ...]) -> tuple[_Claim, ...]:
    return tuple(sorted(map(_claim, offers), key=lambda claim: claim.provider.distribution))


def _judge(name: str, claims: tuple[_Claim, ...]) -> tuple[Provider, ...]:
    """The providers of one name: in each other's way, or loaded."""
    if len(claims) > 1:
        claimants = tuple(claim.provider for claim in claims)
        return tuple(evolve(p, status=clash_sentence(name, claimants)) for p in claimants)
    return (_load(claims[0]),)


def components_of(module: ModuleType, *, name: str) -> tuple[Registered, ...]:
    """The components that a module's hooks name, as if it were installed as provider `name`.

    Raises:
        ProviderError: a hook breaks its contract.
    """
    try:
        return _ask(module, Provider(name=name, distribution=name, version="0"))
    except _Broken as reason:
        raise ProviderError(f"module {module.__name__}: {reason}", provider=name) from None


def _read_offers() -> Iterator[_Offer]:
    """Every entry point of the group; a distribution that the path shows twice counts once, as the first one found."""
    seen: dict[str, list[Distribution]] = {}
    for distribution in Distribution.discover():
        try:
            text = distribution.read_text("entry_points.txt")
        except (OSError, UnicodeDecodeError):
            continue
        if not text or GROUP not in text:
            continue
        folder = _folder_of(distribution)
        alike = seen.setdefault(_normal(re.sub(r"\.(dist|egg)-info$", "", folder).partition("-")[0]), [])
        if alike and any(_name_of(distribution) == _name_of(other) for other in alike):
            continue
        alike.append(distribution)
        try:
            pairs = _entry_points(text)
        except Exception as error:  # metadata is foreign text: any way of being malformed is a finding, never a crash
            yield _Offer(name=folder, distribution=distribution, fault=explain(error))
            continue
        for name, value in pairs:
            yield _Offer(name=name, distribution=distribution, entry_point=EntryPoint(name=name, value=value, group=GROUP))


def _entry_points(text: str) -> list[tuple[str, str]]:
    """Name and value of every line of the group's section.

    Raises:
        ValueError: a line of it that is no entry point.
    """
    found, inside = [], False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            inside = line == f"[{GROUP}]"
        elif inside and line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            if not equals:
                raise ValueError(f"the line {line!r} of entry_points.txt is not of the form 'name = module'")
            found.append((name.strip(), value.strip()))
    return found


def _folder_of(distribution: Distribution) -> str:
    """The folder of its metadata, `<name>-<version>.dist-info`, by name."""
    return Path(str(getattr(distribution, "_path", None) or distribution.locate_file(""))).name


def _normal(name: str) -> str:
    """A distribution's name as names are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _name_of(distribution: Distribution) -> str:
    try:
        return _normal(_read_header(distribution)[0])
    except Exception:  # what cannot be read is like nothing else
        return f"? {id(distribution)}"


def _claim(offer: _Offer) -> _Claim:
    """What the metadata behind an offer says, read now."""
    if offer.entry_point is None:
        return _unreadable(offer, offer.fault)
    try:
        name, version, requires = _read_header(offer.distribution)
        location, editable = _locate(offer.distribution)
    except Exception as error:  # as above
        return _unreadable(offer, explain(error))
    module = re.match(r"[\w.]*", offer.entry_point.value).group()  # type: ignore[union-attr]  # nothing matches as well
    provider = Provider(name=offer.name, distribution=name, version=version, module=module, location=location, editable=editable)
    return _Claim(provider=provider, entry_point=offer.entry_point, requires=requires)


def _unreadable(offer: _Offer, reason: str) -> _Claim:
    folder = _folder_of(offer.distribution)
    status = f"the metadata of {folder} cannot be read: {reason}"
    return _Claim(provider=Provider(name=offer.name, distribution=folder, version="?", status=status), entry_point=None)


def _read_header(distribution: Distribution) -> tuple[str, str, tuple[str, ...]]:
    """Name, version and requirements of a distribution."""
    header = (distribution.read_text("METADATA") or "").partition("\n\n")[0]
    fields = [(key.lower(), value.strip()) for key, value in _FIELD.findall(header)]
    first = dict(reversed(fields))
    if "name" in first and "version" in first:
        return first["name"], first["version"], tuple(value for key, value in fields if key == "requires-dist")
    return distribution.name, distribution.version, tuple(distribution.requires or ())


def _locate(distribution: Distribution) -> tuple[str, bool]:
    """Folder of a distribution, and whether it was installed as editable (PEP 610)."""
    record = distribution.read_text("direct_url.json") or ""
    return str(distribution.locate_file("")), re.search(r'"editable"\s*:\s*true', record) is not None


def _load(claim: _Claim) -> Provider:
    """Judge the metadata, import the module, register it and ask its hooks."""
    provider, entry_point = claim.provider, claim.entry_point
    if entry_point is None:
        return provider
    start = perf_counter()
    try:
        _check_name(provider.name)
        _check_core_version(provider, claim.requires)
        with guarded() as changed:
            plugin = _import(entry_point, provider)
            components = _ask(plugin, provider)
        if changed:
            raise _Broken(f"loading '{entry_point.value}' changed {' and '.join(changed)}, which belongs to the whole process")
    except _Broken as reason:
        return evolve(provider, status=str(reason), seconds=perf_counter() - start)
    return evolve(provider, components=components, location=_code_of(entry_point) or provider.location, seconds=perf_counter() - start)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise _Broken(f"{name!r} is no provider name ({_FORM}): change the entry point")


def _check_core_version(provider: Provider, requires: Iterable[str]) -> None:
    """Refuse a provider made for another core before anything of it is imported."""
    about_core = [text for text in requires if _ABOUT_CORE.match(text)]
    if all(_MADE_FOR_THIS_CORE.fullmatch(text) for text in about_core):
        return
    from packaging.requirements import InvalidRequirement, Requirement  # a tenth of a listing, so not for requirements met by definition

    for text in about_core:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise _Broken(f"its requirement {text!r} cannot be read: {error}") from error
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if not requirement.specifier.contains(__version__, prereleases=True):
            raise _Broken(
                f"{provider.distribution} {provider.version} needs {CORE}{requirement.specifier}, but {__version__} is installed: "
                f"install a release of {provider.distribution} made for {__version__}, or another {CORE}; nothing of it was imported"
            )


def _import(entry_point: EntryPoint, provider: Provider) -> Any:
    try:
        return entry_point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _Broken(f"'{entry_point.value}' of {provider.distribution} {provider.version} does not import: {explain(error)}") from error


def _ask(plugin: Any, provider: Provider) -> tuple[Registered, ...]:
    """Register one provider in a plugin manager of its own and call each of its hooks alone."""
    manager = PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        for name in dir(plugin):
            _check_function(manager, plugin, name)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            manager.register(plugin, name=provider.name)
        manager.check_pending()
    except _Broken:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _Broken(f"it cannot be registered: {explain(error)}") from error
    for warning in told:  # a hookspec with `warn_on_impl` is on its way out; who still implements it is named
        sentence = f"provider '{provider.name}' ({provider.distribution} {provider.version}): {warning.message}"
        warnings.warn(sentence, ProviderDeprecation, stacklevel=2)
    found: list[Registered] = []
    for caller in manager.get_hookcallers(plugin) or ():
        for implementation in caller.get_hookimpls():
            found += _call(caller.name, implementation.function, provider)
    return tuple(found)


def _check_function(manager: PluginManager, plugin: Any, name: str) -> None:
    """Refuse what looks like a hook but would never be called, or not as meant."""
    marks = manager.parse_hookimpl_opts(plugin, name)
    function = getattr(plugin, name, None)
    if marks is None and not (name.startswith("stackwise_") and inspect.isroutine(function)):
        return
    hook = (marks and marks["specname"]) or name
    definition = _definition(function)
    if hook not in hookspecs.HOOKS:
        raise _Broken(f"there is no hook '{hook}' (`{definition}`){did_you_mean(hook, hookspecs.HOOKS)}")
    if marks is None:
        raise _Broken(f"`{definition}` is named like a hook, but not marked as one: put @hookimpl above it")
    if marks["wrapper"] or marks["hookwrapper"]:
        raise _Broken(f"`{definition}` is marked as a wrapper, but hooks only name components: mark it with a plain @hookimpl")
    if _required(function):
        raise _Broken(f"hook {hook} has another signature: it is `{definition}`, expected `{_expected(hook)}`")


def _call(hook: str, function: Callable[[], object], provider: Provider) -> list[Registered]:
    """Call one hook implementation and check every record it returns."""
    try:
        returned = function()
        records = list(returned) if isinstance(returned, Iterable) else None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _Broken(f"hook {hook} failed: {explain(error)}; expected `{_expected(hook)}`") from error
    if records is None:
        raise _Broken(f"hook {hook} returned {_shorten(returned)}; expected `{_expected(hook)}`")
    found: dict[str, Registered] = {}
    for record in records:
        if not isinstance(record, Component):
            raise _Broken(f"hook {hook} returned {_shorten(record)} among its components; expected `{_expected(hook)}`")
        if not isinstance(record.name, str) or not _NAME.fullmatch(record.name):
            raise _Broken(f"hook {hook} names a component {record.name!r}, which is no component name ({_FORM})")
        if broken := _broken_record(record):
            raise _Broken(f"hook {hook}: component '{record.name}': {broken}")
        if record.name in found:
            raise _Broken(f"hook {hook} returned two components named '{record.name}'; a name is unique within its kind")
        found[record.name] = Registered(
            kind=hookspecs.HOOKS[hook],
            id=f"{provider.name}.{record.name}",
            component=record,
            provider=provider.name,
            distribution=provider.distribution,
            version=provider.version,
        )
    return list(found.values())


def _broken_record(record: Component) -> str | None:
    """What is wrong with a component's fields, as a sentence."""
    rules: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
        ("options", _is_target, "text of the form 'module:attribute'"),
        ("factory", _is_target, "text of the form 'module:attribute'"),
        ("summary", lambda value: isinstance(value, str), "one line of text"),
        ("example", lambda value: isinstance(value, Mapping), "a map of options, as in a config"),
    )
    wrong = ((name, getattr(record, name), due) for name, holds, due in rules if not holds(getattr(record, name)))
    return next((f"its {name} is {_shorten(value)}, and is to be {due}" for name, value, due in wrong), None)


def _is_target(value: Any) -> bool:
    return isinstance(value, str) and _TARGET.fullmatch(value) is not None


def _expected(hook: str) -> str:
    return f"def {hook}() -> Iterable[Component]"


def _required(function: Any) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _definition(function: Any) -> str:
    try:
        return f"def {function.__name__}{inspect.signature(function)}"
    except (TypeError, ValueError):
        return str(getattr(function, "__name__", function))


def _shorten(value: object) -> str:
    if value is None:
        return "None"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _code_of(entry_point: EntryPoint) -> str | None:
    """Folder of the outermost package of the imported module that has one of its own, which a namespace shared by distributions has not;
    of a module in no such package the folder it lies in, or its file where that folder is an entry of the path."""
    names = entry_point.module.split(".")
    for depth in range(1, len(names) + 1):
        if found := getattr(sys.modules.get(".".join(names[:depth])), "__file__", None):
            file = Path(found)
            return str(file if depth == 1 and file.name != "__init__.py" else file.parent)
    return None
