"""Every starter validates and trains as it is written, on its own sample data."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import stackwise
from stackwise import cli
from stackwise.assembly.pricing import price
from stackwise.host.discovery import discover
from stackwise.plan import make_plan
from stackwise_providers_transformer.provider import stackwise_starters

STARTERS = {starter.name: starter for starter in stackwise_starters()}
CONFIGS = [name for name, starter in STARTERS.items() if starter.language == "yaml" and not starter.folder]


def write(*arguments: str) -> None:
    done = CliRunner().invoke(cli.main, ["init", *arguments])
    assert done.exit_code == 0, done.output


def losses(directory: Path) -> list[float]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "evaluation" not in line]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_starter_plans_and_trains_ten_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(name, "-o", "exp.yaml")
    plan = make_plan(stackwise.load("exp.yaml"), discover())
    assert price(plan)
    fewer = ["run.horizon=10 steps", "run.device=cpu", "data.batch_size=4", "evaluate.heldout.batches=1", "evaluate.heldout.batch_size=4"]
    result = stackwise.run("exp.yaml", [*fewer, *(["data.seq_len=48"] if name in ("text", "chat") else [])])
    assert result.summary.finished is not None and result.summary.finished.steps == 10
    assert len(losses(result.directory)) == 10


def test_the_finetuning_starter_begins_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    hf = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    vocabulary = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    vocabulary.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=special, show_progress=False)
    vocabulary.train_from_iterator(["What is 1 + 2? 1 + 2 = 3."] * 9, trainer)
    sizes = {"vocab_size": vocabulary.get_vocab_size(), "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, num_hidden_layers=2, bos_token_id=0, eos_token_id=1)).save_pretrained("pre trained")
    vocabulary.save("pre trained/tokenizer.json")
    write("finetune", "--from", "pre trained", "-o", "exp.yaml")
    result = stackwise.run("exp.yaml", ["run.horizon=10 steps", "run.device=cpu", "data.batch_size=2", "data.seq_len=48"])
    assert len(losses(result.directory)) == 10
    events = [json.loads(line) for line in (result.directory / "events.jsonl").read_text().splitlines()]
    (entered,) = [event for event in events if event.get("event") == "phase_entered"]
    assert 0 < entered["trainable"] < entered["parameters"]


def test_the_starter_in_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("code", "-o", "train.py")
    runpy.run_path("train.py", run_name="__main__")
    assert len(losses(tmp_path / "runs" / "code-001")) == 128  # four epochs of 1024 rows, 32 a step


def test_sample_data_lie_beside_the_config_and_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a "b"').mkdir()
    write("images", "-o", 'a "b"/exp.yaml')
    experiment: Any = stackwise.load('a "b"/exp.yaml')
    assert not experiment.problems
    options = experiment.phases[0].data.sources["images"].options
    assert options["files"] == {"image": 'a "b"/images.npz:image', "label": 'a "b"/images.npz:label'}
    (tmp_path / 'a "b"' / "exp.yaml").unlink()
    done = CliRunner().invoke(cli.main, ["init", "images", "-o", 'a "b"/exp.yaml'])
    assert done.exit_code == 2 and not (tmp_path / 'a "b"' / "exp.yaml").exists()
