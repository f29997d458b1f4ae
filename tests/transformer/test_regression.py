"""Tables without code: the embedding, the rack of MLPs, the head and the task of regression, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_walks import base, drive, machine_of, plan_of, problems_of
from torch import nn

import stackwise
from stackwise import BuildContext, DataError, Evaluated, Moment, UserError
from stackwise_providers_transformer.features import FeaturesEmbedding, build_features
from stackwise_providers_transformer.mlp_rack import MLPRack
from stackwise_providers_transformer.regression import Regression
from stackwise_providers_transformer.row_heads import build_regression as build_head
from stackwise_providers_transformer.table_options import FeaturesOptions, MLPOptions, RegressionHeadOptions, RegressionOptions

MOMENT = Moment(0, 0.0, "only", 0, 0.0, 0)


def _embedding(**options: Any) -> FeaturesEmbedding:
    made = FeaturesEmbedding(FeaturesOptions(**{"features": 3, "columns": 2, "vectors": 6, "width": 5, "init_std": 0.5, **options}))
    nn.init.normal_(made.bias)
    return made


def test_a_row_is_a_linear_map_of_its_numbers_and_its_categories_as_indicators() -> None:
    torch.manual_seed(0)
    embedding = _embedding()
    numbers, ids = torch.randn(7, 3), torch.stack([torch.zeros(7, dtype=torch.int64), torch.randint(1, 6, (7,))], dim=1)
    indicators = F.one_hot(ids, 6).sum(dim=1).float()
    whole = torch.cat([numbers, indicators], dim=1) @ torch.cat([embedding.numbers, embedding.vectors]) + embedding.bias
    torch.testing.assert_close(embedding(features=numbers, categories=ids), whole[:, None])


def test_columns_as_positions_add_up_to_the_row() -> None:
    torch.manual_seed(0)
    embedding = _embedding(positions="columns")
    numbers, ids = torch.randn(7, 3), torch.randint(6, (7, 2))
    apart = embedding(features=numbers, categories=ids)
    assert apart.shape == (7, 5, 5)
    together = _embedding()
    together.load_state_dict({**embedding.state_dict(), "bias": embedding.bias.sum(dim=0, keepdim=True)})
    torch.testing.assert_close(apart.sum(dim=1, keepdim=True), together(features=numbers, categories=ids))
    changed = numbers.clone()
    changed[:, 1] += 1
    moved = (embedding(features=changed, categories=ids) - apart).abs().amax(dim=(0, 2))
    assert [bool(each) for each in moved] == [False, False, False, True, False]


def test_unknown_categories_start_at_nothing() -> None:
    embedding = FeaturesEmbedding(FeaturesOptions(features=3, columns=2, vectors=6, width=5))
    assert embedding.vectors is not None
    assert [bool(row.any()) for row in embedding.vectors] == [False, False, True, True, True, True]
    assert FeaturesEmbedding(FeaturesOptions(features=3, width=5, categories=False)).vectors is None
    for missing in ("features", "columns", "vectors", "width"):
        sizes = {name: 4 for name in ("features", "columns", "vectors", "width") if name != missing}
        with pytest.raises(UserError, match=f"{missing}: it has no size yet"):
            build_features(FeaturesOptions(**sizes), BuildContext(seed=0))


def test_a_block_adds_what_its_mlp_makes_of_the_normed_row() -> None:
    torch.manual_seed(0)
    rack = MLPRack(MLPOptions(width=8, stacks=[{"base": 1}], init_std=0.3))
    hidden = torch.randn(4, 1, 8)
    block = rack.stacks["base"][0]
    inner = F.gelu(F.layer_norm(hidden, (8,), eps=1e-6) @ block.mlp.up.weight.T) @ block.mlp.down.weight.T
    torch.testing.assert_close(rack(hidden), F.layer_norm(hidden + inner, (8,), eps=1e-6))


def test_the_loss_is_the_mean_squared_error_and_errors_are_in_the_units_of_the_data() -> None:
    task, head = Regression(RegressionOptions()), build_head(RegressionHeadOptions(targets=2, width=4, init_std=0.5), BuildContext(seed=0))
    hidden, target, std = torch.randn(6, 1, 4), torch.randn(6, 2), torch.tensor([[2.0, 10.0]] * 6)
    outputs = head(hidden)
    prediction = hidden[:, 0].detach().numpy() @ head.output.weight.detach().numpy().T + head.output.bias.detach().numpy()
    error = prediction - target.numpy()
    total, rows, metrics = task.loss(outputs, {"target": target, "target_std": std})
    assert rows == 6 and float(total.detach()) / rows == pytest.approx(np.mean(error**2), rel=1e-5)
    own = error * std.numpy()
    found = {name: float(each) / weight for name, (each, weight) in metrics.items()}
    assert found == pytest.approx({"squared_error": np.mean(own**2), "absolute_error": np.mean(np.abs(own))}, rel=1e-5)
    _, _, plain = task.loss(outputs, {"target": target})
    assert float(plain["squared_error"][0]) / 6 == pytest.approx(np.mean(error**2), rel=1e-5)


def test_targets_that_are_not_finite_and_rows_of_several_texts_are_refused() -> None:
    task = Regression(RegressionOptions(input="tokens"))
    batch = {"tokens": torch.zeros(2, 3, dtype=torch.int64), "target": torch.tensor([[1.0], [float("nan")]])}
    with pytest.raises(DataError, match="target: a row has NaN or infinity"):
        task.prepare(batch, MOMENT, torch.Generator())
    with pytest.raises(UserError, match="segments: a row has one target"):
        task.prepare({**batch, "segments": batch["tokens"]}, MOMENT, torch.Generator())


# -- from a config --------------------------------------------------------------------------------------------------


def _arrays(**more: Any) -> dict[str, Any]:
    """y = x0 · x1, which no linear map of x gets near."""
    features = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    return {"use": "data.memory", "arrays": {"features": features, "target": features.prod(dim=1, keepdim=True), **more}, "heldout": 0.25}


def _config(**sections: Any) -> dict[str, Any]:
    return base(
        run={"name": "numbers", "seed": 1, "horizon": "150 steps", "device": "cpu"},
        task={"use": "transformer.regression", "input": "features"},
        data={"sources": {"a": _arrays()}, "batch_size": 64},
        model={
            "embedding": {"use": "transformer.features", "categories": False},
            "rack": {"use": "transformer.mlp", "width": 32, "stacks": [{"base": 2}]},
            "head": {"use": "transformer.regression"},
        },
        optimizer={"use": "optim.adamw", "lr": 0.01},
        evaluate={"held": {"batches": 2}},
        **sections,
    )


@pytest.mark.parametrize("positions", ["one", "columns"])
def test_numbers_are_learnt_by_mlps_and_by_attention_over_columns(positions: str) -> None:
    config = _config()
    if positions == "columns":
        config["model"]["embedding"] |= {"positions": "columns", "init_std": 0.3}
        config["model"]["rack"] = {"use": "transformer.decoder", "width": 32, "heads": 2, "positions": "none", "stacks": [{"base": 2}]}
        config["task"]["attention"] = "bidirectional"
    last = [event for event in drive(machine_of(config)) if isinstance(event, Evaluated)][-1]
    assert last.metrics["loss"] < 0.25  # the variance of y is 1, and a linear map leaves all of it


def test_sizes_come_from_the_data_at_plan_time() -> None:
    machine = machine_of(_config() | {"run": {"name": "one", "seed": 1, "horizon": "1 steps", "device": "cpu"}})
    drive(machine)
    model = machine.model.model
    assert model.embedding.numbers.shape == (2, 32) and model.head.output.weight.shape == (1, 32)


def test_depth_grows_between_two_phases() -> None:
    phases = {
        "shallow": {"until": "50%"},
        "deep": {"model": {"rack": {"stacks": [{"base": 4}]}}, "enter": {"growth": {"use": "transformer.identity"}}},
    }
    config = _config(phases=phases) | {"run": {"name": "deep", "seed": 1, "horizon": "8 steps", "device": "cpu"}}
    sides = [event.metrics["loss"] for event in drive(machine_of(config)) if isinstance(event, Evaluated) and event.step == 4]
    assert len(sides) == 2 and sides[0] == pytest.approx(sides[1], abs=1e-6)


def test_categories_that_the_task_or_the_embedding_does_not_read_are_refused() -> None:
    ids = {"categories": torch.randint(4, (600, 2), generator=torch.Generator().manual_seed(1))}
    unread = _config() | {"data": {"sources": {"a": _arrays(**ids)}, "batch_size": 64}}
    assert any("categories" in str(problem) for problem in problems_of(unread))
    asked = _config()
    asked["model"]["embedding"] = {"use": "transformer.features"}
    assert any("categories" in str(problem) for problem in problems_of(asked))


def test_a_table_with_a_label_is_classified(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class is the product of a number's sign and a category."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    draw = np.random.default_rng(0)
    signs, xs = draw.choice(["plus", "minus"], 800), draw.normal(size=800)
    lines = [f"{x!r},{sign},{['no', 'yes'][(x > 0) == (sign == 'plus')]}" for x, sign in zip(xs.tolist(), signs, strict=True)]
    (tmp_path / "signs.csv").write_text("\n".join(["x,sign,answer", *lines]), encoding="utf-8")
    source = {"use": "data.csv", "paths": ["signs.csv"], "numbers": ["x"], "categories": {"sign": 2}, "label": "answer"}
    config = _config() | {
        "task": {"use": "transformer.classification", "input": "table"},
        "data": {"sources": {"a": {**source, "classes": ["no", "yes"], "heldout": 0.2}}, "batch_size": 64},
    }
    config["model"] |= {"embedding": {"use": "transformer.features"}, "head": {"use": "transformer.classifier"}}
    assert plan_of(config).text_sources()[0].settings == {"table": {"numbers": ["x"], "categories": {"sign": 2}, "target": []}}
    machine = stackwise.assemble(plan_of(config))
    last = [event for event in drive(machine) if isinstance(event, Evaluated)][-1]
    assert last.metrics["accuracy"] > 0.95
    assert machine.model.model.embedding.vectors.shape == (4, 32)
