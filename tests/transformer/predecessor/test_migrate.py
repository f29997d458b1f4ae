"""Old configs of six kinds become configs that plan and train, and every key without a meaning is named; old weights find their places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from click.testing import CliRunner

import stackwise
from stackwise.cli import main
from stackwise.errors import UserError
from stackwise_providers_transformer.predecessor.config import translate
from stackwise_providers_transformer.predecessor.format import StackWiseFormat

HERE = Path(__file__).parent
DROPPED = {
    "masked": {
        *("model.mask_fraction_min", "training.max_steps", "training.strategy", "training.qlora"),
        *("data.dataset_path", "data.use_dummy_data", "data.num_samples"),
    },
    "prepended": {
        *("model.attention_preset", "training.optimizer.dampening", "training.progressive.time_interpretation"),
        "training.progressive.cache_activations",
    },
    "schedule": {"schedule.1.model_config.what"},
    "appended": {
        *("model.rope_theta", "training.device", "training.gradient_checkpointing", "training.use_wandb", "training.wandb_project"),
        *("training.optimizer.custom_params", "training.progressive.max_stacks", "training.progressive.training_objective"),
        "training.progressive.blocks_per_stack",
    },
    "listed-masks": {
        *("model.attention_preset", "model.attention_custom.kernel_type", "model.tokenizer_embedding.family", "training.num_time_steps"),
        *("data.max_length", "data.num_workers", "data.shuffle", "data.tokenizer_path"),
    },
    "by-steps": {
        *("training.progressive.enabled", "training.progressive.max_stacks", "training.optimizer.groups"),
        "schedule.1.data_config.color",
    },
}


def old(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))
    return loaded


def new(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(translate(old(name)).text)
    return loaded


@pytest.mark.parametrize("name", DROPPED)
def test_every_key_without_a_meaning_is_named(name: str) -> None:
    dropped = {line.partition(":")[0] for line in translate(old(name)).dropped}
    if name == "listed-masks":
        dropped |= {"data.max_length"}  # it is the length where training.seq_len does not say it
    assert dropped == DROPPED[name]


TRAINED = ("masked", "by-steps")
"""In every `make test`: one of each task, and of each way to say how long."""


def written(name: str) -> None:
    """`new.yaml`, by the command."""
    done = CliRunner().invoke(main, ["migrate", str(HERE / f"{name}.yaml"), "-o", "new.yaml"])
    assert done.exit_code == 0, done.output
    assert all(f"dropped  {key}" in done.stderr for key in DROPPED[name] - {"data.max_length"})


@pytest.mark.parametrize("name", DROPPED)
def test_the_new_config_is_written_and_valid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(name)
    valid = CliRunner().invoke(main, ["validate", "new.yaml", "--set", "run.device=cpu"])
    assert valid.exit_code == 0, valid.output


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in ("masked", "by-steps") else pytest.param(name, marks=pytest.mark.rare) for name in DROPPED]
)
def test_the_new_config_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(name)
    short = [] if name == "by-steps" else ["--set", "run.horizon=6 steps", "--set", "data.batch_size=2"]
    trained = CliRunner().invoke(main, ["run", "new.yaml", "--set", "run.device=cpu", *short])
    assert trained.exit_code == 0, trained.output


def test_progressive_building_is_phases_with_a_frozen_trunk() -> None:
    appended, prepended = new("appended")["phases"], new("prepended")["phases"]
    assert [list(stack) for stack in appended["build2"]["model"]["rack"]["stacks"]] == [["stack0"], ["stack1"], ["stack2"]]
    assert [list(stack) for stack in prepended["build2"]["model"]["rack"]["stacks"]] == [["stack2"], ["stack1"], ["stack0"]]
    assert appended["build2"]["model"]["freeze"] == ["embedding", "rack.stacks.stack0", "rack.stacks.stack1"]
    assert "weight_adapters" not in appended["build1"]["model"]
    assert prepended["build1"]["model"]["weight_adapters"]["trunk"]["rank"] == 4
    assert new("appended")["run"]["horizon"] == "0.03 epochs"


def test_mask_fractions_are_schedules() -> None:
    assert new("masked")["task"]["rate"] == {"cosine": {"from": 0.15, "to": 0.5}}
    values = new("listed-masks")["task"]["rate"]["piecewise"]["values"]
    assert list(values.values()) == [0.1, 0.3, 0.5] and next(iter(values)) == "0%"


def test_what_is_no_old_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("stackwise: 1\nrun: {horizon: 3 steps}\n", encoding="utf-8")
    refused = CliRunner().invoke(main, ["migrate", str(tmp_path / "x.yaml")])
    assert refused.exit_code == 2 and "transformer.stack-wise" in refused.stderr


def rack_file(folder: Path, **about: Any) -> dict[str, torch.Tensor]:
    """A file of two stacks, width 8, 2 heads, 1 key and value head."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"attention.W_q": (8, 8), "attention.W_k": (4, 8), "attention.W_v": (4, 8), "attention.W_o": (8, 8)}
    shapes |= {"ffn.gate_proj": (12, 8), "ffn.up_proj": (12, 8), "ffn.down_proj": (8, 12), "norm1": (8,), "norm2": (8,)}
    theirs = {
        f"stacks.{stack}.blocks.{i}.{name}.weight": torch.randn(shape, generator=draw)
        for stack, depth in ((0, 1), (1, 2))
        for i in range(depth)
        for name, shape in shapes.items()
    }
    theirs |= {
        f"{name}.weight": torch.randn(shape, generator=draw)
        for name, shape in (("embedding", (16, 8)), ("lm_head", (16, 8)), ("ln_f", (8,)))
    }
    torch.save({**theirs, "config": {"n_heads": 2, **about}}, folder / "rack.pt")
    return theirs


