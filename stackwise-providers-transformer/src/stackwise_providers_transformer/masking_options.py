"""The options of the tasks that hide tokens behind a mask symbol."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from stackwise import Beyond, TaskSpec, TensorSpec, UnitMetric, UserError, dimension, option, scheduled
from stackwise_providers_transformer.token_units import bits_of

_SEEN = TensorSpec("batch time", "int64", bounds=(0, "symbols"))
_SHOWN = TensorSpec("batch time", "int64", bounds=(0, "vocab"))
_INTEGERS = TensorSpec("batch time", "int64")
_HANDED_ON = {"segments": _INTEGERS, "positions": _INTEGERS, "mask": TensorSpec("batch time", "bool")}
_LOGITS = TensorSpec("batch time vocab")


@frozen(kw_only=True)
class MaskingOptions:
    """The mask symbol."""

    symbols: int = dimension("symbols", doc="number of the loader's ids, which are 0, 1, 2, …; the loader's bound when left out")
    mask_token: int | None = option(
        None, doc="id of the mask symbol; when left out the first beyond the loader's ids, so that the vocabulary grows by one", minimum=0
    )

    @property
    def mask_id(self) -> int:
        """Id of the mask symbol, the default filled in."""
        return self.symbols if self.mask_token is None else self.mask_token

    def spec(self, *metrics: str | UnitMetric, **optional: TensorSpec) -> TaskSpec:
        """Bidirectional attention, and room for the mask symbol beside the loader's ids."""
        beyond: tuple[Beyond, ...] = (Beyond("vocab", "symbols", 1),)
        if self.mask_token is not None:
            beyond = (Beyond("vocab", "symbols", 0), Beyond("vocab", self.mask_token, 1))
        return TaskSpec(
            batch={"tokens": _SEEN},
            optional={**_HANDED_ON, **optional},
            inputs={"tokens": _SHOWN, **_HANDED_ON},
            outputs={"logits": _LOGITS},
            linear_outputs=("logits",),
            attention="bidirectional",
            beyond=beyond,
            metrics=metrics,
        )


@frozen(kw_only=True)
class MaskedLMOptions(MaskingOptions):
    """Masked language modelling."""

    rate: float = scheduled(0.15, doc="share of the tokens that are chosen to be predicted", minimum=0.001, maximum=1)
    masked: float = option(0.8, doc="share of the chosen tokens that show the mask symbol", minimum=0, maximum=1)
    random: float = option(0.1, doc="share of the chosen tokens that show a random one; the rest show themselves", minimum=0, maximum=1)
    whole_words: bool = option(
        False,
        doc="whether all tokens of a word are chosen together: the loader's `words`, or of bytes runs of letters and digits",
    )
    special: tuple[int, ...] = option((), doc="ids that are never chosen and never drawn, such as separators")

    def __attrs_post_init__(self) -> None:
        if self.masked + self.random > 1 + 1e-9:
            raise UserError(f"random: shares of {self.masked:g} masked and {self.random:g} random make more than the whole: lower one")

    def to_spec(self) -> TaskSpec:
        """As `MaskingOptions.spec`; words may come with the tokens."""
        words = {"words": _INTEGERS} if self.whole_words else {}
        return self.spec("accuracy", "loss_on_masks", **words)


@frozen(kw_only=True)
class MaskDiffusionOptions(MaskingOptions):
    """Masked discrete diffusion."""

    noise: Literal["log-linear", "cosine"] = option(
        "log-linear", doc="how the share of masked tokens rises with diffusion time", choices=("log-linear", "cosine")
    )

    def to_spec(self) -> TaskSpec:
        """As `MaskingOptions.spec`."""
        return self.spec(bits_of(), "accuracy_on_masks")
