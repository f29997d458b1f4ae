"""Configs that went wrong: what editors, templates, merges and ill will make of a good one."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import Any

import yaml

SCALARS = (
    *("", "~", "true", "no", "0", "-1", "0.5", "1e-3", "1e308", "1e999", ".nan", "-.inf", "0x10", "1_000", "2020-01-01", "'1'", '"true"'),
    *("99999999999999999999", "-99999999999999999999", "1" * 5000, "5%", "150%", "-3%", "0%", "1e30%", "12 steps", "0 steps", "-4 steps"),
    *("1e30 steps", "99999999999999999999 steps", "2e6 tokens", "0.3 tokens", "7 fortnights", "steps", "%", "[]", "{}", "[[[]]]", "[1, 2]"),
    *("{a: 1}", "{linear: {from: 1, to: 0}}", "{cosine: }", "{wsd: {peak: x}}", "{linear: {from: 1, to: 0}, wsd: {peak: 1}}"),
    *("{steps: {0%: 1, 50%: 2}}", "transformer.decoder", "transformer.nothing", "nothing.at-all", ".", "..", "a.b.c", "core.project"),
    *(
        "../../etc",
        "/dev/null",
        "rack.stacks.base.3-1",
        "rack.*",
        "**",
        "[",
        "*.norm*",
        "ﬀ",
        "\u202ex",
        "💥",
        "e\u0301",
        "\ufeff",
        "\u2028",
        "x" * 3000,
    ),
    *(
        "&a 1",
        "*a",
        "!!str 1",
        "!!python/object/apply:os.abort []",
        "!!binary AAAA",
        "! 1",
        "|",
        ">-",
        "@a",
        "`a`",
        "%TAG",
        "<<",
        "? a",
        "- - - a",
    ),
)
"""Right-hand sides that are of another type, out of every range, or no YAML."""

FRAGMENTS = (
    "\t",
    "\0",
    "\r",
    "\x07",
    "\x85",
    "\ufeff",
    "\ufffe",
    "---\n",
    "...\n",
    "%YAML 1.1\n",
    ": ",
    "- ",
    "? ",
    "{",
    "}",
    "[",
    "]",
    '"',
    "'",
    "#",
    "&a ",
    "*a",
    "!t ",
)


def dropped_line(lines: list[str], random: Random) -> list[str]:
    at = random.randrange(len(lines))
    return lines[:at] + lines[at + 1 :]


def doubled_line(lines: list[str], random: Random) -> list[str]:
    at, to = random.randrange(len(lines)), random.randrange(len(lines))
    return [*lines[:to], lines[at], *lines[to:]]


def swapped_lines(lines: list[str], random: Random) -> list[str]:
    at, to = random.randrange(len(lines)), random.randrange(len(lines))
    made = list(lines)
    made[at], made[to] = made[to], made[at]
    return made


def indented_otherwise(lines: list[str], random: Random) -> list[str]:
    at = random.randrange(len(lines))
    return [*lines[:at], random.choice(("\t", " ", "    ", " " * 200)) + lines[at], *lines[at + 1 :]]


def by_lines(change: Callable[[list[str], Random], list[str]]) -> Callable[[str, Random], str]:
    return lambda text, random: "".join(change(text.splitlines(keepends=True) or ["\n"], random))


def truncated(text: str, random: Random) -> str:
    return text[: random.randrange(len(text) + 1)]


def inserted(text: str, random: Random) -> str:
    at = random.randrange(len(text) + 1)
    return text[:at] + random.choice(FRAGMENTS) + text[at:]


def misspelt_key(text: str, random: Random) -> str:
    keys = list(re.finditer(r"[\w-]+(?=:)", text))
    if not keys:
        return text
    key = random.choice(keys)
    name = key.group()
    other = random.choice(
        (name[1:], name + "s", name.upper(), name.replace("e", "é"), "x" * 400, "", "1", "~", "<<", random.choice(keys).group())
    )
    return text[: key.start()] + other + text[key.end() :]


def another_scalar(text: str, random: Random) -> str:
    scalars = list(re.finditer(r"(?<=: )[^\s,{}\[\]][^,{}\[\]\n]*", text))
    if not scalars:
        return text
    scalar = random.choice(scalars)
    return text[: scalar.start()] + random.choice(SCALARS) + text[scalar.end() :]


def places(tree: Any) -> list[list[Any]]:
    """Paths of every value in a tree, its own first."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [[], *([key, *rest] for key, inner in items for rest in places(inner))]


def value_at(tree: Any, path: list[Any]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def replaced(tree: Any, path: list[Any], value: Any) -> Any:
    """The tree with another value at a path."""
    if not path:
        return value
    if isinstance(tree, dict):
        return {**tree, path[0]: replaced(tree[path[0]], path[1:], value)}
    return [replaced(entry, path[1:], value) if i == path[0] else entry for i, entry in enumerate(tree)]


def without(tree: Any, path: list[Any]) -> Any:
    """The tree without the value at a path."""
    parent = value_at(tree, path[:-1])
    left = (
        {k: v for k, v in parent.items() if k != path[-1]}
        if isinstance(parent, dict)
        else [v for i, v in enumerate(parent) if i != path[-1]]
    )
    return replaced(tree, path[:-1], left)


def by_tree(change: Callable[[Any, list[Any], Random], Any]) -> Callable[[str, Random], str]:
    def changed(text: str, random: Random) -> str:
        try:
            tree = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):
            return text
        paths = places(tree)[1:]
        return yaml.safe_dump(change(tree, random.choice(paths), random), allow_unicode=True, sort_keys=False) if paths else text

    return changed


def dropped_value(tree: Any, path: list[Any], _: Random) -> Any:
    return without(tree, path)


def moved_value(tree: Any, path: list[Any], random: Random) -> Any:
    """Another part of the same config in this place."""
    return replaced(tree, path, value_at(tree, random.choice(places(tree))))


def odd_value(tree: Any, path: list[Any], random: Random) -> Any:
    odd: tuple[Any, ...] = (
        None,
        True,
        0,
        -1,
        1,
        2**31,
        2**63,
        10**30,
        0.5,
        -0.0,
        1e-320,
        1e300,
        "",
        " ",
        "é",
        [],
        {},
        [None],
        [[]],
        {"use": "x"},
    )
    return replaced(tree, path, random.choice(odd))


def wrapped_value(tree: Any, path: list[Any], random: Random) -> Any:
    value = value_at(tree, path)
    for _ in range(random.choice((1, 2, 30, 300))):
        value = [value] if random.random() < 0.5 else {"use": value}
    return replaced(tree, path, value)


def grown_list(tree: Any, path: list[Any], random: Random) -> Any:
    value = value_at(tree, path)
    return replaced(tree, path, [value] * random.choice((0, 2, 3, 500)))


MUTATIONS: tuple[Callable[[str, Random], str], ...] = (
    *map(by_lines, (dropped_line, doubled_line, swapped_lines, indented_otherwise)),
    *(truncated, inserted, misspelt_key, another_scalar, another_scalar, another_scalar),
    *map(by_tree, (dropped_value, moved_value, odd_value, odd_value, wrapped_value, grown_list)),
)


def mutated(text: str, random: Random, most: int = 3) -> bytes:
    """The bytes of a config after one to `most` mutations; one in twenty is not UTF-8."""
    for _ in range(random.randint(1, most)):
        text = random.choice(MUTATIONS)(text, random)
    content = text.encode("utf-8", "surrogatepass")
    if content and random.random() < 0.05:
        at = random.randrange(len(content))
        content = content[:at] + bytes(random.randrange(256) for _ in range(4)) + content[at:]
    return content
