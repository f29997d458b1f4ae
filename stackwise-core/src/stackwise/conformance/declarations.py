"""What a component declares, checked without building it: its example, its options, its spec, and the cost of reading them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_type_hints

import attrs
import yaml

from stackwise.config.reader import read_yaml
from stackwise.conformance.subject import NotApplicable, Subject, must
from stackwise.contracts.components import SPEC_OF
from stackwise.contracts.options import broken_rule, config_key, dimension_fields
from stackwise.contracts.specs import Beyond, OptimizerSpec, Spec, TensorSpec
from stackwise.errors import did_you_mean

IMPORT_BUDGET_S = 0.25
"""Processor seconds that reading a component's options may add to a command."""

_UNEXPECTED: tuple[Any, ...] = ({"no": {"such": "value"}}, "no-such-value", [], -7, 1e300, True)
"""Values that hardly any option expects."""


def check_example(subject: Subject) -> None:
    """The component's `example` is a small, complete set of options: nothing missing, nothing refused.

    Usual cause: an option was added or renamed and the example was not; a required option is not in it.
    """
    subject.draft()


def check_loads_cold(subject: Subject) -> None:
    """Importing the module of the entry point and that of the options does not import torch; nor does importing a growth operator's, as
    its map is part of the plan.

    Usual cause: the package's `__init__`, or the module itself, imports the file that holds the `nn.Module` classes.
    """
    hot = _import_report(_cold_targets(subject), tuple(sys.path))["hot"]
    must(not hot, f"importing {hot} imports torch: keep what is read before a run in modules that do not")


def check_import_budget(subject: Subject) -> None:
    """Importing entry point and options takes less than a quarter of a second of processor time, StackWise itself not counted.

    Usual cause: a heavy library (pandas, datasets, scipy) imported at the top of either module instead of in the factory.
    """
    report = _import_report(_cold_targets(subject), tuple(sys.path))
    if report["hot"]:
        raise NotApplicable("torch is imported, which check_loads_cold reports")
    seconds = float(report["seconds"])
    must(seconds <= IMPORT_BUDGET_S, f"importing {', '.join(_cold_targets(subject))} took {seconds:.2f} s, more than {IMPORT_BUDGET_S} s")


def check_options_documented(subject: Subject) -> None:
    """Options are a frozen attrs class with keyword-only fields; each has a type, a `doc`, and a default that obeys its own rules.

    Usual cause: a plain `attrs.field` or a bare default where `option`, `scheduled`, `dimension` or `stacks` belongs.
    """
    options = subject.registered.load_options()
    name = options.__qualname__
    must(_is_frozen(subject.draft().options), f"{name} is not frozen: use @frozen")
    types = get_type_hints(options)
    for attribute in (attribute for attribute in attrs.fields(options) if attribute.init):  # the others are no options
        where = f"{name}.{attribute.name}"
        must(attribute.kw_only, f"{where} is not keyword-only: use @frozen(kw_only=True)")
        must(attribute.name in types, f"{where} has no type")
        must(bool(str(attribute.metadata.get("doc") or "").strip()), f"{where} has no doc: say in a sentence what it is, with its unit")
        broken = None if attribute.default is attrs.NOTHING else broken_rule(attribute, _default(attribute))
        must(broken is None, f"the default of {where} breaks its own rule: {broken}")


def check_yaml_round_trip(subject: Subject) -> None:
    """The example survives being written as YAML and read again: equal options come back.

    Usual cause: the example holds an object, a tuple that has to stay one, or text that reads as a number.
    """
    try:
        text = yaml.safe_dump(_plain(subject.example), sort_keys=False)
    except yaml.YAMLError as error:
        raise AssertionError(f"the example cannot be written as YAML: {error}") from error
    node = read_yaml(text, "example") if subject.example else None
    again: Any = node.plain() if node is not None else {}
    must(subject.draft(again).options == subject.draft().options, f"the example read from YAML gives other options:\n{text}")


def check_mistakes_are_told(subject: Subject) -> None:
    """A mistake in an option is reported at its path and never crashes: an unknown key, a wrong type, a value nobody expects.

    Usual cause: a look-up or arithmetic in `__attrs_post_init__` on a value that was not checked; raise UserError with a sentence.
    """
    for key, raw in _mistakes(subject):
        try:
            problems = subject.problems(raw)
        except Exception as error:
            value = raw.get(key)
            must(False, f"{key}: {value!r} crashed with {type(error).__name__}: {error}, instead of a sentence")
        if key.startswith("no-such"):
            must(any(problem.path == f"example.{key}" for problem in problems), f"the unknown key '{key}' was not refused at its path")
        for problem in problems:
            must(problem.path.startswith("example"), f"{key}: the mistake was reported without its path: {problem}")


