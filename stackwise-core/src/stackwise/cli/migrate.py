"""`stackwise migrate`: a config of another tool as one of StackWise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command(
    epilog="""\b
Examples:
  stackwise migrate old.yaml
  stackwise migrate old.yaml -o new.yaml

Exit codes: 0 done, 2 the file is of no tool that an installed provider knows,
or is at fault, 3 a provider's defect.
"""
)
@click.argument("file", metavar="OLD", type=click.Path(path_type=Path, dir_okay=False))
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write; it must not exist. [default: print]")
def migrate(file: Path, output: Path | None) -> None:
    """Translate OLD, the config of another tool, into a config of StackWise with comments.

    The result is planned before it is written, as a check. Every key that has no meaning here is listed on standard error, with the
    reason. Installed formats read the configs of their tools; `transformer.stack-wise` reads those of stack-wise.
    """
    from stackwise.errors import UserError, disk_errors

    document = _read(file)
    if output is not None and output.exists():
        raise UserError(f"{output} exists already: give another place by -o, or remove it")
    text, dropped = _translate(document, file)
    for line in dropped:
        click.echo(f"dropped  {line}", err=True)
    _check(text, file)
    if output is None:
        click.echo(text, nl=False)
        return
    with disk_errors(output, "give another place by -o"):
        output.write_text(text, encoding="utf-8")
    click.echo(f"wrote {output}\nnext: stackwise plan {output}")


def _read(file: Path) -> dict[str, Any]:
    """Read the file as its own tool would: as YAML 1.1, where the last of two equal keys counts."""
    import yaml

    from stackwise.errors import UserError

    if file.exists() and not file.is_file():
        raise UserError(f"{file} is not a file")
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{file} is not YAML: {error}") from None
    if not isinstance(document, dict):
        raise UserError(f"{file} is not a map of sections")
    return {str(key): value for key, value in document.items()}


def _translate(document: dict[str, Any], file: Path) -> tuple[str, tuple[str, ...]]:
    """The config that a document means, and a sentence for each key that is dropped.

    Raises:
        UserError: no installed format knows its tool, or it cannot be understood.
        ProviderError: a format that fails.
    """
    import yaml

    from stackwise.assembly.start import built_format
    from stackwise.contracts.answers import calling, expect
    from stackwise.contracts.formats import TranslatedConfig
    from stackwise.errors import UserError
    from stackwise.host.discovery import discover
    from stackwise.host.registry import blaming

    registry, asked = discover(), []
    with blaming(registry.providers):
        for entry in registry.of_kind("format"):
            form: Any = built_format(entry)
            if not hasattr(form, "translate"):
                continue
            asked.append(entry.id)
            with calling(entry.id, "translates"):
                known = form.translates(document)
                expect(isinstance(known, bool), known, "True or False")
            if known:
                with calling(entry.id, "translate"):
                    translated = form.translate(document)
                    expect(
                        isinstance(translated, TranslatedConfig) and isinstance(translated.text, str),
                        translated,
                        "a TranslatedConfig with text",
                    )
                    dropped = translated.dropped
                    expect(isinstance(yaml.safe_load(translated.text), dict), translated.text, "as its text a config in YAML")
                    expect(isinstance(dropped, tuple) and all(isinstance(line, str) for line in dropped), dropped, "a tuple of sentences")
                return translated.text, dropped
    raise UserError(f"{file} is not a config that an installed format can translate ({', '.join(asked) or 'none can'})")


def _check(text: str, file: Path) -> None:
    """Plan and price the result: the sizes of all phases are known then.

    Raises:
        UserError: it does not hold together.
    """
    from tempfile import TemporaryDirectory

    from stackwise import config
    from stackwise.assembly.planning import make_plan
    from stackwise.assembly.pricing import price
    from stackwise.errors import UserError
    from stackwise.host.discovery import discover

    with TemporaryDirectory() as folder:
        path = Path(folder) / "migrated.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            price(make_plan(config.load(path), discover()))
        except UserError as error:
            said = str(error).replace(str(path), "translated")
            raise UserError(f"{file} becomes a config that does not hold together: {said}") from error
