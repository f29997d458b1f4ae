"""What the core and its providers agree on. Authors import its names from the face `stackwise`; the modules here are private."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if not TYPE_CHECKING:  # type checkers see no name here

    def __getattr__(name: str) -> Any:
        """A name of the face that belongs to this room: until 0.2 it can still be imported from here, with a warning."""
        import warnings

        import stackwise

        if not stackwise._FACE.get(name, "").startswith(f"{__name__}."):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        warnings.warn(f"{__name__}.{name} goes with 0.2: write `from stackwise import {name}`", FutureWarning, stacklevel=2)
        return getattr(stackwise, name)
