"""Previews as text: shapes, what the values are, how much is padding, and rows with everything that belongs to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby, repeat
from typing import Any

from stackwise.assembly.preview import Preview
from stackwise.contracts.generation import TextCodec
from stackwise.errors import StackwiseError
from stackwise.reports.terminal import table, wrap

PADDING = "real"
"""The field that says which entries are not padding."""
WIDTH = 100
"""Characters of a row's line."""


def preview_as_text(preview: Preview, rows: int, columns: int | None = None) -> str:
    """One phase.

    Args:
        preview: what the model gets.
        rows: how many rows of each source are shown.
        columns: room for a line; None: as much as it takes, rows cut at a width that can be read.
    """
    sources = ", ".join(f"{count} rows of {name}" for name, count in preview.rows.items())
    part = f", the first of {preview.of} micro-batches" if preview.of > 1 else ""
    head = f"phase {preview.phase}, step {preview.step:,}: {preview.task} gives the model this{part} ({sources})"
    fields = [["field", "dtype", "shape", "values", "left out"], *(_field(*each) for each in preview.batch.items())]
    lines = [wrap(head, columns), "", *table(fields, columns)]
    for index, source in _shown(preview, rows):
        lines += ["", f"row {index}" + (f" ({source})" if source else ""), *_row(preview, index, columns)]
    return "\n".join(lines)


def preview_as_json(preview: Preview, rows: int) -> dict[str, Any]:
    """The same for scripts: every field's shape and statistics, and the rows as numbers and text."""
    fields = {
        name: dict(zip(("dtype", "shape", "values", "left_out"), _field(name, value)[1:], strict=True))
        for name, value in preview.batch.items()
    }
    shown = [
        {
            "row": index,
            "source": source,
            "fields": {name: value[index].tolist() for name, value in preview.batch.items() if value.dim()},
            "text": {name: _decoded(preview, value[index].tolist()) for name, value in _coded(preview)},
        }
        for index, source in _shown(preview, rows)
    ]
    return {"phase": preview.phase, "step": preview.step, "task": preview.task, "sources": preview.rows, "fields": fields, "rows": shown}


def _field(name: str, value: Any) -> list[str]:
    """Name, dtype, shape, values, and the share that is padding or no target."""
    dtype, shape = str(value.dtype).removeprefix("torch."), str(list(value.shape))
    if not value.numel():
        return [name, dtype, shape, "none", ""]
    if dtype == "bool":
        share = 1.0 - float(value.double().mean())
        return [name, dtype, shape, f"{1 - share:.1%} true", f"{share:.1%} padding" if name == PADDING else ""]
    if value.is_floating_point():
        return [name, dtype, shape, f"{float(value.min()):.4g} to {float(value.max()):.4g}, mean {float(value.mean()):.4g}", ""]
    negative = value < 0
    rest = value[~negative]
    values = f"{len(rest.unique()):,} different, {int(rest.min())} to {int(rest.max())}" if rest.numel() else "none"
    return [name, dtype, shape, values, f"{float(negative.double().mean()):.1%} no target" if bool(negative.any()) else ""]


def _shown(preview: Preview, rows: int) -> Iterator[tuple[int, str]]:
    """Rows to show, with their source; without it where rows of a step are spread over micro-batches or transforms changed their number."""
    count = next((len(value) for value in preview.batch.values() if value.dim()), 0)
    known = preview.of == 1 and sum(preview.rows.values()) == count
    owners = list(chain.from_iterable(repeat(name, number) for name, number in preview.rows.items())) if known else []
    if len(preview.rows) == 1:
        owners = [next(iter(preview.rows))] * count
    seen: dict[str, int] = {}
    for index in range(count):
        source = owners[index] if owners else ""
        seen[source] = seen.get(source, 0) + 1
        if seen[source] <= rows:
            yield index, source


def _coded(preview: Preview) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in preview.batch.items() if preview.codec and name in preview.coded and value.dim() == 2]


def _row(preview: Preview, index: int, columns: int | None) -> list[str]:
    coded = dict(_coded(preview))
    width = max(len(name) for name in preview.batch)
    room = WIDTH if columns is None else columns - width - 4
    lines = []
    for name, value in preview.batch.items():
        if not value.dim():
            continue
        row = value[index].tolist()
        text = repr(_decoded(preview, row)) if name in coded else _numbers(row)
        lines.append(f"  {name.ljust(width)}  {text if len(text) <= room else text[: room - 1] + '…'}")
    return lines


def _decoded(preview: Preview, ids: Sequence[int]) -> str:
    """The text of a row; an entry without a target is a dot, an id that stands for no text (a mask) is in angle brackets."""
    assert preview.codec is not None
    words = {each: _is_text(preview.codec, each) for each in set(ids) if each >= 0}
    text = ""
    for told, group in groupby(ids, key=lambda each: words.get(each, False)):
        run = list(group)
        text += preview.codec.decode(run) if told else "".join("·" if each < 0 else f"⟨{each}⟩" for each in run)
    return text


def _is_text(codec: TextCodec, id: int) -> bool:
    try:
        return bool(codec.decode([id]))
    except (ArithmeticError, LookupError, ValueError, StackwiseError):  # beyond the vocabulary
        return False


def _numbers(value: Any) -> str:
    """Numbers in a line; what repeats is counted."""
    if not isinstance(value, list):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    words: list[tuple[str, int]] = []
    for entry in value:
        word = _numbers(entry) if not isinstance(entry, list) else f"[{_numbers(entry)}]"
        words = [*words[:-1], (word, words[-1][1] + 1)] if words and words[-1][0] == word else [*words, (word, 1)]
        if sum(len(word) for word, _ in words) > 2 * WIDTH:
            break
    return " ".join(word if count == 1 else f"{word}×{count}" for word, count in words)
