"""Options in a module that imports torch, as they should not be."""

from __future__ import annotations

import torch
from attrs import frozen

from stackwise import option


@frozen(kw_only=True)
class Hot:
    gain: float = option(float(torch.ones(()).item()), doc="factor on every level")
