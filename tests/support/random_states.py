"""Random curricula over everything a boundary may do to model and optimizer, and what each boundary must do by independent rules."""

from __future__ import annotations

from typing import Any

from attrs import evolve, frozen
from hypothesis import strategies as st
from tiny_walks import VOCAB, base

STEPS = 3
"""Steps of a phase: enough for a momentum that could move what is frozen."""

DEPTH = ("stack", "interleave", "middle", "identity", "gated")
OPTIMIZERS = ("adamw", "sgd", "muon", "lion", "schedule-free")
FREEZES = ((), ("embedding",), ("rack.stacks",), ("rack.stacks.base.0",), ("*.mlp.*", "rack.norm"), ("rack", "embedding"))


@frozen(kw_only=True)
class Declared:
    """What is in force in one phase."""

    stacks: tuple[tuple[str, int], ...] = (("base", 2),)
    growth: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    moments: str = "copy"
    width: int = 4
    heads: int = 1
    ff: int = 8
    vocab: int = VOCAB
    tied: bool = True
    fresh_head: bool = False
    freeze: tuple[str, ...] = ()
    optimizer: str = "adamw"
    grouped: bool = False
    lora: bool = False
    rank: int = 2
    leave: str = "merge"
    ema: bool = False
    narrow: bool = False
    """Whether the rack is held in bfloat16."""

    @property
    def depths(self) -> dict[str, int]:
        """Stack → blocks."""
        return dict(self.stacks)

    def config(self, last: bool, index: int) -> dict[str, Any]:
        """The phase, everything written out."""
        rack: dict[str, Any] = {"width": self.width, "heads": self.heads, "ff": self.ff, "stacks": [{n: k} for n, k in self.stacks]}
        lora = {"use": "transformer.lora", "rank": self.rank, "select": ["*.mlp.*"]} if self.lora else None
        groups = {"slow": {"select": ["rack.norm", "embedding"], "lr": 0.002}} if self.grouped else None
        enter: dict[str, Any] = {"weight_adapters": self.leave, "moments": self.moments} if index else {}
        if self.growth is not None:
            enter["growth"] = {"use": f"transformer.{self.growth}", **dict(self.options)}
        if self.fresh_head:
            enter["fresh"] = ["head"]
        return {
            "until": f"{STEPS * (index + 1)} steps",
            "model": {
                "embedding": {"vocab": self.vocab},
                "rack": rack,
                "head": {"tied": self.tied},
                "freeze": list(self.freeze),
                "weight_adapters": {"style": lora},
                "precision": {"rack": "bfloat16" if self.narrow else "float32"},
            },
            "optimizer": {
                "use": f"optim.{self.optimizer}",
                "lr": 0.01,
                "weight_decay": 0.1,
                "groups": groups,
                "ema": {"decay": 0.9} if self.ema else None,
            },
            "enter": enter or None,
        }


def config_of(phases: tuple[Declared, ...], seed: int) -> dict[str, Any]:
    """The whole config."""
    return base(
        run={"name": "drawn", "seed": seed, "horizon": f"{STEPS * len(phases)} steps", "device": "cpu"},
        model={
            "embedding": {"use": "transformer.token", "vocab": VOCAB},
            "rack": {"use": "transformer.decoder", "width": 4, "heads": 1, "ff": 8, "stacks": [{"base": 2}], "init_std": 0.2},
            "head": {"use": "transformer.lm"},
        },
        phases={f"p{i}": phase.config(i == len(phases) - 1, i) for i, phase in enumerate(phases)},
    )


@st.composite
def states(draw: st.DrawFn) -> tuple[Declared, ...]:
    """Two to four phases; each changes a few things at once."""
    phases = [_first(draw)]
    for _ in range(draw(st.integers(1, 3))):
        now = evolve(phases[-1], growth=None, options=(), fresh_head=False)
        now = _grown(draw, now, draw(st.sampled_from((None, "remove", *DEPTH, "widen", "widen-ff", "vocabulary"))))
        now = evolve(
            now,
            freeze=draw(st.sampled_from(FREEZES)),
            optimizer=draw(st.sampled_from((now.optimizer, *OPTIMIZERS))),
            grouped=draw(st.booleans()),
            moments=draw(st.sampled_from(("copy", "copy", "reset"))),
            leave=draw(st.sampled_from(("merge", "drop"))),
            ema=draw(st.booleans()),
        )
        if now.growth is None:
            now = evolve(now, lora=draw(st.booleans()), rank=draw(st.integers(1, 2)), narrow=draw(st.booleans()), tied=draw(st.booleans()))
            now = evolve(now, fresh_head=not now.tied and draw(st.booleans()))
        phases.append(_trainable(now))
    return tuple(phases)


def _first(draw: st.DrawFn) -> Declared:
    return _trainable(
        Declared(
            freeze=draw(st.sampled_from(FREEZES)),
            optimizer=draw(st.sampled_from(OPTIMIZERS)),
            tied=draw(st.booleans()),
            lora=draw(st.booleans()),
            ema=draw(st.booleans()),
        )
    )


