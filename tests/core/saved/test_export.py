"""What was exported is the model that was trained: built anew from component ids, with the same outputs to the bit."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest
import torch
import yaml

import stackwise
from stackwise.errors import ProviderError, UserError
from stackwise.host.provider import Registered
from stackwise.runs.run import run
from stackwise.saved.export import export
from stackwise.saved.model import model_at
from stackwise.storage.checkpoints.store import CheckpointStore

FALLING = {"linear": {"from": 0.5, "to": 0.0}}
CONFIG: dict[str, Any] = {
    "run": {"horizon": "8 steps", "seed": 3, "device": "cpu", "checkpoint": {"every": "2 steps", "keep_last": 9}},
    "task": {"use": "transformer.causal-lm"},
    "data": {
        "sources": {"a": {"use": "data.memory", "arrays": {"tokens": [i * i % 8 for i in range(200)]}}},
        "batch_size": 2,
        "seq_len": 4,
    },
    "model": {
        "embedding": {"use": "transformer.token", "vocab": 8, "width": 6},
        "adapters": {"embedding-rack": [{"use": "core.project", "width_in": 6, "width_out": 8, "bias": False}]},
        "rack": {
            "use": "transformer.decoder",
            "width": 8,
            "heads": 2,
            "stacks": [{"base": 1}],
            "dropout": {"linear": {"from": 0.5, "to": 0.0}},
        },
        "head": {"use": "transformer.lm", "tied": False},
    },
    "optimizer": {"use": "optim.adamw", "lr": 1e-2},
    "phases": {
        "one": {"until": "50%"},
        "two": {"model": {"rack": {"stacks": [{"base": 2}]}}, "enter": {"growth": {"use": "transformer.stack"}}},
    },
}
TOKENS = torch.tensor([[1, 4, 1, 0], [7, 6, 5, 2]])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "exp.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    return run(folder / "exp.yaml", output=folder / "out", stream=io.StringIO()).directory


def trained(steps: int) -> dict[str, torch.Tensor]:
    """Outputs of the model after so many steps of the same experiment, without any file."""
    machine = stackwise.assemble(stackwise.experiment(CONFIG))
    for event in machine.train():
        if isinstance(event, stackwise.StepDone) and event.step == steps - 1:
            break
    model = machine.model.model.eval()
    with torch.no_grad():
        return dict(model({"tokens": TOKENS}))


@pytest.mark.parametrize(("step", "blocks"), [(2, 1), (4, 1), (6, 2), (8, 2), (None, 2)])
def test_an_exported_model_answers_as_the_one_that_was_trained(finished: Path, tmp_path: Path, step: int | None, blocks: int) -> None:
    """Before the growth, at its boundary, behind it, and at the end."""
    assert export(finished, tmp_path / "new" / "e", step) == (step or 8)
    model = stackwise.load_exported(tmp_path / "new" / "e")
    outputs, expected = model({"tokens": TOKENS}), trained(step or 8)
    assert outputs.keys() == expected.keys() and all(torch.equal(outputs[name], expected[name]) for name in expected)
    assert len(list(model.rack.get_submodule("stacks.base").children())) == blocks and not model.training
    assert sorted(path.name for path in (tmp_path / "new" / "e").iterdir()) == ["weights.json", "weights.safetensors"]


def test_options_that_follow_time_have_the_value_of_their_step(finished: Path, tmp_path: Path) -> None:
    """Dropout falls from 0.5 to 0 over the run: at step 4 of 8 it is 0.25."""
    export(finished, tmp_path / "e", 4)
    described = json.loads((tmp_path / "e" / "weights.json").read_text())
    assert described["parts"]["rack"]["options"]["dropout"] == pytest.approx(0.25)
    rack = stackwise.load_exported(tmp_path / "e").rack
    assert {module.p for module in rack.modules() if isinstance(module, torch.nn.Dropout)} <= {0.25}


def test_the_final_directory_of_a_run_loads_by_itself(finished: Path) -> None:
    model = stackwise.load_exported(finished / "final")
    assert torch.equal(model({"tokens": TOKENS})["logits"], trained(8)["logits"])


def test_three_lines_in_a_clean_process_are_enough_and_draw_nothing(distributions: ModuleType, finished: Path, tmp_path: Path) -> None:
    done = distributions.run_stackwise("export", str(finished), str(tmp_path / "e"), "--step", "8")
    assert done.returncode == 0, done.stderr
    code = """
