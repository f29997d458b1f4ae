"""The data plane: the mixture, read positions, the ledger, and what an iterable of batches may not be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from stackwise.contracts.specs import BatchSpec, TensorSpec
from stackwise.curriculum.bridges import Bridge
from stackwise.curriculum.parts import Part
from stackwise.curriculum.states import BatchShape, DataState
from stackwise.errors import DataError, ProviderError
from stackwise.planes.data.batches import check_batch
from stackwise.planes.data.plane import DataPlane
from stackwise.planes.data.ready_made import as_loader
from stackwise.timeline.duration import Moment
from stackwise.timeline.schedules import Curve, Knot

STEPS = 40


class Counting:
    """A loader whose row i of source s is filled with 1000·s + i."""

    def __init__(self, source: int) -> None:
        self.source, self.position = source, 0

    def get_batch_spec(self) -> BatchSpec:
        return BatchSpec(fields={"tokens": TensorSpec("batch time", "int64")})

    def take(self, rows: int | None, length: int | None) -> dict[str, torch.Tensor]:
        assert rows is not None and length is not None
        first = 1000 * self.source + self.position
        self.position += rows
        return {"tokens": torch.arange(first, first + rows).unsqueeze(1).expand(rows, length).contiguous()}

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.position = state["position"]


def state_of(weights: Mapping[str, Curve], batch_size: int | None = 5, seq_len: int | None = 3, accumulate: int = 1) -> DataState:
    sources = {name: Part(kind="loader", id=name) for name in weights}
    shape = BatchShape.of(batch_size=batch_size, seq_len=seq_len, accumulate=accumulate)
    return DataState(sources=sources, mix=weights, shapes=((0, shape),))


def plane_of(built: list[str] | None = None) -> DataPlane:
    """A plane over counting loaders; `built` hears of each."""

    def build(name: str, part: Part) -> Counting:
        if built is not None:
            built.append(name)
        return Counting("abcd".index(name))

    return DataPlane(build)


def moment(step: int, steps: int = STEPS) -> Moment:
    return Moment(step, step / steps, "p", 0, step / steps, 0)


def by_source(batches: list[Any]) -> list[list[int]]:
    """Per source, which of its rows a step delivered."""
    rows = [int(row[0]) for batch in batches for row in batch["tokens"]]
    return [[row - 1000 * i for row in rows if row // 1000 == i] for i in range(4)]


weight_curves = st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 5)), min_size=2, max_size=3)


@given(weight_curves, st.integers(1, 6), st.integers(1, 2))
def test_the_mixture_follows_the_integral_of_its_weights_up_to_a_row(ends: list[tuple[float, float]], rows: int, micro: int) -> None:
    names = "abc"[: len(ends)]
    curves = {name: Curve((Knot(0.0, a, "linear"), Knot(1.0, b, "hold"))) for name, (a, b) in zip(names, ends, strict=True)}
    if not any(a for a, _ in ends):
        curves["a"] = Curve.constant(1.0)
    plane, state = plane_of(), state_of(curves, batch_size=rows, accumulate=micro)
    plane.enter(state, lookahead=0)
    wanted = dict.fromkeys(names, 0.0)
    counted = dict.fromkeys(names, 0)
    for k in range(STEPS):
        found = by_source(plane.batches(moment(k)))
        total = sum(curve(k / STEPS) for curve in curves.values())
        for i, name in enumerate(names):
            assert found[i] == list(range(counted[name], counted[name] + len(found[i])))
            counted[name] += len(found[i])
            wanted[name] += rows * micro * curves[name](k / STEPS) / total
            assert abs(counted[name] - wanted[name]) <= (len(ends) - 1) / 2 + 1e-9
    assert plane.ledger() == {name: {"rows": count, "tokens": 3 * count} for name, count in counted.items()}
    assert sum(counted.values()) == STEPS * rows * micro


def test_one_source_alone_goes_on_with_what_a_saved_mixture_owed() -> None:
    plane = plane_of()
    plane.enter(state_of({"a": Curve.constant(1.0), "b": Curve.constant(2.0)}), lookahead=0)
    plane.batches(moment(0))
    plane.enter(state_of({"a": Curve.constant(1.0)}), lookahead=0)
    plane.batches(moment(1))
    saved = plane.state_dict()
    owed = {name: 7 * debt for name, debt in saved["mixture"]["debts"].items()}
    assert any(owed.values())
    plane.load_state_dict({**saved, "mixture": {"debts": owed}})
    plane.batches(moment(2))
    assert plane.state_dict()["mixture"]["debts"] == owed


def test_a_source_of_weight_zero_is_never_read() -> None:
    plane, state = plane_of(), state_of({"a": Curve.constant(0), "b": Curve.constant(2)})
    plane.enter(state, lookahead=0)
    assert [by_source(plane.batches(moment(k)))[0] for k in range(10)] == [[]] * 10


def test_no_weight_at_all_is_the_users_mistake() -> None:
    plane, state = plane_of(), state_of({"a": Curve.constant(0), "b": Curve.constant(0)})
    plane.enter(state, lookahead=0)
    with pytest.raises(DataError, match=r"at least one is above zero"):
        plane.batches(moment(0))


def test_rows_hold_the_tasks_lookahead_and_the_ledger_counts_scheduled_positions() -> None:
    plane = plane_of()
    plane.enter(state_of({"a": Curve.constant(1)}, batch_size=4, seq_len=6, accumulate=3), lookahead=2)
    batches = plane.batches(moment(0))
    assert [tuple(batch["tokens"].shape) for batch in batches] == [(4, 8)] * 3
    assert plane.ledger() == {"a": {"rows": 12, "tokens": 72}}


def test_a_source_that_is_dropped_keeps_its_place_for_its_return_and_its_line_in_the_ledger() -> None:
    built: list[str] = []
    one = Curve.constant(1)
    both, rest = state_of({"a": one, "b": one}, batch_size=4), state_of({"b": one}, batch_size=4)
    plane = plane_of(built)
    plane.enter(both, lookahead=0)
    plane.batches(moment(0))
    plane.enter(rest, lookahead=0)
    assert by_source(plane.batches(moment(1)))[1] == [2, 3, 4, 5]
    assert plane.ledger()["a"] == {"rows": 2, "tokens": 6}
    plane.enter(both, lookahead=0)
    assert by_source(plane.batches(moment(2)))[:2] == [[2, 3], [6, 7]]
    assert built == ["a", "b"]


def test_a_source_whose_structure_changes_starts_over_and_its_line_goes_on() -> None:
    plane, state = plane_of(), state_of({"a": Curve.constant(1)}, batch_size=2)
    plane.enter(state, lookahead=0)
    plane.batches(moment(0))
    changed = evolve(state, sources={"a": Part(kind="loader", id="another")})
    plane.enter(changed, lookahead=0)
    assert by_source(plane.batches(moment(1)))[0] == [0, 1]
    assert plane.ledger()["a"]["rows"] == 4


@given(st.integers(0, 12), st.integers(1, 4), st.integers(0, 3))
def test_a_saved_place_leads_to_the_same_rows(before: int, rows: int, weight: int) -> None:
    state = state_of({"a": Curve.constant(1), "b": Curve((Knot(0.0, 0.3, "linear"), Knot(1.0, weight, "hold")))}, batch_size=rows)
    whole, resumed = plane_of(), plane_of()
    whole.enter(state, lookahead=0)
    for k in range(before):
        whole.batches(moment(k))
    saved = whole.state_dict()
    expected = [by_source(whole.batches(moment(k))) for k in range(before, STEPS)]
    resumed.enter(state, lookahead=0)
    resumed.load_state_dict(saved)
    assert [by_source(resumed.batches(moment(k))) for k in range(before, STEPS)] == expected
    assert resumed.ledger() == whole.ledger()


def test_saved_places_of_other_sources_are_refused() -> None:
    plane = plane_of()
    plane.enter(state_of({"a": Curve.constant(1)}), lookahead=0)
    saved = plane.state_dict()
    other = plane_of()
    other.enter(state_of({"b": Curve.constant(1)}), lookahead=0)
    with pytest.raises(DataError, match=r"are of \['a'\], the declared sources are \['b'\]"):
        other.load_state_dict(saved)


def test_sources_mixed_row_by_row_need_a_batch_size_and_one_set_of_fields() -> None:
    one = Curve.constant(1)
    plane, state = plane_of(), state_of({"a": one, "b": one}, batch_size=None)
    plane.enter(state, lookahead=0)
    with pytest.raises(DataError, match=r"declare data\.batch_size"):
        plane.batches(moment(0))
    ready = {"a": [{"x": torch.zeros(1, 1)}] * 2, "b": [{"y": torch.zeros(1, 1)}] * 2}
    plane = DataPlane(lambda name, part: as_loader(ready[name]))
    plane.enter(state_of({"a": one, "b": one}, batch_size=2, seq_len=1), lookahead=0)
    with pytest.raises(DataError, match="sources of one mixture share their fields"):
        plane.batches(moment(0))


# -- transforms ------------------------------------------------------------------------------------------------------


def test_transforms_run_in_order_and_draw_by_seed_and_step_alone() -> None:
    def build(part: Part) -> Any:
        def transform(batch: Any, moment: Moment, generator: torch.Generator) -> Any:
            return {"tokens": batch["tokens"] * int(part.options) + torch.randint(100, (1,), generator=generator)}

        return transform

    def run(seed: int, first: int) -> list[list[int]]:
        plane = DataPlane(lambda name, part: Counting(0), build_transform=build, seed=seed)
        parts = tuple(Part(kind="transform", id=f"t{i}", options=i + 2) for i in range(2))
        state = state_of({"a": Curve.constant(1)}, batch_size=1, seq_len=1)
        plane.enter(evolve(state, transforms=parts), lookahead=0)
        return [plane.batches(moment(k))[0]["tokens"].flatten().tolist() for k in range(first, first + 4)]

    assert run(1, 0) == run(1, 0) != run(2, 0)
    (a,), (b,) = run(1, 5)[:2]
    assert [a - b for (a,), (b,) in [(run(1, 6)[0], run(1, 5)[1])]] == [-6]  # row 0 at step 6 against row 1: 2·3 less, same draws
    assert a != b


def test_micro_batches_of_a_step_do_not_draw_the_same() -> None:
    """Half of all entries are hit: two micro-batches of 300 that are hit in the same places have a chance of 2^-300."""

    def build(part: Part) -> Any:
        return lambda batch, moment, generator: {"tokens": (torch.rand(batch["tokens"].shape, generator=generator) < 0.5).long()}

    plane = DataPlane(lambda name, part: Counting(0), build_transform=build)
    state = state_of({"a": Curve.constant(1)}, batch_size=10, seq_len=30, accumulate=2)
    plane.enter(evolve(state, transforms=(Part(kind="transform", id="t"),)), lookahead=0)
    first, second = plane.batches(moment(0))
    assert not torch.equal(first["tokens"], second["tokens"])
    assert 230 < (first["tokens"] + second["tokens"]).sum() < 370  # 300 by theory, a deviation of 12


class Averaging:
    """A transform that holds the sum of all that it has seen, and adds it."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, batch: Any, moment: Moment, generator: torch.Generator) -> Any:
        self.seen = [*self.seen, *batch["tokens"].flatten().tolist()]
        return {"tokens": batch["tokens"] + sum(self.seen)}