def _trainable(now: Declared) -> Declared:
    """Something is left to train, and the group selects something."""
    everything = {"rack", "embedding"} <= set(now.freeze) and now.tied and not now.lora
    now = evolve(now, freeze=()) if everything else now
    return evolve(now, grouped=now.grouped and not {"rack", "embedding"} <= set(now.freeze))


def _grown(draw: st.DrawFn, now: Declared, kind: str | None) -> Declared:
    if kind in ("widen", "widen-ff", "vocabulary"):
        return _larger(draw, now, kind)
    if kind == "remove" and len(now.stacks) > 1:
        return evolve(now, stacks=tuple(s for s in now.stacks if s[0] == "base"))
    if kind not in DEPTH:
        return now
    depths = now.depths
    return _deeper(draw, now, kind, depths)


def _larger(draw: st.DrawFn, now: Declared, kind: str) -> Declared:
    if kind == "vocabulary":
        return evolve(
            now, growth=kind, vocab=now.vocab + draw(st.integers(1, 3)), options=(("rows", draw(st.sampled_from(("fresh", "zeros")))),)
        )
    if kind == "widen-ff":
        how = (("how", draw(st.sampled_from(("zero-out", "split")))),)
        return evolve(now, growth=kind, ff=now.ff + draw(st.integers(1, 9)), options=how) if not now.lora else now
    fits = now.width == 4 and not now.lora and not now.narrow
    return evolve(now, growth=kind, width=8, heads=2, ff=2 * now.ff) if fits else now


def _deeper(draw: st.DrawFn, now: Declared, kind: str, depths: dict[str, int]) -> Declared:
    new = [name for name in ("low", "top") if name not in depths]
    place = draw(st.sampled_from(("deepen", *new)))
    options: dict[str, Any] = {}
    if kind == "gated":
        options = {"gate": {"linear": {"from": 0, "to": 1, "over": "phase"}}}
    if place == "deepen" or kind == "middle":
        most = 2 * depths["base"] if kind == "middle" else depths["base"] + 3
        stacks = tuple((name, draw(st.integers(count + 1, most)) if name == "base" else count) for name, count in now.stacks)
        if kind == "identity":
            options["at"] = draw(st.sampled_from(("start", "end")))
        if kind == "gated":
            options["base"] = draw(st.sampled_from(("fresh", "copy")))
    else:
        begun = (place, draw(st.integers(1, 2)))
        stacks = (begun, *now.stacks) if place == "low" else (*now.stacks, begun)
        if kind in ("stack", "interleave"):
            options["source"] = "base"
    return evolve(now, growth=kind, stacks=stacks, options=tuple(options.items()))


def origin(before: Declared, after: Declared, name: str) -> str | None:
    """Where a parameter has its values from, by name in the phase before; None: it starts anew."""
    parts = name.split(".")
    if parts[0] == "weight_adapters":
        if not before.lora or leaves(before, after):
            return None
        inner = origin(before, after, ".".join(parts[2:]))
        return None if inner is None else ".".join([*parts[:2], inner])
    if parts[0] == "head":
        return None if after.fresh_head else "embedding.weight" if before.tied else name
    if parts[:2] != ["rack", "stacks"]:
        return name
    block = _source_block(before, after, parts[2], int(parts[3]))
    return None if block is None else ".".join([*parts[:2], block[0], str(block[1]), *parts[4:]])


def _source_block(before: Declared, after: Declared, stack: str, i: int) -> tuple[str, int] | None:
    old, n = before.depths.get(stack, 0), after.depths[stack]
    options = dict(after.options)
    if old == n:
        return stack, i
    if after.growth in ("stack", "interleave"):
        where, depth = (stack, old) if old else ("base", before.depths["base"])
        return where, (i % depth if after.growth == "stack" else i * depth // n)
    if after.growth == "middle":
        b = n - old
        k = old // b if old % b == 0 else 0
        first = ((k + 1) // 2 - 1) * b if k else (old - b) // 2
        return stack, i if i < first + b else i - b
    if after.growth == "identity" and options.get("at") == "start":
        return (stack, i - (n - old)) if i >= n - old else None
    if i < old:
        return stack, i
    return (stack, i % old) if options.get("base") == "copy" else None


def leaves(before: Declared, after: Declared) -> bool:
    """Whether the adapters of a phase are not those of the next."""
    return before.lora and (not after.lora or before.rank != after.rank)


def is_frozen(declared: Declared, name: str) -> bool:
    """Whether a phase declares a parameter frozen."""
    prefixes = [selector for selector in declared.freeze if "*" not in selector]
    return any(name.startswith(f"{prefix}.") for prefix in prefixes) or ("*.mlp.*" in declared.freeze and ".mlp." in name)


def keeps_function(before: Declared, after: Declared) -> bool:
    """Whether the outputs of old token ids stay, by the science of each operator."""
    if set(before.depths) - set(after.depths) or after.growth in ("stack", "interleave", "middle", "vocabulary"):
        return False
    dropped = leaves(before, after) and after.leave == "drop"
    return not (after.fresh_head or dropped or before.narrow != after.narrow or before.tied != after.tied)
