"""The rooms of the core, drawn from the source: who imports whom, lazily and for typing included.

A room imports what the table allows it, and nothing in a circle. The face `stackwise` is read through its table:
importing a name of it counts as importing the module that the table names.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

LOWER = ("timeline", "contracts", "curriculum", "host", "storage", "config", "planes", "plan", "processes", "machine")
"""What assembly may import: the declared side, the live side, and files."""

MAY_IMPORT: Mapping[str, tuple[str, ...]] = {
    "errors": (),
    "timeline": (),
    "contracts": ("timeline",),
    "curriculum": ("timeline", "contracts"),
    "host": ("contracts",),
    "storage": ("contracts",),
    "scaffold": ("contracts",),
    "config": ("timeline", "contracts", "host"),
    "planes": ("timeline", "contracts", "curriculum"),
    "builtin": ("contracts", "planes", "reports"),  # a tracker attaches the page of its run
    "plan": ("timeline", "contracts", "curriculum", "host", "config"),
    "processes": ("planes",),
    "machine": ("timeline", "contracts", "curriculum", "planes", "processes"),
    "assembly": LOWER,
    "reports": ("timeline", "contracts", "curriculum", "storage", "plan", "assembly"),
    "saved": (*LOWER, "assembly"),
    "conformance": (*(room for room in LOWER if room != "storage"), "assembly"),
    "runs": (*LOWER, "assembly", "reports", "saved"),
    "sweeps": ("timeline", "contracts", "host", "config", "plan", "storage", "assembly"),
    "cli": (*LOWER, "assembly", "reports", "saved", "runs", "sweeps", "conformance", "scaffold"),
    "__main__": ("cli",),
}
"""Room of the core → the rooms it may import; every room may import itself, `errors` and the version."""

MOST_ROOMS, MOST_FLOORS = 21, 12  # the highest floor is not a room, but the one file behind `python -m stackwise`

COLD = {"errors", "timeline", "contracts", "curriculum", "host", "config", "plan", "scaffold"}
"""What never imports torch, neither itself nor through a hot room; of `builtin` the table of contents."""

MACHINE = {"machine", "planes", "curriculum"}
SURROUNDINGS = {"pluggy", "yaml", "click", "importlib_metadata", "cattrs"}
"""What the machine knows nothing of."""

PACKAGES = {path.name: path for path in sorted(ROOT.glob("stackwise-*/src/stackwise*")) if path.is_dir() and path.suffix == ""}
PROVIDERS = [name for name in PACKAGES if name != "stackwise"]


class Import(NamedTuple):
    """`target` is a dotted name as far as it was written: `stackwise.timeline.clock.Clock`."""

    target: str
    line: int
    typing_only: bool


def read_sources() -> dict[str, str]:
    """Module name → source; a package ends in `.__init__`."""
    sources = {}
    for name, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [name, *path.relative_to(folder).with_suffix("").parts]
            sources[".".join(parts)] = path.read_text(encoding="utf-8")
    return sources


def module_name(key: str) -> str:
    return key.removesuffix(".__init__")


@cache
def imports_of(key: str, source: str) -> tuple[Import, ...]:
    package = key.rpartition(".")[0]
    return tuple(_imports(ast.parse(source), package, typing_only=False))


def _imports(node: ast.AST, package: str, *, typing_only: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, node.lineno, typing_only)
    elif isinstance(node, ast.ImportFrom):
        base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        start = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            yield Import(f"{start}.{alias.name}", node.lineno, typing_only)
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for inner in node.body:
            yield from _imports(inner, package, typing_only=True)
        for inner in node.orelse:
            yield from _imports(inner, package, typing_only=typing_only)
    else:
        for inner in ast.iter_child_nodes(node):
            yield from _imports(inner, package, typing_only=typing_only)


def face_table(sources: Mapping[str, str]) -> dict[str, str]:
    for node in ast.parse(sources["stackwise.__init__"]).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_FACE":
            table: dict[str, str] = ast.literal_eval(node.value)
            return table
    raise AssertionError("stackwise/__init__.py has no table _FACE")


def resolve(target: str, modules: set[str], face: Mapping[str, str]) -> str | None:
    """The module of ours that an import reaches; None: not ours."""
    first, _, rest = target.partition(".")
    if first == "stackwise" and rest in face:
        return face[rest]
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return target or None


def room_of(module: str) -> str:
    return module.split(".")[1]


def is_cold(module: str) -> bool:
    return room_of(module) in COLD or module == "stackwise.builtin.provider"


def floors(graph: Mapping[str, set[str]]) -> int:
    """How many floors the drawn arrows between rooms make: the longest way down."""

    @cache
    def height(room: str) -> int:
        return 1 + max((height(below) for below in graph.get(room, ())), default=0)

    return max(map(height, graph))


def faults(sources: Mapping[str, str]) -> list[str]:
    """Every broken rule, as a sentence."""
    face, modules = face_table(sources), {module_name(key) for key in sources}
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    for key, source in sources.items():
        module = module_name(key)
        if module == "stackwise":
            found += _face_faults(key, source, face)
            continue
        if module.startswith("stackwise.") and room_of(module) not in MAY_IMPORT:
            found.append(f"{module} is in no room: enter {room_of(module)} in MAY_IMPORT")
            continue
        for entry in imports_of(key, source):
            reached = resolve(entry.target, modules, face)
            where = f"{module}:{entry.line}"
            if reached and reached != "stackwise":
                graph.setdefault(module, set()).add(reached)
            if module.startswith("stackwise."):
                found += _core_faults(module, entry, reached, where)
            else:
                found += _provider_faults(module, entry, where, face)
    found += _naming_faults(sources)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append("import circle: " + " → ".join(reversed(error.args[1])))
    return found


def _core_faults(module: str, entry: Import, reached: str | None, where: str) -> Iterator[str]:
    own, outside = room_of(module), entry.target.partition(".")[0]
    if reached and reached.startswith("stackwise."):
        other = room_of(reached)
        if other not in (own, "errors", *MAY_IMPORT[own]):
            yield f"{where} imports {reached}: {own} may not import {other}"
        if is_cold(module) and not is_cold(reached) and not entry.typing_only:
            yield f"{where} imports {reached}: the cold wing imports a hot module"
    if outside == "torch" and is_cold(module) and not entry.typing_only:
        yield f"{where} imports torch in the cold wing"
    if outside in SURROUNDINGS and own in MACHINE:
        yield f"{where} imports {outside}: the machine knows nothing of it"


def _provider_faults(module: str, entry: Import, where: str, face: Mapping[str, str]) -> Iterator[str]:
    own, (first, _, rest) = module.partition(".")[0], entry.target.partition(".")
    if first in PROVIDERS and first != own:
        yield f"{where} imports {first}: a provider imports another"
    if first == "stackwise" and rest and rest not in face and rest != "__version__":
        yield f"{where} imports {entry.target}: a provider imports names of the face `stackwise` only"


def draw_rooms(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Room → the rooms that its files import."""
    face, modules = face_table(sources), {module_name(key) for key in sources}
    drawn: dict[str, set[str]] = {}
    for key, source in sources.items():
        if not key.startswith("stackwise.") or key == "stackwise.__init__":
            continue
        own = room_of(module_name(key))
        reached = (resolve(entry.target, modules, face) for entry in imports_of(key, source))
        drawn.setdefault(own, set()).update(room_of(name) for name in reached if name and name.startswith("stackwise."))
    return {room: below - {room} for room, below in drawn.items()}


