"""`stackwise export`: the weights of a run for use elsewhere."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    epilog="""\b
Examples:
  stackwise export runs/grow-bytes-001 exported
  stackwise export runs/grow-bytes-001 exported-at-600 --step 600
  stackwise export runs/grow-bytes-001 for-transformers --format hf

\b
Back to a model, in code:
  import stackwise
  model = stackwise.load_exported("exported")
  outputs = model(batch)

Exit codes: 0 done, 2 no such weights or the disk refuses, 3 a provider's defect.
"""
)
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--format", "form", metavar="NAME", help="Write a folder of this format, as 'hf' for transformers. [default: our own]")
@click.option("--step", type=click.IntRange(min=0), help="Take the checkpoint of this step. [default: the final weights]")
def export(run: Path, directory: Path, form: str | None, step: int | None) -> None:
    """Write the weights of a RUN directory into a new DIRECTORY.

    DIRECTORY will contain weights.safetensors, weights.json (the task, the parts by component id with their options and specs, and the
    versions of their providers), and the tokenizers of the run. The export is loaded once as a check, so it will load wherever the same
    providers are installed.
    With --format DIRECTORY becomes a folder that another tool reads, with the tokenizer of the run; other files of that tool are copied
    from the folder that the run began from, if it still exists.
    """
    from stackwise.saved.export import export as export_weights

    exported_step = export_weights(run, directory, step, form)
    use = f"stackwise.load_exported({str(directory)!r}) builds the model" if form is None else f"a folder of the format '{form}'"
    click.echo(f"exported step {exported_step} to {directory}: {use}")
