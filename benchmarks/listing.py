"""What `stackwise list-providers` costs over the least a plugin host can do: click, pluggy and entry points.

Both programs run as whole processes, in turn, so that a busy machine slows both alike. The minimal one lists as many torch-free
plugins as StackWise finds providers. Prints medians and their ratio, and exits 0.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from importlib_metadata import version

ROUNDS = 21

MINIMAL = """
import click
import pluggy

spec = pluggy.HookspecMarker("minimal")

class Specs:
    @spec
    def names(self): ...

@click.group()
def main():
    pass

@main.command("list")
def list_plugins():
    manager = pluggy.PluginManager("minimal")
    manager.add_hookspecs(Specs)
    manager.load_setuptools_entrypoints("minimal.plugins")
    for plugin, distribution in manager.list_plugin_distinfo():
        click.echo(f"{manager.get_name(plugin)} {distribution.project_name} {distribution.version}")
    for names in manager.hook.names():
        click.echo(" ".join(names))

main()
"""

PLUGIN = """
import pluggy

@pluggy.HookimplMarker("minimal")
def names():
    return ["one", "two", "three"]
"""

STACKWISE = [sys.executable, "-c", "from stackwise.cli import main; main()", "list-providers"]


def write_minimal(folder: Path, plugins: int) -> list[str]:
    """Write the minimal host and its plugins, each an installed distribution; returns the command line."""
    for i in range(plugins):
        (folder / f"minimal_plugin_{i}.py").write_text(PLUGIN)
        info = folder / f"minimal_plugin_{i}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: minimal-plugin-{i}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[minimal.plugins]\nplugin-{i} = minimal_plugin_{i}\n")
    (folder / "minimal.py").write_text(MINIMAL)
    return [sys.executable, str(folder / "minimal.py"), "list"]


def run(command: list[str], path: str) -> tuple[float, float]:
    """Wall and CPU milliseconds of one whole process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path})
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 1000 * wall, 1000 * cpu


def main() -> None:
    """Measure and print."""
    path = os.environ.get("PYTHONPATH", "")
    listed = subprocess.run([*STACKWISE, "--json"], check=True, capture_output=True, text=True)
    providers = len(json.loads(listed.stdout))
    with tempfile.TemporaryDirectory() as folder:
        commands = {"minimal click + pluggy": write_minimal(Path(folder), providers), "stackwise list-providers": STACKWISE}
        for command in commands.values():
            run(command, path)  # compiles bytecode
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, command in commands.items():
                times[name].append(run(command, path))
    names = ("click", "pluggy", "importlib-metadata", "attrs")
    print(f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in names))
    print(f"{providers} providers, {ROUNDS} interleaved rounds, medians of whole processes\n")
    print(f"{'':<26}{'wall ms':>9}{'CPU ms':>9}")
    medians = {name: (median(wall for wall, _ in rows), median(cpu for _, cpu in rows)) for name, rows in times.items()}
    for name, (wall, cpu) in medians.items():
        print(f"{name:<26}{wall:>9.1f}{cpu:>9.1f}")
    (base_wall, base_cpu), (own_wall, own_cpu) = medians.values()
    print(f"{'ratio (goal: at most 2)':<26}{own_wall / base_wall:>9.2f}{own_cpu / base_cpu:>9.2f}")


if __name__ == "__main__":
    main()
