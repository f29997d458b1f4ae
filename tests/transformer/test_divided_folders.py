"""The blocks of a folder may be declared in several stacks: the same model, whose stacks are frozen and grown by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from safetensors.torch import load_file

import stackwise
from stackwise import BuildContext, Model, PhaseEntered, UserError
from stackwise.cli import main
from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.embedding import TokenEmbedding
from stackwise_providers_transformer.format_options import HuggingFaceOptions
from stackwise_providers_transformer.head import LMHead
from stackwise_providers_transformer.hugging_face.format import build_hugging_face
from stackwise_providers_transformer.options import DecoderOptions, LMOptions, TokenOptions


def whole(folder: Path) -> Model:
    """A folder of four blocks, every parameter drawn, and its model."""
    rack = DecoderOptions(width=8, heads=2, kv_heads=1, ff=12, stacks=[{"base": 4}])
    model = Model(TokenEmbedding(TokenOptions(vocab=16, width=8)), Decoder(rack), LMHead(LMOptions(vocab=16, width=8)))
    model.wire()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.3, 0.2)
    folder.mkdir()
    build_hugging_face(HuggingFaceOptions(), BuildContext(seed=0)).write(model, folder, None, {})
    return model


def write_config(stacks: list[dict[str, int]], **sections: Any) -> None:
    main(["init", "--from", "folder", "--output", "model.yaml"], standalone_mode=False)
    numpy.save("tokens.npy", numpy.arange(2000) % 16)
    source = {"use": "data.array-files", "files": {"tokens": "tokens.npy"}, "vocab": 16}
    config = {
        "extends": "model.yaml",
        "run": {"name": "two", "horizon": "4 steps", "device": "cpu"},
        "task": {"use": "transformer.causal-lm"},
        "data": {"sources": {"text": source}, "batch_size": 2, "seq_len": 6},
        "model": {"rack": {"stacks": stacks}, "freeze": ["rack.stacks.low"]},
        "optimizer": {"use": "optim.adamw", "lr": 1e-2},
        **sections,
    }
    Path("exp.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def test_blocks_go_to_the_stacks_in_order_and_come_back_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = whole(Path("folder"))
    write_config([{"low": 3}, {"high": 1}])
    machine = stackwise.assemble(stackwise.make_plan(stackwise.config.load(Path("exp.yaml")), stackwise.discover()))
    next(event for event in machine.train() if isinstance(event, PhaseEntered))
    tokens = torch.arange(10)[None] % 16
    with torch.no_grad():
        assert torch.equal(machine.model.model({"tokens": tokens})["logits"], model({"tokens": tokens})["logits"])
    main(["run", "exp.yaml", "--output", "out"], standalone_mode=False)
    main(["export", "out", "trained", "--format", "hf"], standalone_mode=False)
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in ("folder", "trained"))
    assert before.keys() == after.keys()
    moved = {name.split(".")[2] for name in before if ".layers." in name and not torch.equal(before[name], after[name])}
    assert moved == {"3"}


def test_another_number_of_blocks_is_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole(Path("folder"))
    write_config([{"low": 3}, {"high": 2}])
    with pytest.raises(UserError, match=r"rack\.stacks"):
        stackwise.run(stackwise.config.load(Path("exp.yaml")))
