"""The options of every transformer component, and the specs they declare."""

from __future__ import annotations

from math import ceil
from typing import Literal

from attrs import evolve, frozen

from stackwise import (
    EmbeddingSpec,
    HeadSpec,
    RackSpec,
    Stack,
    TaskSpec,
    TensorSpec,
    UserError,
    dimension,
    follows_task,
    option,
    scheduled,
    stacks,
)
from stackwise_providers_transformer.block_options import (
    BiasOptions,
    ExpertOptions,
    NormOptions,
    RotaryOptions,
    ScoreOptions,
    WindowOptions,
)
from stackwise_providers_transformer.token_units import bits_of

MLPS = ("swiglu", "geglu", "geglu-tanh", "reglu", "gelu", "gelu-tanh", "relu", "silu")
GATED_MLPS = 4
"""How many of them are gated, the first ones."""

_HIDDEN = TensorSpec("batch time width")
_TOKENS = TensorSpec("batch time", "int64", bounds=(0, "vocab"))
_MASK = TensorSpec("batch time", "bool")
ROUTED = TensorSpec("batch time", "bool")
"""Side input for experts: which entries they count. Attention does not need it: a causal row hides the padding at its end by itself."""
_DOCUMENTS = {"segments": TensorSpec("batch time", "int64"), "positions": TensorSpec("batch time", "int64")}
_LOGITS = TensorSpec("batch time vocab")


def check_sizes(**sizes: int | None) -> None:
    """Refuse to build before every size is known.

    Raises:
        UserError: a size that was neither given nor filled from a junction.
    """
    for name, size in sizes.items():
        if size is None:
            raise UserError(f"{name}: it has no size yet: give it, or join the component to one that has it")


@frozen(kw_only=True)
class TokenOptions:
    """A learned vector for every token id."""

    vocab: int = dimension("vocab", doc="number of token ids; the loader's bound when left out")
    width: int = dimension("width", doc="features of a vector; the rack's when left out")
    scale: float = option(1.0, doc="factor on every vector; Gemma's is the square root of the width", minimum=0)
    types: int | None = option(
        None, doc="number of token types, of which each has a vector; that of type 0 is added to every token (BERT)", minimum=1
    )
    init_std: float = option(0.02, doc="standard deviation of the normal draw a vector starts from", minimum=0)

    def to_spec(self) -> EmbeddingSpec:
        """Token ids in, hidden state out."""
        return EmbeddingSpec(inputs={"tokens": _TOKENS}, output=_HIDDEN)


