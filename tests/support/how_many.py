"""How many examples a test draws."""

from __future__ import annotations

from hypothesis import settings


def examples(count: int) -> int:
    """`count` where the rare tests run too, a third of them in `make test` (but five at least): tests/conftest.py says which."""
    return max(min(count, 5), count * settings.default.max_examples // 30)
