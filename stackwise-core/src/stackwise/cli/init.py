"""`stackwise init`: a config to begin with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs
import click

from stackwise.contracts.options import config_key
from stackwise.errors import UserError, disk_errors, printable

if TYPE_CHECKING:
    from stackwise.contracts.components import Kind
    from stackwise.contracts.formats import StoredModel
    from stackwise.host.registry import Registry
    from stackwise.host.starters import OfferedStarter


@click.command(
    epilog="""\b
Examples:
  stackwise init
  stackwise init text -o exp.yaml
  stackwise init finetune --from pretrained/SmolLM2-135M -o exp.yaml
  stackwise init --from pretrained/SmolLM2-135M -o model.yaml
  stackwise init --from gpt2 --format '{use: transformer.hf, wrap: true}'

\b
The last writes the section `model:` alone; a config takes it over with
`extends: model.yaml`, and says the rest: run, task, data, optimizer.

Exit codes: 0 done, 2 the name, the folder or the file is at fault, 3 a
provider's defect.
"""
)
@click.argument("name", required=False)
@click.option("--from", "folder", type=click.Path(path_type=Path), help="Folder with a trained model, of an installed format.")
@click.option(
    "--format", "form", metavar="FORMAT", help="Format of that folder, written as under model.start. [default: the one that recognises it]"
)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write; it must not exist. [default: print]")
def init(name: str | None, folder: Path | None, form: str | None, output: Path | None) -> None:
    """Write a config to begin with: the starter NAME of an installed provider, complete and commented, with sample data where it needs
    any. Without NAME, list the starters.

    With --from, the section `model:` is that of the trained model in a folder: every tensor there is compared with the model that the
    section declares, by name and shape; nothing is downloaded.
    """
    from stackwise.host.discovery import discover
    from stackwise.host.starters import starter_named

    registry = discover()
    if form is not None and folder is None:
        raise UserError("--format says the format of a folder: give one by --from, or leave it out")
    if name is None and folder is None:
        click.echo(_listing(registry))
        return
    starter = None if name is None else starter_named(name, registry)
    if starter is not None and starter.starter.folder != (folder is not None):
        fix = f"leave --from {folder} out" if folder is not None else "give it by --from FOLDER"
        raise UserError(f"the starter '{name}' {'begins from no folder' if folder is not None else 'begins from a trained model'}: {fix}")
    parts = [] if starter is None else [starter.text(str(folder), Path() if output is None else output.parent)]
    files = {} if starter is None else starter.files()
    if folder is not None:
        parts.append("\n".join(_model_lines(folder, form, registry)) + "\n")
    _write(output, "\n".join(parts), files, starter)


def _write(output: Path | None, text: str, files: Mapping[str, bytes], starter: OfferedStarter | None) -> None:
    """Write a file and its sample data, or print it."""
    if output is None:
        click.echo(text, nl=False)
        if files:
            click.echo(f"note: it reads {', '.join(files)}, sample data that --output writes beside it", err=True)
        return
    places = {output: text.encode(), **{output.parent / name: content for name, content in files.items()}}
    for place in places:
        if place.exists():
            raise UserError(f"{place} exists already: give another place by -o, or remove it")
    for place, content in places.items():
        with disk_errors(place, "give another place by -o"):
            place.write_bytes(content)
    click.echo(f"wrote {' and '.join(map(str, places))}")
    if starter is None:
        click.echo(f"take it over with `extends: {output.name}`")
    elif starter.starter.language == "yaml":
        click.echo(f"next: stackwise plan {output}, stackwise preview {output}, stackwise run {output}")
    else:
        click.echo(f"next: python {output}")


def _listing(registry: Registry) -> str:
    """A line for each starter."""
    from stackwise.host.starters import starters_in

    offered = starters_in(registry)
    if not offered:
        return "no installed provider offers a starter"
    short = [each.starter.name for each in offered]
    names = [each.id if short.count(each.starter.name) > 1 else each.starter.name for each in offered]
    width = max(map(len, names))
    lines = [f"{name:<{width}}  {each.starter.summary}" for name, each in zip(names, offered, strict=True)]
    return "\n".join([*lines, "", "stackwise init NAME -o exp.yaml writes one of them"])


def _model_lines(folder: Path, form: str | None, registry: Registry) -> Iterator[str]:
    """The section `model` of a folder."""
    from stackwise.assembly.start import read_folder
    from stackwise.assembly.stored import build_stored, stored_format

    node = None if form is None else _format(form)
    stored = read_folder(folder, registry, None if node is None else stored_format(node, registry))
    count = sum(parameter.numel() for parameter in build_stored(stored, registry).parameters())
    return _lines({"from": str(folder), **({} if node is None else {"format": node})}, stored, count, registry)


def _format(text: str) -> Mapping[str, Any]:
    """A format as a config writes it, `use` among its keys; its id alone is enough.

    Raises:
        UserError: the text is neither a map in YAML nor a name.
    """
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--format {text}: not YAML: {error}") from None
    node = {"use": value} if isinstance(value, str) else value
    if not isinstance(node, Mapping) or not isinstance(node.get("use"), str):
        raise UserError(f"--format {text}: write the id of a format, or a map as '{{use: transformer.hf, wrap: true}}'")
    return node


def _lines(start: Mapping[str, Any], stored: StoredModel, count: int, registry: Registry) -> Iterator[str]:
    """The section as YAML, each option with what it is."""
    yield from (_comment(text) for text in (f"The model of {start['from']}: {count:,} parameters.", *stored.notes))
    yield "model:"
    yield f"  start: {_flow(start)}"
    for role, node in stored.model.items():
        fields = attrs.fields(registry.get(cast("Kind", role), node["use"]).load_options())
        docs = {config_key(attribute): str(attribute.metadata.get("doc") or "") for attribute in fields}
        yield f"  {role}:"
        for key, value in node.items():
            doc = re.split(r"[;:,] ", docs.get(key, ""), maxsplit=1)[0]
            yield f"    {key}: {_flow(value)}" + (f"  # {doc}" if doc else "")
    if stored.weight_adapters:
        yield "  weight_adapters:"
        yield from (f"    {name}: {_flow(node)}" for name, node in stored.weight_adapters.items())
        yield f"  freeze: {_flow([role for role in stored.model if any(name.startswith(role) for name in stored.tensors)])}"


def _comment(text: str) -> str:
    """The text as one line of comment: text from a folder cannot start a line of the config."""
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
