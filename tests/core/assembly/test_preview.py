"""A preview is what the first step trains on, bit by bit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from tiny_walks import VOCAB, base, machine_of, memory, plan_of

from stackwise.assembly.preview import previews
from stackwise.cli import main

MASKED = base(
    model={**base()["model"], "embedding": {"use": "transformer.token", "vocab": VOCAB + 1}},  # one for the mask
    task={"use": "transformer.masked-lm", "rate": {"linear": {"from": 0.5, "to": 0.1}}},
    data={"sources": {"a": memory(), "b": memory(seed=1)}, "mix": {"a": 3, "b": 1}, "batch_size": 8, "seq_len": 6},
)


@pytest.mark.parametrize("config", [base(), MASKED], ids=["causal", "masked-mixture"])
def test_it_is_the_batch_of_the_first_step(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    shown = next(iter(previews(plan_of(config))))
    machine, batches = machine_of(config), []

    def judge(outputs: Any, batch: Any) -> Any:
        batches.append({name: tensor.clone() for name, tensor in batch.items()})
        return loss(outputs, batch)

    for event in machine.train():
        if type(event).__name__ == "PhaseEntered":
            loss = machine.objective.task.loss
            monkeypatch.setattr(machine.objective.task, "loss", judge)
        if type(event).__name__ == "StepDone":
            break
    assert shown.batch.keys() == batches[0].keys()
    assert all(torch.equal(shown.batch[name], batches[0][name]) for name in batches[0])
    assert sum(shown.rows.values()) == len(next(iter(shown.batch.values())))


def test_the_command_shows_every_phase_and_source(tmp_path: Path):
    config = {
        **base(),
        "data": {
            "sources": {name: {"use": "data.memory", "arrays": {"tokens": [k] * 200}} for name, k in {"a": 1, "b": 2}.items()},
            "batch_size": 4,
            "seq_len": 5,
        },
        "phases": {"one": {"until": "50%"}, "two": {"data": {"seq_len": 3}}},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    done = CliRunner().invoke(main, ["preview", str(tmp_path / "c.yaml"), "--json", "--rows", "1"])
    assert done.exit_code == 0, done.output
    one, two = json.loads(done.output)
    assert (one["phase"], two["phase"], two["step"]) == ("one", "two", 6)
    assert [(row["source"], row["fields"]["tokens"]) for row in one["rows"]] == [("a", [1] * 5), ("b", [2] * 5)]
    assert [row["fields"]["tokens"] for row in two["rows"]] == [[1] * 3, [2] * 3]
    text = CliRunner().invoke(main, ["preview", str(tmp_path / "c.yaml"), "--phase", "two"]).output
    assert "phase two, step 6" in text and "1×3" in text and "phase one" not in text
    assert CliRunner().invoke(main, ["preview", str(tmp_path / "c.yaml"), "--phase", "too"]).exit_code == 2


@pytest.mark.parametrize("tokenizer", ["bytes", {"bpe": 300}], ids=["bytes", "learnt"])
def test_text_is_shown_as_text(tokenizer: Any, tmp_path: Path):
    text = "the grass is green and the sky is blue\n" * 60
    (tmp_path / "a.txt").write_text(text)
    config = base(
        model={**base()["model"], "embedding": {"use": "transformer.token"}},
        data={
            "sources": {"a": {"use": "data.text-files", "paths": [str(tmp_path / "a.txt")], "tokenizer": tokenizer}},
            "batch_size": 2,
            "seq_len": 12,
        },
    )
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    done = CliRunner().invoke(main, ["preview", str(tmp_path / "c.yaml"), "--json", "--rows", "2"])
    assert done.exit_code == 0, done.output
    for phase in json.loads(done.stdout):
        assert all(row["text"]["tokens"] and row["text"]["tokens"] in text for row in phase["rows"])
        assert all(row["text"]["targets"] in text for row in phase["rows"])


def test_a_table_is_shown_as_the_numbers_that_the_model_gets(tmp_path: Path):
    (tmp_path / "t.csv").write_text("a,kind,strength\n" + "".join(f"{i}.5,{'xyz'[i % 3]},{i}\n" for i in range(40)))
    config = {
        "run": {"horizon": "4 steps", "device": "cpu"},
        "task": {"use": "transformer.regression"},
        "data": {
            "sources": {
                "table": {
                    "use": "data.csv",
                    "paths": [str(tmp_path / "t.csv")],
                    "numbers": ["a"],
                    "categories": {"kind": 3},
                    "target": ["strength"],
                }
            },
            "batch_size": 8,
        },
        "model": {
            "embedding": {"use": "transformer.features"},
            "rack": {"use": "transformer.mlp", "width": 8, "stacks": [{"base": 1}]},
            "head": {"use": "transformer.regression"},
        },
        "optimizer": {"use": "optim.adamw", "lr": 1e-3},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    done = CliRunner().invoke(main, ["preview", str(tmp_path / "c.yaml"), "--json", "--rows", "1"])
    assert done.exit_code == 0, done.output
    ((row,),) = [phase["rows"] for phase in json.loads(done.stdout)]
    assert "text" not in row or not row["text"]
    assert {"features", "categories", "target"} <= row["fields"].keys() and len(row["fields"]["features"]) == 1


def test_ids_that_stand_for_no_text_are_shown_as_ids(tmp_path: Path):
    """Masks and sentinels lie beyond the bytes; what an encoder reads is text like what the decoder writes."""
    text = "the grass is green and the sky is blue\n" * 60
    (tmp_path / "a.txt").write_text(text)
    config = base(
        task={"use": "transformer.seq2seq", "form": "encoder-decoder", "pairs": "spans", "sentinels": 8},
        model={
            "embedding": {"use": "transformer.token"},
            "rack": {
                "use": "transformer.encoder-decoder",
                "width": 8,
                "heads": 2,
                "stacks": [{"read": 1}, {"write": 1}],
                "encoder": ["read"],
            },
            "head": {"use": "transformer.lm"},
        },
        data={"sources": {"a": {"use": "data.text-files", "paths": [str(tmp_path / "a.txt")]}}, "batch_size": 2, "seq_len": 40},
    )
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    done = CliRunner().invoke(main, ["preview", str(tmp_path / "c.yaml"), "--json", "--rows", "2"])
    assert done.exit_code == 0, done.output
    for row in json.loads(done.stdout)[0]["rows"]:
        target, source = row["text"]["targets"], row["text"]["source"]
        spans = re.split("⟨[0-9]+⟩", target)[1:-1]
        kept = re.split("⟨[0-9]+⟩", source)
        together = "".join(part for pair in zip(kept, spans, strict=False) for part in pair)
        assert spans and together in f"{text}\x00{text}"  # a document, and the beginning of the next
        assert [int(each) for each in re.findall("⟨([0-9]+)⟩", target)] == [n for n in row["fields"]["targets"] if n >= 256]
