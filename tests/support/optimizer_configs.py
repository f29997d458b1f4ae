"""For each option of the optimizers, of schedules and of the plateau a value that leads elsewhere, on whole configs that use them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tiny_walks import VOCAB, base, memory

Row = tuple[Callable[[], dict[str, Any]], str, Any]


def trained_by(**optimizer: Any) -> dict[str, Any]:
    """A small decoder with vectors, matrices and an evaluation."""
    model = {
        "embedding": {"use": "transformer.token", "vocab": VOCAB},
        "rack": {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 1}]},
        "head": {"use": "transformer.lm", "tied": False},
    }
    data = {"sources": {"a": memory(0, heldout=0.2)}, "batch_size": 2, "seq_len": 4}
    return base(data=data, model=model, optimizer=optimizer, evaluate={"e": {"every": "3 steps", "batches": 2}})


def _rows(options: dict[str, Any], changes: dict[str, list[Any]], path: str = "optimizer", **around: Any) -> dict[str, list[Row]]:
    make = partial(trained_by, **around, **({path.partition("/")[2]: options} if "/" in path else options))
    return {f"{options['use']}.{key}": [(make, f"{path}/{key}", value) for value in values] for key, values in changes.items()}


def by_table() -> dict[str, Any]:
    """The same, its learning rate read from a file."""
    for name, last in (("rates", 0.02), ("others", 0.05)):
        Path(f"{name}.csv").write_text(f"0, 0.01\n100%, {last}\n", encoding="utf-8")
    return trained_by(use="optim.adamw", lr={"use": "optim.table", "path": "rates.csv"})


_RISING = {"linear": {"from": 0.001, "to": 0.05}}

ROWS: dict[str, list[Row]] = {
    **_rows(
        {"use": "optim.adamw", "lr": 0.01},
        {
            "lr": [0.02, _RISING],
            "weight_decay": [0.5],
            "beta1": [0.8, {"linear": {"from": 0.5, "to": 0.9}}],
            "beta2": [0.9, {"linear": {"from": 0.5, "to": 0.9}}],
            "eps": [1e-3],
            "decay": ["all"],
        },
    ),
    **_rows(
        {"use": "optim.sgd", "lr": 0.1, "weight_decay": 0.1},
        {
            "lr": [0.2, _RISING],
            "momentum": [0.5, {"linear": {"from": 0.5, "to": 0.9}}],
            "nesterov": [True],
            "weight_decay": [0.3],
            "coupled": [True],
        },
    ),
    **_rows(
        {"use": "optim.muon", "lr": 0.02},
        {
            "lr": [0.03, _RISING],
            "weight_decay": [0.5],
            "momentum": [0.8],
            "nesterov": [False],
            "scale": ["match-rms-adamw"],
            "ns_steps": [3],
            "precision": ["bfloat16"],
            "matrices": [["*.attention"], ["rack.nothing"]],
            "adamw_lr": [0.02, _RISING],
            "adamw_weight_decay": [0.5],
            "adamw_beta1": [0.8],
            "adamw_beta2": [0.9],
            "adamw_eps": [1e-3],
        },
    ),
    **_rows(
        {"use": "optim.adafactor", "lr": 0.5},
        {
            "lr": [0.1, _RISING],
            "weight_decay": [0.5],
            "beta2_decay": [-0.5],
            "eps1": [0.1],
            "eps2": [1.0],
            "clip_threshold": [1.5],
        },
    ),
    **_rows(
        {"use": "optim.lion", "lr": 0.01},
        {"lr": [0.02, _RISING], "weight_decay": [0.5], "beta1": [0.5], "beta2": [0.5]},
    ),
    **_rows(
        {"use": "optim.schedule-free", "lr": _RISING},
        {
            "lr": [0.02],
            "weight_decay": [0.5],
            "beta1": [0.5, {"linear": {"from": 0.5, "to": 0.9}}],
            "beta2": [0.9],
            "eps": [1e-3],
            "step_power": [1.0],
            "lr_power": [0.0],
        },
    ),
    **_rows(
        {"use": "optim.torch", "name": "NAdam", "lr": 0.01},
        {"name": ["RAdam"], "lr": [0.02, _RISING], "weight_decay": [0.5], "options": [{"momentum_decay": 0.1}, {"momentum": 0.1}]},
    ),
    **_rows({"use": "optim.pytorch-optimizer", "name": "lamb", "lr": 0.01}, {"name": ["adan", "lamp"], "options": [{"betas": [0.5, 0.9]}]}),
    **_rows(
        {"use": "optim.cosine-restarts", "peak": 0.03, "cycle": "4 steps"},
        {"peak": [0.02], "lowest": [0.01], "cycle": ["3 steps"], "times": [2], "decay": [0.5], "warmup": ["2 steps"]},
        "optimizer/lr",
        use="optim.adamw",
    ),
    **_rows(
        {"use": "optim.inverse-root", "peak": 0.03, "warmup": "3 steps", "cooldown": "4 steps"},
        {"peak": [0.02], "warmup": ["5 steps"], "cooldown": ["2 steps"], "lowest": [0.01]},
        "optimizer/lr",
        use="optim.adamw",
    ),
    "optim.table.path": [(by_table, "optimizer/lr/path", "others.csv"), (by_table, "optimizer/lr/path", "none.csv")],
    "optim.table.between": [(by_table, "optimizer/lr/between", "hold")],
    **_rows(
        {"use": "optim.plateau", "metric": "train.loss", "patience": 0, "threshold": 0, "factor": 0.5},
        {
            "metric": ["e.loss"],
            "mode": ["max"],
            "factor": [0.3],
            "patience": [2],
            "threshold": [10],
            "cooldown": [3],
            "lowest": [0.4],
        },
        "optimizer/reaction",
        use="optim.adamw",
        lr=0.03,
    ),
}
"""`<provider>.<component>.<option>` → (base config, where, another value)."""