class Saving(Averaging):
    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = state["seen"]


# -- rehearsal -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "finished"), [(Saving, False), (Averaging, False), (Saving, True)])
def test_a_rehearsal_leaves_no_trace_in_loaders_transforms_and_ledger(kind: type[Averaging], finished: bool) -> None:
    """Built anew, with and without a state to save, and finished: what training sees is what it sees without a rehearsal."""
    state = evolve(state_of({"a": Curve.constant(1), "b": Curve.constant(2)}), transforms=(Part(kind="transform", id="t"),))
    short = evolve(state, shapes=((0, BatchShape.of(batch_size=5, seq_len=2)), (3, BatchShape.of(batch_size=4, seq_len=3))))

    def run(rehearsed: bool) -> Any:
        given = kind()
        plane = DataPlane(
            lambda name, part: Counting("ab".index(name)),
            build_transform=lambda part: given if finished else kind(),
        )
        if rehearsed:
            plane.rehearse([(state, 0, moment(0)), (short, 0, moment(2))])
        plane.enter(short, lookahead=0)
        rows = [[batch["tokens"].tolist() for batch in plane.batches(moment(k))] for k in range(6)]
        return rows, plane.ledger()

    assert run(rehearsed=True) == run(rehearsed=False)


def test_a_rehearsal_needs_no_more_of_a_source_than_one_row_at_a_time() -> None:
    """Three lengths, each tried: two rows that are read once suffice for what the run takes of this source."""

    class Ending(Counting):
        def take(self, rows: int | None, length: int | None) -> dict[str, torch.Tensor]:
            if self.position == 2:
                raise DataError("it is over")
            return super().take(rows, length)

    state = evolve(
        state_of({"a": Curve.constant(1)}),
        shapes=tuple((start, BatchShape.of(batch_size=1, seq_len=start + 1)) for start in range(3)),
    )
    plane = DataPlane(lambda name, part: Ending(0))
    plane.rehearse([(state, 0, moment(0))])
    plane.enter(state, lookahead=0)
    assert [plane.batches(moment(k))[0]["tokens"].tolist() for k in range(2)] == [[[0]], [[1, 1]]]


