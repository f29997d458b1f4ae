"""`stackwise new-provider`: a complete distribution to start from."""

from __future__ import annotations

from pathlib import Path

import click

from stackwise.host.provider import KINDS


@click.command(
    epilog="""\b
Examples:
  stackwise new-provider waves --kind rack
  stackwise new-provider waves --kind loader --output ~/code/waves

Exit codes: 0 done, 2 the name or the folder cannot be used.
"""
)
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), metavar="KIND", required=True, help=f"One of {', '.join(KINDS)}.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder to write.  [default: stackwise-providers-NAME]")
def new_provider(name: str, kind: str, output: Path | None) -> None:
    """Write a provider NAME with one component. It can be installed, listed, checked and trained as it is.

    The folder holds pyproject.toml with the entry point, the package (provider.py, options.py and the component's module),
    tests that call the conformance kit, a config to train with, a README and a file for continuous integration.
    """
    from stackwise.scaffold import Names, write

    names = Names.of(name)
    folder = output or Path(names.distribution)
    for path in write(names, next(known for known in KINDS if known == kind), folder):
        click.echo(path)
    click.echo(f"next:  cd {folder} && pip install -e '.[test]' && stackwise check {names.provider} && pytest")
