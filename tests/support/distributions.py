"""Fake installed distributions: a module and its `*.dist-info` in a folder, to be put on the path of this or another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from attrs import field, frozen

GOOD = """
from attrs import frozen
from stackwise import Component, hookimpl, option

@frozen(kw_only=True)
class Options:
    size: int = option(3, doc="how many", minimum=1, maximum=9)

def build(options, context):
    return [context.seed] * options.size

@hookimpl
def stackwise_transforms():
    return [Component(name="thing", options=__name__ + ":Options", factory=__name__ + ":build", summary="a thing", example={"size": 2})]
"""
"""A provider without fault: one transform, `<provider>.thing`."""


def hook(returned: str, name: str = "stackwise_transforms", head: str = "") -> str:
    """Source of a provider whose one hook returns the given expression."""
    return f"from stackwise import Component, hookimpl\n{head}\n@hookimpl\ndef {name}():\n    return {returned}\n"


@frozen
class Site:
    """A folder that serves as one entry of `sys.path`."""

    folder: Path
    modules: list[str] = field(factory=list)

    def install(
        self,
        provider: str,
        code: str | None = GOOD,
        *,
        module: str | None = None,
        value: str | None = None,
        distribution: str | None = None,
        version: str = "1.0",
        requires: Sequence[str] = (),
    ) -> str:
        """Write a distribution that offers `provider`; returns its module's name.

        Args:
            provider: name of the entry point.
            code: source of the module; None writes none.
            module: name of the module, by default `fake_<provider>`.
            value: value of the entry point, by default the module.
            distribution: name of the distribution, by default `fake-<provider>`.
            version: version of the distribution.
            requires: its `Requires-Dist` lines.
        """
        module = module or f"fake_{provider.replace('-', '_')}"
        name = distribution or f"fake-{provider}"
        if code is not None:
            (self.folder / f"{module}.py").write_text(code, encoding="utf-8")
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {text}" for text in requires)]
        metadata = "Metadata-Version: 2.1\n" + "\n".join(lines) + "\n\nA long description.\nVersion: of another thing\n"
        self.install_raw(f"{name.replace('-', '_')}-{version}", metadata, f"[stackwise.providers]\n{provider} = {value or module}\n")
        self.modules.append(module)
        return module

    def install_raw(self, stem: str, metadata: str | None, entry_points: str) -> Path:
        """Write a `*.dist-info` with exactly these files; returns its folder."""
        info = self.folder / f"{stem}.dist-info"
        info.mkdir(parents=True)
        if metadata is not None:
            (info / "METADATA").write_text(metadata, encoding="utf-8")
        (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")
        return info


def run_stackwise(
    *arguments: str, sites: Sequence[Path] = (), environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`stackwise ARGUMENTS` in a process of its own, with the sites in front of its path."""
    return run_python("from stackwise.cli import main; main(prog_name='stackwise')", *arguments, sites=sites, environment=environment)


def run_python(
    code: str, *arguments: str, sites: Sequence[Path] = (), environment: dict[str, str] | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -c CODE ARGUMENTS` with the sites in front of its path, in a folder."""
    path = os.pathsep.join([*map(str, sites), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
    )


def listed(sites: Sequence[Path]) -> dict[str, list[dict[str, object]]]:
    """What `list-providers --json` says in a process of its own, by provider name."""
    done = run_stackwise("list-providers", "--json", sites=sites)
    assert done.returncode == 0, done.stderr
    rows: dict[str, list[dict[str, object]]] = {}
    for row in json.loads(done.stdout):
        rows.setdefault(row["provider"], []).append(row)
    return rows
