"""The floors of the core, drawn from the source: who imports whom, lazily and for typing included.

A module of the core imports its own floor or lower ones, and never in a circle. The face `stackwise` is read through its table:
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

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("time", "clock", "clock_json", "schedules", "streams"),
    ("options", "specs", "contracts", "phases", "selectors", "sizes", "admission", "fitting", "delivery", "unification"),
    ("machine", "model", "evaluation", "probe", "carrying", "planes", "config", "placement", "events", "state_codec"),
    (
        "isolation",
        "registry",
        "hookspecs",
        "adapters",
        "builtin",
        "checkpoints",
        "pretrained",
        "report",
        "progress",
        "rundir",
        "run_lock",
        "signals",
        "saving",
    ),
    ("discovery", "plan"),
    ("assembly",),
    (
        "run",
        "run_loop",
        "resumption",
        "saved_models",
        "amendments",
        "exports",
        "generation",
        "diagnosis",
        "pricing",
        "prepared_shapes",
        "describe",
        "conformance",
        "scaffold",
        "schema",
    ),
    ("cli",),
)
"""Lowest first; a package stands for all its modules."""

COLD = {name for floor in FLOORS[:3] for name in floor} | {"config", "isolation", "registry", "hookspecs", "builtin", "discovery", "plan"}
"""What never imports torch, neither itself nor through a hot module."""

MACHINE = {"machine", "evaluation", "probe", "carrying", "planes", "events", "streams", "phases"}
SURROUNDINGS = {"pluggy", "yaml", "click", "rich", "importlib_metadata", "cattrs"}
"""What the machine knows nothing of."""

PACKAGES = {path.name: path for path in sorted(ROOT.glob("stackwise-*/src/stackwise*")) if path.is_dir() and path.suffix == ""}
PROVIDERS = [name for name in PACKAGES if name != "stackwise"]


class Import(NamedTuple):
    """`target` is a dotted name as far as it was written: `stackwise.time.Clock`."""

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


def floor_name(module: str) -> str:
    return module.split(".")[1]


def faults(sources: Mapping[str, str]) -> list[str]:
    """Every broken rule, as a sentence."""
    face, modules = face_table(sources), {module_name(key) for key in sources}
    level = {name: number for number, names in enumerate(FLOORS, start=1) for name in names}
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    for key, source in sources.items():
        module = module_name(key)
        if module == "stackwise":
            found += _face_faults(key, source, face)
            continue
        if module.startswith("stackwise.") and floor_name(module) not in level:
            found.append(f"{module} stands on no floor: enter it in FLOORS")
            continue
        for entry in imports_of(key, source):
            reached = resolve(entry.target, modules, face)
            where = f"{module}:{entry.line}"
            if reached and reached != "stackwise":
                graph.setdefault(module, set()).add(reached)
            if module.startswith("stackwise."):
                found += _core_faults(module, entry, reached, where, level)
            else:
                found += _provider_faults(module, entry, where, face)
    found += _naming_faults(sources)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append("import circle: " + " → ".join(reversed(error.args[1])))
    return found


def _core_faults(module: str, entry: Import, reached: str | None, where: str, level: Mapping[str, int]) -> Iterator[str]:
    own, outside = floor_name(module), entry.target.partition(".")[0]
    if reached and reached.startswith("stackwise."):
        other = floor_name(reached)
        if level.get(other, 0) > level[own]:
            yield f"{where} imports {reached}: floor {level[own]} imports floor {level[other]}"
        if own in COLD and other not in COLD and not entry.typing_only:
            yield f"{where} imports {reached}: the cold wing imports a hot module"
    if outside == "torch" and own in COLD and not entry.typing_only:
        yield f"{where} imports torch in the cold wing"
    if outside in SURROUNDINGS and own in MACHINE:
        yield f"{where} imports {outside}: the machine knows nothing of it"


def _provider_faults(module: str, entry: Import, where: str, face: Mapping[str, str]) -> Iterator[str]:
    own, (first, _, rest) = module.partition(".")[0], entry.target.partition(".")
    if first in PROVIDERS and first != own:
        yield f"{where} imports {first}: a provider imports another"
    if first == "stackwise" and rest and rest not in face and rest != "__version__":
        yield f"{where} imports {entry.target}: a provider imports names of the face `stackwise` only"


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


def test_floors_circles_and_wings_hold():
    assert faults(read_sources()) == []


@pytest.mark.parametrize(
    ("key", "line", "complaint"),
    [
        ("stackwise.time", "from stackwise.phases import Part", "stackwise.time:1 imports stackwise.phases: floor 2 imports floor 3"),
        (
            "stackwise.time",
            "def f():\n    import stackwise.discovery",
            "stackwise.time:2 imports stackwise.discovery: floor 2 imports floor 6",
        ),
        ("stackwise.time", "if TYPE_CHECKING:\n    from stackwise import discover", "stackwise.time:2 imports stackwise.discovery"),
        ("stackwise.specs", "from . import config", "stackwise.specs:1 imports stackwise.config: floor 3 imports floor 4"),
        ("stackwise.time", "from stackwise.schedules import Curve", "import circle"),
        ("stackwise.config.reader", "def f():\n    import torch.nn", "stackwise.config.reader:2 imports torch in the cold wing"),
        ("stackwise.discovery", "from stackwise import TrainingMachine", "the cold wing imports a hot module"),
        ("stackwise.machine", "import yaml", "stackwise.machine:1 imports yaml: the machine knows nothing of it"),
        ("stackwise.errors", "'see stackwise-providers-optim'", "stackwise.errors names stackwise_providers_optim"),
        ("stackwise.sorcery", "", "stackwise.sorcery stands on no floor"),
        ("stackwise.__init__", "from stackwise.specs import HIDDEN", "the face resolves names through its table only"),
        ("stackwise_providers_optim.provider", "import stackwise_providers_data", "a provider imports another"),
        ("stackwise_providers_optim.provider", "from stackwise.specs import HIDDEN", "names of the face `stackwise` only"),
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
