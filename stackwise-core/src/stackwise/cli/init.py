"""`stackwise init`: a config to begin with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import click

from stackwise.contracts.options import config_key
from stackwise.errors import UserError, printable


@click.command(
    epilog="""\b
Examples:
  stackwise init --from pretrained/SmolLM2-135M
  stackwise init --from pretrained/SmolLM2-135M --output model.yaml
  stackwise init --from pretrained/gpt2 --format '{use: transformer.hf, wrap: true}'

\b
A config takes it over with `extends: model.yaml`, and says the rest:
run, task, data, optimizer.

Exit codes: 0 done, 2 the folder or the file is at fault, 3 a provider's defect.
"""
)
@click.option(
    "--from", "folder", type=click.Path(path_type=Path), required=True, help="Folder with a trained model, of an installed format."
)
@click.option("--format", "form", metavar="FORMAT", help="Its format, as under model.start.  [default: the one that recognises it]")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write; it must not exist. [default: print]")
def init(folder: Path, form: str | None, output: Path | None) -> None:
    """Write the section `model:` of a config for the trained model in a folder.

    Every tensor of the folder is held against the model that the section declares, by name and shape; nothing is downloaded.
    """
    from stackwise.assembly.start import read_folder
    from stackwise.assembly.stored import build_stored, stored_format
    from stackwise.host.discovery import discover

    registry = discover()
    node = None if form is None else _format(form)
    stored = read_folder(folder, registry, None if node is None else stored_format(node, registry))
    model = build_stored(stored, registry)
    count = sum(parameter.numel() for parameter in model.parameters())
    text = "\n".join(_lines(folder, node, stored, count, registry)) + "\n"
    if output is None:
        click.echo(text, nl=False)
        return
    if output.exists():
        raise UserError(f"{output} exists already: give another file, or remove it")
    output.write_text(text, encoding="utf-8")
    click.echo(f"wrote {output}: {count:,} parameters; take it over with `extends: {output.name}`")


def _format(text: str) -> Mapping[str, Any]:
    """The format as a config writes it, `use` among its keys; its id alone is enough.

    Raises:
        UserError: no map of YAML and no name.
    """
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--format {text}: no YAML: {error}") from None
    node = {"use": value} if isinstance(value, str) else value
    if not isinstance(node, Mapping) or not isinstance(node.get("use"), str):
        raise UserError(f"--format {text}: write the id of a format, or a map as '{{use: transformer.hf, wrap: true}}'")
    return node


def _lines(folder: Path, form: Mapping[str, Any] | None, stored: Any, count: int, registry: Any) -> Iterator[str]:
    """The section as YAML, each option with what it is."""
    yield from (_comment(text) for text in (f"The model of {folder}: {count:,} parameters.", *stored.notes))
    yield "model:"
    yield f"  start: {_flow({'from': str(folder), **({} if form is None else {'format': form})})}"
    for role, node in stored.model.items():
        fields = attrs.fields(registry.get(role, node["use"]).load_options())
        docs = {config_key(attribute): str(attribute.metadata.get("doc") or "") for attribute in fields}
        yield f"  {role}:"
        for key, value in node.items():
            doc = re.split(r"[;:,] ", docs.get(key, ""), maxsplit=1)[0]
            yield f"    {key}: {_flow(value)}" + (f"  # {doc}" if doc else "")


def _comment(text: str) -> str:
    """One line of comment: what a folder says cannot begin a line of its own."""
    return "# " + printable(" ".join(text.split()))


def _flow(value: object) -> str:
    """A value on one line of YAML."""
    import json

    import yaml

    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    plain = isinstance(value, str) and value.replace("-", "").replace(".", "").replace("_", "").isalpha()
    return value if isinstance(value, str) and plain and yaml.safe_load(value) == value else json.dumps(value)
