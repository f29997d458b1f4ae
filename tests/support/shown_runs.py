"""Tiny runs on disk to be shown: two phases, growth, evaluations, a checkpoint that is best, everything written by a real run."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import stackwise

CONFIG = """\
run: {{name: shown, horizon: {steps} steps, seed: {seed}, device: cpu, checkpoint: {{every: 25%, keep_last: 9, best: held.loss}}}}
task: {{use: transformer.causal-lm}}
data:
  sources: {{a: {{use: data.memory, arrays: {{tokens: {tokens}}}, heldout: 0.3}}}}
  batch_size: 2
  seq_len: 4
model:
  embedding: {{use: transformer.token, vocab: 8}}
  rack: {{use: transformer.decoder, width: 8, heads: 2, stacks: [{{base: 1}}]}}
  head: {{use: transformer.lm}}
optimizer: {{use: optim.adamw, lr: {{wsd: {{peak: {lr}, warmup: 25%, decay: 25%}}}}}}
evaluate: {{held: {{every: 25%, batches: 2}}}}
phases:
  small: {{until: 50%}}
  grown: {{model: {{rack: {{stacks: [{{base: 3}}]}}}}, enter: {{growth: {{use: transformer.stack}}}}}}
"""


def make_run(folder: Path, name: str = "run", *, seed: int = 3, lr: float = 1e-2, steps: int = 24) -> Path:
    """Train it, in this process."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f"{name}.yaml"
    tokens = [(i * i + 3 * i) % 8 for i in range(240)]
    config.write_text(CONFIG.format(seed=seed, lr=lr, steps=steps, tokens=tokens))
    with (folder / "progress.txt").open("w") as stream:
        return stackwise.run(config, output=folder / name, stream=stream).directory


HOSTILE = "</script x><script>alert(1)</script><img src=x onerror=\"alert('2')\">&lt;b&gt;"


def make_hostile(run: Path, folder: Path) -> Path:
    """A copy of a run whose directory, phase, evaluation and growth operator have names that would be elements if they could."""
    hostile = folder / "\"><script>alert('x')<"
    shutil.copytree(run, hostile)
    for name in ("events.jsonl", "metrics.jsonl", "plan.json", "config.yaml"):
        text = (hostile / name).read_text()
        quoted = json.dumps(HOSTILE) if name != "config.yaml" else "'" + HOSTILE.replace("'", "''") + "'"
        for word in ("held", "grown", "transformer.stack"):
            text = text.replace(f'"{word}"', quoted) if name != "config.yaml" else text.replace(f" {word}:", f" {quoted}:")
        (hostile / name).write_text(text)
    return hostile


def log(run: Path, name: str) -> list[dict[str, Any]]:
    """The lines of one of its logs."""
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


class Page(HTMLParser):
    """A page taken apart by the standard library's parser."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.tables: list[list[list[str]]] = []
        self._inside, self._cell = "", False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else self._inside
        self._cell = self._cell or tag in ("td", "th")
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside, self._cell = "", self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
            return
        self.texts.append(data)
        if self._cell:
            self.tables[-1][-1][-1] += data

    @property
    def data(self) -> dict[str, Any]:
        """What the pictures draw."""
        content: dict[str, Any] = json.loads(next(text for attributes, text in self.scripts if attributes.get("id") == "data"))
        return content
