"""The options of the transforms."""

from __future__ import annotations

from attrs import frozen

from stackwise import TensorSpec, TransformSpec, option, scheduled


@frozen(kw_only=True)
class TokenNoiseOptions:
    """Entries replaced by random ids."""

    rate: float = scheduled(doc="probability with which each entry is replaced", minimum=0, maximum=1)
    field: str = option("tokens", doc="integer field that is changed")
    vocab: int | None = option(None, doc="ids are drawn below it; the bound that the source declares when left out", minimum=1)


@frozen(kw_only=True)
class TruncateOptions:
    """Rows shortened through their mask."""

    keep: float = scheduled(doc="share of each row's entries that is kept, from the left and at least one", minimum=0, maximum=1)
    field: str = option("tokens", doc="field whose rows are meant, where the batch has no mask yet")
    mask: str = option("mask", doc="bool field, true on real entries; made when it is missing")

    def to_spec(self) -> TransformSpec:
        """Adds the mask."""
        return TransformSpec(outputs={self.mask: TensorSpec("batch time", "bool")})


@frozen(kw_only=True)
class FeatureNoiseOptions:
    """Gaussian noise on numbers."""

    std: float = scheduled(doc="standard deviation of the noise, in the units of the features", minimum=0)
    field: str = option("features", doc="floating field that is changed")

    def to_spec(self) -> TransformSpec:
        """Needs the field, and changes its values alone."""
        return TransformSpec(inputs={self.field: TensorSpec("batch time features")})
