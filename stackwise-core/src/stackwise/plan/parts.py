"""References of the config → drafts of parts: the registered component, its options checked, the schedules among them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from math import isfinite
from typing import Any

import attrs
from attrs import Factory, define, field, frozen

from stackwise.config import Ref, parse_schedule, structure_options
from stackwise.contracts.answers import calling, short
from stackwise.contracts.components import SPEC_OF, Built, Kind
from stackwise.contracts.options import MAX_BLOCKS, dimension_fields, read_stacks, scheduled_fields
from stackwise.contracts.specs import EpochSize, RackSpec, Reading, Spec
from stackwise.contracts.tokenizers import Tokenizers
from stackwise.curriculum.parts import Part
from stackwise.errors import Problem, ProviderError, UnknownComponentError, UserError, did_you_mean
from stackwise.host.provider import Registered
from stackwise.host.registry import Registry, blaming
from stackwise.plan.slips import slips
from stackwise.timeline.schedules import TAGS, Constant, Curve, Schedule

_OPEN = "; it is called while options that the config leaves open are still None, so a spec names dimensions instead of giving their sizes"


@frozen(kw_only=True, eq=False)
class Draft:
    """A part before its open options are filled and its schedules compiled."""

    kind: Kind
    id: str
    path: str
    options: Any
    schedules: Mapping[str, Schedule] = Factory(dict)
    """Every option that may follow time, defaults included."""
    registered: Registered | None = None
    given: Any = None
    counting: bool = False
    """Whether a duration counts epochs: a loader that does not know its size may then read its data."""
    blocks: Mapping[str, str] | None = None
    """Of a whole module: path of a list of blocks → the option that says how many; None for every other part."""

    @property
    def label(self) -> str:
        """What messages call it."""
        if self.registered is None:
            return f"{self.kind} {self.id}"
        return f"{self.kind} '{self.id}' ({self.registered.distribution} {self.registered.version})"

    @property
    def spec(self) -> Spec | None:
        """The spec as far as it is known before building; None if only the artifact can say."""
        if self.registered is not None:
            return self._registered_spec(self.registered)
        if self.blocks is not None:
            return self._module_spec(self.blocks)
        if isinstance(self.given, Built):
            return self._built_spec()
        for name in ("get_spec", "to_spec", "get_batch_spec"):
            if hasattr(self.given, name):
                spec: Spec = getattr(self.given, name)()
                return spec
        return RackSpec() if self.kind == "rack" else None

    def _registered_spec(self, registered: Registered) -> Spec | None:
        if not hasattr(self.options, "to_spec"):
            return None
        with self._blaming_provider("to_spec", _OPEN):
            spec: Spec = self.options.to_spec()
        wanted = SPEC_OF.get(registered.kind)
        if spec is not None and (wanted is None or not isinstance(spec, wanted)):
            due = f"a {registered.kind} says {wanted.__name__}" if wanted is not None else f"a {registered.kind} has no spec"
            sentence = f"to_spec() of {self.label} gave {type(spec).__name__}: {due}"
            raise ProviderError(sentence, provider=registered.provider, distribution=registered.distribution)
        return spec

    @contextmanager
    def _blaming_provider(self, method: str, hint: str = "") -> Iterator[None]:
        """Report an error of a component's own method as the fault of its provider; a UserError passes unchanged."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if self.registered is None:
                raise
            raise ProviderError(
                f"{method}() of {self.label} failed: {type(error).__name__}: {error}{hint if isinstance(error, TypeError) else ''}",
                provider=self.registered.provider,
                distribution=self.registered.distribution,
            ) from error

    def watched(self) -> tuple[str, ...]:
        """The metrics that the options of a reaction say it watches.

        Raises:
            ProviderError: the answer is not a list of names.
        """
        with self._blaming_provider("watches"):
            answer = self.options.watches()
            if not isinstance(answer, tuple | list) or not all(isinstance(name, str) for name in answer):
                raise TypeError(f"it gave {answer!r}, and the names of metrics are expected")
            return tuple(answer)

    def _built_spec(self) -> Spec | None:
        if self.kind != "rack":
            return self.given.spec  # type: ignore[no-any-return]  # the user's own object
        stacks = {stack.name: stack.blocks for stack in self.options.get("stacks", ())}
        return attrs.evolve(self.given.spec or RackSpec(), stacks=stacks)

    def _module_spec(self, blocks: Mapping[str, str]) -> RackSpec:
        """A whole module in the place of a rack: its lists of blocks are the stacks, under their own names."""
        own = self.given.spec if isinstance(self.given, Built) and isinstance(self.given.spec, RackSpec) else RackSpec()
        return attrs.evolve(own, block_path="{stack}.{index}", stacks={path: self.options[option] for path, option in blocks.items()})

    @cached_property
    def epoch_size(self) -> EpochSize | None:
        """The size of one training epoch of a loader, if it is known before the data is read, or has to be counted; else None.

        Raises:
            UserError: the data cannot be counted.
        """
        size: EpochSize | None = None
        owner = self.options if self.registered is not None else self.given
        if hasattr(owner, "epoch_size"):
            with suppress(UserError), self._blaming_provider("epoch_size"):  # the run reads the data and reports what is wrong with it
                size = _size(owner.epoch_size("train") if self.registered is not None else owner.epoch_size())
        if size is None and self.kind == "loader" and hasattr(self.given, "__len__"):
            with suppress(TypeError, NotImplementedError):  # a DataLoader over an iterable dataset that has no length
                size = EpochSize(batches=len(self.given))
        if size is None and self.counting and hasattr(self.options, "count_epoch"):
            with self._blaming_provider("count_epoch"):
                size = _size(self.options.count_epoch("train"))
        return size

    def readings(self, split: str, whole: bool) -> frozenset[Reading]:
        """What a loader reads for a split, as far as its options say it; what is given in code is known by the object."""
        if self.registered is None:
            read = _read_in_code(self.given)
            return frozenset([Reading(f"the {type(read).__name__} given in code", key=id(read))])
        if not hasattr(self.options, "readings"):
            return frozenset()
        with suppress(UserError), self._blaming_provider("readings"):  # the run reads the data and reports what is wrong with it
            readings = frozenset(self.options.readings(split, whole))
            if other := [each for each in readings if not isinstance(each, Reading)]:
                raise TypeError(f"it gave {short(other[0])} among them, and a Reading is expected")
            return readings
        return frozenset()

    @property
    def sizes(self) -> dict[str, int]:
        """Dimension → size, where the options fix it."""
        if self.given is not None:
            return self._given_sizes()
        return {dim: size for dim, option in self._dimensions() if (size := getattr(self.options, option)) is not None}

    @property
    def open_sizes(self) -> dict[str, str]:
        """Dimension → option to be filled with it."""
        return {dim: option for dim, option in self._dimensions() if getattr(self.options, option) is None}

    def _dimensions(self) -> list[tuple[str, str]]:
        if self.registered is None:
            return []
        return [(dim, option) for option, dim in dimension_fields(type(self.options)).items()]

    def _given_sizes(self) -> dict[str, int]:
        """Sizes of a finished object that keeps its options, as the artifacts of well-made providers do."""
        options = getattr(self.given, "options", None)
        if options is None or isinstance(self.given, Built) or not attrs.has(type(options)):
            return {}
        return {dim: getattr(options, option) for option, dim in dimension_fields(type(options)).items()}

    @property
    def pinned(self) -> str | None:
        """An option that would follow the task's attention, and that the config gives."""
        return next((name for name in self._following() if getattr(self.options, name) is not None), None)

    def _following(self) -> list[str]:
        """The options that follow the task's attention."""
        if self.registered is None:
            return []
        return [a.name for a in attrs.fields(type(self.options)) if a.metadata.get("follows_task") == "attention"]

    def filled(self, sizes: Mapping[str, int], attention: str | None) -> Draft:
        """The same draft with its open options filled from the junctions and the task.

        Raises:
            UserError: the component refuses the combination.
        """
        if self.registered is None:
            return self
        changes: dict[str, Any] = {option: sizes[dim] for dim, option in self.open_sizes.items() if dim in sizes}
        changes |= {name: attention for name in self._following() if getattr(self.options, name) is None}
        return attrs.evolve(self, options=attrs.evolve(self.options, **changes)) if changes else self

    def part(self, curves: Mapping[str, Curve]) -> Part:
        """The finished part."""
        counts = ("stacks",) if self.blocks is None else tuple(self.blocks.values())
        return Part(kind=self.kind, id=self.id, options=self.options, curves=curves, given=self.given, counts=counts)


