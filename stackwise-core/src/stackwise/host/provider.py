"""A provider and its components as records: what the registry keeps, and how a component is loaded."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, get_args
from warnings import warn

import attrs
from attrs import frozen

from stackwise.contracts.components import Component, Kind, Starter
from stackwise.errors import ProviderError
from stackwise.host.isolation import guarded

KINDS: tuple[Kind, ...] = get_args(Kind)
"""Every kind of component, in listing order."""


class StateChanged(RuntimeWarning):
    """A component's module, a library it imports, or its factory changed state of the whole process."""


@frozen(kw_only=True)
class Registered:
    """A component with its kind and the distribution that answers for it."""

    kind: Kind
    id: str
    """`<provider>.<component>`."""
    component: Component
    provider: str
    distribution: str
    version: str

    @classmethod
    def of(cls, component: Component, kind: Kind, provider: Provider) -> Registered:
        """The component as a provider offers it."""
        return cls(
            kind=kind,
            id=f"{provider.name}.{component.name}",
            component=component,
            provider=provider.name,
            distribution=provider.distribution,
            version=provider.version,
        )

    def load_options(self) -> type:
        """The options class, imported at the first call.

        Raises:
            ProviderError: the module does not import, lacks the attribute, or holds no attrs class there.
        """
        return self._options

    @cached_property
    def _options(self) -> type:
        options = self._load("options", self.component.options)
        if not isinstance(options, type) or not attrs.has(options):
            self._fail("options", self.component.options, f"it is {article(options)}; options are an attrs class")
        return options

    def load_factory(self) -> Any:
        """The callable that builds the component, imported at the first call; this may import torch.

        Raises:
            ProviderError: the module does not import, lacks the attribute, or holds nothing callable there.
        """
        return self._factory

    @cached_property
    def _factory(self) -> Any:
        factory = self._load("factory", self.component.factory)
        if not callable(factory):
            self._fail("factory", self.component.factory, f"it is {article(factory)}; a factory can be called")
        return factory

    def build(self, *arguments: Any) -> Any:
        """Call the factory. What it changes of the process is put back, and a warning says so.

        Raises:
            ProviderError: there is no factory to call; what it raises itself comes out as it is.
        """
        factory = self.load_factory()
        with guarded(building=True) as changed:
            artifact = factory(*arguments)
        self._warn("calling", self.component.factory, changed)
        return artifact

    def _warn(self, doing: str, target: str, changed: list[str]) -> None:
        if changed:
            sentence = f"{doing} '{target}' of {self.distribution} {self.version} changed {' and '.join(changed)}; this was undone"
            warn(sentence, StateChanged, stacklevel=4)

    def _load(self, part: str, target: str) -> Any:
        module, _, attribute = target.partition(":")
        if not module or not attribute:
            self._fail(part, target, "it is not of the form 'module:attribute'")
        try:
            with guarded() as changed:
                value: Any = import_module(module)
                for name in attribute.split("."):
                    value = getattr(value, name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._fail(part, target, explain(error), error)
        self._warn("loading", target, changed)
        return value

    def _fail(self, part: str, target: str, reason: str, cause: BaseException | None = None) -> NoReturn:
        raise ProviderError(
            f"the {part} '{target}' of {self.kind} '{self.id}' from {self.distribution} {self.version} cannot be used: {reason}",
            provider=self.provider,
            distribution=self.distribution,
        ) from cause


@frozen(kw_only=True)
class Provider:
    """An installed entry point of the group `stackwise.providers`, working or not."""

    name: str
    distribution: str
    version: str
    module: str = ""
    """The light module that its entry point names."""
    location: str = ""
    """Folder (or file) of its code once imported, of its distribution before."""
    editable: bool = False
    status: str = "ok"
    """`ok`, or the sentence that says why nothing of it can be used."""
    refused: bool = False
    """Whether it was left out by the caller's allow or block list, and so is not at fault."""
    requires: tuple[str, ...] = ()
    """What its distribution requires, as its metadata says."""
    components: tuple[Registered, ...] = ()
    starters: tuple[Starter, ...] = ()
    """What it offers to begin with."""
    seconds: float = 0.0
    """How long it took to import and ask."""

    @property
    def ok(self) -> bool:
        """Whether its components can be used."""
        return self.status == "ok"

    def provenance(self) -> dict[str, Any]:
        """Which code this is, down to its files, as plans and checkpoints state it."""
        return {
            "provider": self.name,
            "distribution": self.distribution,
            "version": self.version,
            "editable": self.editable,
            "sha256": self.file_digest,
        }

    @cached_property
    def file_digest(self) -> str:
        """sha256 over the paths and bytes of its Python files, so that a log says which code ran; read once, as an edit changes no code
        that is imported already. What cannot be read, as the broken link that an editor leaves, is not code."""
        from hashlib import sha256

        root = Path(self.location)
        files = sorted(root.rglob("*.py")) if root.is_dir() else [root]
        digest = sha256()
        for file in files:
            with suppress(OSError):
                content = file.read_bytes()
                digest.update(f"{file.relative_to(root).as_posix()}\0{len(content)}\0".encode())
                digest.update(content)
        return digest.hexdigest()


def explain(error: BaseException) -> str:
    """One line that says what went wrong inside a provider."""
    text = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"the module '{error.name}' is missing (ModuleNotFoundError); install what the distribution requires, or reinstall it"
    if isinstance(error, SystemExit):
        return f"it called sys.exit({text})"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def article(value: object) -> str:
    """The type of a value, with its article."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
