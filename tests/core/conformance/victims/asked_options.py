"""Options of what is asked once training is over. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from stackwise import Reading, TaskSpec, TensorSpec, option
from victims.sound_options import LoaderOptions

LINES = Path(__file__).with_name("levels.txt")


@frozen(kw_only=True)
class WritingOptions:
    ids: int = option(5, doc="number of ids", minimum=2)

    def to_spec(self) -> TaskSpec:
        tokens = {"tokens": TensorSpec("batch time", "int64", bounds=(0, self.ids))}
        return TaskSpec(batch=tokens, inputs=tokens, outputs={"logits": TensorSpec(("batch", "time", self.ids))}, lookahead=1)


@frozen(kw_only=True)
class Lines(LoaderOptions):
    """Reads rows of four levels from any file, too."""

    def readings(self, split: str, whole: bool) -> Iterable[Reading]:
        return [Reading(str(LINES))]

    def rows_of(self, file: str, rows: int) -> Iterator[Mapping[str, Any]]:
        import torch

        lines = [[float(word) for word in line.split()] for line in Path(file).read_text().splitlines()]
        for first in self.firsts(len(lines), rows):
            yield {"levels": torch.tensor(lines[first : first + rows])}

    def firsts(self, count: int, rows: int) -> range:
        return range(0, count, rows)

    def tell(self, predictions: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{name: self.plain(tensor[i]) for name, tensor in predictions.items()} for i in range(len(next(iter(predictions.values()))))]

    def plain(self, entry: Any) -> Any:
        return entry.tolist()


@frozen(kw_only=True)
class CutLines(Lines):
    """Leaves out the rest that fills no batch."""

    def firsts(self, count: int, rows: int) -> range:
        return range(0, count - count % min(rows, count), rows)


@frozen(kw_only=True)
class TensorLines(Lines):
    def plain(self, entry: Any) -> Any:
        return entry
