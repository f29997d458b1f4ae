"""Options in a module that takes its time."""

from __future__ import annotations

import time

from attrs import frozen

from stackwise import option

_start = time.process_time()
while time.process_time() - _start < 0.4:
    pass


@frozen(kw_only=True)
class Slow:
    gain: float = option(1.0, doc="factor on every level")
