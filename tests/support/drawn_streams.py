"""Random schedules of data, and a plain simulation of what they deliver, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import count, islice
from math import ceil
from typing import Any

import numpy as np
import torch
from attrs import frozen
from hypothesis import strategies as st
from tiny_walks import base

from stackwise.timeline.streams import step_seed, stream_key
from stackwise_providers_data.permutation import Permutation

LOOKAHEAD = 1
"""What causal language modelling needs beyond seq_len."""

LONGEST_ROW = 9
_SPAN = 2000
"""Entries set aside for each source: an entry's value names its source and its place there."""


@frozen(kw_only=True)
class Source:
    """Arrays whose every entry occurs once in the whole config."""

    name: str
    is_stream: bool
    size: int
    """Entries of a stream, or rows."""
    shuffle: bool

    @property
    def first(self) -> int:
        """The smallest entry."""
        return "abcd".index(self.name) * _SPAN

    def declared(self) -> dict[str, Any]:
        """The source as a config says it."""
        if self.is_stream:
            arrays = {"tokens": torch.arange(self.first, self.first + self.size)}
        else:
            tokens = torch.arange(self.first, self.first + self.size * LONGEST_ROW).view(self.size, LONGEST_ROW)
            arrays = {"tokens": tokens}
        return {"use": "data.memory", "arrays": arrays, "shuffle": self.shuffle}

    def rows(self, seed: int, page: int) -> Iterator[int]:
        """The first entries of a stream's tokens, or of its rows, without end: epoch after epoch in the order of each."""
        unit = page if self.is_stream else 1
        things = self.size // unit
        own = step_seed(stream_key(seed, f"data.{self.name}"), 0)
        for epoch in count():
            order = range(things)
            for thing in Permutation(things, seed=own, epoch=epoch)(np.arange(things)).tolist() if self.shuffle else order:
                if self.is_stream:
                    yield from range(self.first + thing * unit, self.first + (thing + 1) * unit)
                else:
                    yield self.first + thing * LONGEST_ROW

    def epoch_entries(self, page: int) -> int:
        """Tokens or rows that one epoch delivers."""
        return self.size // page * page if self.is_stream else self.size


@frozen(kw_only=True)
class Segment:
    """One phase as drawn."""

    steps: int
    batch_size: Any
    """A number, or ((share of the phase, value), …)."""
    seq_len: Any
    accumulate: int | None
    step_tokens: int | None
    weights: Mapping[str, Any]
    """Source → a number, or (value at the start of the run, value at its end)."""


