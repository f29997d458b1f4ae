"""Folders of transformers read and written: every family against transformers itself, a tiny model of each with every parameter drawn."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import transformers as hf
from folder_models import CONFIGS, FORMAT, GROUPED, LENGTHS, MODELS, VARIANTS, built, drawn, rope, rows
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

from stackwise import GenerationSettings, Model
from stackwise_providers_transformer.block_options import RotaryOptions, RotaryScaling
from stackwise_providers_transformer.continuation import continue_prompt
from stackwise_providers_transformer.format_options import HuggingFaceOptions
from stackwise_providers_transformer.hugging_face.families import FAMILIES
from stackwise_providers_transformer.hugging_face.format import HuggingFaceFormat

SCALINGS: dict[str, dict[str, Any]] = {
    "linear": rope("linear", factor=4.0),
    "dynamic": rope("dynamic", factor=4.0) | {"max_position_embeddings": 8},
    "yarn": rope("yarn", factor=4.0, original_max_position_embeddings=8),
    "yarn-all": rope(
        "yarn", factor=4.0, beta_fast=4.0, beta_slow=0.5, attention_factor=1.3, truncate=False, original_max_position_embeddings=8
    ),
    "llama3": rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=2.0, original_max_position_embeddings=8),
}
GENERATED = 8
"""Tokens after a prompt of 9, longer than the windows of 6, which go on sliding."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name → the model of transformers, its folder, and ours read from it; each made once."""

    @cache
    def make(name: str) -> tuple[hf.PreTrainedModel, Path, Model]:
        theirs, folder = drawn(CONFIGS[name]), tmp_path_factory.mktemp(name)
        theirs.save_pretrained(folder)
        return theirs, folder, built(FORMAT.read(folder))

    return make


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert 0.3 < theirs.std() < 3  # logits of order 1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_every_family_is_tried() -> None:
    assert {config.model_type for name, config in CONFIGS.items() if name not in VARIANTS} == set(FAMILIES)


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_logits_agree_at_every_length(folders: Any, name: str) -> None:
    theirs, _, ours = folders(name)
    for length in LENGTHS:
        close(ours({"tokens": rows(length)})["logits"], theirs(rows(length)).logits)


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_padding_changes_no_real_position(folders: Any, name: str) -> None:
    theirs, _, ours = folders(name)
    sides = ["right"] if "bert" in name else ["right", "left"]
    for side in sides:
        mask = torch.ones(2, 15, dtype=torch.bool)
        mask[1, slice(11, None) if side == "right" else slice(None, 4)] = False
        places = (mask.long().cumsum(1) - 1).clamp(min=0)
        batch = {"tokens": rows(15), "mask": mask, "positions": places}
        expected = theirs(rows(15), attention_mask=mask.long(), position_ids=places).logits
        close(ours(batch)["logits"][mask], expected[mask])


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_documents_packed_in_one_row_do_not_see_each_other(folders: Any, name: str) -> None:
    theirs, _, ours = folders(name)
    parts = [rows(9, 1), rows(4, 1), rows(10, 1)]
    segments = torch.cat([torch.full((1, part.shape[1]), i) for i, part in enumerate(parts)], 1)
    packed = ours({"tokens": torch.cat(parts, 1), "segments": segments})["logits"]
    close(packed, torch.cat([theirs(part).logits for part in parts], 1))


def greedy(model: hf.PreTrainedModel) -> list[int]:
    """A prompt and what transformers generates after it."""
    model.generation_config.eos_token_id = None
    prompt = rows(9, 1)
    made: torch.Tensor = model.generate(  # type: ignore[operator]
        prompt, do_sample=False, max_new_tokens=GENERATED, min_new_tokens=GENERATED, attention_mask=torch.ones_like(prompt)
    )
    return [int(token) for token in made[0]]


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_a_folder_written_anew_computes_and_generates_the_same(folders: Any, name: str, tmp_path: Path) -> None:
    """What transformers makes of a folder that has no origin to take fields from, and our own cached generation."""
    theirs, _, ours = folders(name)
    FORMAT.write(ours, tmp_path, None, {})
    auto = hf.AutoModelForMaskedLM if "bert" in name else hf.AutoModelForCausalLM
    again = auto.from_pretrained(tmp_path).eval()
    assert all(parameter.dtype == torch.float32 for parameter in again.parameters())
    close(again(rows(23)).logits, theirs(rows(23)).logits)
    if "bert" not in name:
        made, settings = greedy(theirs), GenerationSettings(tokens=GENERATED, temperature=0)
        assert len(set(made[9:])) > 1  # a model that repeats one token agrees with much
        assert continue_prompt(ours, rows(9, 1)[0], settings, torch.Generator()).tolist() == made
        assert greedy(again) == made


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_written_back_is_the_same(folders: Any, name: str, tmp_path: Path) -> None:
    _, folder, ours = folders(name)
    FORMAT.write(ours, tmp_path, folder, {})
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert json.loads((folder / "config.json").read_text()) == json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("name", SCALINGS)
@torch.inference_mode()
def test_rotary_scaling_agrees(name: str, tmp_path: Path) -> None:
    theirs = drawn(hf.LlamaConfig(**{**GROUPED, **SCALINGS[name]}))
    theirs.save_pretrained(tmp_path)
    ours = built(FORMAT.read(tmp_path))
    assert ours.rack.options.rotary.scaling is not None
    made, settings = greedy(theirs), GenerationSettings(tokens=GENERATED, temperature=0)  # first, for `dynamic` remembers the longest row
    assert continue_prompt(ours, rows(9, 1)[0], settings, torch.Generator()).tolist() == made
    for length in LENGTHS:
        close(ours({"tokens": rows(length)})["logits"], theirs(rows(length)).logits)
    plain = attrs.evolve(ours.rack.options, rotary=attrs.evolve(ours.rack.options.rotary, scaling=None))
    before, ours.rack.options = ours({"tokens": rows(23)})["logits"], plain
    assert (before - ours({"tokens": rows(23)})["logits"]).abs().max() > 1e-2


