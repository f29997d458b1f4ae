"""The options of the tasks on pairs: a source with its target, and two responses of which one is preferred."""

from __future__ import annotations

from typing import Any, Literal

from attrs import frozen

from stackwise import Beyond, TaskSpec, TensorSpec, UnitMetric, UserError, dimension, option
from stackwise_providers_transformer.options import ROUTED
from stackwise_providers_transformer.token_units import bits_of

_TOKENS = TensorSpec("batch time", "int64", bounds=(0, "vocab"))
_SYMBOLS = TensorSpec("batch time", "int64", bounds=(0, "symbols"))
_SOURCE = TensorSpec("batch source", "int64", bounds=(0, "vocab"))
_MASK = TensorSpec("batch time", "bool")
_COUNT = TensorSpec("batch", "int64")
_SEGMENTS = TensorSpec("batch time", "int64")
_OUTPUTS = {"logits": TensorSpec("batch time vocab")}


@frozen(kw_only=True)
class Seq2SeqOptions:
    """A target from a source."""

    form: Literal["prefix", "encoder-decoder"] = option(
        "prefix",
        doc="whether the source is the prefix of a row that its target continues, or the memory of a rack with an encoder",
        choices=("prefix", "encoder-decoder"),
    )
    pairs: Literal["given", "spans"] = option(
        "given", doc="pairs as the loader delivers them, or spans cut out of rows of tokens (T5)", choices=("given", "spans")
    )
    symbols: int = dimension("symbols", doc="where symbols are added: number of the loader's ids; the loader's bound when left out")
    density: float | None = option(None, doc="of spans: share of the tokens that are cut out; 0.15 when left out", minimum=0, maximum=1)
    mean_span: float | None = option(None, doc="of spans: mean length, in tokens; 3 when left out", minimum=1)
    sentinels: int | None = option(None, doc="of spans: symbols that stand for one each; 100 when left out", minimum=1)

    def __attrs_post_init__(self) -> None:
        for name in ("density", "mean_span", "sentinels"):
            if self.pairs == "given" and getattr(self, name) is not None:
                raise UserError(f"{name}: it has no effect on given pairs: set pairs: spans, or leave it out")

    @property
    def adds_symbols(self) -> bool:
        """Whether the task adds symbols to the loader's."""
        return self.pairs == "spans" or self.form == "encoder-decoder"

    @property
    def span_sentinels(self) -> int:
        """Number of sentinels, the default filled in."""
        return 100 if self.sentinels is None else self.sentinels

    @property
    def bits(self) -> UnitMetric:
        """The metric of given pairs, by what a token of the response is; sentinels among the tokens are none."""
        return bits_of("response" if self.form == "encoder-decoder" else "tokens")

    def to_spec(self) -> TaskSpec:
        """A rack that sees a whole prefix, or one that takes a memory; room for the symbols that the task adds."""
        shape: dict[str, Any]
        if self.form == "prefix":
            shape = {"inputs": {"tokens": _TOKENS, "prefix": _COUNT, "routed": ROUTED}, "side": ("prefix",), "attention": "prefix"}
        else:
            embedded = {"memory": ("tokens", "source")}
            shape = {"inputs": {"tokens": _TOKENS, "source": _SOURCE}, "side": ("memory",), "attention": "causal", "embedded": embedded}
        shape["metrics"] = (self.bits if self.pairs == "given" else self.bits.otherwise, "accuracy")
        if self.pairs == "spans":
            beyond = (Beyond("vocab", "symbols", self.span_sentinels + 1),)
            seen = {"mask": _MASK, "segments": _SEGMENTS}  # and refused
            return TaskSpec(
                batch={"tokens": _SYMBOLS}, optional=seen, outputs=_OUTPUTS, linear_outputs=tuple(_OUTPUTS), beyond=beyond, **shape
            )
        if self.form == "prefix":
            given, seen = {"tokens": _TOKENS, "prefix": _COUNT}, {"mask": _MASK, "segments": _SEGMENTS}
            return TaskSpec(batch=given, optional=seen, outputs=_OUTPUTS, linear_outputs=tuple(_OUTPUTS), lookahead=1, **shape)
        shape["inputs"]["memory_mask"] = TensorSpec("batch source", "bool")
        return TaskSpec(
            batch={"prompt": _SYMBOLS, "response": _SYMBOLS},
            optional={"prompt_mask": _MASK, "response_mask": _MASK},
            outputs=_OUTPUTS,
            linear_outputs=tuple(_OUTPUTS),
            beyond=(Beyond("vocab", "symbols", 1),),
            **shape,
        )


@frozen(kw_only=True)
class PreferenceOptions:
    """The better of two responses."""

    method: Literal["dpo", "simpo", "orpo"] = option("dpo", doc="which loss", choices=("dpo", "simpo", "orpo"))
    beta: float | None = option(
        None, doc="how strongly differences of log-probability count; when left out 0.1 (dpo, against the reference), 2 (simpo)", minimum=0
    )
    gamma: float | None = option(None, doc="of simpo: the margin that the better response is to have; 0.5 when left out", minimum=0)
    odds_weight: float | None = option(None, doc="of orpo: weight of the odds ratio beside the likelihood; 0.1 when left out", minimum=0)

    def __attrs_post_init__(self) -> None:
        useful = {"dpo": ("beta",), "simpo": ("beta", "gamma"), "orpo": ("odds_weight",)}[self.method]
        for name in ("beta", "gamma", "odds_weight"):
            if name not in useful and getattr(self, name) is not None:
                raise UserError(f"{name}: it has no effect on {self.method}: leave it out")
        if self.beta == 0:
            raise UserError("beta: at 0 every margin is 0, and nothing is learnt: raise it, or leave it out")

    def to_spec(self) -> TaskSpec:
        """Two rows of responses after one prompt; DPO compares with a frozen reference."""
        return TaskSpec(
            batch={"chosen": _TOKENS, "rejected": _TOKENS, "prefix": _COUNT},
            optional={"chosen_mask": _MASK, "rejected_mask": _MASK},
            inputs={"tokens": _TOKENS, "routed": ROUTED},
            outputs=_OUTPUTS,
            linear_outputs=tuple(_OUTPUTS),
            attention="causal",
            lookahead=1,
            metrics=("accuracy", "reward_margin", "likelihood_accuracy"),
            reference="phase entry" if self.method == "dpo" else None,
        )
