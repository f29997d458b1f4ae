"""Every field of a `config.json`, changed by itself: what transformers makes of it, we make of it, or refuse by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import transformers as hf
from folder_models import CONFIGS, FORMAT, LENGTHS, MODELS, built, drawn, rows

from stackwise import UserError
from stackwise_providers_transformer.hugging_face.families import FAMILIES
from stackwise_providers_transformer.hugging_face.format import read_architecture
from stackwise_providers_transformer.hugging_face.settings import DROPOUTS, KEPT, Config

ACTIVATIONS = ["relu", "silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "strange"]
NOT_OF_THE_MODEL = {"architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "id2label", "label2id", "name_or_path"}
"""Names, versions and labels of heads that are not read."""
OF_THE_CLASS = {"attribute_map", "base_config_key", "sub_configs", "sub_configs_defaults", "has_no_defaults_at_init"}
CALLS = {"return_dict", "output_attentions", "output_hidden_states", "problem_type", "task_specific_params", "attn_implementation"}
"""How a model of the library is called, and how it computes the same."""


def fields_of(config: hf.PreTrainedConfig) -> dict[str, Any]:
    """Every field that a config may have, at its value or at the family's default."""
    known = {
        **type(config)().to_dict(),
        **{name: getattr(config, name, None) for name in getattr(type(config), "__dataclass_fields__", ())},
    }
    out = NOT_OF_THE_MODEL | OF_THE_CLASS | CALLS
    everywhere = dict.fromkeys(["chunk_size_feed_forward", "is_decoder", "add_cross_attention", "is_encoder_decoder", "pruned_heads"])
    return {
        name: value
        for name, value in {**everywhere, **known, **saved_fields(config)}.items()
        if name not in out and not name.endswith("_plan") and not name.startswith(("summary", "_", "keys_to", "ignore_keys"))
    }


def saved_fields(config: hf.PreTrainedConfig) -> dict[str, Any]:
    """The fields that a folder has."""
    with TemporaryDirectory() as place:
        config.save_pretrained(place)
        fields: dict[str, Any] = json.loads((Path(place) / "config.json").read_text())
    return fields


def others(value: Any) -> Iterator[Any]:
    """Values of the kind of a field's own, and of other kinds where it has none."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value * 2, 0, 1)
    elif isinstance(value, float):
        yield from (value * 1.5 + 1e-3, 0.0, 1.0, 1e-2)
    elif isinstance(value, str):
        yield from ACTIVATIONS
    elif value is None:
        yield from (True, False, 1, 2, 0, 0.5, "relu", [0], {})
    elif isinstance(value, list):
        yield from (value[::-1], value[:-1], value + value[:1], [])
        yield from ([word] * len(value) for word in ("full_attention", "sliding_attention", "chunked_attention", 0, 1))
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from ({**value, key: other} for other in others(inner))
            yield {name: each for name, each in value.items() if name != key}
        lengths = {"original_max_position_embeddings": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        for kind in ("linear", "dynamic", "yarn", "llama3", "longrope", "proportional"):
            yield from ({**value, "rope_type": kind, "factor": 2.0, **more} for more in ({}, lengths))
        yield from ({**value, name: 0.5} for name in ("strange", "partial_rotary_factor", "factor"))


def changes(config: hf.PreTrainedConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of a field, and all fields with that one changed."""
    saved = saved_fields(config)
    for name, value in fields_of(config).items():
        if name in saved:
            yield name, {each: own for each, own in saved.items() if each != name}
        if value is not None:
            yield name, {**saved, name: None}
        for other in others(value):
            if other != value or type(other) is not type(value):
                yield name, {**saved, name: other}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_field_that_is_left_out_is_the_family_s_default(name: str) -> None:
    config, tried = CONFIGS[name], 0
    saved = saved_fields(config)
    for field in saved.keys() - KEPT - DROPOUTS - NOT_OF_THE_MODEL:
        family, rest = FAMILIES[saved["model_type"]], {key: value for key, value in saved.items() if key != field}
        try:
            usual = type(config).from_dict(rest).to_dict()[field]
        except Exception:  # the library has no such model without the field
            continue
        read = []
        for fields in (rest, {**saved, field: usual}):
            try:
                read.append(read_architecture(Config(Path("config.json"), json.loads(json.dumps(fields))), family))
            except UserError as error:
                read.append(field in str(error))
        tried += read[0] is not True
        assert read[0] in (True, read[1]), field  # a size that must be there is named
    assert tried > 3


@pytest.mark.parametrize("value", [None, 0, -3, True, 2.5, "wide", [], {"a": 1}])
@pytest.mark.parametrize("name", ["llama3", "pythia", "gemma3", "bert", "gpt2"])
def test_a_value_of_another_kind_is_the_user_s_whatever_the_field(name: str, value: Any) -> None:
    saved = saved_fields(CONFIGS[name])
    sizes = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size", "n_embd", "n_head", "n_layer"}
    for field in saved.keys() - {"model_type"}:
        try:
            read_architecture(Config(Path("config.json"), {**saved, field: value}), FAMILIES[saved["model_type"]])
        except UserError as error:
            assert field in str(error)
        else:
            assert field not in sizes, field


@pytest.mark.rare
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_a_changed_field_changes_what_it_changes_there_or_is_refused(name: str, tmp_path: Path) -> None:
    model, auto = drawn(CONFIGS[name]), hf.AutoModelForMaskedLM if "bert" in name else hf.AutoModelForCausalLM
    model.save_pretrained(tmp_path)
    mask = torch.ones(2, 15, dtype=torch.bool)
    mask[1, 11:] = False
    places = (mask.long().cumsum(1) - 1).clamp(min=0)
    agreed, refused, wrong = set(), set(), []
    for field, fields in changes(CONFIGS[name]):
        (tmp_path / "config.json").write_text(json.dumps(fields))
        try:
            ours = built(FORMAT.read(tmp_path))
            found = [ours({"tokens": rows(length)})["logits"] for length in LENGTHS]
            found.append(ours({"tokens": rows(15), "mask": mask, "positions": places})["logits"][mask])
        except (UserError, AssertionError):  # refused, by the format, the options, or for the tensors beside it
            refused.add(field)
            continue
        try:
            theirs, told = auto.from_pretrained(tmp_path, output_loading_info=True)
            if any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")):
                raise ValueError(told)
            theirs.eval()
            expected = [theirs(rows(length)).logits for length in LENGTHS]
            expected.append(theirs(rows(15), attention_mask=mask.long(), position_ids=places).logits[mask])
        except Exception:  # a value that the library takes for none of the kind, and we for the default or without effect
            continue
        agreed.add(field)
        if any(one.shape != other.shape or (one - other).abs().max() > 2e-5 for one, other in zip(found, expected, strict=True)):
            wrong.append((field, fields.get(field, "left out")))
    assert not wrong
    assert len(agreed) >= 10 and {"model_type", "hidden_size", "n_embd"} & refused
