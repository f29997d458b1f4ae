"""The component under check: what it declares, its example made into options, and its factory called as the core calls it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
from attrs import field, frozen

from stackwise.config import Ref
from stackwise.contracts.components import BuildContext, Component, Kind
from stackwise.contracts.specs import BatchSpec, RackSpec, Spec, TaskSpec
from stackwise.contracts.tokenizers import RunTokenizer, Tokenizers, made_tokenizer, settings_of
from stackwise.errors import Problem, ProviderError, StackwiseError, UserError, did_you_mean
from stackwise.host.discovery import components_of, discover
from stackwise.host.offers import GROUP
from stackwise.host.provider import KINDS, Provider, Registered
from stackwise.host.registry import Registry
from stackwise.plan.junctions.sizes import Sizes, Term
from stackwise.plan.parts import Draft, Drafts
from stackwise.timeline.duration import Duration
from stackwise.timeline.layout import compile_clock
from stackwise.timeline.schedules import Schedule, Window

Source = str | ModuleType | Mapping[Kind, Iterable[Component]]
"""Where components come from: the name of an installed provider or the id of one component; a module with hooks; or kind → components."""

SEED, ROWS, LENGTH, SOURCE, STEPS = 7, 4, 8, 5, 6
"""What the kit uses everywhere: seed, rows of a batch, positions of a row, positions of a second row, steps of a run."""

MAX_LENGTH = 4 * LENGTH
"""Longest row of a run, as it is passed to factories."""

OPEN_SIZE = 4
"""Size of a dimension if neither the example nor a neighbour gives one."""


class Broken(AssertionError):
    """A component breaks a promise of the contract; the message is a sentence."""


class NotApplicable(Exception):
    """A check does not apply to a component; the message says why."""


def must(condition: bool, sentence: str) -> None:
    """Raise `Broken` with the sentence unless the condition holds."""
    if not condition:
        raise Broken(sentence)


@frozen(kw_only=True)
class Subject:
    """One component, its example, and the registry it lives in."""

    registered: Registered
    registry: Registry = field(repr=False)
    searched: dict[str, Any] = field(factory=dict, eq=False, repr=False)
    """Outcomes of long searches, which several checks and components begin with; one for all subjects of `subjects_of`."""

    @property
    def kind(self) -> Kind:
        """Its kind."""
        return self.registered.kind

    @property
    def id(self) -> str:
        """`<kind>:<provider>.<component>`, which stays the same from run to run."""
        return f"{self.registered.kind}:{self.registered.id}"

    @property
    def article(self) -> str:
        """`a` or `an`, whichever its kind takes."""
        return "an" if self.kind[0] in "aeiou" else "a"

    @property
    def example(self) -> Mapping[str, Any]:
        """Its options as in a config."""
        return self.registered.component.example

    def problems(self, raw: Mapping[str, Any]) -> tuple[Problem, ...]:
        """Mistakes that the core finds in these options."""
        drafts = Drafts(self.registry)
        drafts.of(self.kind, Ref(use=self.registered.id, options=raw, path="example"))
        if drafts.faults:
            raise drafts.faults[0]
        return tuple(drafts.problems)

    def draft(self, raw: Mapping[str, Any] | None = None) -> Draft:
        """Its options as the plan drafts them, before anything left open is filled.

        Raises:
            Broken: the example is refused.
        """
        drafts = Drafts(self.registry)
        draft = drafts.of(self.kind, Ref(use=self.registered.id, options=self.example if raw is None else raw, path="example"))
        if drafts.faults:
            raise drafts.faults[0]
        if draft is None:
            raise Broken(f"the example is refused: {'; '.join(map(str, drafts.problems))}")
        return draft

    def spec(self) -> Spec | None:
        """The spec of the example's options, or None if they give none."""
        return self.draft().spec

    def sizes(self) -> dict[str, int]:
        """Dimension → size: open ones are filled, and those that must exceed others are large enough."""
        draft = self.draft()
        known = {**dict.fromkeys(draft.open_sizes, OPEN_SIZE), **draft.sizes}
        return {**known, **_sizes_beyond(draft.spec, known)} if isinstance(draft.spec, TaskSpec) else known

    def options(self, attention: str | None = None, /, **values: Any) -> Any:
        """The example's options as a factory gets them: nothing open, schedules at their first value, then changed by `values`.

        If `attention` is left out, it is what the task needs, or the first mode that the rack offers.
        """
        draft = self.draft()
        spec = draft.spec
        if attention is None and isinstance(spec, RackSpec) and spec.attention:
            attention = spec.attention[0]
        attention = spec.attention if isinstance(spec, TaskSpec) else attention
        filled = draft.filled(dict.fromkeys(_joined_sizes(draft), OPEN_SIZE), attention).options
        return attrs.evolve(filled, **{**self.values(), **values})

    def values(self) -> dict[str, float]:
        """The first value of every option that may follow time and has one."""
        schedules = self.draft().schedules.items()
        return {name: _first_value(schedule) for name, schedule in schedules if getattr(schedule, "value", 0.0) is not None}

    def context(self, **said: Any) -> BuildContext:
        """A context as a run would give it, except for the fields that are given."""
        usual = {"seed": SEED, "steps": STEPS, "max_rows": 4 * ROWS, "max_length": MAX_LENGTH}
        return BuildContext(**{**usual, **said})

    def build(self, *extra: Any, options: Any = None, **context: Any) -> Any:
        """Call the factory; the caller seeds torch and chooses the device. `context` replaces fields of the usual context."""
        factory = self.registered.load_factory()
        given = self.options() if options is None else options
        return factory(self.bound(given) if self.kind == "loader" else given, self.context(**context), *extra)

    def bound(self, options: Any) -> Any:
        """The options of a loader as a run hands them over: with the tokenizer that they ask for."""
        id = self.registered.id
        if (settings := settings_of(id, options)) is None:
            return options
        tokenizer = made_tokenizer(id, options, [options])
        assert tokenizer is not None  # data may be read here
        return Tokenizers((RunTokenizer(use=id, settings=settings, tokenizer=tokenizer),)).bind(id, options)


