"""Classifiers of transformers: cut into parts they compute what the whole does, and they are trained and written with their labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers as hf
import yaml
from safetensors.torch import load_file

import stackwise
from stackwise import Model, UserError
from stackwise.assembly.start import read_folder
from stackwise.assembly.stored import build_stored
from stackwise.cli import main
from stackwise.host.discovery import discover
from stackwise_providers_transformer.format_options import HuggingFaceOptions
from stackwise_providers_transformer.hugging_face.format import HuggingFaceFormat

VOCAB, LABELS = 37, {0: "calm", 1: "glad", 2: "sad"}
IDS = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {**IDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": SIZES,  # reads what its pooler makes
    "roberta": {**SIZES, "max_position_embeddings": 40},  # the first position
    "modernbert": {**SIZES, "local_attention": 6, "cls_token_id": 1, "sep_token_id": 2, "classifier_pooling": "mean"},
    "llama": SIZES,  # the last one that is not padding
    "gpt2": {**IDS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "starcoder2": {**SIZES, "num_key_value_heads": 1},
}
CAUSAL = {"llama", "gpt2", "starcoder2"}
KINDS = {"row": hf.AutoModelForSequenceClassification, "token": hf.AutoModelForTokenClassification}
REGISTRY, FORMAT = discover(), HuggingFaceFormat(HuggingFaceOptions())


def saved(family: str, each: str, folder: Path) -> Any:
    """A folder of a tiny classifier, every parameter drawn, and the model."""
    names = {"id2label": LABELS, "label2id": {name: i for i, name in LABELS.items()}}
    torch.manual_seed(0)
    model = KINDS[each].from_config(hf.AutoConfig.for_model(family, **FAMILIES[family], **names)).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(folder)
    return model


def filled(folder: Path) -> Model:
    stored = FORMAT.read(folder)
    model = build_stored(stored, REGISTRY, "cpu")
    for name, parameter in model.named_parameters():
        parameter.data.copy_(stored.tensors[name])
    return model.eval()


def padded_rows() -> tuple[torch.Tensor, torch.Tensor]:
    tokens, mask = torch.randint(3, VOCAB, (3, 11), generator=torch.Generator().manual_seed(1)), torch.ones(3, 11, dtype=torch.bool)
    mask[1, 8:] = mask[2, 1:] = False
    return tokens.where(mask, torch.tensor(0)), mask


@pytest.mark.parametrize("each", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_the_parts_classify_as_the_whole_does_and_write_the_same_folder(family: str, each: str, tmp_path: Path) -> None:
    whole = saved(family, each, tmp_path / "folder")
    parts = filled(tmp_path / "folder")
    assert parts.rack.options.attention == ("causal" if family in CAUSAL else "bidirectional")
    tokens, mask = padded_rows()
    ours, theirs = parts({"tokens": tokens, "mask": mask})["logits"], whole(tokens, attention_mask=mask.long()).logits
    real = mask if each == "token" else slice(None)
    torch.testing.assert_close(ours[real], theirs[real], rtol=0, atol=1e-6)
    torch.testing.assert_close(parts({"tokens": tokens[:1]})["logits"], whole(tokens[:1]).logits, rtol=0, atol=1e-6)
    assert (ours - parts({"tokens": tokens})["logits"]).abs().max() > 1e-3  # the mask is read
    (tmp_path / "again").mkdir()
    FORMAT.write(parts, tmp_path / "again", None, {})
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("folder", "again"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    fields = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("folder", "again")]
    assert fields[0] == fields[1] and fields[1]["id2label"]["2"] == "sad"


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_classifier_learns_and_is_handed_back(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class of a row is that of its last token; the head alone learns, then LoRA beside the blocks, then all."""
    monkeypatch.chdir(tmp_path)
    saved(family, "row", Path("folder"))
    tokens = numpy.random.default_rng(0).integers(3, VOCAB, (400, 6))
    numpy.save("tokens.npy", tokens)
    numpy.save("label.npy", tokens[:, -1] % 3)
    main(["init", "--from", "folder", "--output", "model.yaml"], standalone_mode=False)
    source = {"use": "data.array-files", "files": {name: f"{name}.npy" for name in ("tokens", "label")}, "heldout": 0.2}
    lora = {"a": {"use": "transformer.lora", "rank": 2, "select": ["rack.*attention*"] if family == "bert" else ["rack.*self_attn*"]}}
    config = {
        "extends": "model.yaml",
        "run": {"name": "exp", "seed": 1, "horizon": "120 steps", "device": "cpu"},
        "task": {"use": "transformer.classification", **({"attention": "causal"} if family in CAUSAL else {})},
        "data": {"sources": {"rows": source}, "batch_size": 32},
        "optimizer": {"use": "optim.adamw", "lr": 1e-2},
        "evaluate": {"heldout": {"batches": 2}},
        "phases": {
            "head": {"until": "10%", "model": {"freeze": ["embedding", "rack"]}},
            "beside": {"until": "20%", "model": {"freeze": ["embedding", "rack", "head"], "weight_adapters": lora}},
            "all": {"model": {"freeze": [], "weight_adapters": None}, "enter": {"weight_adapters": "merge"}},
        },
    }
    Path("exp.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    main(["run", "exp.yaml", "--output", "out"], standalone_mode=False)
    events = [json.loads(line) for line in Path("out/events.jsonl").read_text().splitlines()]
    trained = {event["phase"]: event["trainable"] for event in events if event["event"] == "phase_entered"}
    assert trained["head"] < trained["all"] and trained["beside"] < trained["all"]
    accuracies = [event["metrics"]["accuracy"] for event in events if event["event"] == "evaluated"]
    assert accuracies[-1] > 0.9 > accuracies[0]
    main(["export", "out", "trained", "--format", "hf"], standalone_mode=False)
    again = KINDS["row"].from_pretrained("trained").eval()
    assert again.config.id2label == LABELS
    rows = torch.from_numpy(tokens[:9])
    with torch.inference_mode():
        ours = stackwise.load_exported("out/final")({"tokens": rows})["logits"]
        torch.testing.assert_close(ours, again(rows).logits, rtol=0, atol=1e-5)


def test_the_blocks_of_a_decoder_without_a_head_see_nothing_that_comes_later(tmp_path: Path) -> None:
    for family, attention in (("starcoder2", "causal"), ("roberta", "bidirectional")):
        hf.AutoModel.from_config(hf.AutoConfig.for_model(family, **FAMILIES[family])).save_pretrained(tmp_path / family)
        parts = filled(tmp_path / family)
        assert parts.rack.options.attention == attention
        tokens, _ = padded_rows()
        later = tokens.clone()
        later[:, -1] = 5
        with torch.inference_mode():
            hidden, other = (parts.rack(parts.embedding(tokens=each))[:, 0] for each in (tokens, later))
        assert torch.equal(hidden, other) == (attention == "causal")


def test_a_head_that_is_not_read_is_named(tmp_path: Path) -> None:
    config = hf.AutoConfig.for_model("roberta", **FAMILIES["roberta"])
    hf.AutoModelForQuestionAnswering.from_config(config).save_pretrained(tmp_path)
    assert any("qa_outputs.weight" in note for note in read_folder(tmp_path, REGISTRY).notes)


def test_other_numbers_of_classes_than_the_config_s_are_refused(tmp_path: Path) -> None:
    saved("roberta", "row", tmp_path)
    head = REGISTRY.get("head", "transformer.hf-classifier")
    declared = {name: value for name, value in FORMAT.read(tmp_path).model["head"].items() if name != "use"}
    options = head.load_options()
    for changed, named in (({"classes": 4}, "classes"), ({"width": 8}, "width")):
        with pytest.raises(UserError, match=named):
            head.build(options(**{**declared, "width": 16, **changed}), stackwise.BuildContext(seed=0))