def _read_in_code(given: Any) -> Any:
    """The data set of a torch DataLoader that reads all of it; anything else is read as it is."""
    whole = type(getattr(given, "sampler", None)).__name__ in ("SequentialSampler", "RandomSampler")
    return given.dataset if whole and hasattr(given, "dataset") else given


RECENT_REFS = 8


def _says_the_same(one: Ref, other: Ref) -> bool:
    """Whether two references ask for the same thing; arrays among the options, which do not compare, count as different."""
    if one.use != other.use or one.given is not other.given or one.blocks != other.blocks:
        return False
    try:
        return bool(one.options == other.options)
    except (ValueError, RuntimeError):
        return False


def _is_schedule(value: object) -> bool:
    """Whether the option of a user's own callable is a schedule object, or written as one; modules have a `compile` too."""
    written = isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in TAGS
    return written or (hasattr(value, "compile") and hasattr(value, "over"))


def _size(answer: Any) -> EpochSize | None:
    if answer is not None and not isinstance(answer, EpochSize):
        raise TypeError(f"it gave {short(answer)}, and an EpochSize or None is expected")
    return answer


@define
class Drafts:
    """Makes drafts, each reference once, and collects what is wrong with them."""

    registry: Registry
    counting: bool = field(default=False, kw_only=True)
    tokenizers: Tokenizers = field(factory=Tokenizers, kw_only=True)
    """Of a run that goes on: loaders with their settings use them."""
    problems: list[Problem] = field(factory=list)
    faults: list[ProviderError] = field(factory=list)
    _known: dict[tuple[str, int], tuple[Ref, Draft | None]] = field(factory=dict)
    _bound: dict[int, tuple[Draft, Draft]] = field(factory=dict)
    """id of a draft → the draft and its twin with a tokenizer."""
    _recent: dict[tuple[str, str], deque[Ref]] = field(factory=dict)
    """Kind and path → the last references there. A phase that repeats one gets the same draft."""
    _classes: dict[str, tuple[Registered, type]] = field(factory=dict)
    """Kind and id → the component and its options class, loaded once however many phases name it."""

    def of(self, kind: Kind, ref: Ref) -> Draft | None:
        """The draft of a reference; None if it has problems, which are collected."""
        key = (kind, id(ref))
        if key not in self._known:
            recent = self._recent.setdefault((kind, ref.path), deque(maxlen=RECENT_REFS))
            same = next((known for known in recent if _says_the_same(known, ref)), None)
            draft = self._known[kind, id(same)][1] if same is not None else self._draft(kind, ref)
            self._known[key] = (ref, draft)
            recent.append(ref)
        return self._known[key][1]

    def with_tokenizers(self, sources: Mapping[str, Draft]) -> dict[str, Draft]:
        """The drafts of loaders with the tokenizers that exist by now; each draft has one such twin."""
        twins: dict[str, Draft] = {}
        for name, draft in sources.items():
            if draft.registered is not None and id(draft) not in self._bound:
                self._bound[id(draft)] = draft, attrs.evolve(draft, options=self.tokenizers.bind(draft.id, draft.options))
            twins[name] = self._bound[id(draft)][1] if draft.registered is not None else draft
        return twins

    def constants(self, draft: Draft) -> dict[str, Curve]:
        """The values of the scheduled options of a part that stands outside the phases; one that follows time is a problem."""
        values = {}
        for name, schedule in draft.schedules.items():
            if isinstance(schedule, Constant):
                values[name] = Curve.constant(schedule.value)
            else:
                message = f"{draft.label} has no time to follow here: give a number"
                self.problems.append(Problem(message, f"{draft.path}.{name}"))
        return values

    def owners(self, kind: Kind) -> list[str]:
        """Providers of the components of a kind that were named, each once."""
        return list(dict.fromkeys(each.provider for each, _ in self._classes.values() if each.kind == kind))

    def _draft(self, kind: Kind, ref: Ref) -> Draft | None:
        if ref.given is not None:
            return self._given(kind, ref)
        if ref.use is None:
            return None  # the config section has reported what is missing
        try:
            registered, options_class = self._loaded(kind, ref.use)
        except UnknownComponentError as error:
            self.problems.append(Problem(str(error), f"{ref.path}.use"))
            return None
        except ProviderError as error:
            self.faults.append(error)
            return None
        with blaming(self.registry.claimants(registered.provider)), calling(ref.use, "its options"):
            options, schedules, problems = structure_options(options_class, ref.options, ref.path)
        self.problems += problems
        if options is None:
            return None
        everything = {name: schedules[name] for name in scheduled_fields(options_class) if name in schedules}  # the rest has no value
        with blaming(self.registry.claimants(registered.provider)):
            options = self.tokenizers.bind(ref.use, options) if kind == "loader" else options
        return Draft(
            kind=kind,
            id=ref.use,
            path=ref.path,
            options=options,
            schedules=everything,
            registered=registered,
            counting=self.counting,
        )

    def _loaded(self, kind: Kind, use: str) -> tuple[Registered, type]:
        key = f"{kind}:{use}"
        if key not in self._classes:
            registered = self.registry.get(kind, use)
            self._classes[key] = (registered, registered.load_options())
        return self._classes[key]

    def _given(self, kind: Kind, ref: Ref) -> Draft | None:
        if isinstance(ref.given, type):
            name = ref.given.__name__
            self.problems.append(
                Problem(f"{name} is a class: give an instance, or Built({name}, <option>=…), which can be built anew", ref.path)
            )
            return None
        if not isinstance(ref.given, Built):
            if ref.options:
                self.problems.append(
                    Problem(f"a finished {kind} takes no options ({', '.join(ref.options)}): give a Built(callable, options)", ref.path)
                )
            self.problems += broken_blocks(ref)
            return Draft(kind=kind, id=type(ref.given).__name__, path=ref.path, options=None, given=ref.given, blocks=ref.blocks and {})
        options, schedules = dict(ref.options), {}
        try:
            if kind == "rack" and "stacks" in options:
                options["stacks"] = read_stacks(options["stacks"])
            for name, value in ref.options.items():
                if _is_schedule(value):
                    schedules[name] = parse_schedule(options.pop(name))
                elif kind == "optimizer" and name in ("lr", "weight_decay"):
                    schedules[name] = _constant(name, options.pop(name))
        except UserError as error:
            self.problems.append(Problem(str(error), ref.path))
            return None
        if problems := [*slips(kind, ref.given, ref.options, ref.path), *broken_blocks(ref)]:
            self.problems += problems
            return None
        name = getattr(ref.given.make, "__name__", type(ref.given.make).__name__)
        return Draft(kind=kind, id=name, path=ref.path, options=options, schedules=schedules, given=ref.given, blocks=ref.blocks)


