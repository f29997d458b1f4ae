"""The options of models that the library transformers computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from attrs import frozen

from stackwise import HeadSpec, RackSpec, Stack, TensorSpec, UserError, dimension, option, stacks

_MASK = TensorSpec("batch time", "bool")
_SIDE = {"positions": TensorSpec("batch time", "integer"), "mask": _MASK}
_SEGMENTS = TensorSpec("batch time", "int64")
_CONFIG = "fields of the model's config.json, model_type among them and the number of blocks not, as transformers reads them"


def _check_type(config: Mapping[str, Any]) -> None:
    if not isinstance(config.get("model_type"), str):
        raise UserError("config: has no model_type, which says whose model it is: write {model_type: starcoder2, …}")


@frozen(kw_only=True)
class WrappedRackOptions:
    """The blocks of any model of transformers, computed by transformers."""

    config: Mapping[str, Any] = option(doc=_CONFIG)
    width: int = dimension("width", doc="features at each position after the last block")
    inputs: int | None = option(None, doc="features of an embedded token, where they are not the width", minimum=1)
    stacks: tuple[Stack, ...] = stacks(doc="the blocks, as one stack of any name: [{base: 4}]")
    blocks: str = option(doc="attribute of the base model that is the list of blocks, as layers or encoder.layer")
    residual_outputs: tuple[str, ...] = option(
        (),
        doc="parameters that a block's branches end with, for operators that ask: [self_attn.o_proj.weight, mlp.down_proj.weight]",
    )
    attention: Literal["causal", "bidirectional"] = option(
        "causal", doc="what a position sees, which the family decides", choices=("causal", "bidirectional")
    )
    side: tuple[Literal["positions", "mask"], ...] = option(
        ("positions", "mask"), doc="side inputs that the model takes, as position_ids and attention_mask"
    )
    balance: bool = option(
        False,
        doc="whether the load balance of experts is a loss, rack.balance, as transformers computes it; task.auxiliary weighs it",
    )

    def __attrs_post_init__(self) -> None:
        _check_type(self.config)
        if len(self.stacks) != 1:
            raise UserError(f"stacks: {len(self.stacks)} of them, and the blocks of such a model are one list: give one, as [{{base: 4}}]")

    def to_spec(self) -> RackSpec:
        """Hidden state in and out; the list of blocks is the stack."""
        return RackSpec(
            input=TensorSpec(("batch", "time", self.inputs or "width")),
            output=TensorSpec("batch time width"),
            side={**{name: _SIDE[name] for name in self.side}, "segments": _SEGMENTS},
            attention=(self.attention,),
            stacks={stack.name: stack.blocks for stack in self.stacks},
            residual_outputs=self.residual_outputs,
            block_path=f"model.{self.blocks}.{{index}}",
            losses=("balance",) if self.balance else (),
        )


@frozen(kw_only=True)
class WrappedHeadOptions:
    """What a model of transformers makes of its last hidden state, computed by transformers."""

    config: Mapping[str, Any] = option(doc=_CONFIG)
    vocab: int = dimension("vocab", doc="number of token ids; the embedding's when left out")
    width: int = dimension("width", doc="features of the hidden state; the rack's when left out")
    auto: Literal["causal-lm", "masked-lm"] = option(
        "causal-lm", doc="the class of transformers: AutoModelForCausalLM or AutoModelForMaskedLM", choices=("causal-lm", "masked-lm")
    )
    tied: str | None = option(None, doc="the head's parameter that is the embedding's matrix (lm_head.weight); none when left out")

    def __attrs_post_init__(self) -> None:
        _check_type(self.config)

    def to_spec(self) -> HeadSpec:
        """Hidden state in, logits out."""
        return HeadSpec(
            input=TensorSpec("batch time width"),
            outputs={"logits": TensorSpec("batch time vocab")},
            ties={f"model.{self.tied}": "embedding.weight"} if self.tied else {},
        )


@frozen(kw_only=True)
class WrappedClassifierOptions:
    """What a model of transformers that classifies makes of its last hidden state, computed by transformers."""

    config: Mapping[str, Any] = option(doc=f"{_CONFIG}; its id2label has as many entries as there are classes")
    classes: int = dimension("classes", doc="number of classes; the loader's when left out and it says one")
    width: int = dimension("width", doc="features of the hidden state; the rack's when left out")
    each: Literal["row", "token"] = option(
        "row",
        doc="what has a class: every row (AutoModelForSequenceClassification) or every position (AutoModelForTokenClassification)",
        choices=("row", "token"),
    )

    def __attrs_post_init__(self) -> None:
        _check_type(self.config)

    @property
    def auto(self) -> str:
        """The class of transformers."""
        return "sequence-classification" if self.each == "row" else "token-classification"

    def to_spec(self) -> HeadSpec:
        """Hidden state in, logits of each row or position out; a mask says which positions count."""
        logits = TensorSpec("batch classes" if self.each == "row" else "batch time classes")
        return HeadSpec(input=TensorSpec("batch time width"), outputs={"logits": logits}, side={"mask": _MASK})
