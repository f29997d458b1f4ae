"""What this distribution offers."""

from __future__ import annotations

from pathlib import Path

from stackwise import Component, hookimpl

_PACKAGE = "stackwise_providers_data"


@hookimpl
def stackwise_loaders() -> list[Component]:
    """Two byte corpora, and whatever lies in memory."""
    return [
        Component(
            name="python-stdlib",
            options=f"{_PACKAGE}.options:StdlibOptions",
            factory=f"{_PACKAGE}.byte_corpora:build_python_stdlib",
            summary="the standard library's own sources as bytes, read where they lie",
        ),
        Component(
            name="text-files",
            options=f"{_PACKAGE}.options:TextFilesOptions",
            factory=f"{_PACKAGE}.byte_corpora:build_text_files",
            summary="files found by globs, as bytes",
            example={"paths": [str(Path(__file__).with_name("*.py"))], "heldout": 0.4},
        ),
        Component(
            name="memory",
            options=f"{_PACKAGE}.options:MemoryOptions",
            factory=f"{_PACKAGE}.memory:build_memory",
            summary="arrays that are already there: one stream of token ids, or rows of several fields",
            example={"arrays": {"tokens": [0, 1, 2, 3] * 128}, "vocab": 4, "heldout": 0.25},
        ),
    ]
