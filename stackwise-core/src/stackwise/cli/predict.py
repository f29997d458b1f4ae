"""`stackwise predict`: predictions for new rows by the model of a run."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stackwise.cli.process import load_torch, prepare_process


@click.command(
    epilog="""\b
Examples:
  stackwise predict runs/table-001 --data new.csv
  stackwise predict runs/table-001 --data new.csv > predictions.jsonl
  stackwise predict runs/table-001 --data new.jsonl
  stackwise predict runs/digits-001 --data images.safetensors

Exit codes: 0 done, 2 the task predicts nothing for new rows, or the file is
at fault, 3 a provider's defect.
"""
)
@click.argument("directory", metavar="RUN", type=click.Path(path_type=Path, file_okay=False))
@click.option("--data", "file", required=True, metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="The rows.")
@click.option("--source", metavar="NAME", help="The source of the run whose loader reads FILE.  [default: the first that can]")
@click.option("--rows", type=click.IntRange(min=1), default=256, show_default=True, help="Rows per forward pass.")
def predict(directory: Path, file: Path, source: str | None, rows: int) -> None:
    """Predict new rows with the model of a RUN, or of an export: a JSON line for each row, in the order of the file.

    FILE has the format of the run's own data, without the columns that are to be predicted; it is encoded as the run's own rows were.
    Numbers are printed in the units of the data, classes by their names. If the task allows it, FILE may be a safetensors file with a
    tensor for each field that the task reads, such as `image` [rows, height, width, channels].
    """
    prepare_process()
    load_torch()
    from stackwise.saved.predict import predict as predictions

    for row in predictions(directory, file, source=source, rows=rows):
        click.echo(json.dumps(row))