def _face_faults(key: str, source: str, face: Mapping[str, str]) -> Iterator[str]:
    """The face imports nothing of the core but, for type checkers, what its table says."""
    for entry in imports_of(key, source):
        module, _, name = entry.target.rpartition(".")
        if entry.target.startswith("stackwise.") and not (entry.typing_only and face.get(name) == module):
            yield f"stackwise:{entry.line} imports {entry.target}: the face resolves names through its table only"
        if entry.target.startswith("torch"):
            yield f"stackwise:{entry.line} imports torch in the cold wing"


def _naming_faults(sources: Mapping[str, str]) -> Iterator[str]:
    for key, source in sources.items():
        if key.startswith("stackwise."):
            for package in PROVIDERS:
                if package in source or package.replace("_", "-") in source:
                    yield f"{module_name(key)} names {package}: the core knows no provider by name"


def test_the_four_packages_are_where_the_table_looks_for_them():
    assert list(PACKAGES) == ["stackwise", "stackwise_providers_data", "stackwise_providers_optim", "stackwise_providers_transformer"]
    assert len(read_sources()) > 20


def test_rooms_circles_and_wings_hold():
    assert faults(read_sources()) == []


def test_the_table_is_the_tree():
    """Every room of the table is there; every permission is used, so that the table says what the house does."""
    drawn = draw_rooms(read_sources())
    assert drawn.keys() == MAY_IMPORT.keys()
    assert len(MAY_IMPORT) <= MOST_ROOMS and floors(drawn) <= MOST_FLOORS
    graphlib.TopologicalSorter(drawn).prepare()  # no circle between rooms


