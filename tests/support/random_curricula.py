"""Small random curricula, and by independent rules what each boundary of them must do."""

from __future__ import annotations

from typing import Any

from attrs import frozen
from how_many import examples
from hypothesis import Phase, settings
from hypothesis import strategies as st
from tiny_walks import VOCAB, base, memory


def walks(count: int) -> settings:
    """Settings for `count` whole runs, fewer in `make test`; a failing one is shown as drawn: making it smaller takes hundreds."""
    return settings(max_examples=examples(count), phases=[Phase.explicit, Phase.generate])


@frozen(kw_only=True)
class Segment:
    """One phase as drawn: its length and everything in force in it."""

    steps: int
    seq_len: int
    batch_size: int
    accumulate: int
    depth: int
    top: int
    growth: str | None
    moments: str
    freeze: tuple[str, ...]
    lr: float
    weights: tuple[int, int]


@frozen(kw_only=True)
class Curriculum:
    """Phases, and what holds for the whole run."""

    segments: tuple[Segment, ...]
    tied: bool
    grouped: bool
    seed: int

    @property
    def starts(self) -> list[int]:
        """First step of each phase, and the number of steps."""
        return [sum(segment.steps for segment in self.segments[:i]) for i in range(len(self.segments) + 1)]

    def config(self) -> dict[str, Any]:
        """The config of it."""
        rack = {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": _stacks(self.segments[0])}
        model = {
            "embedding": {"use": "transformer.token", "vocab": VOCAB},
            "rack": rack,
            "head": {"use": "transformer.lm", "tied": self.tied},
        }
        groups = {"groups": {"final": {"select": ["rack.norm"], "lr": 0.02, "weight_decay": 0}}} if self.grouped else {}
        return base(
            run={"name": "drawn", "seed": self.seed, "horizon": f"{self.starts[-1]} steps", "device": "cpu"},
            data={"sources": {"a": memory(0, heldout=0.1), "b": memory(1, heldout=0.1)}, "batch_size": 2, "seq_len": 4},
            model=model,
            optimizer={"use": "optim.adamw", "lr": 0.01, **groups},
            phases={f"p{i}": self._phase(i) for i in range(len(self.segments))},
        )

    def _phase(self, index: int) -> dict[str, Any]:
        own = self.segments[index]
        last = self.segments[max(index - 1, 0)]
        copies = own.growth != "identity" and own.depth + own.top > last.depth + last.top
        moments = {"moments": own.moments} if copies else {}
        growth = {"enter": {"growth": {"use": f"transformer.{own.growth}", **moments}}} if own.growth else {}
        return {
            "until": f"{self.starts[index + 1]} steps",
            "data": {
                "seq_len": own.seq_len,
                "batch_size": own.batch_size,
                "accumulate": own.accumulate,
                "mix": dict(zip("ab", own.weights, strict=True)),
            },
            "model": {"rack": {"stacks": _stacks(own)}, "freeze": list(own.freeze)},
            "optimizer": {"lr": own.lr},
            **growth,
        }

    def origin(self, index: int, name: str) -> str | None:
        """Where a parameter of phase `index` has its values from, by name in the phase before; None: it starts anew."""
        before, after = self.segments[index - 1], self.segments[index]
        old = {"base": before.depth, "top": before.top}
        parts = name.split(".")
        if parts[:2] != ["rack", "stacks"]:
            return name
        stack, block = parts[2], int(parts[3])
        if block < old[stack]:
            return name
        if after.growth != "stack":
            return None
        return ".".join([*parts[:3], str(block % old[stack]), *parts[4:]])


def _stacks(segment: Segment) -> list[dict[str, int]]:
    return [{"base": segment.depth}, *([{"top": segment.top}] if segment.top else [])]


@st.composite
def curricula(draw: st.DrawFn, growths: tuple[str, ...] = ("stack", "identity")) -> Curriculum:
    """Two to four phases of one to five steps that change lengths, batches, mixture, depth, frozen parts and learning rate."""
    segments: list[Segment] = []
    for i in range(draw(st.integers(2, 4))):
        depth, top, growth = 2, 0, None
        if i:
            before = segments[-1]
            depth, top = draw(st.integers(1, 4)), before.top
            wanted = draw(st.sampled_from(growths))
            if wanted == "identity":
                top = draw(st.integers(before.top, 1))
            growth = wanted if (depth, top) != (before.depth, before.top) else None
        segments.append(
            Segment(
                steps=draw(st.integers(1, 5)),
                seq_len=draw(st.integers(2, 5)),
                batch_size=draw(st.integers(1, 3)),
                accumulate=draw(st.integers(1, 2)),
                depth=depth,
                top=top,
                growth=growth,
                moments=draw(st.sampled_from(["copy", "reset"])),
                freeze=draw(st.sampled_from([(), ("embedding",), ("rack.stacks",), ("rack.stacks.base.0",)])),
                lr=draw(st.sampled_from([0.01, 0.003])),
                weights=draw(st.sampled_from([(1, 1), (1, 0), (0, 1), (3, 1)])),
            )
        )
    return Curriculum(segments=tuple(segments), tied=draw(st.booleans()), grouped=draw(st.booleans()), seed=draw(st.integers(0, 9)))
