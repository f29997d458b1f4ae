"""Models that transformers computes itself: cut into parts they compute what the whole does, and they are trained, grown and written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import attrs
import numpy
import pytest
import torch
import transformers as hf
import yaml
from safetensors.torch import load_file, save_file

import stackwise
from stackwise import GenerationSettings, Model, UserError
from stackwise.assembly.start import read_folder
from stackwise.assembly.stored import build_stored, stored_format
from stackwise.cli import main
from stackwise.host.discovery import discover
from stackwise_providers_transformer.continuation import continue_prompt
from stackwise_providers_transformer.documents import positions_within
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
    "qwen3_moe": {**SIZES, "moe_intermediate_size": 8, "num_key_value_heads": 1, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2},
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


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_documents_in_one_row_are_computed_as_if_alone(family: str, tmp_path: Path) -> None:
    whole, parts = saved(family, tmp_path), filled(tmp_path)
    draw = torch.Generator().manual_seed(2)
    rows = [[torch.randint(3, VOCAB, (1, size), generator=draw) for size in sizes] for sizes in ((9, 8, 3), (1, 7, 12))]
    tokens = torch.cat([torch.cat(row, 1) for row in rows])
    segments = torch.tensor([[i for i, piece in enumerate(row) for _ in range(piece.shape[1])] for row in rows])
    alone = torch.cat([torch.cat([whole(piece).logits for piece in row], 1) for row in rows])
    places = positions_within(segments)
    for side in [{}] + ([{"positions": places}] if "positions" in parts.rack.options.side else []):
        found = parts({"tokens": tokens, "segments": segments, **side})["logits"]
        torch.testing.assert_close(found, alone, rtol=0, atol=5e-6)  # sums of other shapes round otherwise
    assert (parts({"tokens": tokens})["logits"] - alone).abs().max() > 1e-3
    with pytest.raises(UserError, match="two pieces"):
        parts({"tokens": tokens, "segments": segments % 2})


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - MASKED))
@torch.inference_mode()
def test_generation_reads_each_token_once_and_makes_those_that_the_library_makes(family: str, tmp_path: Path) -> None:
    fields = {"tie_word_embeddings": False} | ({"sliding_window": 5} if family in ("starcoder2", "mixtral", "gemma3_text") else {})
    whole, parts = saved(family, tmp_path, **fields), filled(tmp_path)
    whole.generation_config.eos_token_id = None
    prompt = torch.randint(3, VOCAB, (1, 7), generator=torch.Generator().manual_seed(3))
    made = whole.generate(prompt, do_sample=False, max_new_tokens=9, min_new_tokens=9, attention_mask=torch.ones_like(prompt))[0]
    assert family == "opt" or len(set(made[7:].tolist())) > 1  # those weights of OPT repeat one token
    read: list[int] = []
    parts.embedding.register_forward_hook(lambda module, inputs, output: read.append(output.shape[1]))
    for cache in (True, False):
        settings = GenerationSettings(tokens=9, temperature=0, cache=cache)
        assert continue_prompt(parts, prompt[0], settings, torch.Generator()).tolist() == made.tolist()
    assert read == [7, *[1] * 8, *range(7, 16)]


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_the_balance_of_routers_is_the_library_s(family: str, tmp_path: Path) -> None:
    whole = saved(family, tmp_path, output_router_logits=True, router_aux_loss_coef=0.5)
    stored = FORMAT.read(tmp_path)
    assert stored.model["rack"]["balance"] and any("rack.balance: 0.5" in note for note in stored.notes)
    parts, tokens = filled(tmp_path), torch.randint(3, VOCAB, (3, 10), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 10, dtype=torch.bool)
    mask[1, 6:] = False
    for batch, given in (({}, {}), ({"mask": mask}, {"attention_mask": mask.long()})):
        expected = whole(tokens, labels=tokens, **given).aux_loss
        total, count = parts({"tokens": tokens, **batch})["rack.balance"]
        torch.testing.assert_close(total / count, expected, rtol=1e-5, atol=0)
        assert count == (mask.sum() if batch else mask.numel())
    expected.backward()
    total.div(count).backward()
    routers = [(name, p.grad) for name, p in whole.model.named_parameters() if p.grad is not None and bool((p.grad != 0).any())]
    assert routers
    for name, gradient in routers:
        if "embed_tokens" not in name:
            torch.testing.assert_close(parts.get_parameter(f"rack.model.{name}").grad, gradient, rtol=1e-4, atol=1e-7)


def test_a_family_without_routers_has_no_balance(tmp_path: Path) -> None:
    saved("starcoder2", tmp_path)
    stored = FORMAT.read(tmp_path)
    rack = {**stored.model["rack"], "balance": True}
    with pytest.raises(UserError, match="starcoder2"):
        build_stored(attrs.evolve(stored, model={**stored.model, "rack": rack}), REGISTRY)


@pytest.mark.parametrize(
    ("family", "auto", "fields"),
    [
        ("t5", hf.AutoModelForSeq2SeqLM, {"d_model": 16, "d_ff": 24, "num_layers": 2, "num_heads": 2, "d_kv": 8}),
        ("bart", hf.AutoModelForSeq2SeqLM, {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}),
        ("vit", hf.AutoModel, {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}),
    ],
)
def test_a_model_that_is_no_rack_is_refused_with_the_way_out(family: str, auto: Any, fields: dict[str, Any], tmp_path: Path) -> None:
    sizes = {} if family == "vit" else {"vocab_size": VOCAB}
    auto.from_config(hf.AutoConfig.for_model(family, **fields, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=family):
        read_folder(tmp_path, REGISTRY)


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


def test_a_wrapped_model_learns_a_chain_down_to_its_entropy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine times of ten a token follows from the one before, else any of 34 comes: 0.66 nats, and ln 34 = 3.53 for who knows nothing."""
    monkeypatch.chdir(tmp_path)
    saved("starcoder2", tmp_path / "pretrained")
    generator, chain = numpy.random.default_rng(1), [0]
    for jump, odd in zip(generator.random(20000) < 0.1, generator.integers(0, 34, 20000), strict=True):
        chain.append(int(odd) if jump else (5 * chain[-1] + 3) % 34)
    numpy.save(tmp_path / "chain.npy", numpy.array(chain) + 3)
    source = {"use": "data.array-files", "files": {"tokens": str(tmp_path / "chain.npy")}, "vocab": VOCAB, "heldout": 0.2}
    directory = run(
        tmp_path,
        {
            "run": {"name": "exp", "seed": 1, "horizon": "300 steps", "device": "cpu"},
            "data": {"sources": {"text": source}, "batch_size": 16, "seq_len": 12},
            "evaluate": {"heldout": {"every": "100%", "batches": 20}},
        },
    )
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "evaluation" in line]
    usual, odd_one = 0.9 + 0.1 / 34, 0.1 / 34
    entropy = -usual * log(usual) - 33 * odd_one * log(odd_one)
    assert losses[0] > log(34) and entropy - 0.1 < losses[-1] < entropy + 0.35


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


