"""Each example about data does what the comment on top of it says."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_walks import registry

import stackwise
from stackwise.assembly.pricing import price
from stackwise.machine.machine import TrainingMachine

ROOT = Path(__file__).parents[2]
SMALL = ["run.device=cpu", "model.rack.width=8", "model.rack.heads=2", "evaluate=null"]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))


def plan_of(name: str, *settings: str) -> stackwise.Plan:
    return stackwise.make_plan(stackwise.load(ROOT / "examples" / f"{name}.yaml", [*SMALL, *settings]), registry())


def read(machine: TrainingMachine) -> Iterator[tuple[stackwise.Moment, list[torch.Tensor]]]:
    """The tokens of every micro-batch of every step, without training on them."""
    for phase in machine.schedule:
        assert phase.state is not None
        machine.objective.enter(phase.state.task)
        machine.data.enter(phase.state.data, lookahead=machine.objective.lookahead)
        for moment in machine.schedule.moments(phase, phase.start):
            yield moment, [batch["tokens"] for batch in machine.data.batches(moment)]


def test_mixture_shift_delivers_the_declared_integral_and_what_the_plan_says() -> None:
    plan = plan_of("mixture-shift", "run.horizon=80 steps")
    machine, declared = stackwise.assemble(plan), Fraction(0)
    for moment, _ in read(machine):
        share = Fraction(9, 10) + (Fraction(5, 10) - Fraction(9, 10)) * Fraction(moment.step, 80)
        declared += 16 * share
        rows = {name: line["rows"] for name, line in machine.data.ledger().items()}
        assert sum(rows.values()) == 16 * (moment.step + 1)
        assert abs(rows["modules"] - declared) < 1
    planned = price(plan)[0].sources
    assert abs(planned["modules"].rows - rows["modules"]) < 1 and abs(planned["repository"].rows - rows["repository"]) < 1
    assert all(source.epochs is not None and source.epochs > 0 for source in planned.values())


def test_length_warmup_changes_length_at_its_share_of_the_tokens_and_never_the_size_of_a_step() -> None:
    horizon = 2048 * 40
    machine, before = stackwise.assemble(plan_of("length-warmup", f"run.horizon={horizon} tokens")), 0
    lengths = []
    for moment, batches in read(machine):
        assert moment.tokens == before
        length = 32 if before < 0.15 * horizon else 64 if before < 0.4 * horizon else 128
        assert {tokens.shape[1] for tokens in batches} == {length + 1}
        assert sum(len(tokens) for tokens in batches) * length == 2048 and max(map(len, batches)) <= 32
        lengths.append(length)
        before += 2048
    assert [lengths.count(length) for length in (32, 64, 128)] == [6, 10, 24]


def test_easy_to_hard_reads_no_page_harder_than_what_is_exposed() -> None:
    whole = "data.sources.stdlib={use: data.python-stdlib, shuffle: false}"
    corpus = stackwise.assemble(plan_of("one-phase", whole, "run.horizon=1 steps"))
    next(read(corpus))
    loader: Any = corpus.data._sources["stdlib"].loader
    unread = loader.epoch_size().entries // 129 - 16  # one step has been read
    pages = np.concatenate([loader.take(min(4000, left), 129)["tokens"].numpy() for left in range(unread, 0, -4000)])
    surprisal = -np.log2(np.bincount(pages.ravel(), minlength=256).clip(1) / pages.size)
    ranks = np.sort(surprisal[pages].sum(1))
    machine = stackwise.assemble(plan_of("easy-to-hard", "run.horizon=60 steps"))
    hardest: list[float] = []
    for moment, (tokens,) in read(machine):
        exposed = 0.2 + 0.8 * moment.step / 30 if moment.step < 30 else 1.0
        found = surprisal[tokens.numpy()].sum(1)
        visible = ceil(64 * exposed) / 64
        assert found.max() <= ranks[min(len(ranks) - 1, round(visible * len(ranks)) + len(ranks) // 200)]
        hardest.append(float(found.max()))
    assert max(hardest[:5]) < float(np.quantile(ranks, 0.35)) < float(np.quantile(ranks, 0.9)) < max(hardest[30:])


def test_changing_corruption_replaces_the_declared_share_of_bytes() -> None:
    noisy = stackwise.assemble(plan_of("changing-corruption", "run.horizon=40 steps"))
    clean = stackwise.assemble(plan_of("changing-corruption", "run.horizon=40 steps", "data.transforms=[]"))
    changed, total = np.zeros(4), 16 * 129 * 10
    for (moment, (corrupted,)), (_, (original,)) in zip(read(noisy), read(clean), strict=True):
        changed[moment.step // 10] += int((corrupted != original).sum())
    rates = np.array([0.4, 0.2, 0.1]) * 255 / 256  # a random byte is the one it replaces once in 256
    chi_square = float((((changed[:3] - total * rates) ** 2) / (total * rates * (1 - rates))).sum())
    assert chi_square < 16.27  # the 99.9 % quantile for three degrees of freedom
    assert changed[3] == 0


def test_every_example_about_data_says_on_top_what_it_is() -> None:
    paths = sorted((ROOT / "examples").glob("*.yaml"))
    assert {"mixture-shift", "length-warmup", "easy-to-hard", "changing-corruption"} <= {path.stem for path in paths}
    assert all(path.read_text(encoding="utf-8").startswith("# ") for path in paths)
