"""What a task makes of a batch is known before the run: its lengths, its rows, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tiny_walks import VOCAB, base, memory, plan_of, stream

from stackwise import Built, ConfigError, DataError, Moment, ProviderError, TaskSpec, TensorSpec
from stackwise.assembly.pricing import price

ROWS, LENGTH = 3, 141
WIDTH = 16
DECODER = {"use": "transformer.decoder", "width": WIDTH, "heads": 2, "stacks": [{"base": 2}], "attention": "prefix"}
TOKENS = TensorSpec("batch time", "int64", bounds=(0, "vocab"))


def _config(task: Any, length: int = LENGTH, rows: int = ROWS, **sections: Any) -> dict[str, Any]:
    model = {"embedding": {"use": "transformer.token"}, "rack": DECODER, "head": {"use": "transformer.lm"}}
    source = memory(vocab=VOCAB)
    return {**base(task=task, data={"sources": {"a": source}, "batch_size": rows, "seq_len": length}, model=model), **sections}


class Plain:
    """Rows as they are."""

    def __init__(self, calls: list[tuple[int, ...]] | None = None) -> None:
        self.calls = calls if calls is not None else []

    def get_spec(self) -> TaskSpec:
        return TaskSpec(
            batch={"tokens": TOKENS}, inputs={"tokens": TOKENS}, outputs={"logits": TensorSpec("batch time vocab")}, attention="prefix"
        )

    def prepare(self, batch: Mapping[str, torch.Tensor], moment: Moment, generator: torch.Generator) -> Mapping[str, torch.Tensor]:
        self.calls.append(tuple(batch["tokens"].shape))
        torch.rand(1)
        return batch

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> Any:
        raise NotImplementedError


def _flops(config: dict[str, Any]) -> int:
    (priced,) = price(plan_of(config))
    assert priced.flops is not None
    return priced.flops


def test_rows_that_a_task_lengthens_are_priced_as_they_become() -> None:
    """141 tokens cut make a source of 128 and a target of 29 (arXiv 1910.10683), 156 positions of which the next is predicted."""
    cut = _config({"use": "transformer.seq2seq", "pairs": "spans"})
    cut["model"]["embedding"] = {"use": "transformer.token", "vocab": VOCAB + 101}
    plain = _config(Built(Plain, spec=Plain().get_spec()), length=128 + 29 - 1)
    plain["model"]["embedding"] = {"use": "transformer.token", "vocab": VOCAB + 101}
    assert _flops(cut) == _flops(plain)


def test_pairs_of_responses_are_twice_as_many_rows() -> None:
    rows = torch.zeros(9, LENGTH + 1, dtype=torch.int64)
    arrays = {"chosen": rows, "rejected": rows, "prefix": torch.zeros(9, dtype=torch.int64)}
    data = {"sources": {"a": {"use": "data.memory", "arrays": arrays}}, "batch_size": ROWS, "seq_len": LENGTH}
    pairs = _config({"use": "transformer.preference", "method": "simpo"})
    plain = _config({"use": "transformer.causal-lm"}, rows=2 * ROWS)
    for config in (pairs, plain):
        config["model"]["rack"] = {**DECODER, "attention": "causal"}
        config["model"]["embedding"] = {"use": "transformer.token", "vocab": VOCAB}
    assert _flops({**pairs, "data": data}) == _flops(plain)


@pytest.mark.parametrize(
    ("task", "source", "told"),
    [
        (
            {"use": "transformer.seq2seq", "pairs": "spans"},
            {"segments": True},
            "whole rows of one text: set `rows: stream`",
        ),
        ({"use": "transformer.seq2seq", "pairs": "spans", "sentinels": 2}, {}, "raise sentinels or shorten data.seq_len"),
        ({"use": "transformer.masked-lm", "whole_words": True}, {}, "the loader delivers no `words`"),
    ],
)
def test_what_a_task_refuses_is_told_with_both_sides_and_its_place(task: dict[str, Any], source: dict[str, Any], told: str) -> None:
    config = _config(task)
    config["model"]["rack"] = {key: value for key, value in DECODER.items() if key != "attention"}
    if source:
        rows = torch.zeros(9, LENGTH, dtype=torch.int64)
        arrays = {"use": "data.memory", "arrays": {"tokens": rows, "segments": rows}, "time": ["tokens", "segments"]}
        config["data"]["sources"]["a"] = arrays
        config["model"]["embedding"]["vocab"] = VOCAB + 101
    with pytest.raises(ConfigError) as caught:
        price(plan_of(config))
    (problem,) = caught.value.problems
    assert problem.path == "task" and told in problem.message
    assert problem.message.startswith(f"task '{task['use']}' (stackwise-providers-transformer")
    assert "loader 'data.memory' (stackwise-providers-data" in problem.message


def test_a_table_of_positions_that_the_task_outgrows_is_told_with_both_sides() -> None:
    config = _config({"use": "transformer.seq2seq", "pairs": "spans"})
    config["model"]["rack"] = {**DECODER, "positions": "learned", "max_positions": LENGTH}
    with pytest.raises(ConfigError) as caught:
        price(plan_of(config))
    (problem,) = caught.value.problems
    assert problem.path == "model.rack" and "a row has 156 positions, the table 141" in problem.message
    assert "rack 'transformer.decoder' (stackwise" in problem.message and "task 'transformer.seq2seq' (stackwise" in problem.message


def test_only_a_task_of_the_plan_s_own_is_tried_on_a_batch_that_is_no_burden() -> None:
    calls: list[tuple[int, ...]] = []
    before = torch.get_rng_state()
    built = Built(lambda: Plain(calls), spec=Plain().get_spec())
    assert _flops(_config(built)) > 0 and calls == [(ROWS, LENGTH)]
    assert torch.equal(torch.get_rng_state(), before)
    finished = Plain()
    assert _flops(_config(finished)) > 0 and not finished.calls
    assert _flops(_config(built, length=2**21)) > 0 and len(calls) == 1


class Particular(Plain):
    """Finds fault with the values that it is tried on."""

    def prepare(self, batch: Mapping[str, torch.Tensor], moment: Moment, generator: torch.Generator) -> Mapping[str, torch.Tensor]:
        self.calls.append(tuple(batch["tokens"].shape))
        raise DataError("every token is 0")


class Forgetful(Plain):
    """Prepares another field than it declares for the model."""

    def prepare(self, batch: Mapping[str, torch.Tensor], moment: Moment, generator: torch.Generator) -> Mapping[str, torch.Tensor]:
        return {"token": batch["tokens"]}


def test_values_that_nobody_delivered_are_no_reason_to_refuse() -> None:
    calls: list[tuple[int, ...]] = []
    particular = Built(lambda: Particular(calls), spec=Plain().get_spec())
    assert _flops(_config(particular)) == _flops(_config(Built(Plain, spec=Plain().get_spec()))) and calls


def test_a_task_that_gives_the_model_nothing_it_declares_is_named_itself() -> None:
    with pytest.raises(ProviderError, match=r"task .* declares tokens for the model, and its prepare gives token"):
        price(plan_of(_config(Built(Forgetful, spec=Plain().get_spec()))))


def test_a_source_that_does_not_say_its_fields_is_not_guessed_at() -> None:
    calls: list[tuple[int, ...]] = []
    source = Built(lambda: iter([{"tokens": stream(LENGTH)[None]}]))
    config = _config(Built(lambda: Plain(calls), spec=Plain().get_spec()))
    config["data"]["sources"]["a"] = source
    config["model"]["embedding"]["vocab"] = VOCAB
    assert _flops(config) > 0 and not calls