# -- iterables -------------------------------------------------------------------------------------------------------


def batches(count: int, rows: int = 2) -> list[dict[str, torch.Tensor]]:
    return [{"x": torch.full((rows, 1), float(i))} for i in range(count)]


def test_a_list_starts_over_and_its_place_is_kept() -> None:
    loader = as_loader(batches(3))
    seen = [float(loader.take(None, None)["x"][0, 0]) for _ in range(7)]
    assert seen == [0, 1, 2, 0, 1, 2, 0]
    state = loader.state_dict()
    other = as_loader(batches(3))
    other.load_state_dict(state)
    assert [float(other.take(None, None)["x"][0, 0]) for _ in range(2)] == [1, 2]
    other.load_state_dict({"taken": 0})
    assert float(other.take(None, None)["x"][0, 0]) == 0


def once(count: int) -> Iterator[dict[str, torch.Tensor]]:
    yield from batches(count)


def test_an_iterator_runs_out_aloud_and_does_not_go_back() -> None:
    loader = as_loader(once(2))
    loader.take(None, None)
    loader.load_state_dict({"taken": 2, "first": None})
    with pytest.raises(DataError, match="ran out after 2"):
        loader.take(None, None)
    with pytest.raises(DataError, match="cannot go back"):
        loader.load_state_dict({"taken": 0, "first": None})