@frozen(kw_only=True)
class DecoderOptions:
    """Transformer blocks in named stacks."""

    width: int = dimension("width", doc="features at each position")
    heads: int = option(doc="attention heads; they divide the width unless head_size is given", minimum=1)
    head_size: int | None = option(None, doc="features of a head; width / heads when left out", minimum=1)
    kv_heads: int | None = option(
        None, doc="key and value heads, each shared by heads / kv_heads queries; as many as heads when left out", minimum=1
    )
    stacks: tuple[Stack, ...] = stacks(doc="named stacks of blocks in forward order, as [{base: 4}, {top: 2}]")
    mlp: Literal["swiglu", "geglu", "geglu-tanh", "reglu", "gelu", "gelu-tanh", "relu", "silu"] = option(
        "swiglu", doc="form of the block's MLP: gated (the first four), or an activation between two maps", choices=MLPS
    )
    ff: int | None = option(
        None,
        doc="hidden features of the MLP; when left out 8/3 of the width rounded up to a multiple of 8 (gated), 4 times the width (others)",
        minimum=1,
    )
    experts: ExpertOptions | None = option(
        None, doc="a mixture of such MLPs in each block: a map with count, active, gates, capacity; one MLP when left out"
    )
    norm: Literal["rmsnorm", "layernorm"] | NormOptions = option(
        "rmsnorm", doc="form of every norm: rmsnorm or layernorm, or a map with kind, eps, gain, at, embedding, first"
    )
    qk_norm: bool | Literal["heads", "whole"] = option(
        False, doc="whether queries and keys are normed before they are turned: head by head (heads or true), or all heads as one (whole)"
    )
    bias: bool | BiasOptions = option(
        False, doc="whether linear maps and layer norms add biases, which start at 0: all or none, or a map with qkv, output, mlp, norm"
    )
    residual: Literal["sequential", "parallel"] = option(
        "sequential",
        doc="whether the MLP reads what attention has added, or both read the same hidden state (parallel)",
        choices=("sequential", "parallel"),
    )
    dropout: float = scheduled(0.0, doc="share of each residual branch's output that is zeroed in training", minimum=0, maximum=1)
    attention: Literal["causal", "bidirectional", "prefix"] | None = follows_task(
        "attention",
        doc="what a position sees: itself and those before it, all, or those before it and the row's whole prefix; "
        "causal where the task does not say",
        choices=("causal", "bidirectional", "prefix"),
    )
    scores: ScoreOptions | None = option(None, doc="factor and cap of attention scores: a map with scale, cap")
    window: WindowOptions | None = option(None, doc="blocks that see near positions only: a map with size, blocks, base")
    positions: Literal["rope", "learned", "none"] = option(
        "rope",
        doc="how a position shows: queries and keys turned by it, a learned vector added to the hidden state, or not at all",
        choices=("rope", "learned", "none"),
    )
    rope_base: float | None = option(None, doc="base of the rotary wavelengths, in positions; 10000 when left out", minimum=1)
    rotary: RotaryOptions | None = option(
        None, doc="rotary positions in detail: a map with base (instead of rope_base), share, pairs, blocks, scaling"
    )
    max_positions: int | None = option(None, doc="learned vectors: the longest row, in positions", minimum=1)
    init_std: float = option(0.02, doc="standard deviation of the normal draw a matrix starts from", minimum=0)
    depth_for_init: int | str = option(
        "none",
        doc="depth L that shrinks the start of residual outputs by 1/sqrt(2L): none, current (all blocks of the rack), or a number",
    )

    def __attrs_post_init__(self) -> None:
        depth = self.depth_for_init
        if depth not in ("none", "current") and (isinstance(depth, bool | str) or depth < 1):
            raise UserError(f"depth_for_init: {depth!r} is neither 'none' nor 'current' nor a number of blocks of at least 1")
        if isinstance(self.norm, str) and self.norm not in ("rmsnorm", "layernorm"):
            raise UserError(f"norm: {self.norm!r} is none of 'rmsnorm', 'layernorm'")
        if self.qk_norm not in (False, True, "heads", "whole"):
            raise UserError(f"qk_norm: {self.qk_norm!r} is none of false, true, 'heads', 'whole'")
        if self.residual == "parallel" and self.norms.at != "pre":
            raise UserError(f"residual: parallel branches read a normed hidden state: set norm.at to pre, not {self.norms.at}")
        self._check_heads()
        self._check_positions()

    def _check_heads(self) -> None:
        if self.head_size is None and self.width and self.width % self.heads:
            raise UserError(
                f"heads: {self.heads} heads do not divide a width of {self.width}: choose a divisor of the width, or give head_size"
            )
        if self.kv_heads and self.heads % self.kv_heads:
            raise UserError(f"kv_heads: {self.kv_heads} do not divide {self.heads} heads: choose a divisor of heads")
        if self.positions == "rope" and (self.width or self.head_size) and (self.turned_features % 2 or not self.turned_features):
            raise UserError(
                f"heads: {self.heads} heads leave {self.head_features} features each of a width of {self.width}, of which "
                f"{self.turned_features} turn; rotary positions turn them in pairs: choose an even number, or other positions"
            )
        scaling = self.rotary.scaling if self.rotary is not None else None
        if scaling is not None and scaling.kind in ("ntk", "dynamic") and (self.width or self.head_size) and self.turned_features == 2:
            raise UserError(f"rotary.scaling: kind {scaling.kind} has no meaning for two features of a head, which turn as one pair")

    def _check_positions(self) -> None:
        if self.positions == "learned" and self.max_positions is None:
            raise UserError("max_positions: learned positions need a table: give it the longest row, data.seq_len or more")
        if self.positions != "learned" and self.max_positions is not None:
            raise UserError(f"max_positions: {self.max_positions} has no effect on positions: {self.positions}: leave it out")
        if self.positions != "rope" and self.rope_base is not None:
            raise UserError(f"rope_base: {self.rope_base:g} has no effect on positions: {self.positions}: leave it out")
        if self.positions != "rope" and self.rotary is not None:
            raise UserError(f"rotary: without effect on positions: {self.positions}: leave it out")
        if self.positions != "rope" and self.window is not None and self.window.base is not None:
            raise UserError(f"window.base: {self.window.base:g} has no effect on positions: {self.positions}: leave it out")
        if self.rotary is not None and self.rotary.base is not None and self.rope_base is not None:
            raise UserError("rope_base: stands beside rotary.base, which says the same: keep one of the two")

    @property
    def blocks(self) -> int:
        """Blocks of all stacks."""
        return sum(stack.blocks for stack in self.stacks)

    @property
    def head_features(self) -> int:
        """Features of a head."""
        return self.width // self.heads if self.head_size is None else self.head_size

    @property
    def turned_features(self) -> int:
        """Features of a head that rotary positions turn."""
        return int(self.head_features * (1.0 if self.rotary is None else self.rotary.share))

    @property
    def norms(self) -> NormOptions:
        """The norms, written out."""
        return NormOptions(kind=self.norm) if isinstance(self.norm, str) else self.norm

    @property
    def biases(self) -> BiasOptions:
        """The biases, written out."""
        if isinstance(self.bias, BiasOptions):
            return self.bias
        return BiasOptions(qkv=self.bias, output=self.bias, mlp=self.bias, norm=self.bias)

    @property
    def causal(self) -> bool:
        """Whether a position sees only itself and those before it."""
        return self.attention != "bidirectional"

    @property
    def rotary_base(self) -> float:
        """Base of the rotary wavelengths, the default filled in."""
        given = self.rope_base if self.rotary is None or self.rotary.base is None else self.rotary.base
        return 10000.0 if given is None else given

    @property
    def ff_features(self) -> int:
        """Hidden features of the MLP, the default filled in."""
        if self.ff is not None:
            return self.ff
        return 8 * ceil(self.width / 3) if self.mlp in MLPS[:GATED_MLPS] else 4 * self.width

    def written_out(self) -> DecoderOptions:
        """The same rack with every size, norm and bias that is left to a default written out."""
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        return evolve(self, head_size=self.head_features, kv_heads=kv_heads, ff=self.ff_features, norm=self.norms, bias=self.biases)

    @property
    def residual_std(self) -> float:
        """Standard deviation at which residual outputs start (GPT-2, section 2.3: 1/sqrt(N) with N = 2L residual layers)."""
        if self.depth_for_init == "none":
            return self.init_std
        depth = self.blocks if self.depth_for_init == "current" else int(self.depth_for_init)
        return float(self.init_std / (2 * depth) ** 0.5)

    @property
    def residual_outputs(self) -> tuple[str, ...]:
        """Parameters of a block that make it the identity at zero: those a branch ends with; none where a norm stands on the sum."""
        norms, biases = self.norms, self.biases
        if norms.at == "post":
            return ()
        if norms.at != "pre" and norms.gain == "plain":
            ends = ("attention_norm", "mlp_norm") if norms.at == "output" else ("attention_output_norm", "mlp_output_norm")
            kinds = ("weight", "bias") if norms.kind == "layernorm" and biases.norm else ("weight",)
            return tuple(f"{place}.{kind}" for place in ends for kind in kinds)
        experts = range(self.experts.count) if self.experts is not None else ()
        downs = [f"mlp.experts.{e}.down" for e in experts] or ["mlp.down"]
        outputs = {"attention.output": biases.output, **dict.fromkeys(downs, biases.mlp)}
        return tuple(f"{place}.{kind}" for place, has_bias in outputs.items() for kind in ("weight", "bias")[: 1 + has_bias])

    def to_spec(self) -> RackSpec:
        """Hidden state in and out; positions, segments and mask may be given, a prefix where attention knows one, and to experts what
        they count."""
        side = {
            "positions": TensorSpec("batch time", "integer"),
            "segments": TensorSpec("batch time", "integer"),
            "mask": TensorSpec("batch time", "bool"),
        }
        if self.attention in (None, "prefix"):
            side["prefix"] = TensorSpec("batch", "integer")
        if self.experts is not None:
            side["routed"] = ROUTED
        return RackSpec(
            input=_HIDDEN,
            output=_HIDDEN,
            side=side,
            attention=("causal", "bidirectional", "prefix") if self.attention is None else (self.attention,),
            stacks={stack.name: stack.blocks for stack in self.stacks},
            residual_outputs=self.residual_outputs,
            losses=self.experts.losses if self.experts is not None else (),
            metrics=self.experts.metrics if self.experts is not None else (),
        )


