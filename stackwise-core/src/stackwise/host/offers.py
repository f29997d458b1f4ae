"""What is installed under the entry-point group: read from metadata first, imported and asked when somebody needs it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

from attrs import evolve, frozen
from importlib_metadata import Distribution, EntryPoint

from stackwise import __version__
from stackwise.host.hooks import NAME, NAME_FORM, Broken, Hooks
from stackwise.host.isolation import guarded
from stackwise.host.provider import Provider, explain

GROUP = "stackwise.providers"
"""The entry-point group that providers join."""

CORE = "stackwise-core"

_FIELD = re.compile(r"^(Name|Version|Requires-Dist):(.*(?:\n[ \t].*)*)", re.IGNORECASE | re.MULTILINE)  # the email package costs 20 ms
_ABOUT_CORE = re.compile(r"\s*stackwise[-_.]core(?![\w.-])", re.IGNORECASE)
_MADE_FOR_THIS_CORE = re.compile(rf"stackwise-core\s*(~=|>=|==)\s*{re.escape(__version__)}\s*")
"""A requirement that names the installed version itself, as those of a lock-step release do, is met."""


@frozen(kw_only=True, eq=False)
class Offer:
    """A provider as one distribution offers it. What is known of it grows with what it is asked for:
    its name at first, by `claim` what its metadata says, by `load()` its components."""

    name: str
    distribution: Distribution
    entry_point: EntryPoint | None
    hooks: Hooks
    fault: str = ""
    """Why the entry points of the distribution cannot be read."""

    @cached_property
    def claim(self) -> Provider:
        """The provider by its metadata; nothing of it is imported. Metadata is foreign text: any way of being malformed is a status."""
        if self.entry_point is None:
            return self._unreadable(self.fault)
        try:
            name, version, requires = _read_header(self.distribution)
            location, editable = _locate(self.distribution)
        except Exception as error:
            return self._unreadable(explain(error))
        module = re.match(r"[\w.]*", self.entry_point.value).group()  # type: ignore[union-attr]  # nothing matches as well
        return Provider(
            name=self.name, distribution=name, version=version, module=module, location=location, editable=editable, requires=requires
        )

    def load(self) -> Provider:
        """The provider with its components, or with the reason why it has none; imported at the first call."""
        return self._loaded

    @cached_property
    def _loaded(self) -> Provider:
        provider, entry_point = self.claim, self.entry_point
        if entry_point is None or not provider.ok:
            return provider
        start = perf_counter()
        try:
            _check_name(provider.name)
            _check_core_version(provider)
            with guarded() as changed:
                components, starters = self.hooks.ask(_import(entry_point, provider), provider)
            if changed:
                raise Broken(f"loading '{entry_point.value}' changed {' and '.join(changed)}, which belongs to the whole process")
        except Broken as reason:
            return evolve(provider, status=str(reason), seconds=perf_counter() - start)
        location, seconds = _code_of(entry_point) or provider.location, perf_counter() - start
        return evolve(provider, components=components, starters=starters, location=location, seconds=seconds)

    def _unreadable(self, reason: str) -> Provider:
        folder = _folder_of(self.distribution)
        status = f"the metadata of {folder} cannot be read: {reason}"
        return Provider(name=self.name, distribution=folder, version="?", status=status)


def read_offers(hooks: Hooks) -> Iterator[Offer]:
    """Every entry point of the group; a distribution that the path shows twice counts once, as the first one on it.

    Args:
        hooks: the plugin manager in which they are registered once they are loaded.
    """
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
        except Exception as error:  # foreign text, as in `claim`
            yield Offer(name=folder, distribution=distribution, entry_point=None, hooks=hooks, fault=explain(error))
            continue
        for name, value in pairs:
            entry_point = EntryPoint(name=name, value=value, group=GROUP)
            yield Offer(name=name, distribution=distribution, entry_point=entry_point, hooks=hooks)


def _entry_points(text: str) -> list[tuple[str, str]]:
    """Name and value of every line of the group's section.

    Raises:
        ValueError: a line of it that is not an entry point.
    """
    pairs, inside = [], False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            inside = line == f"[{GROUP}]"
        elif inside and line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            if not equals:
                raise ValueError(f"the line {line!r} of entry_points.txt is not of the form 'name = module'")
            pairs.append((name.strip(), value.strip()))
    return pairs


def _folder_of(distribution: Distribution) -> str:
    """The name of the folder of its metadata, `<name>-<version>.dist-info`."""
    return Path(str(getattr(distribution, "_path", None) or distribution.locate_file(""))).name


def _normal(name: str) -> str:
    """A distribution's name as names are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _name_of(distribution: Distribution) -> str:
    try:
        return _normal(_read_header(distribution)[0])
    except Exception:  # what cannot be read is equal to nothing
        return f"? {id(distribution)}"


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


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise Broken(f"{name!r} is not a provider name ({NAME_FORM}): change the entry point")


def _check_core_version(provider: Provider) -> None:
    """Refuse a provider made for another core before anything of it is imported."""
    about_core = [text for text in provider.requires if _ABOUT_CORE.match(text)]
    if all(_MADE_FOR_THIS_CORE.fullmatch(text) for text in about_core):
        return
    from packaging.requirements import InvalidRequirement, Requirement  # a tenth of a listing, so not for requirements met by definition

    for text in about_core:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise Broken(f"its requirement {text!r} cannot be read: {error}") from error
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if not requirement.specifier.contains(__version__, prereleases=True):
            raise Broken(
                f"{provider.distribution} {provider.version} needs {CORE}{requirement.specifier}, but {__version__} is installed: "
                f"install a release of {provider.distribution} made for {__version__}, or another {CORE}; nothing of it was imported"
            )


def _import(entry_point: EntryPoint, provider: Provider) -> Any:
    try:
        return entry_point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise Broken(f"'{entry_point.value}' of {provider.distribution} {provider.version} does not import: {explain(error)}") from error


def _code_of(entry_point: EntryPoint) -> str | None:
    """Where the provider's own code lies: the folder of the outermost package of its module that has an `__init__.py`, since a
    namespace is shared by distributions; of a module in no such package its file, or its folder where that is not itself on the path."""
    names = entry_point.module.split(".")
    for depth in range(1, len(names) + 1):
        if source := getattr(sys.modules.get(".".join(names[:depth])), "__file__", None):
            file = Path(source)
            return str(file if depth == 1 and file.name != "__init__.py" else file.parent)
    return None
