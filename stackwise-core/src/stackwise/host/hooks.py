"""The plugin manager of a registry: providers are checked, registered in it and asked through it, one hook implementation at a time."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pluggy import PluginManager

from stackwise.contracts import hookspecs
from stackwise.contracts.components import Component, Starter
from stackwise.contracts.hookspecs import HOOKS, STARTERS
from stackwise.errors import did_you_mean
from stackwise.host.provider import Provider, Registered, explain

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
NAME_FORM = "lower-case letters and digits in words joined by '-', a letter first"
_TARGET = re.compile(r"[^\s:]+:[^\s:]+")
_FILE = re.compile(r"\w[\w.-]*")


class ProviderDeprecation(FutureWarning):
    """A provider uses a part of the contract that a later release of the core will not have."""


class Broken(Exception):
    """Why a provider is put aside, as a sentence."""


class _Implementations:
    """What pluggy registers of a provider: its checked functions by hook, and nothing else of it.

    A provider's module can answer `getattr`, `==` or `hash` with an exception; pluggy asks these of all plugins when one is
    registered or called, so the module of a broken provider would hurt the others.
    """

    def __init__(self, functions: Mapping[str, Callable[[], object]]) -> None:
        vars(self).update(functions)


class Hooks:
    """One plugin manager. A provider whose hook fails is taken out of it again."""

    def __init__(self) -> None:
        self._manager = PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)

    def ask(self, plugin: object, provider: Provider) -> tuple[tuple[Registered, ...], tuple[Starter, ...]]:
        """Register a provider's module and call each of its hooks alone.

        Raises:
            Broken: a function is not an implementation of a hook, or a hook fails or returns something else than its records.
        """
        functions = self._read_functions(plugin)
        implementations = _Implementations(functions)
        self._register(implementations, provider)
        try:
            components = tuple(part for hook in HOOKS if hook in functions for part in self._components(hook, implementations, provider))
            starters = self._call(STARTERS, implementations, Starter) if STARTERS in functions else ()
            return components, tuple(starters)
        except Broken:
            self._manager.unregister(implementations)
            raise

    def _read_functions(self, plugin: object) -> dict[str, Callable[[], object]]:
        """Hook → the plugin's implementation of it."""
        functions: dict[str, Callable[[], object]] = {}
        try:
            for name in dir(plugin):
                marks = self._manager.parse_hookimpl_opts(plugin, name)
                function: Any = getattr(plugin, name, None)
                if marks is None and not (name.startswith("stackwise_") and inspect.isroutine(function)):
                    continue
                hook = (marks and marks["specname"]) or name
                _check_function(hook, function, marks)
                if hook in functions:
                    raise Broken(f"hook {hook} has two implementations, `{_definition(functions[hook])}` and `{_definition(function)}`")
                functions[hook] = function
        except (Broken, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise Broken(f"it cannot be registered: {explain(error)}") from error
        return functions

    def _register(self, implementations: _Implementations, provider: Provider) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                self._manager.register(implementations, name=provider.name)
            except Exception as error:
                raise Broken(f"it cannot be registered: {explain(error)}") from error
        for warning in caught:  # a hookspec with `warn_on_impl` is on its way out; who still implements it is named
            sentence = f"provider '{provider.name}' ({provider.distribution} {provider.version}): {warning.message}"
            warnings.warn(sentence, ProviderDeprecation, stacklevel=2)

    def _components(self, hook: str, implementations: _Implementations, provider: Provider) -> list[Registered]:
        """The components that one hook of one provider names."""
        return [Registered.of(record, HOOKS[hook], provider) for record in self._call(hook, implementations, Component)]

    def _call(self, hook: str, implementations: _Implementations, record_type: type[Any]) -> list[Any]:
        """Call one hook of one provider and check every record it returns."""
        others = [plugin for plugin in self._manager.get_plugins() if plugin is not implementations]
        what = record_type.__name__.lower()
        expected = f"expected `def {hook}() -> Iterable[{record_type.__name__}]`"
        try:
            answers = self._manager.subset_hook_caller(hook, remove_plugins=others)()
            answer = answers[0] if answers else None  # pluggy leaves out an answer that is None
            records = list(answer) if isinstance(answer, Iterable) else None
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise Broken(f"hook {hook} failed: {explain(error)}; {expected}") from error
        if records is None:
            raise Broken(f"hook {hook} returned {_shorten(answer)}; {expected}")
        names: set[str] = set()
        for record in records:
            if not isinstance(record, record_type):
                raise Broken(f"hook {hook} returned {_shorten(record)} among its {what}s; {expected}")
            _check_record(hook, what, record)
            if record.name in names:
                raise Broken(f"hook {hook} returned two {what}s named '{record.name}'; a name is unique within its kind")
            names.add(record.name)
        return records


def _check_function(hook: str, function: Any, marks: Mapping[str, Any] | None) -> None:
    """Refuse what looks like a hook but would never be called, or not as meant."""
    definition = _definition(function)
    if hook not in (*HOOKS, STARTERS):
        raise Broken(f"there is no hook '{hook}' (`{definition}`){did_you_mean(hook, (*HOOKS, STARTERS))}")
    if marks is None:
        raise Broken(f"`{definition}` is named like a hook, but not marked as one: put @hookimpl above it")
    if marks["wrapper"] or marks["hookwrapper"]:
        raise Broken(f"`{definition}` is marked as a wrapper, but hooks only name what there is: mark it with a plain @hookimpl")
    parameters = inspect.signature(function).parameters.values()
    if any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        record = "Starter" if hook == STARTERS else "Component"
        raise Broken(f"hook {hook} has another signature: it is `{definition}`, expected `def {hook}() -> Iterable[{record}]`")


_TEXT_FORM = "text of the form 'module:attribute'"
_RULES: Mapping[str, tuple[tuple[str, Callable[[Any], bool], str], ...]] = {
    "component": (
        ("options", lambda value: _is_target(value), _TEXT_FORM),
        ("factory", lambda value: _is_target(value), _TEXT_FORM),
        ("summary", lambda value: isinstance(value, str), "one line of text"),
        ("example", lambda value: isinstance(value, Mapping), "a map of options, as in a config"),
    ),
    "starter": (
        ("text", lambda value: _is_target(value), _TEXT_FORM),
        ("summary", lambda value: isinstance(value, str), "one line of text"),
        ("files", lambda value: _are_files(value), "a map from plain file names to text of the form 'module:attribute'"),
        ("folder", lambda value: isinstance(value, bool), "true or false"),
        ("language", lambda value: value in ("yaml", "python"), "'yaml' or 'python'"),
    ),
}
"""Record → its fields, whether a value is of their form, and that form."""


def _check_record(hook: str, what: str, record: Component | Starter) -> None:
    """Refuse a record whose fields are not of their form."""
    if not isinstance(record.name, str) or not NAME.fullmatch(record.name):
        raise Broken(f"hook {hook} names a {what} {record.name!r}, which is not a {what} name ({NAME_FORM})")
    for field, holds, rule in _RULES[what]:
        if not holds(value := getattr(record, field)):
            raise Broken(f"hook {hook}: {what} '{record.name}': its {field} is {_shorten(value)}, but must be {rule}")


def _are_files(value: Any) -> bool:
    """Whether these are names without folders, and where their contents are."""
    if not isinstance(value, Mapping):
        return False
    return all(isinstance(name, str) and _FILE.fullmatch(name) and _is_target(target) for name, target in value.items())


def _is_target(value: Any) -> bool:
    return isinstance(value, str) and _TARGET.fullmatch(value) is not None


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