def _sizes_beyond(spec: TaskSpec, known: Mapping[str, int]) -> dict[str, int]:
    """The smallest sizes of the dimensions that must exceed others, as unification chooses them."""
    sizes = Sizes()
    others = {each.other: OPEN_SIZE for each in spec.beyond if isinstance(each.other, str) and each.other not in known}
    for dim, size in {**others, **known}.items():
        sizes.fix(("task", dim), size)
    for each in spec.beyond:
        other: Term = ("task", each.other) if isinstance(each.other, str) else each.other
        sizes.reach(other, ("task", each.dim), each.by)
    sizes.settle()
    return {each.dim: smallest for each in spec.beyond if (smallest := sizes.size(("task", each.dim))) is not None}


def _joined_sizes(draft: Draft) -> list[str]:
    """Dimensions that a run would fill: of a loader, those that its spec names, as an option may have no effect on what it reads."""
    spec = draft.spec
    if not isinstance(spec, BatchSpec):
        return list(draft.open_sizes)
    named = {dim for tensor in spec.fields.values() for dim in (*tensor.dims, *(tensor.bounds or ()))}
    return [dim for dim in draft.open_sizes if dim in named]


def _first_value(schedule: Schedule) -> float:
    clock = compile_clock(Duration.parse(f"{STEPS} steps"), ["check"], [Duration.parse("100%")], [None])
    return schedule.compile(Window(clock, 0, STEPS), None)(0.0)


def subjects_of(source: Source) -> tuple[Subject, ...]:
    """Every component of a source, in listing order. Only the provider's light module is imported.

    Args:
        source: see `Source`; an installed provider or component is found by name, everything else need not be installed.

    Raises:
        UserError: nothing of that name is installed.
        ProviderError: the provider is broken, or offers nothing.
    """
    core = discover(allow={"core"}).claimants("core")
    if isinstance(source, str):
        provider, id = _find_provider(source)
    elif isinstance(source, ModuleType):
        provider, id = _provider_of(components_of(source, name=_word(source.__name__)), source.__name__), None
    else:
        provider, id = _provider_of(_register(source)), None
    registry = Registry((*(p for p in core if p.name != provider.name), provider))
    components = [each for each in registry if each.provider == provider.name and id in (None, each.id, f"{each.kind}:{each.id}")]
    if not components:
        raise ProviderError(f"provider '{provider.name}' offers no component that could be checked", provider=provider.name)
    searched: dict[str, Any] = {}
    return tuple(Subject(registered=each, registry=registry, searched=searched) for each in components)


def _find_provider(name: str) -> tuple[Provider, str | None]:
    """The provider of that name; or that of the component of that name, and the component."""
    kind, colon, id = name.rpartition(":")
    if colon and kind not in KINDS:
        raise UserError(f"'{kind}' in '{name}' is not a kind of component{did_you_mean(kind, KINDS)}")
    owner, dot, _ = id.partition(".")
    registry = discover()
    registry.check_provider(id)
    provider = registry.provider(owner)
    if provider is None:
        known = [p.name for p in registry.providers]
        how = f"it is found by an entry point of the group '{GROUP}', which installing the distribution anew makes known"
        raise UserError(f"no provider '{owner}' is installed{did_you_mean(owner, known)}; {how}")
    if dot and not any(name in (c.id, f"{c.kind}:{c.id}") for c in provider.components):
        raise UserError(f"provider '{owner}' has no component '{name}'{did_you_mean(name, [c.id for c in provider.components])}")
    return provider, name if dot else None


def _register(components: Mapping[Kind, Iterable[Component]]) -> tuple[Registered, ...]:
    name = "listed"
    if unknown := [kind for kind in components if kind not in KINDS]:
        raise UserError(f"'{unknown[0]}' is not a kind of component{did_you_mean(unknown[0], KINDS)}")
    return tuple(
        Registered(kind=kind, id=f"{name}.{c.name}", component=c, provider=name, distribution=name, version="0")
        for kind, entries in components.items()
        for c in entries
    )


def _provider_of(components: tuple[Registered, ...], module: str = "") -> Provider:
    name = components[0].provider if components else "listed"
    return Provider(name=name, distribution=name, version="0", module=module, components=components)


def _word(module: str) -> str:
    """A provider name for a module that is not installed as one: its package's."""
    return module.partition(".")[0].replace("_", "-").lower()


@contextmanager
def reported(subject: Subject) -> Iterator[None]:
    """Turn an error into a finding: the core's errors by their sentence, any other exception with its type and its place in the
    component's code."""
    try:
        yield
    except (Broken, NotApplicable):
        raise
    except StackwiseError as error:
        raise Broken(str(error)) from error
    except (Exception, SystemExit) as error:
        raise Broken(f"it raised {type(error).__name__}: {error}{_place(subject, error)}") from error


def _place(subject: Subject, error: BaseException) -> str:
    """The innermost line of the component's package in the traceback, in brackets; empty if there is none."""
    package = sys.modules.get(subject.registered.component.factory.partition(".")[0].partition(":")[0])
    file = Path(getattr(package, "__file__", None) or ".")
    own = file.parent if file.name == "__init__.py" else file
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        where = Path(frame.filename)
        if own == where or own in where.parents:
            return f" ({where.name}:{frame.lineno}, in {frame.name})"
    return ""