@frozen(kw_only=True)
class TransformOptions:
    """What stands between the hidden state and the output matrix: a map of the width, an activation and a layer norm (BERT)."""

    activation: Literal["gelu", "gelu-tanh", "relu", "silu"] = option(
        "gelu", doc="function of every entry after the map", choices=("gelu", "gelu-tanh", "relu", "silu")
    )
    bias: bool = option(True, doc="whether the map adds a bias")
    norm_bias: bool = option(True, doc="whether the layer norm adds a bias")
    eps: float = option(1e-12, doc="what the layer norm adds to the variance", minimum=0)


@frozen(kw_only=True)
class LMOptions:
    """Logits over the vocabulary."""

    vocab: int = dimension("vocab", doc="number of token ids; the embedding's when left out")
    width: int = dimension("width", doc="features of the hidden state; the rack's when left out")
    tied: bool = option(True, doc="whether the output matrix is the embedding's")
    bias: bool = option(False, doc="whether every logit has a bias, which starts at 0")
    cap: float | None = option(None, doc="logits z become cap · tanh(z / cap) (arXiv 2408.00118, section 2); as they are when left out")
    transform: TransformOptions | None = option(
        None, doc="a map, an activation and a norm before the output matrix: a map with activation, bias, norm_bias, eps"
    )
    init_std: float | None = option(
        None, doc="standard deviation an untied matrix starts from, 0.02 when left out; at 0 all tokens start equally likely", minimum=0
    )

    def __attrs_post_init__(self) -> None:
        if self.tied and self.init_std is not None:
            raise UserError(
                f"init_std: {self.init_std} has no effect on a tied head, whose matrix is the embedding's: leave it out or set tied: false"
            )
        if self.cap is not None and self.cap <= 0:
            raise UserError(f"cap: {self.cap:g} is not above 0: leave it out for logits without a cap")

    def to_spec(self) -> HeadSpec:
        """Hidden state in, logits out."""
        return HeadSpec(
            input=_HIDDEN,
            outputs={"logits": _LOGITS},
            ties={"weight": "embedding.weight"} if self.tied else {},
        )


@frozen(kw_only=True)
class CausalLMOptions:
    """Next-token prediction."""

    targets: Literal["response", "all"] | None = option(
        None,
        doc="of rows that begin with a prompt (`prefix`): whether the tokens after it are predicted, or all of them; "
        "the response alone when left out",
        choices=("response", "all"),
    )

    def to_spec(self) -> TaskSpec:
        """One entry beyond seq_len, causal attention; documents inside rows, padding and prompts where a loader marks them."""
        prompt = {"prefix": TensorSpec("batch", "int64")}
        chosen = self.targets is not None  # a choice that no loader gives cause for would have no effect: its field is needed
        return TaskSpec(
            batch={"tokens": _TOKENS, **(prompt if chosen else {})},
            optional={**_DOCUMENTS, "mask": _MASK, "loss_mask": _MASK, **({} if chosen else prompt)},
            inputs={"tokens": _TOKENS, **_DOCUMENTS, "routed": ROUTED},
            outputs={"logits": _LOGITS},
            linear_outputs=("logits",),
            attention="causal",
            lookahead=1,
            metrics=(bits_of(),),
        )