@pytest.mark.parametrize(
    ("source", "rows", "rule"),
    [
        ([], None, "is empty"),
        ([torch.zeros(2)], None, "batch 0 is a Tensor"),
        ([(torch.zeros(2), torch.zeros(2))], None, "batch 0 is a tuple of 2 without names"),
        (batches(1, rows=3), 2, "has 3 rows where 2 were asked for"),
    ],
)
def test_what_is_no_stream_of_batches_is_refused(source: list[Any], rows: int | None, rule: str) -> None:
    with pytest.raises(DataError, match=rule):
        as_loader(source).take(rows, None)


def test_a_loader_stays_itself_and_what_is_neither_is_refused() -> None:
    loader = Counting(0)
    assert as_loader(loader) is loader
    with pytest.raises(DataError, match="a int is not data"):
        as_loader(5)


def test_a_finished_iterable_is_delivered_as_it_comes() -> None:
    given_batches = batches(2)
    plane = DataPlane.of(given_batches)
    assert [plane.batches(moment(k))[0]["x"] is given_batches[k % 2]["x"] for k in range(4)] == [True] * 4
    assert plane.ledger() == {"data": {"rows": 8, "tokens": 0}}
    assert list(accumulate([2, 2, 2, 2]))[-1] == 8


# -- the first batch of a source ---------------------------------------------------------------------------------------