@torch.inference_mode()
def test_older_folders_say_rotary_positions_in_other_fields(folders: Any, tmp_path: Path) -> None:
    older: dict[str, dict[str, Any]] = {
        "llama3": {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        "pythia": {"rotary_emb_base": 5000, "rotary_pct": 0.5},
        "gemma3": {"rope_theta": 5000.0, "rope_local_base_freq": 50.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        "modernbert": {"global_rope_theta": 5000.0, "local_rope_theta": 50.0},
    }
    for name, fields in older.items():
        _, folder, _ = folders(name)
        place = tmp_path / name
        place.mkdir()
        config = json.loads((folder / "config.json").read_text())
        del config["rope_parameters"]
        (place / "config.json").write_text(json.dumps({**config, **fields}))
        (place / "model.safetensors").symlink_to(folder / "model.safetensors")
        auto = hf.AutoModelForMaskedLM if "bert" in name else hf.AutoModelForCausalLM
        theirs = auto.from_pretrained(place).eval()
        close(built(FORMAT.read(place))({"tokens": rows(23)})["logits"], theirs(rows(23)).logits)


@pytest.mark.parametrize("bytes_of_a_file", [1, 20_000])
def test_shards_are_written_and_read(folders: Any, bytes_of_a_file: int, tmp_path: Path) -> None:
    _, folder, ours = folders("qwen3")
    HuggingFaceFormat(HuggingFaceOptions(file_bytes=bytes_of_a_file)).write(ours, tmp_path, folder, {})
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and not (tmp_path / "model.safetensors").exists()
    before, again = load_file(folder / "model.safetensors"), hf.AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in before.items())
    for name, tensor in FORMAT.read(tmp_path).tensors.items():
        assert torch.equal(tensor, ours.get_parameter(name))


def test_the_tokenizer_comes_along_with_what_stands_beside_an_equal_one(folders: Any, tmp_path: Path) -> None:
    _, folder, ours = folders("llama3")
    made = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    files = {"tokenizer.json": made.to_str().encode()}
    origin = tmp_path / "origin"
    shutil.copytree(folder, origin)
    (origin / "tokenizer.json").write_bytes(files["tokenizer.json"])
    (origin / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "b"}')
    for name, start, own in (("alone", folder, files), ("beside", origin, files), ("unasked", origin, {})):
        place = tmp_path / name
        place.mkdir()
        FORMAT.write(ours, place, start, own)
        again = hf.AutoTokenizer.from_pretrained(place)
        assert again("a b c")["input_ids"] == [0, 1, 2]
        assert again.eos_token == (None if name == "alone" else "b")


def test_the_tokenizer_is_given_a_longer_context_where_it_had_that_of_the_model(folders: Any, tmp_path: Path) -> None:
    _, folder, _ = folders("smollm2")
    before = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    origin = tmp_path / "origin"
    shutil.copytree(folder, origin)
    longer, scaling = built(FORMAT.read(folder)), RotaryScaling(kind="yarn", factor=4.0, original=before)
    longer.rack.options = attrs.evolve(longer.rack.options, rotary=RotaryOptions(scaling=scaling))
    for held, written in ((before, 4 * before), (7, 7), (10**30, 10**30), (None, None)):
        said = {"tokenizer_class": "PreTrainedTokenizerFast"} | ({} if held is None else {"model_max_length": held})
        (origin / "tokenizer_config.json").write_text(json.dumps(said))
        place = tmp_path / str(held)
        place.mkdir()
        FORMAT.write(longer, place, origin, {})
        assert json.loads((place / "config.json").read_text())["max_position_embeddings"] == 4 * before
        assert json.loads((place / "tokenizer_config.json").read_text()).get("model_max_length") == written