def test_old_weights_find_their_places_and_go_back(tmp_path: Path) -> None:
    theirs = rack_file(tmp_path)
    stored = StackWiseFormat().read(tmp_path)
    assert stored.model["rack"]["stacks"] == [{"stack0": 1}, {"stack1": 2}] and stored.model["rack"]["kv_heads"] == 1
    assert torch.equal(stored.tensors["rack.stacks.stack1.1.mlp.up.weight"], theirs["stacks.1.blocks.1.ffn.up_proj.weight"])
    qkv = stored.tensors["rack.stacks.stack0.0.attention.qkv.weight"]
    assert torch.equal(qkv, torch.cat([theirs[f"stacks.0.blocks.0.attention.W_{part}.weight"] for part in "qkv"]))


@pytest.mark.slow
def test_a_run_begins_with_old_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").mkdir()
    theirs = rack_file(tmp_path / "old")
    numpy.save(tmp_path / "ids.npy", numpy.arange(2000) % 16)
    assert CliRunner().invoke(main, ["init", "--from", "old", "-o", "model.yaml"]).exit_code == 0
    config = {
        "extends": "model.yaml",
        "run": {"name": "n", "horizon": "1 steps", "device": "cpu"},
        "task": {"use": "transformer.causal-lm"},
        "data": {"sources": {"a": {"use": "data.array-files", "files": {"tokens": "ids.npy"}, "vocab": 16}}, "batch_size": 2, "seq_len": 8},
        "optimizer": {"use": "optim.adamw", "lr": 0.0},
    }
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    result = CliRunner().invoke(main, ["run", "exp.yaml", "--output", "out"])
    assert result.exit_code == 0, result.output
    model = stackwise.load_exported(tmp_path / "out" / "final")
    assert torch.equal(model.state_dict()["head.weight"], theirs["lm_head.weight"])
    back = CliRunner().invoke(main, ["export", "out", "again", "--format", "stack-wise"])
    assert back.exit_code == 0, back.output
    again = torch.load(tmp_path / "again" / "rack.pt", weights_only=True)
    assert all(torch.equal(again[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda file: file.pop("config"), "n_heads"),
        (lambda file: file.pop("stacks.0.blocks.0.norm2.weight"), "norm2"),
        (lambda file: file.update(extra=torch.zeros(2)), "extra"),
    ],
)
def test_a_file_that_is_not_whole_is_refused_by_name(tmp_path: Path, spoil: Any, named: str) -> None:
    rack_file(tmp_path)
    file = torch.load(tmp_path / "rack.pt", weights_only=True)
    spoil(file)
    torch.save(file, tmp_path / "rack.pt")
    with pytest.raises(UserError, match=named):
        StackWiseFormat().read(tmp_path)