SPEC = BatchSpec(fields={"t": TensorSpec("batch time", "int64", bounds=(0, 4)), "x": TensorSpec("batch", "floating")})
GOOD = {"t": torch.tensor([[0, 3]]), "x": torch.tensor([1.0])}


@pytest.mark.parametrize(
    ("change", "fault", "rule"),
    [
        ({"t": None}, ProviderError, "declares the field 't' but delivers"),
        ({"t": torch.zeros(2, dtype=torch.int64)}, ProviderError, "declares 't' as"),
        ({"t": torch.zeros(1, 2, dtype=torch.int32)}, ProviderError, "declares 't' as"),
        ({"t": torch.tensor([[0, 4]])}, DataError, "holds 0..4, outside its declared range 0..3"),
        ({"t": torch.tensor([[-1, 0]])}, DataError, "holds -1..0"),
        ({"x": torch.tensor([float("nan")])}, DataError, "not finite"),
        ({"x": torch.tensor([1])}, ProviderError, "declares 'x' as"),
    ],
)
def test_a_first_batch_that_belies_its_spec_is_refused(change: dict[str, Any], fault: type[Exception], rule: str) -> None:
    check_batch("s", GOOD, SPEC)
    batch = {name: tensor for name, tensor in {**GOOD, **change}.items() if tensor is not None}
    with pytest.raises(fault, match=rule):
        check_batch("s", batch, SPEC)


# -- fields that nobody reads -----------------------------------------------------------------------------------------


def padded_batches() -> list[dict[str, torch.Tensor]]:
    return [{"tokens": torch.zeros(2, 3, dtype=torch.int64), "attention_mask": torch.ones(2, 3)} for _ in range(4)]


def entered(drop: tuple[str, ...] = (), reads: frozenset[str] | None = frozenset({"tokens"}), **changes: Any) -> DataPlane:
    """A plane over ready-made batches with a field more than the task reads."""
    seen = changes.pop("seen", [])

    def note(batch: Any, moment: Moment, generator: torch.Generator) -> Any:
        seen.append(set(batch))
        return batch

    plane = DataPlane(lambda name, part: padded_batches(), build_transform=lambda part: note)
    bridges = tuple(Bridge("source:a-task", "drop", name, "task", name) for name in drop)
    state = state_of({"a": Curve.constant(1.0)}, batch_size=None, seq_len=None)
    plane.enter(evolve(state, bridges=bridges, reads=reads, **changes), lookahead=0)
    return plane


def test_a_ready_made_batch_with_a_field_that_nobody_reads_is_refused() -> None:
    with pytest.raises(DataError, match=r"source 'a' delivers attention_mask.*data\.drop: \[attention_mask\]"):
        entered().batches(moment(0))
    for known in ({"reads": frozenset({"tokens", "attention_mask"})}, {"reads": None}):
        assert set(entered(**known).batches(moment(0))[0]) == {"tokens", "attention_mask"}


def test_dropped_fields_reach_transforms_and_no_further() -> None:
    seen: list[set[str]] = []
    plane = entered(drop=("attention_mask",), transforms=(Part(kind="transform", id="t"),), seen=seen)
    assert [set(batch) for step in range(2) for batch in plane.batches(moment(step))] == [{"tokens"}] * 2
    assert seen == [{"tokens", "attention_mask"}] * 2
    assert [set(batch) for batch in entered(drop=("attention_mask",)).batches(moment(0))] == [{"tokens"}]