@pytest.mark.parametrize(
    ("key", "line", "complaint"),
    [
        (
            "stackwise.timeline.duration",
            "from stackwise.curriculum.parts import Part",
            "stackwise.timeline.duration:1 imports stackwise.curriculum.parts: timeline may not import curriculum",
        ),
        (
            "stackwise.timeline.duration",
            "def f():\n    import stackwise.host.discovery",
            "stackwise.timeline.duration:2 imports stackwise.host.discovery: timeline may not import host",
        ),
        (
            "stackwise.timeline.duration",
            "if TYPE_CHECKING:\n    from stackwise import discover",
            "stackwise.timeline.duration:2 imports stackwise.host.discovery",
        ),
        ("stackwise.contracts.specs", "from .. import config", "imports stackwise.config: contracts may not import config"),
        ("stackwise.timeline.duration", "from stackwise.timeline.schedules import Curve", "import circle"),
        ("stackwise.config.reader", "def f():\n    import torch.nn", "stackwise.config.reader:2 imports torch in the cold wing"),
        ("stackwise.plan.planner", "from stackwise import TrainingMachine", "the cold wing imports a hot module"),
        ("stackwise.builtin.provider", "from stackwise.builtin import adapters", "the cold wing imports a hot module"),
        ("stackwise.machine.machine", "import yaml", "stackwise.machine.machine:1 imports yaml: the machine knows nothing of it"),
        ("stackwise.machine.machine", "from stackwise.storage import disk", "machine may not import storage"),
        ("stackwise.conformance.bench", "from stackwise.storage import disk", "conformance may not import storage"),
        ("stackwise.errors", "'see stackwise-providers-optim'", "stackwise.errors names stackwise_providers_optim"),
        ("stackwise.sorcery", "", "stackwise.sorcery is in no room"),
        ("stackwise.__init__", "from stackwise.contracts.specs import HIDDEN", "the face resolves names through its table only"),
        ("stackwise_providers_optim.provider", "import stackwise_providers_data", "a provider imports another"),
        ("stackwise_providers_optim.provider", "from stackwise.contracts.specs import HIDDEN", "names of the face `stackwise` only"),
        ("stackwise_providers_optim.provider", "def f():\n    from stackwise import planes", "names of the face `stackwise` only"),
    ],
)
def test_a_planted_fault_is_caught(key: str, line: str, complaint: str):
    sources = read_sources()
    kept = sources.get(key, "").replace("from __future__ import annotations", "")
    planted = {**sources, key: f"{line}\n{kept}"}
    assert any(complaint in fault for fault in faults(planted)), faults(planted)


def test_typing_only_imports_of_torch_are_no_fault():
    sources = read_sources()
    planted = {**sources, "stackwise.errors": sources["stackwise.errors"] + "\nif TYPE_CHECKING:\n    import torch\n"}
    assert faults(planted) == faults(sources)
