"""Folders of transformers that are damaged, incomplete, or of unknown models: each is refused by a sentence that names what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stackwise import BuildContext, ConfigError, Model, UserError, discover, experiment, make_plan
from stackwise.assembly.start import read_folder, read_start
from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.embedding import TokenEmbedding
from stackwise_providers_transformer.format_options import HuggingFaceOptions
from stackwise_providers_transformer.head import LMHead
from stackwise_providers_transformer.hugging_face.format import build_hugging_face
from stackwise_providers_transformer.options import DecoderOptions, LMOptions, TokenOptions

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
RACK: dict[str, Any] = {"width": 8, "heads": 2, "kv_heads": 1, "ff": 12, "stacks": [{"base": 2}], "rope_base": 500.0}


def make(folder: Path, *, file_bytes: int = 10**9, **changes: Any) -> Path:
    """A folder of a tiny Llama."""
    rack = Decoder(DecoderOptions(**{**RACK, **changes}))
    model = Model(TokenEmbedding(TokenOptions(vocab=16, width=8)), rack, LMHead(LMOptions(vocab=16, width=8)))
    model.wire()
    folder.mkdir()
    build_hugging_face(HuggingFaceOptions(file_bytes=file_bytes), BuildContext(seed=0)).write(model, folder, None, {})
    return folder


def change(**fields: Any) -> Callable[[Path], None]:
    """Other fields; `None` where a field is to go."""

    def apply(folder: Path) -> None:
        config = {**json.loads((folder / "config.json").read_text()), **fields}
        (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value != "gone"}))

    return apply


def retype(name: str, dtype: torch.dtype) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        save_file({**tensors, name: tensors[name].to(dtype)}, folder / WEIGHTS)

    return apply


def replace(name: str, tensor: torch.Tensor | None) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        held = {**tensors, **({} if tensor is None else {name: tensor})}
        save_file({key: value for key, value in held.items() if tensor is not None or key != name}, folder / WEIGHTS)

    return apply


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-40])


def pickle_only(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


FAULTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), ("there are no weights at", "transformer.hf")),
    "config is not JSON": (lambda folder: (folder / "config.json").write_text('{"model_type"'), ("there are no weights at",)),
    "unknown family": (change(model_type="mamba"), ("config.json", "model_type", "'mamba'", "missing keys")),  # read by transformers
    "field missing": (change(hidden_size="gone"), ("config.json", "hidden_size")),
    "unknown field": (change(attention_sinks=4), ("config.json", "attention_sinks", "4")),
    "unknown activation": (change(hidden_act="xielu"), ("hidden_act", "'xielu'", "silu")),
    "unknown rope type": (change(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4}), ("rope_parameters", "longrope", "yarn")),
    "rope without its factor": (change(rope_parameters={"rope_type": "linear", "rope_theta": 1e4}), ("rope_parameters", "factor")),
    "unknown rope field": (
        change(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "tilt": 1}),
        ("rope_parameters", "'tilt'"),
    ),
    "quantized": (change(quantization_config={"bits": 4}), ("quantization_config",)),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), (WEIGHTS, INDEX)),
    "truncated file": (cut, (WEIGHTS, "not a whole safetensors file")),
    "pickle only": (pickle_only, ("pytorch_model.bin", "pickle: true")),
    "integers": (retype("model.norm.weight", torch.int32), ("model.norm.weight", "I32")),
    "eight bits": (retype("model.norm.weight", torch.float8_e4m3fn), ("model.norm.weight", "F8")),
    "extra tensors": (replace("model.layers.0.mlp.experts.0", torch.ones(2)), ("model.layers.0.mlp.experts.0",)),
    "more blocks than the config": (change(num_hidden_layers=1), ("model.layers.1.",)),
    "tied, and not the same": (replace("lm_head.weight", torch.ones(16, 8)), ("lm_head.weight", "tie_word_embeddings")),
    "shapes that do not fit": (replace("model.layers.0.self_attn.q_proj.weight", torch.ones(8, 4)), ("q_proj.weight", "[8, 4]")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_by_name(name: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "folder")
    apply, words = FAULTS[name]
    apply(folder)
    with pytest.raises(UserError) as caught:
        read_folder(folder, discover())
    assert caught.type is UserError and all(word in str(caught.value) for word in words), str(caught.value)


def test_shards_that_are_missing_or_cut_are_named(tmp_path: Path) -> None:
    folder = make(tmp_path / "folder", file_bytes=1000)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    content = shard.read_bytes()
    for damage, word in ((lambda: shard.unlink(), "missing"), (lambda: shard.write_bytes(content[:50]), "not a whole")):
        shard.write_bytes(content)
        damage()  # type: ignore[no-untyped-call]
        with pytest.raises(UserError, match=word) as caught:
            read_folder(folder, discover())
        assert shard.name in str(caught.value)


def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = make(tmp_path / "folder", file_bytes=1000)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "../other.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"\.\./other\.safetensors"):
        read_folder(folder, discover())


def plan(folder: Path, rack: dict[str, Any], **start: Any) -> Any:
    return make_plan(
        experiment(
            {
                "run": {"name": "x", "horizon": "1 steps", "device": "cpu"},
                "task": {"use": "transformer.causal-lm"},
                "data": {
                    "sources": {"a": {"use": "data.memory", "arrays": {"tokens": torch.arange(64).numpy()}, "vocab": 16}},
                    "seq_len": 8,
                    "batch_size": 1,
                },
                "model": {
                    "start": {"from": str(folder), **start},
                    "embedding": {"use": "transformer.token", "vocab": 16},
                    "rack": {"use": "transformer.decoder", **rack},
                    "head": {"use": "transformer.lm"},
                },
                "optimizer": {"use": "optim.adamw", "lr": 1e-3},
            }
        ),
        discover(),
    )


def test_a_config_of_another_model_is_refused_option_by_option(tmp_path: Path) -> None:
    folder = make(tmp_path / "folder")
    assert len(read_start(plan(folder, RACK))) == 2 + 2 * 7
    other = {**RACK, "rope_base": 900.0, "heads": 1, "dropout": 0.1, "init_std": 0.5}
    with pytest.raises(UserError) as caught:
        read_start(plan(folder, other))
    told = str(caught.value).splitlines()[1:]
    assert [line.split()[0] for line in told] == ["rack.heads", "rack.rope_base"]
    assert read_start(plan(folder, other, differs=["rack.rope_base", "rack.heads"]))
    with pytest.raises(UserError, match=r"rack\.ff is as in"):
        read_start(plan(folder, RACK, differs=["rack.ff"]))


def test_a_size_left_to_its_default_is_the_size_that_the_folder_writes(tmp_path: Path) -> None:
    """Left out, `ff` of width 8 is 24, `kv_heads` is `heads`, and a norm is a kind of it; the folder says each in the other form."""
    left = {"width": 8, "heads": 2, "stacks": [{"base": 2}]}
    folder = make(tmp_path / "folder", ff=None, kv_heads=None, rope_base=10000.0)
    written = {**left, "ff": 24, "kv_heads": 2, "norm": {"kind": "rmsnorm"}, "bias": {"qkv": False}}
    assert read_start(plan(folder, left)).keys() == read_start(plan(folder, written)).keys()
    with pytest.raises(UserError, match=r"rack\.ff is 32, and 24 in the folder"):
        read_start(plan(folder, {**left, "ff": 32}))


def test_a_pickle_is_read_when_a_word_asks_for_it(tmp_path: Path) -> None:
    folder = make(tmp_path / "folder")
    before = load_file(folder / WEIGHTS)
    pickle_only(folder)
    asked = plan(folder, RACK, format={"use": "transformer.hf", "pickle": True})
    assert torch.equal(read_start(asked)["embedding.weight"], before["model.embed_tokens.weight"])
    torch.save({"model.norm.weight": RuntimeError}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be unpickled as tensors alone"):
        read_start(asked)


def test_an_unknown_format_is_a_mistake_of_the_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.start\.format\.use.*transformer\.hf"):
        plan(make(tmp_path / "folder"), RACK, format={"use": "transformer.hff"})


def test_a_model_without_words_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rack\.rotary\.pairs"):
        make(tmp_path / "folder", rope_base=None, rotary=_neighbours())
    assert not list((tmp_path / "folder").glob("*"))


def _neighbours() -> Any:
    from stackwise_providers_transformer.block_options import RotaryOptions

    return RotaryOptions(pairs="neighbours")