@frozen(kw_only=True)
class Scenario:
    """A whole schedule, and what it must deliver."""

    sources: Mapping[str, Source]
    segments: tuple[Segment, ...]
    seed: int

    @property
    def starts(self) -> list[int]:
        """First step of each phase, and the number of steps."""
        return [sum(segment.steps for segment in self.segments[:i]) for i in range(len(self.segments) + 1)]

    @property
    def longest(self) -> int:
        """Entries of the longest row that any step asks for; a change that falls on the end of its phase never comes."""
        return LOOKAHEAD + max(self.shape(step)[1] for step in range(self.starts[-1]))

    def config(self, **sections: Any) -> dict[str, Any]:
        """The config of it."""
        config = base(
            run={"name": "drawn", "seed": self.seed, "horizon": f"{self.starts[-1]} steps", "device": "cpu"},
            data={**self._delta(0), "sources": {n: self.sources[n].declared() for n in self.segments[0].weights}},
            phases={
                f"p{i}": {"until": f"{self.starts[i + 1]} steps", **({"data": self._delta(i)} if i else {})}
                for i in range(len(self.segments))
            },
            **sections,
        )
        for i in range(1, len(self.segments)):
            before, after = self.segments[i - 1].weights, self.segments[i].weights
            dropped = {name: None for name in before if name not in after}
            config["phases"][f"p{i}"]["data"]["sources"] = {**{n: self._declared_once(config, n) for n in after}, **dropped}
            config["phases"][f"p{i}"]["data"]["mix"].update(dropped)
        config["model"]["embedding"]["vocab"] = 4 * _SPAN
        config["model"]["rack"].update(width=2, heads=1, stacks=[{"base": 1}])
        return config

    def _declared_once(self, config: dict[str, Any], name: str) -> dict[str, Any]:
        """The same arrays in every phase: two that are equal and not the same would be another source."""
        trees = [config["data"], *(phase.get("data", {}) for phase in config["phases"].values())]
        known = [tree["sources"][name] for tree in trees if tree.get("sources", {}).get(name) is not None]
        return known[0] if known else self.sources[name].declared()

    def _delta(self, i: int) -> dict[str, Any]:
        own = self.segments[i]
        return {
            "batch_size": _declared(own.batch_size),
            "seq_len": _declared(own.seq_len),
            "accumulate": own.accumulate,
            "step_tokens": own.step_tokens,
            "mix": {
                name: {"linear": {"from": weight[0], "to": weight[1]}} if isinstance(weight, tuple) else weight
                for name, weight in own.weights.items()
            },
        }

    def segment_of(self, step: int) -> Segment:
        """The phase of a step."""
        return next(segment for segment, stop in zip(self.segments, self.starts[1:], strict=True) if step < stop)

    def shape(self, step: int) -> tuple[list[int], int]:
        """Rows of each micro-batch of a step, and positions of a row."""
        own, into = self.segment_of(step), step - max(start for start in self.starts[:-1] if start <= step)
        length, most = _in_force(own.seq_len, into, own.steps), _in_force(own.batch_size, into, own.steps)
        if own.step_tokens is None:
            return [most] * (own.accumulate or 1), length
        rows = own.step_tokens // length
        return [len(part) for part in np.array_split(np.arange(rows), ceil(rows / most))], length

    def shares(self, step: int) -> dict[str, Fraction]:
        """The declared share of each source at a step, exactly."""
        t = Fraction(step, self.starts[-1])
        weights = {
            name: Fraction(w[0]) + (Fraction(w[1]) - Fraction(w[0])) * t if isinstance(w, tuple) else Fraction(w)
            for name, w in self.segment_of(step).weights.items()
        }
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}

    def cursors(self) -> dict[str, Iterator[int]]:
        """Every source's stream, to be taken from row by row."""
        return {name: source.rows(self.seed, self.longest) for name, source in self.sources.items()}

    def next_row(self, cursors: Mapping[str, Iterator[int]], name: str, entries: int) -> list[int]:
        """The next row of a source."""
        if self.sources[name].is_stream:
            return list(islice(cursors[name], entries))
        first = next(cursors[name])
        return list(range(first, first + entries))

    def source_of(self, entry: int) -> str:
        """Where an entry is from."""
        return "abcd"[entry // _SPAN]


def _declared(value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    return {"piecewise": {"values": {f"{share}%": count for share, count in value}, "over": "phase"}}


def _in_force(value: Any, into: int, steps: int) -> int:
    if not isinstance(value, tuple):
        return int(value)
    return next(int(count) for share, count in reversed(value) if into >= Fraction(share, 100) * steps)


def _counts(values: st.SearchStrategy[int]) -> st.SearchStrategy[Any]:
    return values | st.tuples(values, st.integers(1, 99), values).map(lambda drawn: ((0, drawn[0]), (drawn[1], drawn[2])))


def _weights(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    positive = st.integers(1, 5)
    weight = st.integers(0, 5) | st.tuples(st.integers(0, 5), positive)
    kept = st.fixed_dictionaries({names[0]: positive, **dict.fromkeys(names[1:], weight)})
    return kept.flatmap(lambda drawn: st.permutations(list(drawn)).map(lambda order: {name: drawn[name] for name in order}))


@st.composite
def scenarios(draw: st.DrawFn, most_sources: int = 4) -> Scenario:
    """One to four sources over one to four phases of one to eight steps."""
    names = list("abcd"[: draw(st.integers(1, most_sources))])
    sources = {}
    for name in names:
        is_stream = draw(st.booleans())
        size = draw(st.integers(12, 90)) if is_stream else draw(st.integers(2, 25))
        sources[name] = Source(name=name, is_stream=is_stream, size=size, shuffle=draw(st.booleans()))
    segments = []
    for _ in range(draw(st.integers(1, 4))):
        present = sorted(draw(st.sets(st.sampled_from(names), min_size=1)))
        budget = draw(st.none() | st.integers(LONGEST_ROW - 1, 40))
        segments.append(
            Segment(
                steps=draw(st.integers(1, 8)),
                batch_size=draw(_counts(st.integers(1, 5))),
                seq_len=draw(_counts(st.integers(2, LONGEST_ROW - 1))),
                accumulate=None if budget else draw(st.none() | st.integers(1, 3)),
                step_tokens=budget,
                weights=draw(_weights(present)),
            )
        )
    return Scenario(sources=sources, segments=tuple(segments), seed=draw(st.integers(0, 9)))
