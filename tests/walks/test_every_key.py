"""Every key of a config, the core's and every first-party component's, has an effect or is refused."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from copy import deepcopy
from functools import cache
from inspect import get_annotations
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from module_configs import ROWS as MODULE_ROWS
from optimizer_configs import ROWS as OPTIMIZER_ROWS
from record_configs import ROWS as RECORD_ROWS
from table_configs import ROWS as TABLE_ROWS
from task_configs import ROWS as TASK_ROWS
from tiny_walks import VOCAB, base, memory, plan_of, registry, stream, watch_batches, weights
from wrapped_configs import ROWS as WRAPPED_ROWS

import stackwise
from stackwise import Built, Moment, StackwiseError
from stackwise.config import DataConfig, EnterConfig, EvaluateConfig, ModelConfig, OptimizerConfig, RunConfig
from stackwise.config.planes import TaskConfig
from stackwise.contracts.options import config_key
from stackwise_providers_transformer.causal_lm import CausalLM
from stackwise_providers_transformer.options import CausalLMOptions

GROWTH = "phases/two/enter/growth"
FIRST_PARTY = ("core", "transformer", "optim", "data")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory, with forty small files."""
    folder = tmp_path_factory.mktemp("texts")
    for i in range(40):
        (folder / f"{i}.txt").write_text(f"{i} green bottles hanging on the wall, {i * i} " * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("STACKWISE_CACHE", str(folder / "cache"))
        yield folder


def laid(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of the config with one key set; the arrays in it stay the same objects."""
    memo = {id(tensor): tensor for tensor in _tensors(config)}
    changed = deepcopy(config, memo)
    *parents, last = path.split("/")
    place = changed
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return changed


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _tensors(inner)


def outcome(config: dict[str, Any], meanwhile: Callable[[], object] = lambda: None, beside: tuple[str, ...] = ()) -> Any:
    """What a config leads to: every event without its duration, the final weights, the threads; or the refusal.
    `meanwhile` is called after every event, and the run is left at the first event that is none of `beside`, where that is given.

    The plan's text is left out: it repeats what was declared, whether or not that has an effect.
    """
    try:
        plan = plan_of(config)
        machine = stackwise.assemble(plan)
    except StackwiseError as error:
        return type(error), str(error)
    events: list[str] = []
    watch_batches(machine, lambda step, batches: events.extend(repr((name, t.tolist())) for batch in batches for name, t in batch.items()))
    try:
        with closing(machine.train()) as walk:
            for event in walk:
                events.append(repr(event._replace(**dict.fromkeys({"seconds", "cpu_seconds"} & {*event._fields}, 0.0))))
                meanwhile()
                if beside and tuple(events) != beside[: len(events)]:
                    return "went elsewhere", tuple(events)
    except StackwiseError as error:
        return "stopped", str(error), tuple(events)
    digest = [(name, tensor.tolist()) for name, tensor in weights(machine).items()]
    return plan.experiment.run.name, torch.get_num_threads(), tuple(events), digest


@cache
def outcome_of_base(make: Callable[[], dict[str, Any]]) -> Any:
    """The outcome of a base config, which many rows share."""
    return outcome(make())


def whole() -> dict[str, Any]:
    """A config that makes use of everything."""
    return base(
        data={"sources": {"a": memory(0, heldout=0.2)}, "batch_size": 2, "seq_len": 4},
        model={
            "embedding": {"use": "transformer.token", "vocab": VOCAB},
            "rack": {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 1}]},
            "head": {"use": "transformer.lm", "tied": False},
        },
        evaluate={"e": {"every": "3 steps", "batches": 2}},
        phases={
            "one": {"until": "6 steps"},
            "two": {"model": {"rack": {"stacks": [{"base": 2}]}}, "enter": {"growth": {"use": "transformer.stack"}}},
        },
    )


def diverging() -> dict[str, Any]:
    return laid(whole(), "optimizer", {"use": "optim.adamw", "lr": 1e38, "weight_decay": 0})


def two_sources() -> dict[str, Any]:
    return laid(whole(), "data/sources/b", memory(1, heldout=0.2))


def two_fields() -> dict[str, Any]:
    fields = {name: stream(600, seed).view(100, 6) for seed, name in enumerate(("first", "second"))}
    config = laid(whole(), "data/sources", {"a": {"use": "data.memory", "arrays": fields, "heldout": 0.2}})
    return laid(config, "data/rename", {"tokens": "first", "segments": "second"})


def a_field_more() -> dict[str, Any]:
    fields = {"tokens": stream(600).view(100, 6), "segments": stream(600, 1).view(100, 6)}
    return laid(whole(), "data/sources", {"a": {"use": "data.memory", "arrays": fields, "heldout": 0.2}})


def in_rows() -> dict[str, Any]:
    arrays = {"tokens": stream(800).view(100, 8), "other": stream(800, 1).view(100, 8)}
    config = laid(whole(), "data/sources", {"a": {"use": "data.memory", "arrays": arrays, "heldout": 0.2}})
    return laid(config, "data/drop", ["other"])


def adapted() -> dict[str, Any]:
    config = laid(whole(), "model/embedding/width", 6)
    return laid(config, "model/adapters", {"embedding-rack": [{"use": "core.project", "width_in": 6, "width_out": 8}]})


def with_learned_positions() -> dict[str, Any]:
    return laid(laid(whole(), "model/rack/positions", "learned"), "model/rack/max_positions", 6)


def in_precision(dtype: str) -> list[dict[str, Any]]:
    return [{"use": "core.precision", "dtype": dtype}, {"use": "core.precision", "dtype": "float32"}]


def from_files() -> dict[str, Any]:
    config = laid(whole(), "data/sources", {"a": {"use": "data.text-files", "paths": ["*.txt"], "heldout": 0.5}})
    return laid(config, "model/embedding", {"use": "transformer.token"})


def from_stdlib() -> dict[str, Any]:
    config = laid(whole(), "data/sources", {"a": {"use": "data.python-stdlib", "heldout": 0.3}})
    return laid(config, "model/embedding", {"use": "transformer.token"})


def few_files(**options: Any) -> dict[str, Any]:
    """The files with options of their own."""
    return laid(from_files(), "data/sources/a", {"use": "data.text-files", "paths": ["*.txt"], "heldout": 0.5, **options})


def twice_read() -> dict[str, Any]:
    return laid(few_files(), "data/batch_size", 100)


def padded() -> dict[str, Any]:
    return laid(laid(few_files(rows="padded"), "data/seq_len", 300), "run/horizon", "8 steps")


def long_rows() -> dict[str, Any]:
    return laid(few_files(rows="padded"), "run/horizon", "12 steps")


def ranked() -> dict[str, Any]:
    return few_files(difficulty="compression", exposed=0.5)


def little() -> dict[str, Any]:
    return laid(whole(), "data/sources", {"a": {"use": "data.memory", "arrays": {"tokens": stream(60)}, "heldout": 0.2}})


def learnt_positions() -> dict[str, Any]:
    return laid(laid(whole(), "model/rack/positions", "learned"), "model/rack/max_positions", 8)


def growing(use: str, **model: Any) -> Any:
    """A maker of the whole config with another operator, and with what its second phase changes in the model."""

    def make() -> dict[str, Any]:
        config = laid(whole(), GROWTH, {"use": use, "moments": "reset"})
        return laid(config, "phases/two/model", model) if model else config

    return make


def sparse() -> dict[str, Any]:
    """A config with experts, of which its second phase has more."""
    config = laid(whole(), "task/auxiliary", {"rack.balance": 0.01, "rack.z": 0})
    config = laid(config, "phases/two/model", {"rack": {"experts": {"count": 3}}})
    return laid(laid(config, RACK + "experts", {"count": 2}), GROWTH, {"use": "transformer.add-experts"})


def begun(use: str) -> Any:
    """A maker of a config that begins a third stack as a copy of the first."""

    def make() -> dict[str, Any]:
        config = laid(whole(), "model/rack/stacks", [{"a": 1}, {"b": 1}])
        config = laid(config, "phases/two/model/rack/stacks", [{"a": 1}, {"b": 1}, {"c": 1}])
        return laid(config, GROWTH, {"use": use, "source": "a"})

    return make


class Noisy(CausalLM):
    """Causal language modelling whose inputs are blanked at a rate that follows time."""

    def __init__(self, rate: float) -> None:
        super().__init__(CausalLMOptions())
        self.rate = rate

    def apply_values(self, values: Mapping[str, float]) -> None:
        self.rate = values["rate"]

    def prepare(self, batch: Mapping[str, torch.Tensor], moment: Moment, generator: torch.Generator) -> dict[str, torch.Tensor]:
        ready = super().prepare(batch, moment, generator)
        blanked = torch.rand(ready["tokens"].shape, generator=generator) < self.rate
        return {**ready, "tokens": ready["tokens"].masked_fill(blanked, 0)}


def noisy() -> dict[str, Any]:
    return laid(whole(), "task", Built(Noisy, spec=CausalLMOptions().to_spec(), rate={"linear": {"from": 0.0, "to": 0.5}}))


class LowRank(torch.nn.Module):
    """What is added to a matrix, of rank one; not zero at first, so that its presence shows at once."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Parameter(torch.ones(weight.shape[0], 1)), torch.nn.Parameter(torch.ones(1, weight.shape[1]))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(input, self.up @ self.down)

    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.up @ self.down


class Halve:
    """Halves every learning rate after the first step."""

    factor = 1.0

    def watch(self, step: int, metrics: Mapping[str, float]) -> str | None:
        if self.factor < 1:
            return None
        self.factor = 0.5
        return "a step was made"

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.factor = state["factor"]


def low_rank(*select: str) -> dict[str, Any]:
    return {"l": {"use": Built(LowRank), "select": list(select)}}


def beside() -> dict[str, Any]:
    return laid(whole(), "model/weight_adapters", low_rank("rack"))


def leaving() -> dict[str, Any]:
    return laid(beside(), "phases/two/model/weight_adapters", {"l": None})


def half_frozen() -> dict[str, Any]:
    return laid(laid(whole(), "model/rack/dropout", 0.5), "model/freeze", ["rack"])


def judged_on_average() -> dict[str, Any]:
    return laid(laid(whole(), "optimizer/ema", {"decay": 0.9}), "evaluate/e/weights", "ema")


def at_instants() -> dict[str, Any]:
    return laid(whole(), "evaluate/e", {"at": ["50%"], "batches": 2})


def with_identity() -> dict[str, Any]:
    return laid(whole(), "phases/two/enter/growth", {"use": "transformer.identity"})


def reverse(batch: dict[str, torch.Tensor], moment: object, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {name: tensor.flip(1) for name, tensor in batch.items()}


EXECUTION = {"run.read_ahead", "run.workers", "run.compile"}
"""Keys that say how batches are made, and must not change a bit of the outcome."""

ON_DISK = {"run.checkpoint", "run.stop", "run.parallel"}
"""Keys that show in the run directory alone, in where a run ends, or in several processes; tests/core/runs and tests/faults have a row
for each below them."""

CORE: dict[str, list[tuple[Any, str, Any]]] = {
    "stackwise": [(whole, "stackwise", 2)],
    "run.name": [(whole, "run/name", "other")],
    "run.seed": [(whole, "run/seed", 4)],
    "run.horizon": [(whole, "run/horizon", "13 steps")],
    "run.step_seconds": [(whole, "run/step_seconds", {"one": 0.1})],
    "run.device": [(whole, "run/device", "nowhere"), (whole, "run/device", "cuda")],
    "run.precision": [(whole, "run/precision", "bf16")],
    "run.threads": [(whole, "run/threads", 2)],
    "run.non_finite": [(diverging, "run/non_finite", "halt")],
    "run.vocabularies": [(whole, "run/vocabularies", "mixed")],
    "run.probe": [(whole, "run/probe", False)],
    "run.providers": [(whole, "run/providers", {"block": ["transformer"]}), (whole, "run/providers", {"allow": ["optim", "data"]})],
    "run.halt_after": [(diverging, "run/halt_after", 1)],
    "task.auxiliary": [(sparse, "task/auxiliary", {"rack.balance": 5.0, "rack.z": 0}), (whole, "task/auxiliary", {"rack.z": 1})],
    "task.reference": [(whole, "task/reference", "phase entry"), (whole, "task/reference", {"from": "nowhere"})],
    "task.use": [(whole, "task/use", "transformer.nothing")],
    "data.sources": [(whole, "data/sources/a", memory(5, heldout=0.2)), (whole, "data/sources/b", memory(1, heldout=0.2))],
    "data.mix": [(two_sources, "data/mix", {"a": 3, "b": 1})],
    "data.batch_size": [(whole, "data/batch_size", 3)],
    "data.seq_len": [(whole, "data/seq_len", 5)],
    "data.accumulate": [(whole, "data/accumulate", 2)],
    "data.step_tokens": [(whole, "data/step_tokens", 24)],
    "data.rename": [(two_fields, "data/rename", {"tokens": "second", "segments": "first"})],
    "data.drop": [(a_field_more, "data/drop", ["segments"])],
    "data.fields": [(whole, "data/fields", ["tokens"])],
    "data.accept_inexact_resume": [(whole, "data/accept_inexact_resume", True)],
    "data.transforms": [(whole, "data/transforms", [reverse])],
    "model.adapters": [(whole, "model/adapters", {"embedding-rack": [{"use": "core.project"}]})],
    "model.freeze": [(whole, "model/freeze", ["embedding"])],
    "model.frozen_mode": [(half_frozen, "model/frozen_mode", "train")],
    "model.cache": [(whole, "model/cache", "frozen")],
    "model.weight_adapters": [(whole, "model/weight_adapters", low_rank("rack")), (beside, "model/weight_adapters/l/select", ["head"])],
    "model.precision": [(whole, "model/precision", {"rack": "bfloat16"})],
    "model.start": [(whole, "model/start", {"from": "nowhere"})],
    "optimizer.lr_scaling": [(whole, "optimizer/lr_scaling", {"depth": {"exponent": -1}})],
    "optimizer.ema": [(judged_on_average, "optimizer/ema/decay", 0.5)],
    "optimizer.reaction": [(whole, "optimizer/reaction", Built(Halve))],
    "optimizer.groups": [(whole, "optimizer/groups", {"e": {"select": ["embedding"], "lr": 0.1}})],
    "optimizer.clip": [(whole, "optimizer/clip", 0.01)],
    "optimizer.use": [(whole, "optimizer", Built(torch.optim.SGD, lr=0.01))],
    "evaluate.every": [(whole, "evaluate/e/every", "4 steps")],
    "evaluate.at": [(at_instants, "evaluate/e/at", ["50%", "100%"]), (whole, "evaluate/e/at", ["50%"])],
    "evaluate.batches": [(whole, "evaluate/e/batches", 3)],
    "evaluate.batch_size": [(whole, "evaluate/e/batch_size", 3)],
    "evaluate.seq_len": [(whole, "evaluate/e/seq_len", 3)],
    "evaluate.sources": [(whole, "evaluate/e/sources", {"x": memory(7, heldout=0.2)})],
    "evaluate.task": [(noisy, "evaluate/e/task", {"rate": 0.9}), (noisy, "evaluate/e/task", {"nothing": 0.9})],
    "evaluate.weights": [(judged_on_average, "evaluate/e/weights", "live"), (whole, "evaluate/e/weights", "ema")],
    "evaluate.training_rows": [(whole, "evaluate/e/training_rows", True)],
    "evaluate.name": [(whole, "evaluate/other", {"batches": 1})],
    "phases.until": [(whole, "phases/one/until", "5 steps")],
    "enter.growth": [(whole, "phases/two/enter/growth", {"use": "transformer.identity"})],
    "enter.moments": [(whole, "phases/two/enter/growth/moments", "reset"), (whole, "phases/two/enter/moments", "reset")],
    "enter.rewarm": [(with_identity, "phases/two/enter/rewarm", "4 steps")],
    "enter.fresh": [(whole, "phases/two/enter/fresh", ["head"])],
    "enter.weight_adapters": [(leaving, "phases/two/enter/weight_adapters", "drop")],
    **MODULE_ROWS,
}
"""Core key → (base config, where, another value)."""

GATE = {"linear": {"from": 0, "to": 1, "over": "phase"}}
RACK, HEAD, SOURCE = "model/rack/", "model/head/", "data/sources/a/"
OPTIONS: dict[str, list[tuple[Any, str, Any]]] = {
    "transformer.token.vocab": [(whole, "model/embedding/vocab", 20)],
    "transformer.token.width": [(whole, "model/embedding/width", 12)],
    "transformer.token.init_std": [(whole, "model/embedding/init_std", 0.1)],
    "transformer.token.scale": [(whole, "model/embedding/scale", 2.0)],
    "transformer.token.types": [(whole, "model/embedding/types", 2)],
    "transformer.decoder.head_size": [(whole, RACK + "head_size", 6)],
    "transformer.decoder.residual": [(whole, RACK + "residual", "parallel")],
    "transformer.decoder.scores": [(whole, RACK + "scores", {"cap": 0.5}), (whole, RACK + "scores", {"scale": 2.0})],
    "transformer.decoder.window": [(whole, RACK + "window", {"size": 2})],
    "transformer.decoder.rotary": [(whole, RACK + "rotary", {"share": 0.5}), (whole, RACK + "rotary", {"pairs": "neighbours"})],
    "transformer.decoder.width": [(whole, RACK + "width", 12)],
    "transformer.decoder.heads": [(whole, RACK + "heads", 1)],
    "transformer.decoder.kv_heads": [(whole, RACK + "kv_heads", 1)],
    "transformer.decoder.norm": [(whole, RACK + "norm", "layernorm")],
    "transformer.decoder.qk_norm": [(whole, RACK + "qk_norm", True)],
    "transformer.decoder.bias": [(whole, RACK + "bias", True)],
    "transformer.decoder.positions": [(whole, RACK + "positions", "none"), (with_learned_positions, RACK + "positions", "rope")],
    "transformer.decoder.max_positions": [(with_learned_positions, RACK + "max_positions", 5), (whole, RACK + "max_positions", 8)],
    "transformer.decoder.stacks": [(whole, RACK + "stacks", [{"other": 1}])],
    "transformer.decoder.mlp": [(whole, RACK + "mlp", "gelu")],
    "transformer.decoder.ff": [(whole, RACK + "ff", 16)],
    "transformer.decoder.dropout": [(whole, RACK + "dropout", 0.5), (whole, RACK + "dropout", {"linear": {"from": 0.5, "to": 0}})],
    "transformer.decoder.attention": [(whole, RACK + "attention", "bidirectional")],
    "transformer.decoder.rope_base": [(whole, RACK + "rope_base", 100)],
    "transformer.decoder.init_std": [(whole, RACK + "init_std", 0.1)],
    "transformer.decoder.depth_for_init": [(whole, RACK + "depth_for_init", "current"), (whole, RACK + "depth_for_init", 9)],
    "transformer.lm.vocab": [(whole, HEAD + "vocab", 20)],
    "transformer.lm.width": [(whole, HEAD + "width", 12)],
    "transformer.lm.tied": [(whole, HEAD + "tied", True)],
    "transformer.lm.bias": [(whole, HEAD + "bias", True)],
    "transformer.lm.cap": [(whole, HEAD + "cap", 0.1)],
    "transformer.lm.transform": [(whole, HEAD + "transform", {"activation": "relu"})],
    # a format is not part of a run: tests/transformer/test_damaged_folders.py, test_hugging_face.py and, for wrap, test_wrapped_models.py
    # show what its options do
    **{f"transformer.hf.{option}": [] for option in ("pickle", "file_bytes", "wrap", "adapters")},
    "transformer.lm.init_std": [(whole, HEAD + "init_std", 0.1)],
    "transformer.stack.source": [(begun("transformer.stack"), GROWTH + "/source", "b"), (whole, GROWTH + "/source", "base")],
    "transformer.interleave.source": [(begun("transformer.interleave"), GROWTH + "/source", "b")],
    "transformer.identity.at": [(growing("transformer.identity"), GROWTH + "/at", "start")],
    "transformer.blocks.map": [(whole, GROWTH, {"use": "transformer.blocks", "map": {"base": [0, "identity"]}})],
    "transformer.gated.base": [(whole, GROWTH, {"use": "transformer.gated", "base": "copy", "gate": GATE})],
    "transformer.gated.gate": [(whole, GROWTH, {"use": "transformer.gated", "gate": GATE}), (whole, GROWTH, {"use": "transformer.gated"})],
    "transformer.widen-ff.how": [(growing("transformer.widen-ff", rack={"ff": 40}), GROWTH + "/how", "split")],
    "transformer.decoder.experts": [(sparse, RACK + "experts/active", 1), (sparse, RACK + "experts/capacity", 0.4)],
    "transformer.add-experts.start": [(sparse, GROWTH + "/start", "fresh")],
    "transformer.vocabulary.rows": [(growing("transformer.vocabulary", embedding={"vocab": 20}), GROWTH + "/rows", "zeros")],
    # weight adapters are modules so far: tests/transformer/test_lora.py shows the effect of each option
    **{f"transformer.lora.{option}": [] for option in ("rank", "alpha", "scaling", "rows", "dropout")},
    "data.memory.arrays": [(whole, SOURCE + "arrays", {"tokens": stream(seed=9)})],
    "data.memory.vocab": [(whole, SOURCE + "vocab", 20)],
    "data.memory.time": [(in_rows, SOURCE + "time", ["other"])],
    "data.memory.heldout": [(whole, SOURCE + "heldout", 0.4)],
    "data.memory.shuffle": [(whole, SOURCE + "shuffle", False)],
    "data.text-files.paths": [(from_files, SOURCE + "paths", ["*1.txt", "*2.txt", "*3.txt"])],
    "data.text-files.heldout": [(from_files, SOURCE + "heldout", 0.8)],
    "data.text-files.shuffle": [(from_files, SOURCE + "shuffle", False)],
    "data.memory.repeat": [(little, SOURCE + "repeat", False)],
    "data.text-files.tokenizer": [(from_files, SOURCE + "tokenizer", {"bpe": {"vocab": 300}})],
    "data.text-files.rows": [(from_files, SOURCE + "rows", "packed"), (from_files, SOURCE + "rows", "padded")],
    "data.text-files.pad": [(padded, SOURCE + "pad", 7), (from_files, SOURCE + "pad", 7)],
    "data.text-files.overflow": [(long_rows, SOURCE + "overflow", "split"), (from_files, SOURCE + "overflow", "split")],
    "data.text-files.difficulty": [(ranked, SOURCE + "difficulty", "rarity")],
    "data.text-files.exposed": [(ranked, SOURCE + "exposed", 0.3)],
    "data.text-files.repeat": [(twice_read, SOURCE + "repeat", False)],
    "data.python-stdlib.heldout": [(from_stdlib, SOURCE + "heldout", 0.5)],
    "data.python-stdlib.shuffle": [(from_stdlib, SOURCE + "shuffle", False)],
    "core.project.width_in": [(adapted, "model/adapters", {"embedding-rack": [{"use": "core.project", "width_in": 7, "width_out": 8}]})],
    "core.project.width_out": [(adapted, "model/adapters", {"embedding-rack": [{"use": "core.project", "width_in": 6, "width_out": 9}]})],
    "core.project.bias": [(adapted, "model/adapters", {"embedding-rack": [{"use": "core.project", "bias": True}]})],
    # an observer changes no bit of a run: tests/core/builtin/test_tensorboard.py shows where its files stand and what is in them
    "core.tensorboard.directory": [],
    "core.tensorboard.every": [],
    "core.precision.dtype": [(whole, "model/adapters", {"embedding-rack": in_precision("bfloat16")})],
    # the other trackers likewise: tests/core/builtin/test_trackers.py shows each option in what the tracker's own reader finds; it skips
    # where the library is missing, and `every` is held without one by test_tensorboard.py, as all trackers share it
    **{f"core.wandb.{option}": [] for option in ("project", "entity", "mode", "every", "artifacts")},
    **{f"core.mlflow.{option}": [] for option in ("uri", "experiment", "every", "artifacts")},
    **{f"core.trackio.{option}": [] for option in ("project", "space", "every", "artifacts")},
    **RECORD_ROWS,
    **WRAPPED_ROWS,
    **TABLE_ROWS,
    **OPTIMIZER_ROWS,
    **TASK_ROWS,
}
"""`<provider>.<component>.<option>` → the same."""

ROWS = [(key, *row) for key, rows in {**CORE, **OPTIONS}.items() for row in rows]


@pytest.mark.parametrize(("key", "make", "path", "value"), ROWS, ids=[f"{row[0]}={str(row[3])[:24]}" for row in ROWS])
def test_another_value_leads_elsewhere_or_is_refused(key: str, make: Any, path: str, value: Any, texts: Path) -> None:
    expected = outcome_of_base(make)
    assert not isinstance(expected[0], type), f"the base of this row is refused: {expected[1]}"
    found = outcome(laid(make(), path, value), beside=expected[2])
    assert found != expected, f"{key} has no effect"


def test_the_outcome_itself_is_reproducible() -> None:
    assert outcome(whole()) == outcome(whole())


def test_the_table_has_a_row_for_every_key_of_the_core() -> None:
    sections = {"run": RunConfig, "task": TaskConfig, "data": DataConfig, "model": ModelConfig, "optimizer": OptimizerConfig}
    sections |= {"evaluate": EvaluateConfig}
    keys = {f"{section}.{config_key(field)}" for section, cls in sections.items() for field in attrs.fields(cls)}
    keys |= {f"enter.{config_key(field)}" for field in attrs.fields(EnterConfig)}
    components = {"model.embedding", "model.rack", "model.head", "optimizer.part", "task.part"}
    assert keys - components - CORE.keys() == EXECUTION | ON_DISK


def test_how_batches_are_made_shows_in_threads_and_processes_and_in_no_bit() -> None:
    expected = outcome_of_base(whole)
    assert outcome(laid(whole(), "run/read_ahead", 5)) == expected  # more than a phase has left
    for depth, workers in ((0, 0), (2, 0), (1, 2)):
        config = laid(laid(whole(), "run/read_ahead", depth), "run/workers", workers)
        threads, processes = set(), set()

        def note(threads: set[str] = threads, processes: set[str] = processes) -> None:
            threads |= {thread.name for thread in threading.enumerate()}
            processes |= {process.name for process in multiprocessing.active_children()}

        assert outcome(config, note) == expected
        assert ("stackwise-read-ahead" in threads) == (depth > 0)
        assert len([name for name in processes if "reader" in name]) == workers
    assert "stackwise-read-ahead" not in {thread.name for thread in threading.enumerate()}
    assert not [process.name for process in multiprocessing.active_children() if "reader" in process.name]


def test_the_table_has_a_row_for_every_option_of_every_first_party_component() -> None:
    """An option that several components inherit from one class needs one row, not one for each."""
    options: dict[tuple[type, str], set[str]] = {}
    for component in registry():
        cls = component.load_options()
        for field in attrs.fields(cls) if component.provider in FIRST_PARTY else ():
            owner = next(base for base in cls.__mro__ if field.name in get_annotations(base))
            options.setdefault((owner, field.name), set()).add(f"{component.id}.{config_key(field)}")
    assert sorted(min(ids) for ids in options.values() if not ids & OPTIONS.keys()) == []


@pytest.mark.parametrize(
    "path", ["run", "task", "data", "data/sources/a", "model", "model/rack", "model/head", "optimizer", "evaluate/e", "phases/one"]
)
def test_an_unknown_key_is_refused_everywhere(path: str) -> None:
    kind, text = outcome(laid(whole(), f"{path}/nonsense", 1))[:2]
    assert kind is stackwise.ConfigError and "nonsense" in text