def test_code_in_a_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anybody asked: the library would read an answer from the terminal."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    saved("starcoder2", tmp_path)
    for name in ("configuration", "modeling"):
        (tmp_path / f"{name}_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    code = {"AutoConfig": "configuration_own.C", "AutoModelForCausalLM": "modeling_own.M"}
    field("auto_map", code)(tmp_path)
    stored = read_folder(tmp_path, REGISTRY)
    assert [note for note in stored.notes if note.startswith("auto_map: ")]
    build_stored(stored, REGISTRY)
    field("model_type", "own")(tmp_path)
    with pytest.raises(UserError, match="auto_map"):
        read_folder(tmp_path, REGISTRY)
    assert not (tmp_path / "ran").exists()


def test_pickles_alone_are_refused_as_those_of_known_families_are(tmp_path: Path) -> None:
    saved("starcoder2", tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="pickle: true"):
        read_folder(tmp_path, REGISTRY)
    form = stored_format({"use": "transformer.hf", "pickle": True}, REGISTRY)
    assert read_folder(tmp_path, REGISTRY, form).tensors


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved("starcoder2", tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"stackwise-providers-transformer\[hf\]"):
        read_folder(tmp_path, REGISTRY)


def test_a_row_longer_than_the_table_of_positions_is_the_user_s(tmp_path: Path) -> None:
    saved("gpt_bigcode", tmp_path)
    with pytest.raises(UserError, match="33"):
        filled(tmp_path)({"tokens": torch.zeros(1, 33, dtype=torch.long)})
