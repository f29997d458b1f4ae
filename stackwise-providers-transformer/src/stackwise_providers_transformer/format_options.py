"""The options of formats."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from stackwise import option


@frozen(kw_only=True)
class HuggingFaceOptions:
    """Folders that transformers reads and writes."""

    pickle: bool = option(False, doc="whether weights that are there pickled only are read, as tensors alone (torch's weights_only)")
    file_bytes: int = option(5_000_000_000, doc="most bytes of a file that is written; a larger model is cut into shards", minimum=1)
    adapters: Literal["merged", "beside"] = option(
        "merged",
        doc="what becomes of adapters in files of peft: added to the base, or weight adapters of the run, which trains them on",
        choices=("merged", "beside"),
    )
    wrap: bool = option(
        False,
        doc="whether transformers itself computes the model (rack transformer.hf), also where its family is known here; families that are "
        "not known always are",
    )


@frozen(kw_only=True)
class StackWiseOptions:
    """State dicts and configs of stack-wise (2025)."""
