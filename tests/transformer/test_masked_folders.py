"""Masked-language training goes on from a folder of an encoder, and its first loss and its export are those of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers as hf
import yaml

import stackwise
from stackwise import StepDone, config
from stackwise.assembly.start import start_notes
from stackwise.cli import main
from stackwise.host.discovery import discover

VOCAB, MASK, STEPS = 40, 4, 25
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CONFIGS: dict[str, hf.PreTrainedConfig] = {
    "bert": hf.BertConfig(**SIZES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.2, max_position_embeddings=32, pad_token_id=0),
    "modernbert": hf.ModernBertConfig(
        **SIZES, local_attention=6, pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2
    ),
    "roberta": hf.RobertaConfig(**SIZES, **NO_DROPOUT, max_position_embeddings=40, pad_token_id=1, bos_token_id=0, eos_token_id=2),
}
"""The last is of a family that transformers computes."""
DROPOUTS = {"bert": ["attention_probs_dropout_prob"], "modernbert": [], "roberta": []}
"""Fields of dropout that a run is told of, as it does not take them over."""


@pytest.mark.parametrize("name", CONFIGS)
def test_training_goes_on_from_an_encoder_s_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    theirs = hf.AutoModelForMaskedLM.from_config(CONFIGS[name]).eval()  # type: ignore[no-untyped-call]
    for parameter in theirs.parameters():
        parameter.data.add_(torch.randn(parameter.shape) * 0.05)
    theirs.save_pretrained("folder")
    numpy.save("tokens.npy", numpy.arange(3000) % 6 + 5)
    main(["init", "--from", "folder", "--output", "model.yaml"], standalone_mode=False)
    source = {"use": "data.array-files", "files": {"tokens": "tokens.npy"}, "vocab": VOCAB}
    sections: dict[str, Any] = {
        "extends": "model.yaml",
        "run": {"name": "masks", "horizon": f"{STEPS} steps", "device": "cpu"},
        "task": {"use": "transformer.masked-lm", "mask_token": MASK, "special": [0, 1, 2, 3]},
        "data": {"sources": {"text": source}, "batch_size": 8, "seq_len": 24},
        "optimizer": {"use": "optim.adamw", "lr": 1e-2},
    }
    Path("exp.yaml").write_text(yaml.safe_dump(sections, sort_keys=False))

    plan = stackwise.make_plan(config.load(Path("exp.yaml")), discover())
    assert [note.partition(":")[0] for note in start_notes(plan)] == DROPOUTS[name]
    machine = stackwise.assemble(plan)
    batches: list[dict[str, torch.Tensor]] = []
    loss = machine.objective.loss

    def watched(model: Any, prepared: Any) -> Any:
        batches.append(prepared)
        return loss(model, prepared)

    machine.objective.loss = watched  # type: ignore[method-assign]  # one machine of one test
    losses = [event.loss for event in machine.train() if isinstance(event, StepDone)]
    first = batches[0]
    assert (first["tokens"] == MASK).any() and 0 < (first["targets"] != -100).sum() < first["targets"].numel() / 2
    with torch.no_grad():
        expected = theirs(input_ids=first["tokens"], labels=first["targets"]).loss
    assert losses[0] == pytest.approx(float(expected), abs=2e-5)
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]

    main(["run", "exp.yaml", "--output", "out"], standalone_mode=False)
    main(["export", "out", "trained", "--format", "hf"], standalone_mode=False)
    again, tokens = hf.AutoModelForMaskedLM.from_pretrained("trained").eval(), first["tokens"]
    with torch.no_grad():
        ours = stackwise.load_exported("out/final")({"tokens": tokens})["logits"]
        torch.testing.assert_close(ours, again(tokens).logits, rtol=0, atol=2e-5)
        assert (again(tokens).logits - theirs(tokens).logits).abs().max() > 0.1