def broken_blocks(ref: Ref) -> Iterator[Problem]:
    """Problems of the lists of blocks that the config names in a whole module."""
    for path, option in (ref.blocks or {}).items():
        if not isinstance(ref.given, Built):
            name = type(ref.given).__name__
            message = f"a finished {name} cannot be built with more blocks: give Built({name}, {option}=…), or leave model.blocks out"
            yield Problem(message, f"model.blocks.{path}")
            continue
        count = ref.options.get(option)
        if option not in ref.options:
            fix = did_you_mean(option, ref.options) or f": write it into the Built, {option}=…, even if it has a default"
            yield Problem(f"no option '{option}' is given, which is to say how many blocks {path} holds{fix}", f"model.blocks.{path}")
        elif isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_BLOCKS:
            message = f"{option} = {count!r} is to say how many blocks {path} holds: a whole number from 1 to {MAX_BLOCKS:,}"
            yield Problem(message, f"{ref.path}.{option}")


def _constant(name: str, value: Any) -> Schedule:
    """A number that a user's own callable takes, and that the core may set at every step.

    Raises:
        UserError: no number.
    """
    try:
        if isinstance(value, Mapping) and "use" in value:
            return parse_schedule(value)
        if isinstance(value, str):
            raise TypeError
        if not isfinite(number := float(value)):
            raise UserError(f"{name}: {value!r} is not a finite number: give one, or a schedule of such")
        return Constant(value=number)
    except (TypeError, ValueError):
        form = (
            "what follows time is written as a schedule, as in {'linear': {'from': 1e-3, 'to': 0}}, so that it can be planned and resumed"
        )
        raise UserError(f"{name}: {value!r} is not a number: {form}") from None
