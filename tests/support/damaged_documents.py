"""Documents of a run directory that went wrong: each field dropped, emptied, of another type, renamed, beyond every range, doubled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from attrs import frozen
from mutations import places, replaced, value_at, without

RAW = {"@deep@": "[" * 100_000 + "]" * 100_000, "@huge@": "1e400", "@nan@": "NaN", "@int@": "1" + "0" * 5000}
"""What stands in a text for JSON that Python would not write."""

OTHERS: dict[str, Any] = {
    "null": None,
    "text": "nan",
    "number": -7,
    "fraction": 0.5,
    "truth": True,
    "list": [],
    "map": {},
    "unknown mark": {"$strange": 1},
    "no tensor": {"$tensor": "nothing"},
    "10**30": 10**30,
    "10**400": 10**400,
    "1e400": "@huge@",
    "NaN": "@nan@",
    "5000 digits": "@int@",
    "100,000 brackets": "@deep@",
}
"""Values to put in the place of any other."""


@frozen
class Damage:
    """One change of one document.

    Args:
        document: the file, relative to the run directory.
        place: the dotted path of the field.
        kind: what was done to it.
    """

    document: str
    place: str
    kind: str
    content: bytes

    def __str__(self) -> str:
        return f"{self.document} {self.place or '(whole)'}: {self.kind}"


def damages(document: str, tree: Any, write: Callable[[Any], bytes] = lambda tree: as_bytes(tree)) -> Iterator[Damage]:
    """Every damage of a document.

    Args:
        document: the file, relative to the run directory.
        tree: its content.
        write: what makes a file of a tree.
    """
    for path in places(tree):
        if any(isinstance(key, int) and key > 1 for key in path):
            continue  # a list's entries are of one kind
        place = ".".join(map(str, path))
        for kind, value in OTHERS.items():
            if kind != "unknown mark" or not path or path[-1] != "$map":
                yield Damage(document, place, kind, write(replaced(tree, path, value)))
        if path:
            yield Damage(document, place, "dropped", write(without(tree, path)))
        if path and isinstance(parent := value_at(tree, path[:-1]), dict):
            renamed = {f"{key}s" if key == path[-1] else key: value for key, value in parent.items()}
            yield Damage(document, place, "renamed", write(replaced(tree, path[:-1], renamed)))
        if isinstance(inner := value_at(tree, path), dict):
            yield Damage(document, place, "an unknown key", write(replaced(tree, path, {**inner, "from the future": 1})))
        if isinstance(inner, list) and inner:
            yield Damage(document, place, "its first entry twice", write(replaced(tree, path, [inner[0], *inner])))


def as_bytes(tree: Any) -> bytes:
    """JSON, also such as Python would not write."""
    text = json.dumps(tree, indent=1)
    for mark, raw in RAW.items():
        text = text.replace(json.dumps(mark), raw)
    return text.encode()


def damaged_lines(document: str, content: str) -> Iterator[Damage]:
    """Every damage of every kind of line of a log, and of the log as a whole."""
    lines = content.splitlines(keepends=True)
    seen: set[str] = set()
    for number, line in enumerate(lines):
        tree = json.loads(line)
        kind = tree.get("event", "evaluation" if "evaluation" in tree else "step")
        yield Damage(document, f"{number}", "line dropped", "".join(lines[:number] + lines[number + 1 :]).encode())
        yield Damage(document, f"{number}", "line doubled", "".join([*lines[: number + 1], *lines[number:]]).encode())
        if kind in seen:
            continue
        seen.add(kind)
        for damage in damages(document, tree):
            one_line = damage.content.replace(b"\n", b" ") + b"\n"
            whole = "".join(lines[:number]).encode() + one_line + "".join(lines[number + 1 :]).encode()
            yield Damage(document, f"{number}.{damage.place}", damage.kind, whole)
    yield Damage(document, "", "an unknown event", (content + '{"event": "from_the_future", "step": 1, "what": 3}\n').encode())
    yield Damage(document, "", "backwards", "".join(reversed(lines)).encode())
    yield Damage(document, "", "cut", content[: len(content) // 2].encode())
    yield Damage(document, "", "bytes that are not text", content.encode() + b"\xff\xfe{\n")


def signed(checkpoint: Path) -> None:
    """Give the files of a checkpoint the digests that its manifest states."""
    manifest = json.loads((checkpoint / "manifest.json").read_bytes())
    for name in manifest["files"]:
        content = (checkpoint / name).read_bytes()
        manifest["files"][name] = {"sha256": sha256(content).hexdigest(), "bytes": len(content)}
    (checkpoint / "manifest.json").write_bytes(signed_manifest(manifest))


def signed_manifest(manifest: Any) -> bytes:
    """A manifest with its own digest."""
    if not isinstance(manifest, dict):
        return as_bytes(manifest)
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    try:
        plain = json.loads(as_bytes(body))
    except (ValueError, RecursionError):
        return as_bytes({**body, "sha256": "0"})
    return as_bytes({**body, "sha256": sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()})
