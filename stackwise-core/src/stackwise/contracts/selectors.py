"""Selectors: one grammar to name parameters for freezing, groups, adapters and starts.

A selector is a dotted prefix (`rack.stacks.base`), a glob in which `*` crosses dots (`*.norm*`), or either with a range of
blocks as a segment (`rack.stacks.base.3-5`). It matches a canonical parameter name or anything below it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import product

from stackwise.contracts.options import MAX_BLOCKS
from stackwise.errors import SelectorError, near_names

_RANGE = re.compile(r"^(\d+)-(\d+)$")


@lru_cache(maxsize=1024)
def compile_selector(selector: str) -> re.Pattern[str]:
    """The selector as a pattern over whole canonical names.

    Raises:
        SelectorError: empty, or a range that runs backwards.
    """
    if not isinstance(selector, str) or not selector.strip(". "):
        raise SelectorError(
            f"{selector!r} is not a selector: write a prefix such as 'rack.stacks.base', a glob such as '*.norm*', or "
            "'rack.stacks.base.3-5'"
        )
    parts = []
    for segment in selector.strip().rstrip(".").split("."):
        if match := _RANGE.match(segment):
            low, high = int(match[1]), int(match[2])
            if low > high:
                raise SelectorError(f"selector '{selector}': the range {segment} runs backwards")
            if high - low >= MAX_BLOCKS:
                raise SelectorError(
                    f"selector '{selector}': the range {segment} is longer than a rack, which has at most {MAX_BLOCKS:,} blocks"
                )
            parts.append("(?:" + "|".join(map(str, range(low, high + 1))) + ")")
        else:
            parts.append(re.escape(segment).replace(r"\?", "."))
    return re.compile(_without_backtracking(r"\.".join(parts)) + r"(?:\..*)?\Z")


def _without_backtracking(glob: str) -> str:
    """Every `\\*` of an escaped glob as a pattern. What stands between two of them may match where it first can, for good:
    nothing that follows can match more after a later place."""
    first, *pieces = re.split(r"(?:\\\*)+", glob)
    if not pieces:
        return first
    *middle, last = pieces
    return first + "".join(f"(?>.*?{piece})" for piece in middle) + f".*{last}"


def select(selectors: Sequence[str], names: Iterable[str]) -> list[str]:
    """The names that any selector matches, in the order of `names`.

    Raises:
        SelectorError: a selector that matches nothing; the message gives near names.
    """
    names = list(names)
    chosen: set[str] = set()
    for selector in selectors:
        pattern = compile_selector(selector)
        matched = {name for name in names if pattern.match(name)}
        if not matched:
            raise SelectorError(f"selector '{selector}' matches no parameter{_near(selector, names)}", selector)
        chosen |= matched
    return [name for name in names if name in chosen]


def matching(selectors: Sequence[str], names: Iterable[str]) -> list[str]:
    """The names that any selector matches; a selector may match none."""
    return [name for name in names if matches(selectors, name)]


def matches(selectors: Sequence[str], name: str) -> bool:
    """Whether any selector matches one name."""
    return any(compile_selector(selector).match(name) for selector in selectors)


def covers(selectors: Sequence[str], narrower: str) -> bool:
    """Whether, in any model, each name that `narrower` matches is matched by one of the selectors; never true by mistake.

    A `?` or `*` of it stands for whatever it may match: a letter of no name, none, one or more of them.

    Raises:
        SelectorError: as `compile_selector`.
    """
    if narrower in selectors:
        return True
    compile_selector(narrower)
    patterns = [compile_selector(selector) for selector in selectors]
    for segments in product(*map(_of_range, narrower.strip().rstrip(".").split("."))):
        glob = ".".join(segments).replace("?", "\0")
        if not any(all(pattern.match(glob.replace("*", "\0" * length)) for length in (0, 1, 2)) for pattern in patterns):
            return False
    return True


def _of_range(segment: str) -> Iterable[str]:
    match = _RANGE.match(segment)
    return map(str, range(int(match[1]), int(match[2]) + 1)) if match else (segment,)


def _near(selector: str, names: Sequence[str]) -> str:
    prefixes = {".".join(parts[: i + 1]) for parts in (name.split(".") for name in names) for i in range(len(parts))}
    near = near_names(selector, prefixes) or sorted({name.split(".")[0] for name in names})
    return f" — there is {', '.join(near)}" if near else ""