import sys, torch
before = torch.get_rng_state()
import stackwise
model = stackwise.load_exported(sys.argv[1])
outputs = model({"tokens": torch.tensor([[1, 4, 1, 0], [7, 6, 5, 2]])})
assert torch.equal(before, torch.get_rng_state())
print(outputs["logits"].tolist())
"""
    loaded = distributions.run_python(code, str(tmp_path / "e"))
    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout) == trained(8)["logits"].tolist()


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        path = directory / "weights.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def flip_last_bit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "import path": (changed(lambda d: d["parts"]["rack"].update(use="os:system")), "component"),
    "unknown component": (changed(lambda d: d["parts"]["rack"].update(use="transformer.encodr")), "unknown rack"),
    "wrong kind": (changed(lambda d: d["parts"]["rack"].update(use="transformer.lm")), "it is of kind|of kind head"),
    "unknown option": (changed(lambda d: d["parts"]["rack"]["options"].update(depth=3)), "depth"),
    "wrong type": (changed(lambda d: d["parts"]["rack"]["options"].update(width="eight")), "width"),
    "other size": (changed(lambda d: d["parts"]["rack"]["options"].update(stacks=[{"base": 3}])), "specs|stacks|not this model's"),
    "another boundary": (changed(lambda d: d["specs"]["head"].update(outputs="other")), "what is installed builds another"),
    "no parts": (changed(lambda d: d.pop("parts")), "does not describe a model"),
    "parts a list": (changed(lambda d: d.update(parts=[])), "does not describe a model"),
    "bridge unknown": (changed(lambda d: d.update(bridges=[{"evil": 1}])), "does not describe a model"),
    "gate nowhere": (changed(lambda d: d.update(gates={"value": 0.5, "modules": ["rack.nothing"]})), "does not describe a model"),
    "gate no number": (changed(lambda d: d.update(gates={"value": "half", "modules": []})), "does not describe a model"),
    "adapter missing": (changed(lambda d: d.update(adapters={})), "not this model's"),
    "flipped bit": (lambda d: flip_last_bit(d / "weights.safetensors"), "damaged"),
    "not the whole model": (
        changed(lambda d: d.update(unheld=["rack.stacks.base.0._extra_state"])),
        r"rack\.stacks\.base\.0\._extra_state",
    ),
    "no list of states": (changed(lambda d: d.update(unheld=0.5)), r"weights\.json is damaged: unheld is 0\.5"),
    "no step": (changed(lambda d: d.update(step="8")), r"weights\.json is damaged: step is"),
    "no JSON": (lambda d: (d / "weights.json").write_text("{"), r"weights\.json is damaged"),
    "no map": (lambda d: (d / "weights.json").write_text("[]"), r"weights\.json is damaged.*holds a list"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_directory_that_is_not_what_was_exported_is_refused(finished: Path, tmp_path: Path, case: str) -> None:
    change, reason = WRONG[case]
    export(finished, tmp_path / "e")
    change(tmp_path / "e")
    with pytest.raises(UserError, match=reason):
        stackwise.load_exported(tmp_path / "e")


def test_what_cannot_be_exported_is_said_and_nothing_is_made(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_text("")
    for source, target, step, reason in [
        (finished, tmp_path / "there", None, "exists already"),
        (finished, tmp_path / "e", 5, r"no checkpoint of step 5 \(there: step-000000002, "),
        (tmp_path / "unfinished", tmp_path / "e", None, "has not finished"),
        (tmp_path / "none", tmp_path / "e", None, "not a run directory"),
    ]:
        with pytest.raises(UserError, match=reason):
            export(source, target, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "unfinished"] and not list((tmp_path / "there").iterdir())


def test_an_unreadable_status_is_named_and_a_checkpoint_goes_without_it(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    for damage in (lambda: (copy / "status.json").write_text("{"), (copy / "status.json").unlink):
        damage()
        with pytest.raises(UserError, match=r"status\.json cannot be read") as caught:
            export(copy, tmp_path / "e")
        assert "has not finished" not in str(caught.value) and not (tmp_path / "e").exists()
    assert export(copy, tmp_path / "e", 4) == 4


def test_a_checkpoint_is_exported_without_the_optimizer_that_made_it(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows no other weights than it trains, and what it is made of need not be installed."""
    load = Registered.load_factory

    def lacking(found: Registered) -> Any:
        if found.kind == "optimizer":
            raise ProviderError(f"{found.id} needs a library that is not installed")
        return load(found)

    monkeypatch.setattr(Registered, "load_factory", lacking)
    with pytest.raises(ProviderError, match=r"optim\.adamw needs a library"):
        list(stackwise.assemble(stackwise.experiment(CONFIG)).train())
    assert export(finished, tmp_path / "e", 4) == 4


