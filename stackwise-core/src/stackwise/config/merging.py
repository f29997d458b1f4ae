"""The one merge rule, for `extends`, phases and `--set` alike.

Maps merge; lists, scalars and objects replace; null removes; a changed `use` and a changed schedule tag
replace their whole node, so that no option of the old component or schedule leaks into the new one. The table of a
`piecewise` schedule is replaced as a whole: nobody wrote an order between the instants of two tables.

In a map of chosen names (sources, weights, groups, …) the word `replace` puts its entries in the place of all that was there:
`sources: {replace: {chat: …}}`. It stays in the tree until the phases are merged, because it replaces what earlier ones declared.
A key of `--set` that goes through it (`data.sources.replace.chat.text`) is laid on the entries that stand under it, as any other key.
"""

from __future__ import annotations

from stackwise.config.nodes import KeyPath, Node
from stackwise.timeline.schedules import TAGS

REPLACE = "replace"
DEEPEST = 3
"""Keys above the deepest map of chosen names."""


def merge(under: Node, over: Node, path: KeyPath = ()) -> Node:
    """`over` laid on `under`; every untouched subtree is the same object as before.

    Args:
        under: what was declared so far.
        over: what is declared now; nodes that it changes get its position and layer.
        path: of both in the config; maps whose keys are chosen names are exempt from the tag rule.
    """
    if under.kind == "object" and over.kind == "map" and "use" not in over.value and _is_component(path):
        return Node("map", {"use": under, **over.value}, over.position, over.layer)
    if under.kind != "map" or over.kind != "map" or is_table(path) or _replaces(under, over, path) or _replacement(over, path):
        return over
    if not over.value:
        return under
    if (replacement := _replacement(under, path)) is not None:
        return Node("map", {REPLACE: merge(replacement, over, path)}, over.position, over.layer)
    entries = dict(under.value)
    if _in_plane(path) == ("data",) and _replacement(over.child("sources"), (*path, "sources")):
        entries.pop("mix", None)  # weights are those of sources
    for key, node in over.value.items():
        below = entries.get(key)
        if node.is_null and below is not None:
            del entries[key]
        elif below is None:
            entries[key] = node
        else:
            entries[key] = merge(below, node, (*path, key))
    return Node("map", entries, over.position, over.layer)


def apply_replace(node: Node, path: KeyPath = ()) -> Node:
    """The same tree, with the entries of every `replace` in place of the word; phases are left alone, as they are not merged yet."""
    if node.kind != "map" or len(path) > DEEPEST:
        return node
    if (replacement := _replacement(node, path)) is not None:
        return replacement
    if path == ("phases",):
        return node
    entries = {key: apply_replace(child, (*path, key)) for key, child in node.value.items()}
    changed = any(entries[key] is not child for key, child in node.value.items())
    return Node("map", entries, node.position, node.layer) if changed else node


def through_replace(document: Node, keys: KeyPath) -> KeyPath:
    """The keys without each `replace` that stands in the document there: `merge` lays what is after it on its entries."""
    node: Node | None = document
    path: KeyPath = ()
    for key in keys[:-1]:
        if key != REPLACE or _replacement(node, path) is None:
            path = (*path, key)
        node = node.child(key) if node is not None else None
    return (*path, keys[-1])


def _replacement(node: Node | None, path: KeyPath) -> Node | None:
    """The entries under `replace`; None if the word is not there."""
    if node is None or not _has_chosen_names(path) or [*node.entries] != [REPLACE]:
        return None
    inner = node.entries[REPLACE]
    return inner if inner.kind == "map" else None


def _replaces(under: Node, over: Node, path: KeyPath) -> bool:
    old, new = under.value.get("use"), over.value.get("use")
    if old is not None and new is not None and old.kind != "map" and new.kind != "map":
        return not _same(old, new)
    if _has_chosen_names(path):
        return False
    old_tag, new_tag = _tag(under), _tag(over)
    if (old_tag is not None and new is not None) or (old is not None and new_tag is not None):
        return True  # from a schedule of the core to one of a provider, or back
    return old_tag is not None and new_tag is not None and old_tag != new_tag


def is_table(path: KeyPath) -> bool:
    """Whether `path` is the table of a `piecewise` schedule."""
    return path[-2:] == ("piecewise", "values") and not _has_chosen_names(path[:-2])


def _same(old: Node, new: Node) -> bool:
    if old.kind == new.kind == "scalar":
        return bool(old.value == new.value)
    return old.value is new.value


def _tag(node: Node) -> str | None:
    """The schedule tag of a single-key map."""
    key = next(iter(node.value)) if len(node.value) == 1 else None
    return key if key in TAGS else None


def _is_component(path: KeyPath) -> bool:
    """Whether `path` is a component: keys merged onto a finished object become its options, and are refused later."""
    plane = _in_plane(path)
    return plane in _COMPONENTS or (len(plane) == 3 and plane[:2] == ("data", "sources"))


def _in_plane(path: KeyPath) -> KeyPath:
    return path[2:] if path[:1] == ("phases",) and len(path) > 1 else path


def _has_chosen_names(path: KeyPath) -> bool:
    plane = _in_plane(path)
    return plane in _CHOSEN or (len(plane) == 3 and plane[0] == "evaluate" and plane[2] == "sources")


_COMPONENTS = frozenset({("task",), ("model", "embedding"), ("model", "rack"), ("model", "head"), ("model", "module"), ("optimizer",)})
_CHOSEN = frozenset(
    {
        *(("phases",), ("evaluate",), ("data", "sources"), ("data", "mix"), ("data", "rename")),
        *(("task", "auxiliary"), ("model", "blocks"), ("model", "weight_adapters"), ("optimizer", "groups")),
    }
)
