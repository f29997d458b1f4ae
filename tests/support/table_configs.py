"""Tables as configs, and for every option of theirs another value that must lead elsewhere or be refused."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from tiny_walks import base

_NAMES = ("x", "z", "kind", "y", "w", "class")


def _row(i: int) -> list[Any]:
    return [i % 7 / 7, (i * i) % 11, ["oak", "pine", "ash"][i % 3] if i % 9 else "", i % 5 + i / 40, -i, i % 2]


def _write(name: str, first: int, delimiter: str = ",") -> None:
    with Path(name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([_NAMES, *(_row(i) for i in range(first, first + 40))])


def _config(source: dict[str, Any], **model: Any) -> dict[str, Any]:
    _write("one.csv", 0)
    _write("two.csv", 40)
    chosen = {"use": "data.csv", "paths": ["one.csv"], "numbers": ["x", "z"], "categories": {"kind": 4}, "missing": "fill", "heldout": 0.3}
    return base(
        run={"name": "table", "seed": 3, "horizon": "4 steps", "device": "cpu"},
        task={"use": "transformer.regression"},
        data={"sources": {"a": {**chosen, **source}}, "batch_size": 8},
        model={
            "embedding": {"use": "transformer.features"},
            "rack": {"use": "transformer.mlp", "width": 8, "stacks": [{"base": 1}]},
            "head": {"use": "transformer.regression"},
            **model,
        },
        evaluate={"e": {"every": "2 steps", "batches": 1}},
    )


def table() -> dict[str, Any]:
    """Numbers of a table."""
    return _config({"target": ["y"]})


def parquet() -> dict[str, Any]:
    """The same from Parquet."""
    from pyarrow import Table, parquet

    for name, first in (("one", 0), ("two", 40)):
        rows = [dict(zip(_NAMES, _row(i), strict=True)) for i in range(first, first + 40)]
        parquet.write_table(Table.from_pylist(rows), f"{name}.parquet")
    return _config({"use": "data.parquet", "paths": ["one.parquet"], "target": ["y"]})


def over_columns() -> dict[str, Any]:
    """The same, columns mixed by attention: what stands for the row matters."""
    rack = {"use": "transformer.decoder", "width": 8, "heads": 2, "positions": "none", "stacks": [{"base": 1}]}
    config = _config({"target": ["y"]}, embedding={"use": "transformer.features", "positions": "columns"}, rack=rack)
    config["task"]["attention"] = "bidirectional"
    return config


_TASK, _SOURCE, _EMBEDDING, _RACK, _HEAD = "task/", "data/sources/a/", "model/embedding/", "model/rack/", "model/head/"

ROWS: dict[str, list[tuple[Any, str, Any]]] = {
    "data.csv.paths": [(table, _SOURCE + "paths", ["two.csv"])],
    "data.csv.delimiter": [(table, _SOURCE + "delimiter", ";")],
    "data.csv.empty": [(table, _SOURCE + "empty", ["", "oak"])],
    "data.parquet.paths": [(parquet, _SOURCE + "paths", ["two.parquet"])],
    "data.csv.numbers": [(table, _SOURCE + "numbers", ["x", "w"])],
    "data.csv.categories": [(table, _SOURCE + "categories", value) for value in ({"kind": 2}, {"kind": ["ash", "oak"]})],
    "data.csv.target": [(table, _SOURCE + "target", ["w"])],
    "data.csv.missing": [(table, _SOURCE + "missing", "refuse")],
    "data.csv.unknown": [(lambda: _config({"target": ["y"], "categories": {"kind": 1}}), _SOURCE + "unknown", "refuse")],
    "transformer.features.features": [(table, _EMBEDDING + "features", 3)],
    "transformer.features.categories": [(table, _EMBEDDING + "categories", False)],
    "transformer.features.columns": [(table, _EMBEDDING + "columns", 3)],
    "transformer.features.vectors": [(table, _EMBEDDING + "vectors", 9)],
    "transformer.features.width": [(table, _EMBEDDING + "width", 12)],
    "transformer.features.positions": [(table, _EMBEDDING + "positions", "columns")],
    "transformer.features.init_std": [(table, _EMBEDDING + "init_std", 0.2)],
    "transformer.mlp.width": [(table, _RACK + "width", 12)],
    "transformer.mlp.stacks": [(table, _RACK + "stacks", [{"base": 2}])],
    "transformer.mlp.mlp": [(table, _RACK + "mlp", "relu"), (table, _RACK + "mlp", "swiglu")],
    "transformer.mlp.ff": [(table, _RACK + "ff", 5)],
    "transformer.mlp.norm": [(table, _RACK + "norm", "rmsnorm")],
    "transformer.mlp.dropout": [(table, _RACK + "dropout", 0.5), (table, _RACK + "dropout", {"linear": {"from": 0.5, "to": 0}})],
    "transformer.mlp.init_std": [(table, _RACK + "init_std", 0.1)],
    "transformer.regression.targets": [(table, _HEAD + "targets", 2)],
    "transformer.regression.width": [(table, _HEAD + "width", 12)],
    "transformer.regression.pool": [(over_columns, _HEAD + "pool", "first"), (over_columns, _HEAD + "pool", "last")],
    "transformer.regression.init_std": [(table, _HEAD + "init_std", 0)],
    "transformer.regression.input": [(table, _TASK + "input", "features"), (table, _TASK + "input", "tokens")],
    "transformer.regression.attention": [(over_columns, _TASK + "attention", "causal"), (table, _TASK + "attention", "causal")],
}
"""`<provider>.<component>.<option>` → (base config, where, another value)."""
