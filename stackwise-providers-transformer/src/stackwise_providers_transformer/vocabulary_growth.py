"""More token ids: new rows of the embedding and of the head, tied or not.

The old rows stay as they are, and so do the logits of the old tokens; their probabilities do not, because the new tokens take a part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from stackwise import BuildContext, CopyOf, GrowthRequest
from stackwise_providers_transformer.axes import Axis, Shapes, map_axes
from stackwise_providers_transformer.depth_growth import BlockMap, kept_blocks
from stackwise_providers_transformer.growth_options import VocabularyOptions

_TABLES = ("embedding.weight", "head.weight")


class VocabularyGrowth:
    """New rows in a `transformer.token` embedding and a `transformer.lm` head.

    Args:
        rows: `fresh`, as the modules draw them, `zeros`, or `mean`, the mean of all old rows. With means (and no bias) the new tokens take
            at most m/(n + m) of the probability, m new ones beside n: their logit is the mean of the old ones, and the exponential
            of a mean is at most the mean of the exponentials.
    """

    preserves_function = False

    def __init__(self, rows: Literal["fresh", "zeros", "mean"]) -> None:
        self._rest: Literal["module", "zeros", "mean"] = "module" if rows == "fresh" else rows

    def map_blocks(self, request: GrowthRequest) -> BlockMap:
        """Every block from its own place.

        Raises:
            ValueError: a block is new.
        """
        return kept_blocks("vocabulary", request)

    def map_parameters(self, old: Shapes, new: Shapes, request: GrowthRequest) -> Mapping[str, CopyOf]:
        """The maps of the tables.

        Raises:
            ValueError: the vocabulary does not grow, or something else does too.
        """

        def axes_of(name: str) -> dict[int, Axis]:
            if name not in _TABLES or old[name][0] == new[name][0]:
                return {}
            before, after = old[name][0], new[name][0]
            if after < before:
                raise ValueError(
                    f"'vocabulary' adds token ids, and {name} would go from {before} to {after}: set 'vocab' to {before} or more"
                )
            index = (*range(before), *(-1 for _ in range(after - before)))
            return {0: Axis(index, rest=self._rest)}

        origins = map_axes("vocabulary", "add token ids to embedding and head", old, new, axes_of)
        if not origins:
            raise ValueError("'vocabulary' has nothing to do: set 'vocab' of the embedding above what it was, or leave the operator out")
        return origins


def build_vocabulary(options: VocabularyOptions, context: BuildContext) -> VocabularyGrowth:
    """The factory of `vocabulary`."""
    return VocabularyGrowth(options.rows)
