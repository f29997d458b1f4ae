"""What is written in code and can be told to fail before anything is called: options that a callable does not take, or lacks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from stackwise.config.hints import SCHEDULED_RATE
from stackwise.contracts.components import Built, Kind
from stackwise.errors import Problem, did_you_mean

_GIVEN: Mapping[Kind, int] = {
    **dict.fromkeys(("embedding", "rack", "head", "task", "loader", "transform", "growth", "reaction", "observer"), 0),
    "optimizer": 1,
}
"""Kind → how many arguments the core puts before the options; of other kinds that is not said."""


def slips(kind: Kind, built: Built, options: Mapping[str, Any], path: str) -> Iterator[Problem]:
    """Problems of a `Built` and its options.

    Args:
        kind: what it is to make.
        built: as it was written.
        options: those in force, by name.
        path: where it stands.
    """
    make: Any = built.make  # the type is what it should be
    name = getattr(make, "__name__", type(make).__name__)
    if hasattr(make, "param_groups") or (hasattr(make, "forward") and hasattr(make, "parameters") and not isinstance(make, type)):
        yield Problem(
            f"Built holds a {name} that is built already: give the object itself, or Built({name}, <option>=…) of its class", path
        )
    elif not callable(make):
        yield Problem(f"Built holds {make!r:.60}, which cannot be called: give the class or the function itself", path)
    elif kind == "optimizer" and "params" in options:
        rest = "".join(f", {option}=…" for option in options if option != "params")
        yield Problem(f"an optimizer is given its parameters by the run: leave them out, Built({name}{rest})", f"{path}.params")
    elif kind in _GIVEN:
        yield from _misfits(make, name, _GIVEN[kind], options, path)


def _misfits(make: Any, name: str, given: int, options: Mapping[str, Any], path: str) -> Iterator[Problem]:
    """Options that a callable does not take, and those that it does not run without."""
    try:
        parameters = list(inspect.signature(make).parameters.values())[given:]
    except (TypeError, ValueError):  # it does not say what it takes
        return
    named = {each.name: each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    if not any(each.kind is each.VAR_KEYWORD for each in parameters):
        for option in (option for option in options if option not in named):
            hint = SCHEDULED_RATE.get(option) or f"it takes no such option{did_you_mean(option, named)}"
            yield Problem(f"Built({name}, {option}=…): {hint}", f"{path}.{option}")
    if lacking := [key for key, each in named.items() if each.default is each.empty and key not in options]:
        form = ", ".join(f"{key}=…" for key in lacking)
        yield Problem(f"{name} cannot be built without {', '.join(lacking)}: write Built({name}, {form})", path)
