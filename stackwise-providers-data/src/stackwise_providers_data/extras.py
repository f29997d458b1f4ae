"""Libraries that only some components need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from stackwise import UserError


def require(module: str, extra: str, asker: str) -> Any:
    """Import a library of an extra.

    Args:
        module: what to import.
        extra: the extra of this distribution that brings it.
        asker: the option or component that needs it, for the message.

    Raises:
        UserError: it is not installed, or misses something itself.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"{asker} needs the library '{module}' ({error}): pip install stackwise-providers-data[{extra}]") from error
