"""Models that transformers computes itself: cut into parts they compute what the whole does, and they are trained, grown and written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers as hf
import yaml
from safetensors.torch import load_file, save_file

import stackwise
from stackwise import Model, UserError
from stackwise.assembly.start import read_folder
from stackwise.assembly.stored import build_stored, stored_format
from stackwise.cli import main
from stackwise.host.discovery import discover
from stackwise_providers_transformer.format_options import HuggingFaceOptions
from stackwise_providers_transformer.hugging_face.format import HuggingFaceFormat

VOCAB = 37
IDS = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {**IDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "starcoder2": {**SIZES, "intermediate_size": 24, "num_key_value_heads": 1},
    "gpt_bigcode": {**IDS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "opt": {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 32},  # calls the inside of its base
    "cohere": {**SIZES, "intermediate_size": 24},  # multiplies its logits
    "granite": {**SIZES, "intermediate_size": 24, "logits_scaling": 2.0, "embedding_multiplier": 3.0},
    "bloom": {**IDS, "hidden_size": 16, "n_layer": 2, "n_head": 2},  # takes no positions
    "mixtral": {**SIZES, "intermediate_size": 24, "num_key_value_heads": 1, "num_local_experts": 3},
    "gemma3_text": {**SIZES, "intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8},  # multiplies its embedding
    "roberta": {**SIZES, "intermediate_size": 24, "max_position_embeddings": 40},
    "electra": {**SIZES, "intermediate_size": 24, "embedding_size": 8},  # another width of embedded tokens
}
MASKED = {"roberta", "electra"}
REGISTRY = discover()
FORMAT = HuggingFaceFormat(HuggingFaceOptions(wrap=True))


def saved(family: str, folder: Path, **fields: Any) -> Any:
    """A folder of a tiny model, every parameter drawn, and the model."""
    config = hf.AutoConfig.for_model(family, **{**FAMILIES[family], **fields})
    torch.manual_seed(0)
    auto = hf.AutoModelForMaskedLM if family in MASKED else hf.AutoModelForCausalLM
    model = auto.from_config(config).eval()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(folder)
    return model


def filled(folder: Path) -> Model:
    stored = FORMAT.read(folder)
    model = build_stored(stored, REGISTRY, "cpu")
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in stored.tensors:
            tensor.data.copy_(stored.tensors[name])
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_the_parts_compute_what_the_whole_does_and_write_the_same_folder(family: str, tmp_path: Path) -> None:
    whole = saved(family, tmp_path / "folder")
    parts = filled(tmp_path / "folder")
    tokens = torch.randint(3, VOCAB, (2, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[1, 8:] = False
    for batch, given in (({}, {}), ({"mask": mask}, {"attention_mask": mask.long()})):
        ours = parts({"tokens": tokens, **batch})["logits"]
        torch.testing.assert_close(ours[mask], whole(tokens, **given).logits[mask], rtol=0, atol=1e-6)
    (tmp_path / "again").mkdir()
    FORMAT.write(parts, tmp_path / "again", None, {})
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("folder", "again"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    fields = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("folder", "again")]
    assert fields[0] == fields[1]


def run(folder: Path, config: dict[str, Any]) -> Path:
    numpy.save(folder / "tokens.npy", numpy.random.default_rng(0).integers(3, VOCAB, 4000))
    main(["init", "--from", str(folder / "pretrained"), "--output", str(folder / "model.yaml")], standalone_mode=False)
    source = {"use": "data.array-files", "files": {"tokens": str(folder / "tokens.npy")}, "vocab": VOCAB}
    common = {
        "extends": "model.yaml",
        "run": {"name": "exp", "horizon": "8 steps", "device": "cpu", "probe": True},
        "task": {"use": "transformer.causal-lm"},
        "data": {"sources": {"text": source}, "batch_size": 2, "seq_len": 12},
        "optimizer": {"use": "optim.adamw", "lr": 1e-2},
    }
    (folder / "exp.yaml").write_text(yaml.safe_dump({**common, **config}, sort_keys=False))
    main(["run", str(folder / "exp.yaml")], standalone_mode=False)
    return folder / "runs" / "exp-001"


def entries(directory: Path) -> dict[str, Any]:
    events = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    return {event["phase"]: event for event in events if event.get("event") == "phase_entered"}


def test_a_model_is_frozen_grown_adapted_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved("starcoder2", tmp_path / "pretrained", sliding_window=None)
    outputs = [f"{place}.{kind}" for place in ("self_attn.o_proj", "mlp.c_proj") for kind in ("weight", "bias")]
    deep = {"stacks": [{"base": 3}]}
    lora = {"a": {"use": "transformer.lora", "rank": 2, "select": ["*.self_attn.*"]}}
    directory = run(
        tmp_path,
        {
            "model": {"rack": {"residual_outputs": outputs}},
            "phases": {
                "first": {"until": "25%", "model": {"freeze": ["rack.model.layers.0", "embedding"]}},
                "deep": {"until": "50%", "model": {"freeze": [], "rack": deep}, "enter": {"growth": {"use": "transformer.identity"}}},
                "beside": {"until": "75%", "model": {"freeze": ["embedding", "rack"], "weight_adapters": lora}},
                "merged": {"model": {"weight_adapters": None, "freeze": []}, "enter": {"weight_adapters": "merge"}},
            },
        },
    )
    entered = entries(directory)
    assert entered["deep"]["probe_change"] == 0
    main(["export", str(directory), str(tmp_path / "out"), "--format", "hf"], standalone_mode=False)
    theirs, tokens = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval(), torch.arange(3, 15)[None]
    assert theirs.config.num_hidden_layers == 3 and theirs.config.sliding_window is None
    with torch.inference_mode():
        ours = stackwise.load_exported(directory / "final")({"tokens": tokens})["logits"]
        torch.testing.assert_close(ours, theirs(tokens).logits, rtol=0, atol=1e-6)
    before = load_file(tmp_path / "pretrained" / "model.safetensors")
    assert not torch.equal(before["model.layers.0.mlp.c_fc.weight"], theirs.state_dict()["model.layers.0.mlp.c_fc.weight"])


def test_a_family_that_is_known_is_wrapped_when_it_is_asked_for(tmp_path: Path) -> None:
    sizes = {**SIZES, "intermediate_size": 24}
    hf.AutoModelForCausalLM.from_config(hf.AutoConfig.for_model("llama", **sizes)).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    assert read_folder(tmp_path, REGISTRY).model["rack"]["use"] == "transformer.decoder"
    form = stored_format({"use": "transformer.hf", "wrap": True}, REGISTRY)
    assert read_folder(tmp_path, REGISTRY, form).model["rack"]["use"] == "transformer.hf"
    with pytest.raises(UserError, match="wrop"):
        stored_format({"use": "transformer.hf", "wrop": True}, REGISTRY)


def test_a_folder_without_a_head_is_given_the_embedding_s(tmp_path: Path) -> None:
    config = hf.AutoConfig.for_model("roberta", **FAMILIES["roberta"])
    hf.AutoModel.from_config(config).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    stored = read_folder(tmp_path, REGISTRY)
    assert stored.model["head"] == {"use": "transformer.lm"} and len(stored.notes) == 3
    build_stored(stored, REGISTRY)


def drop(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.c_fc.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def add(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "model.extra": torch.zeros(3)}, folder / "model.safetensors", {"format": "pt"})


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def field(name: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, name: value}))

    return change


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (drop, "model.layers.1.mlp.c_fc.weight"),
        (add, "model.extra"),
        (cut, "does not read"),
        (field("model_type", "nobody"), "nobody"),
        (field("hidden_size", "wide"), "hidden_size"),
        (field("colour", 3), "colour"),
    ],
)
def test_a_folder_that_the_library_cannot_use_is_refused_by_name(damage: Callable[[Path], None], named: str, tmp_path: Path) -> None:
    saved("starcoder2", tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=named):
        read_folder(tmp_path, REGISTRY)


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved("starcoder2", tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"stackwise-providers-transformer\[hf\]"):
        read_folder(tmp_path, REGISTRY)


def test_a_row_longer_than_the_table_of_positions_is_the_user_s(tmp_path: Path) -> None:
    saved("gpt_bigcode", tmp_path)
    with pytest.raises(UserError, match="33"):
        filled(tmp_path)({"tokens": torch.zeros(1, 33, dtype=torch.long)})