def test_a_checkpoint_that_does_not_say_where_its_optimizer_trained_is_asked(tmp_path: Path) -> None:
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump(SCHEDULE_FREE, sort_keys=False))
    done = run(tmp_path / "exp.yaml", output=tmp_path / "out", stream=io.StringIO()).directory
    checkpoint = CheckpointStore(done / "checkpoints").at(6)
    about = {key: value for key, value in checkpoint.about.items() if key != "trains_elsewhere"}
    assert len(about) == len(checkpoint.about) - 1
    model = model_at(attrs.evolve(checkpoint, about=about)).model
    assert torch.equal(model({"tokens": TOKENS})["logits"], at_step(SCHEDULE_FREE, 6))


def test_adapters_precision_and_averages_are_exported_with_the_weights(tmp_path: Path) -> None:
    rest = {key: value for key, value in CONFIG.items() if key != "phases"}
    model = {
        **CONFIG["model"],
        "precision": {"rack": "bfloat16"},
        "weight_adapters": {"a": {"use": "transformer.lora", "select": ["rack"]}},
    }
    averaged = {**CONFIG["optimizer"], "ema": {"decay": 0.5}}
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump({**rest, "model": model, "optimizer": averaged}, sort_keys=False))
    done = run(tmp_path / "exp.yaml", output=tmp_path / "out", stream=io.StringIO()).directory
    machine = stackwise.assemble(stackwise.load(tmp_path / "exp.yaml"))
    for _ in machine.train():
        pass
    export(done, tmp_path / "exported")
    own, average = stackwise.load_exported(tmp_path / "exported"), stackwise.load_exported(done / "final-ema")
    with torch.no_grad():
        expected = machine.model.model.eval()({"tokens": TOKENS})["logits"]
        assert torch.equal(own({"tokens": TOKENS})["logits"], expected)
        assert not torch.equal(average({"tokens": TOKENS})["logits"], expected)
        with machine.optimizer.evaluating("ema"):
            assert torch.equal(average({"tokens": TOKENS})["logits"], machine.model.model({"tokens": TOKENS})["logits"])


def at_step(config: dict[str, Any], step: int) -> torch.Tensor:
    """Logits of the model that the evaluation before a step has just judged, without any file."""
    machine = stackwise.assemble(stackwise.experiment(config))
    for event in machine.train():
        if isinstance(event, stackwise.Evaluated) and event.step == step:
            break
    with torch.no_grad(), machine.optimizer.evaluating():
        return machine.model.model.eval()({"tokens": TOKENS})["logits"]


EVALUATED = {
    "evaluate": {"e": {"every": "1 steps", "batches": 1}},
    "data": {**CONFIG["data"], "sources": {"a": {**CONFIG["data"]["sources"]["a"], "heldout": 0.2}}},
}
GATED = {
    **CONFIG,
    **EVALUATED,
    "phases": {
        "one": {"until": "50%"},
        "two": {
            "model": {"rack": {"stacks": [{"base": 2}]}},
            "enter": {"growth": {"use": "transformer.gated", "gate": {"linear": {"from": 0, "to": 1, "over": "phase"}}}},
        },
    },
}
SCHEDULE_FREE = {**CONFIG, **EVALUATED, "optimizer": {"use": "optim.schedule-free", "lr": 1e-1}}


@pytest.mark.parametrize("config", [GATED, SCHEDULE_FREE], ids=["behind a gate", "schedule-free"])
def test_a_checkpoint_is_exported_as_its_evaluation_judged_it(tmp_path: Path, config: dict[str, Any]) -> None:
    """At step 6 of 8 the gate that rises from step 4 stands at 1/2; a schedule-free optimizer keeps x and trains at y."""
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    done = run(tmp_path / "exp.yaml", output=tmp_path / "out", stream=io.StringIO()).directory
    for step in (2, 4, 6, 8):
        export(done, tmp_path / f"{step}", step)
        model = stackwise.load_exported(tmp_path / f"{step}")
        assert torch.equal(model({"tokens": TOKENS})["logits"], at_step(config, step)), step
    described = [json.loads((tmp_path / f"{step}" / "weights.json").read_text())["gates"] for step in (4, 6, 8)]
    if config is GATED:
        assert [gates.get("value") for gates in described] == [None, 0.5, None]
        by_hand = stackwise.load_exported(tmp_path / "6")
        for path in described[1]["modules"]:
            owner = by_hand.get_submodule(path)
            owner._forward_hooks.clear()
            for parameter in owner.parameters():
                parameter.data *= 0.5  # a linear map of half the weights
        assert torch.allclose(by_hand({"tokens": TOKENS})["logits"], at_step(config, 6), atol=1e-6)
        assert len(described[1]["modules"]) == 2 and all(path.startswith("rack.stacks.base.1.") for path in described[1]["modules"])
