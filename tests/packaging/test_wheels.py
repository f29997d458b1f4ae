"""The four distributions as they are published: built, complete, in lock-step, and at work in environments that hold nothing else."""

from __future__ import annotations

import json
import re
import tomllib
import zipfile
from collections.abc import Callable
from email.parser import Parser
from functools import cache
from pathlib import Path
from sys import executable

import pytest
from clean_venvs import ALL, CORE, PROVIDERS, ROOT, Environment, build_wheel, metadata, requirements, run
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow

TRANSFORMER, OPTIM, DATA = PROVIDERS
PACKAGE = {CORE: "stackwise", **{name: name.replace("-", "_") for name in PROVIDERS}}

SATISFIED = """
import importlib.metadata as metadata
from packaging.requirements import Requirement
for dist in metadata.distributions():
    if dist.metadata["Name"].startswith("stackwise"):
        for text in dist.requires or ():
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                assert need.specifier.contains(metadata.version(need.name), prereleases=True), (dist.metadata["Name"], text)
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Distribution → its wheel."""
    return {name: build_wheel(ROOT / name, tmp_path_factory) for name in ALL}


@pytest.fixture(scope="module")
def environments(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Environment]:
    """Of the core alone, or of a provider with the core and what it declares beside."""
    sets = {CORE: (CORE,), OPTIM: (CORE, OPTIM), DATA: (CORE, DATA), TRANSFORMER: ALL}
    return cache(lambda name: Environment(tmp_path_factory.mktemp(name), [wheels[part] for part in sets[name]]))


@pytest.mark.parametrize("name", ALL)
def test_a_wheel_holds_every_source_file_the_type_marker_the_licence_and_the_entry_points(wheels: dict[str, Path], name: str):
    with zipfile.ZipFile(wheels[name]) as archive:
        held = set(archive.namelist())
        (entry_points,) = (archive.read(file).decode() for file in held if file.endswith(".dist-info/entry_points.txt"))
    source = ROOT / name / "src"
    files = [p for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts and ".egg-info" not in str(p)]
    expected = {path.relative_to(source).as_posix() for path in files}
    assert f"{PACKAGE[name]}/py.typed" in expected
    assert expected == {file for file in held if ".dist-info/" not in file}
    assert any(file.endswith("licenses/LICENSE") for file in held)
    assert "[stackwise.providers]" in entry_points


def test_twine_accepts_every_wheel(wheels: dict[str, Path], tmp_path: Path):
    run(executable, "-m", "twine", "check", "--strict", *wheels.values(), cwd=tmp_path)


def test_versions_are_in_lock_step_and_providers_bind_the_core_loosely(wheels: dict[str, Path]):
    read = {name: Parser().parsestr(metadata(wheel)) for name, wheel in wheels.items()}
    face = (ROOT / CORE / "src" / "stackwise" / "__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', face, flags=re.MULTILINE)
    assert {message["Version"] for message in read.values()} == {version}
    for name in PROVIDERS:
        bound = {canonicalize_name(need.name): need.specifier for need in requirements(metadata(wheels[name]))}
        ours = {need: specifier for need, specifier in bound.items() if need in ALL}
        assert set(ours.values()) == {SpecifierSet(f"~={version}")}
        assert CORE in ours
        assert set(ours) == ({CORE, OPTIM, DATA} if name == TRANSFORMER else {CORE})


def test_every_requirement_is_pinned_for_the_checkout():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(need.name): need.specifier for need in map(Requirement, (x for x in lines if x and not x.startswith("#")))}
    for name in ALL:
        project = tomllib.loads((ROOT / name / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for need in map(Requirement, project["dependencies"]):
            if canonicalize_name(need.name) not in ALL:
                (pin,) = pins[canonicalize_name(need.name)]
                assert pin.operator == "==" and need.specifier.contains(pin.version), need
    tools = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    assert all(canonicalize_name(tool) in pins for tool in tools if tool and not tool.startswith("#"))


OFTEN = (CORE, TRANSFORMER)
"""What needs the least, and all four together; test_dependencies.py reads what each of the others imports and declares."""
APART = [pytest.param(name, marks=() if name in OFTEN else pytest.mark.rare) for name in ALL]


@pytest.mark.parametrize("name", APART)
def test_alone_with_the_core_a_wheel_is_listed_whole(environments: Callable[[str], Environment], name: str):
    environment = environments(name)
    environment.python(SATISFIED)
    assert "site-packages" in environment.python("import stackwise; print(stackwise.__file__)")
    rows = {row["distribution"]: row for row in json.loads(environment.stackwise("list-providers", "--json").stdout)}
    assert set(rows) == (set(ALL) if name == TRANSFORMER else {CORE, name})
    for row in rows.values():
        assert row["status"] == "ok" and row["components"] and not row["editable"]


@pytest.mark.parametrize("name", APART)
def test_every_module_of_a_wheel_imports_with_what_is_declared(environments: Callable[[str], Environment], name: str):
    program = f"""
import importlib, pkgutil
package = importlib.import_module({PACKAGE[name]!r})
for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
"""
    environments(name).python(program)


def test_the_core_alone_says_which_package_is_missing(environments: Callable[[str], Environment]):
    refused = environments(CORE).stackwise("validate", ROOT / "examples" / "one-phase.yaml", code=2)
    said = refused.stdout + refused.stderr
    assert "optim.adamw" in said and "stackwise-providers-optim" in said


def test_the_core_and_the_transformer_provider_train_at_once(environments: Callable[[str], Environment]):
    config = ROOT / "examples" / "one-phase.yaml"
    environments(TRANSFORMER).stackwise("run", config, "--set", "run.horizon=4 steps")