def check_spec_is_cold(subject: Subject) -> None:
    """`to_spec()` of the options says the boundary of its kind, also while dimensions are open, the same at every call.

    Usual cause: arithmetic with a dimension that is still None, a spec of another kind, or a mapping that is changed on the way.
    """
    spec_class = SPEC_OF[subject.kind]
    options = subject.registered.load_options()
    if not hasattr(options, "to_spec") and subject.kind in ("optimizer", "transform"):
        raise NotApplicable("it states no spec, which its kind may leave out")
    must(hasattr(options, "to_spec"), f"{options.__qualname__} has no to_spec(): nothing is known of the {subject.kind} before it is built")
    open_example = {key: value for key, value in subject.example.items() if key not in _dimension_keys(subject)}
    for raw in (subject.example, open_example):
        problems = subject.problems(raw)
        if problems and raw is open_example:
            continue  # a dimension that must be given is the component's right
        spec = subject.draft(raw).spec
        if spec is None and subject.kind in ("loader", "optimizer", "transform"):
            raise NotApplicable(f"only the {subject.kind} that is built knows")
        must(isinstance(spec, spec_class), f"to_spec() gave {type(spec).__name__}: a {subject.kind} says {spec_class.__name__}")
        if isinstance(spec, OptimizerSpec):
            continue  # its one field is a function, which compares by identity
        assert spec is not None
        must(spec == subject.draft(raw).spec, "two calls of to_spec() gave two specs: it changes what it returns")


def check_dimensions_are_joined(subject: Subject) -> None:
    """Every `dimension` option in the example is the size of a dimension in the component's spec, through which it joins other parts.

    Usual cause: a tensor without its `bounds=(0, "vocab")`; a dimension whose name in the option differs from that in the spec.
    """
    options, draft = subject.registered.load_options(), subject.draft()
    dims_by_option = {name: dim for name, dim in dimension_fields(options).items() if getattr(draft.options, name) is not None}
    spec = draft.spec
    if not dims_by_option or spec is None or isinstance(spec, OptimizerSpec):
        raise NotApplicable("its example gives no dimension of a spec")
    spec_dims = _dims_of(spec)
    for name, dim in dims_by_option.items():
        near = did_you_mean(dim, spec_dims)
        must(dim in spec_dims, f"{options.__qualname__}.{name} is the dimension '{dim}', which its spec does not name{near}")


# -- what the checks read ---------------------------------------------------------------------------------------------

_IMPORT = """
import json, sys, time
sys.path[:] = json.loads(sys.argv[1])
import attrs, stackwise, stackwise.errors
import stackwise.contracts.components, stackwise.contracts.hookspecs, stackwise.contracts.options, stackwise.contracts.specs
from importlib import import_module
hot, start = [], time.process_time()
for name in sys.argv[2:]:
    import_module(name)
    if "torch" in sys.modules and not hot:
        hot.append(name)
print(json.dumps({"hot": ", ".join(hot), "seconds": time.process_time() - start}))
"""


@cache
def _import_report(modules: tuple[str, ...], path: tuple[str, ...]) -> Mapping[str, Any]:
    """What importing the modules in turn brings along and costs, measured in a process of its own."""
    command = [sys.executable, "-c", _IMPORT, json.dumps(path), *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    must(done.returncode == 0, f"{', '.join(modules)} does not import in a fresh process:\n{done.stderr[-2000:]}")
    report: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def _cold_targets(subject: Subject) -> tuple[str, ...]:
    component, provider = subject.registered.component, subject.registry.provider(subject.registered.provider)
    entry = provider.module if provider is not None else ""
    targets = [entry, component.options, *([component.factory] if subject.kind in ("growth", "schedule") else [])]
    return tuple(dict.fromkeys(target.partition(":")[0] for target in targets if target))


def _dims_of(spec: Spec) -> set[str]:
    """Every dimension that a spec names, bounds included."""
    dims: set[object] = set()
    for attribute in attrs.fields(type(spec)):
        value = getattr(spec, attribute.name)
        entries = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else (value,)
        for entry in entries:
            if isinstance(entry, TensorSpec):
                dims |= {*entry.dims, entry.bounds[1] if entry.bounds else None}
            elif isinstance(entry, Beyond):
                dims |= {entry.dim, entry.other}
    return {dim for dim in dims if isinstance(dim, str)}


def _is_frozen(options: object) -> bool:
    fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(type(options))  # type: ignore[arg-type]  # load_options has seen to it
    name = fields[0].name if fields else "anything"
    try:
        setattr(options, name, getattr(options, name, None))
    except attrs.exceptions.FrozenInstanceError:
        return True
    except AttributeError:
        return False
    return False


def _default(attribute: attrs.Attribute[Any]) -> Any:
    default: Any = attribute.default
    if (factory := getattr(default, "factory", None)) is not None:
        return None if default.takes_self else factory()
    return default


def _dimension_keys(subject: Subject) -> set[str]:
    options = subject.registered.load_options()
    return {config_key(a) for a in attrs.fields(options) if a.metadata.get("dimension")}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _mistakes(subject: Subject) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Key → the example with an unexpected value under that key."""
    yield "no-such-option", {**subject.example, "no-such-option": 1}
    for attribute in attrs.fields(subject.registered.load_options()):
        key = config_key(attribute)
        for wrong in _UNEXPECTED:
            yield key, {**subject.example, key: wrong}
        if key in subject.example:
            yield key, {name: value for name, value in subject.example.items() if name != key}
