"""Files, `extends` and `--set`: the steps that yield one tree, before it is read as a config."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Final

from stackwise.config.merging import is_table, merge, through_replace
from stackwise.config.nodes import Node, describe
from stackwise.config.reader import MAX_BYTES, MAX_DEPTH, MAX_KEY, read_yaml
from stackwise.errors import ConfigError, Position, Problem, did_you_mean

MAX_CHAIN: Final = 16
MAX_FILES: Final = 64

_KEYS = re.compile(r"[^\s.=]+(\.[^\s.=]+)*\Z")


def read_file(path: Path) -> Node:
    """A config file with everything it extends, as one tree.

    Raises:
        ConfigError: a file is missing, unreadable, not YAML, or extends itself.
    """
    return _Extends().file(path, (), Position(str(path)))


def extend(document: Node, folder: Path) -> Node:
    """`document` laid on what it `extends`, in the order given there; paths are relative to `folder`.

    Raises:
        ConfigError: as `read_file`.
    """
    return _Extends().document(document, folder, ())


class _Extends:
    """Reads a tree of files once, counting them."""

    def __init__(self) -> None:
        self.files = 0

    def file(self, path: Path, chain: tuple[Path, ...], where: Position) -> Node:
        """One file; `chain` holds the resolved files that led here."""
        place = _resolved(path, where)
        if place in chain:
            names = " → ".join(step.name for step in (*chain[chain.index(place) :], place))
            raise ConfigError([Problem(f"the files extend each other in a circle: {names}", "extends", where)])
        self.files += 1
        if len(chain) >= MAX_CHAIN or self.files > MAX_FILES:
            raise ConfigError([Problem(f"a config extends at most {MAX_CHAIN} files in a row and {MAX_FILES} in all", "extends", where)])
        document = _read(path, where)
        if document.kind != "map":
            raise ConfigError([Problem("a config is a map of sections: run, task, data, model, optimizer, …", where=document.position)])
        return self.document(document, path.parent, (*chain, place))

    def document(self, document: Node, folder: Path, chain: tuple[Path, ...]) -> Node:
        """A document without its `extends`, on top of the files named there."""
        extends = document.entries.get("extends")
        if extends is None:
            return document
        rest = Node("map", {key: node for key, node in document.value.items() if key != "extends"}, document.position)
        below = [self.file(folder / str(name.value), chain, name.position) for name in _names(extends)]
        return reduce(merge, [*below, rest])


def _names(extends: Node) -> Sequence[Node]:
    names = extends.value if extends.kind == "list" else (extends,)
    for name in names:
        if not isinstance(name.value, str) or not name.value or "\0" in name.value:
            message = f"{describe(name.plain())} names no file: write `extends: base.yaml`, or a list of such names"
            raise ConfigError([Problem(message, "extends", name.position)])
    return tuple(names)


def _resolved(path: Path, where: Position) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError([Problem(f"{str(path)!r} is not a path to a file: {error}", where=where)]) from None


def _read(path: Path, where: Position) -> Node:
    try:
        if not path.exists():
            raise ConfigError([Problem(f"there is no file '{path}'", where=where)])
        if not path.is_file():
            raise ConfigError([Problem(f"'{path}' is not a file", where=where)])
        with path.open("rb") as file:
            data = file.read(4 * MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError([Problem(f"'{path}' cannot be read: {reason}", where=where)]) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise ConfigError([Problem("not UTF-8 text: save the file as UTF-8", where=Position(str(path), line, column))]) from None
    return read_yaml(text, str(path))


def override(document: Node, settings: Sequence[str]) -> Node:
    """`document` with every `a.b=c` of `--set` laid on it in order; c is read as YAML.

    Raises:
        ConfigError: settings that are not of that form, or that name an unknown phase; all of them at once.
    """
    problems: list[Problem] = []
    for setting in settings:
        where = Position(f"--set {setting if len(setting) <= MAX_KEY else setting[:MAX_KEY] + '…'}")
        key, equals, text = setting.partition("=")
        keys = tuple(key.split("."))
        if not equals or not text.strip() or not _KEYS.match(key):
            problems.append(
                Problem("a setting is a dotted key, '=' and a value: `--set optimizer.lr=1e-3`; the value null removes", where=where)
            )
        elif len(keys) > MAX_DEPTH:
            problems.append(Problem(f"a key of {len(keys)} names: no config is nested more than {MAX_DEPTH} deep", where=where))
        elif keys[0] == "extends":
            problems.append(Problem("`extends` is decided in the file: it cannot be set from outside", where=where))
        elif any(is_table(keys[:count]) for count in range(len(keys))):
            table = key[: key.index(".values.") + len(".values")]
            problems.append(Problem(f"the table of a piecewise schedule is set as a whole: `--set {table}={{0%: …, 50%: …}}`", where=where))
        elif len(keys) > 2 and keys[0] == "phases" and (stray := _stray_phase(document, keys[1])):
            problems.append(Problem(stray, where=where))
        else:
            try:
                node = _at_position(read_yaml(text, where.source), where)
            except ConfigError as error:
                problems += [Problem(problem.message, where=where) for problem in error.problems]
                continue
            for name in reversed(through_replace(document, keys)):
                node = Node("map", {name: node}, where)
            document = merge(document, node)
    if problems:
        raise ConfigError(problems)
    return document


def _stray_phase(document: Node, name: str) -> str | None:
    phases = document.entries.get("phases")
    names = phases.entries if phases else {}
    if name in names:
        return None
    if not names:
        form = f"`phases: {{{name}: {{until: 100%}}}}`"
        return f"there are no phases to change: declare them in the file, {form}, or set the key without `phases`"
    return f"there is no phase '{name}' to change{did_you_mean(name, names)}"


def _at_position(node: Node, where: Position) -> Node:
    """The same tree with every node at the position of the setting."""
    if node.kind == "map":
        return Node("map", {key: _at_position(child, where) for key, child in node.value.items()}, where)
    if node.kind == "list":
        return Node("list", tuple(_at_position(child, where) for child in node.value), where)
    return Node(node.kind, node.value, where)
