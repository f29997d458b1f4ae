"""`stackwise predict`: rows of a table in its own units, classes by their names, arrays for any task that can; and every refusal."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from click.testing import CliRunner
from safetensors.torch import save_file

import stackwise
from stackwise import DataError, ProviderError, UserError, conformance
from stackwise.cli import main
from stackwise.runs.run import run
from stackwise.saved import predict as module
from stackwise.saved.predict import predict

KINDS = ("red", "green", "blue")


def write(path: Path, count: int, seed: int, *, targets: bool) -> list[dict[str, Any]]:
    generator, rows = torch.Generator().manual_seed(seed), []
    for _ in range(count):
        a, b = (torch.randn(2, generator=generator) * torch.tensor([3.0, 40.0]) + 10).tolist()
        kind = KINDS[int(torch.randint(3, (1,), generator=generator))]
        row: dict[str, Any] = {"a": a, "b": b, "kind": kind}
        rows.append(row | {"price": 500 + 20 * a + b + 100 * KINDS.index(kind), "dear": ("no", "yes")[a > 10]})
    names = [*rows[0]] if targets else ["kind", "b", "a"]  # other columns, another order
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return rows


def config(folder: Path, **what: Any) -> dict[str, Any]:
    columns = {"numbers": ["a", "b"], "categories": {"kind": 3}, **what}
    kind = "regression" if "target" in what else "classification"
    head = {"use": f"transformer.{'regression' if kind == 'regression' else 'classifier'}"}
    return {
        "run": {"name": "table", "seed": 7, "horizon": "300 steps", "device": "cpu"},
        "task": {"use": f"transformer.{kind}", "input": "table"},
        "data": {"sources": {"t": {"use": "data.csv", "paths": [str(folder / "train.csv")], "heldout": 0, **columns}}, "batch_size": 32},
        "model": {
            "embedding": {"use": "transformer.features"},
            "rack": {"use": "transformer.mlp", "width": 16, "stacks": [{"base": 1}]},
            "head": head,
        },
        "optimizer": {"use": "optim.adamw", "lr": 1e-2},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tables")
    write(made / "train.csv", 400, 0, targets=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STACKWISE_CACHE", str(made / "cache"))
        for name, what in {"prices": {"target": ["price"]}, "classes": {"label": "dear", "classes": ["no", "yes"]}}.items():
            run(stackwise.experiment(config(made, **what)), output=made / name, stream=io.StringIO())
    return made


def test_numbers_come_in_the_units_of_the_data_in_the_order_of_the_file(folder: Path) -> None:
    truth = write(folder / "new.csv", 70, 1, targets=False)
    told = list(predict(folder / "prices", folder / "new.csv", rows=32))
    assert [row.keys() for row in told] == [{"price"}] * 70
    errors = torch.tensor([row["price"] - known["price"] for row, known in zip(told, truth, strict=True)])
    spread = torch.tensor([known["price"] for known in truth]).std()
    assert errors.abs().mean() < 0.2 * spread
    assert told == list(predict(folder / "prices", folder / "new.csv", rows=70)) or errors.abs().max() < spread


def test_classes_come_by_their_names_with_their_probabilities(folder: Path) -> None:
    truth = write(folder / "new.csv", 50, 2, targets=False)
    told = list(predict(folder / "classes", folder / "new.csv"))
    assert all(row.keys() == {"dear", "probability"} and row["probability"].keys() == {"no", "yes"} for row in told)
    assert all(row["dear"] == max(row["probability"], key=row["probability"].get) for row in told)
    assert sum(row["dear"] == known["dear"] for row, known in zip(told, truth, strict=True)) > 45


def test_arrays_are_predicted_by_any_task_that_can_and_from_an_export(folder: Path) -> None:
    encoded = torch.randn(9, 2), torch.randint(4, (9, 2))
    save_file({"features": encoded[0], "categories": encoded[1]}, folder / "rows.safetensors")
    told = list(predict(folder / "classes" / "final", folder / "rows.safetensors", rows=4))
    model = stackwise.load_exported(folder / "classes" / "final")
    with torch.no_grad():
        by_hand = model({"features": encoded[0], "categories": encoded[1]})["logits"].softmax(-1)
    assert [row["label"] for row in told] == by_hand.argmax(-1).tolist()
    assert torch.allclose(torch.tensor([row["probability"] for row in told]), by_hand, atol=1e-6)


def test_rows_may_come_as_json_lines_or_parquet_whatever_the_run_read(folder: Path) -> None:
    write(folder / "new.csv", 40, 4, targets=False)
    with (folder / "new.csv").open(newline="") as file:
        rows = [{"kind": row["kind"], "b": float(row["b"]), "a": float(row["a"])} for row in csv.DictReader(file)]
    (folder / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), folder / "new.parquet")
    for name in ("prices", "classes"):
        told = [list(predict(folder / name, folder / f"new.{kind}")) for kind in ("csv", "jsonl", "parquet")]
        assert len(told[0]) == 40 and told[0] == told[1] == told[2]
    (folder / "odd.jsonl").write_text('{"a": 1.0, "kind": "red"}\n')
    with pytest.raises(DataError, match="has no 'b'"):
        list(predict(folder / "prices", folder / "odd.jsonl"))


def test_the_kit_reads_a_table_of_a_run(folder: Path) -> None:
    """Its example is text, and the loader of a table is built with the encoding of a run: so the check is asked alone."""
    from stackwise_providers_data import provider

    example = config(folder, target=["price"])["data"]["sources"]["t"]
    example.pop("use")
    (csv_loader,) = (each for each in provider.stackwise_loaders() if each.name == "csv")
    (subject,) = conformance.subjects_of({"loader": [evolve(csv_loader, example=example)]})
    conformance.CATALOGUE["check_reads_rows"].load()(subject)


def test_the_command_prints_a_line_a_row(folder: Path) -> None:
    write(folder / "new.csv", 5, 3, targets=True)  # columns of targets may be there
    done = CliRunner().invoke(main, ["predict", str(folder / "prices"), "--data", str(folder / "new.csv")])
    assert done.exit_code == 0, done.output
    assert [json.loads(line).keys() for line in done.output.splitlines()] == [{"price"}] * 5


def test_what_cannot_be_predicted_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no file"):
        list(predict(folder / "prices", folder / "gone.csv"))
    (tmp_path / "odd.csv").write_text("a,kind\n1,red\n")
    with pytest.raises(DataError, match="'b'"):
        list(predict(folder / "prices", tmp_path / "odd.csv"))
    with pytest.raises(UserError, match="no source 'u'"):
        list(predict(folder / "prices", tmp_path / "odd.csv", source="u"))
    with pytest.raises(UserError, match="safetensors"):
        list(predict(folder / "prices" / "final", tmp_path / "odd.csv"))
    save_file({"features": torch.zeros(3, 2)}, tmp_path / "few.safetensors")
    with pytest.raises(UserError, match="categories"):
        list(predict(folder / "prices", tmp_path / "few.safetensors"))
    save_file({"features": torch.zeros(3, 2), "categories": torch.zeros(2, 2)}, tmp_path / "uneven.safetensors")
    with pytest.raises(DataError, match="row"):
        list(predict(folder / "prices", tmp_path / "uneven.safetensors"))
    opened = module.open_model

    def broken(path: Path, fit: Any) -> Any:
        model = opened(path, fit)
        model.task.predict = lambda asked, batch: {"label": torch.zeros(1)}  # type: ignore[attr-defined]
        return model

    monkeypatch.setattr(module, "open_model", broken)
    save_file({"features": torch.zeros(3, 2), "categories": torch.zeros(3, 2)}, tmp_path / "even.safetensors")
    with pytest.raises(ProviderError, match="an entry for each of"):
        list(predict(folder / "prices", tmp_path / "even.safetensors"))
