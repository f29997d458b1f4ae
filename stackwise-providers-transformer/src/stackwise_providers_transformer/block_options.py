"""Groups of options that say how a block is made in detail; each stands in `transformer.decoder` under one key."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from stackwise import UserError, option


@frozen(kw_only=True)
class NormOptions:
    """The norms of a rack."""

    kind: Literal["rmsnorm", "layernorm"] = option("rmsnorm", doc="x / rms(x), or (x - mean) / deviation", choices=("rmsnorm", "layernorm"))
    eps: float = option(1e-6, doc="what is added to the mean square or the variance", minimum=0)
    gain: Literal["plain", "offset"] = option(
        "plain",
        doc="factor on every feature: the weight, which starts at 1, or 1 + the weight, which starts at 0; offset for rmsnorm only",
        choices=("plain", "offset"),
    )
    at: Literal["pre", "output", "sandwich", "post"] = option(
        "pre",
        doc="place of the norms around a branch f: x + f(norm(x)), x + norm(f(x)), x + norm(f(norm(x))), or norm(x + f(x)), "
        "which leaves out the norm after the last block",
        choices=("pre", "output", "sandwich", "post"),
    )
    embedding: bool = option(False, doc="whether the hidden state is normed before the first block")
    first: bool = option(True, doc="whether the first block norms what its attention reads; false only where `at` is pre")

    def __attrs_post_init__(self) -> None:
        if self.gain == "offset" and self.kind == "layernorm":
            raise UserError("gain: offset belongs to rmsnorm: set kind to rmsnorm, or gain to plain")
        if not self.first and self.at != "pre":
            raise UserError(f"first: without effect where norms stand at '{self.at}': leave it out, or set at to pre")


@frozen(kw_only=True)
class BiasOptions:
    """Which maps add a bias; all biases start at 0."""

    qkv: bool = option(False, doc="whether queries, keys and values have one")
    output: bool = option(False, doc="whether the output of attention has one")
    mlp: bool = option(False, doc="whether the maps of the MLP have one")
    norm: bool = option(False, doc="whether layer norms have one")


SCALING_NEEDS = {
    "linear": (),
    "ntk": (),
    "dynamic": ("original",),
    "llama3": ("original", "low", "high"),
    "yarn": ("original",),
}
"""Kind of rotary scaling → the options that it needs in addition to `factor`."""

_YARN_ONLY = ("fast", "slow", "temperature", "truncate")


@frozen(kw_only=True)
class RotaryScaling:
    """Rotary wavelengths for rows longer than those a model was trained on."""

    kind: Literal["linear", "ntk", "dynamic", "llama3", "yarn"] = option(
        doc="how: positions divided (linear, arXiv 2306.15595), a larger base (ntk), a base that grows with the row (dynamic), "
        "by wavelength (llama3, arXiv 2407.21783), or by wavelength with a temperature (yarn, arXiv 2309.00071)",
        choices=("linear", "ntk", "dynamic", "llama3", "yarn"),
    )
    factor: float = option(doc="how many times as long rows become", minimum=1)
    original: int | None = option(None, doc="longest row before, in positions; for dynamic, llama3 and yarn", minimum=1)
    low: float | None = option(None, doc="llama3: wavelengths above original / low are divided by the factor", minimum=0)
    high: float | None = option(None, doc="llama3: wavelengths below original / high stay", minimum=0)
    fast: float | None = option(None, doc="yarn: turns over the original length above which wavelengths stay; 32 when left out", minimum=0)
    slow: float | None = option(None, doc="yarn: turns below which they are divided by the factor; 1 when left out", minimum=0)
    temperature: float | None = option(None, doc="yarn: factor on turned queries and keys; 0.1 ln(factor) + 1 when left out", minimum=0)
    truncate: bool | None = option(None, doc="yarn: whether the ends of the ramp are rounded outwards to whole pairs; true when left out")

    def __attrs_post_init__(self) -> None:
        needs = SCALING_NEEDS[self.kind]
        for name in needs:
            if getattr(self, name) is None:
                raise UserError(f"{name}: scaling of kind {self.kind} needs it")
        takes = (*needs, *(_YARN_ONLY if self.kind == "yarn" else ()))
        for name in ("original", "low", "high", *_YARN_ONLY):
            if getattr(self, name) is not None and name not in takes:
                raise UserError(f"{name}: without effect on scaling of kind {self.kind}: leave it out")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise UserError(f"low: {self.low:g} is not below high, which is {self.high:g}")


@frozen(kw_only=True)
class RotaryOptions:
    """How queries and keys are rotated by their positions."""

    base: float | None = option(None, doc="base of the wavelengths, in positions; 10000 when left out", minimum=1)
    share: float = option(1.0, doc="share of a head's features that turn, from the first on", minimum=0, maximum=1)
    pairs: Literal["halves", "neighbours"] = option(
        "halves",
        doc="which features turn together: p and p + half of them (GPT-NeoX, Llama), or 2p and 2p + 1 (GPT-J)",
        choices=("halves", "neighbours"),
    )
    blocks: tuple[bool, ...] | None = option(
        None, doc="whether the blocks turn, in forward order; the list is repeated for further blocks; all do when left out"
    )
    scaling: RotaryScaling | None = option(None, doc="other wavelengths for longer rows; none when left out")

    def __attrs_post_init__(self) -> None:
        check_pattern("blocks", self.blocks)


@frozen(kw_only=True)
class WindowOptions:
    """Blocks that attend to nearby positions only."""

    size: int = option(
        doc="positions that an entry sees under causality, itself included; where it looks both ways, the distance to the farthest plus 1",
        minimum=1,
    )
    blocks: tuple[bool, ...] | None = option(
        None, doc="which blocks have the window, in forward order; the list is repeated for further blocks; all do when left out"
    )
    base: float | None = option(
        None, doc="base of the rotary wavelengths in these blocks, without scaling; that of the rack when left out", minimum=1
    )

    def __attrs_post_init__(self) -> None:
        check_pattern("blocks", self.blocks)


@frozen(kw_only=True)
class ExpertOptions:
    """Several MLPs in place of each one; a router chooses a few of them for every position."""

    count: int = option(doc="experts of a block", minimum=2, maximum=4096)
    active: int = option(2, doc="experts that a position is sent to", minimum=1)
    gates: Literal["chosen", "all"] = option(
        "chosen",
        doc="weights of the chosen experts: a softmax over them (they add up to 1), or their shares of a softmax over all",
        choices=("chosen", "all"),
    )
    capacity: float | None = option(
        None,
        doc="room of an expert in each row in training, in units of its even share; what finds none is dropped; endless when left out",
    )

    def __attrs_post_init__(self) -> None:
        if self.active > self.count:
            raise UserError(f"active: {self.active} experts cannot be chosen of {self.count}: lower it, or raise count")
        if self.capacity is not None and self.capacity <= 0:
            raise UserError(f"capacity: {self.capacity:g} leaves no room: give a factor above 0, or leave it out")

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the losses that a config can weight: load balance, and size of the router's logits."""
        return ("balance", "z")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics: the share of choices dropped for lack of capacity."""
        return () if self.capacity is None else ("dropped",)


@frozen(kw_only=True)
class ScoreOptions:
    """How the scores q·k are changed before the softmax."""

    scale: float | None = option(None, doc="factor on q·k; 1 / sqrt(features of a head) when left out", minimum=0)
    cap: float | None = option(None, doc="scores s become cap · tanh(s / cap) (arXiv 2408.00118, section 2); as they are when left out")

    def __attrs_post_init__(self) -> None:
        if self.cap is not None and self.cap <= 0:
            raise UserError(f"cap: {self.cap:g} is not above 0: leave it out for scores without a cap")


def check_pattern(name: str, blocks: tuple[bool, ...] | None) -> None:
    """Refuse a list of blocks that is empty or names none.

    Raises:
        UserError: the list is empty or names no block.
    """
    if blocks is not None and not any(blocks):
        raise UserError(f"{name}: no block is true: leave the group out, or set at least one block to true")


def repeated_pattern(blocks: tuple[bool, ...] | None, count: int) -> tuple[bool, ...]:
    """A pattern written out for `count` blocks; all true for None."""
    return tuple(blocks is None or blocks[i % len(blocks)] for i in range(count))
