"""Config files that `stackwise init` writes: each can be trained as it is, on sample data if it needs any."""

from __future__ import annotations

import csv
import io
import json
import random

import numpy as np

TEXT = """\
# A small language model on text, whose depth doubles on the way.
run: {name: text, seed: 7, horizon: 600 steps, device: auto}
task: {use: transformer.causal-lm}
data:
  sources:
    text: {use: data.python-stdlib}  # the source code of Python itself; your own files:
    # text: {use: data.text-files, paths: ["texts/**/*.txt"], heldout: 0.1}
  batch_size: 16   # rows of a step
  seq_len: 128     # tokens of a row; without `tokenizer` a token is a byte
model:
  embedding: {use: transformer.token}
  rack: {use: transformer.decoder, width: 128, heads: 4, stacks: [{base: 2}]}
  head: {use: transformer.lm}
optimizer: {use: optim.adamw, lr: {wsd: {peak: 2e-3, warmup: 3%, decay: 20%}}, weight_decay: 0.1, clip: 1.0}
evaluate: {heldout: {every: 20%, batches: 8}}  # of rows that training never sees
phases:
  shallow: {until: 50%}
  deep:  # the new blocks are copies of the old ones
    until: 100%
    model: {rack: {stacks: [{base: 4}]}}
    enter: {growth: {use: transformer.stack}}
"""

CHAT = """\
# A small model that learns what the assistant says in conversations.
run: {name: chat, seed: 7, horizon: 400 steps, device: auto}
task: {use: transformer.causal-lm}
data:
  sources:
    # One conversation a line: {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    chat: {use: data.jsonl, paths: ["chat.jsonl"], messages: messages, template: chatml, rows: packed, heldout: 0.1}
  batch_size: 8
  seq_len: 256
model:
  embedding: {use: transformer.token}
  rack: {use: transformer.decoder, width: 128, heads: 4, stacks: [{base: 3}]}
  head: {use: transformer.lm}
optimizer: {use: optim.adamw, lr: {wsd: {peak: 2e-3, warmup: 3%, decay: 30%}}, weight_decay: 0.1, clip: 1.0}
evaluate: {heldout: {every: 25%, batches: 2}}
# Afterwards: stackwise generate runs/chat-001 --prompt "…"
"""

FINETUNE = """\
# A trained model learns conversations through low-rank adapters; its own weights stay as they are.
run: {name: finetune, seed: 7, horizon: 200 steps, device: auto}
task: {use: transformer.causal-lm}
data:
  sources:
    chat:
      use: data.jsonl
      paths: ["chat.jsonl"]      # one conversation a line; for plain text: data.text-files
      messages: messages
      template: chatml           # leave it out where the folder brings a chat template of its own: the run says so
      tokenizer: {file: "FOLDER"}
      rows: packed
      heldout: 0.1
  batch_size: 4
  seq_len: 256
optimizer: {use: optim.adamw, lr: {linear: {from: 5e-4, to: 0}}, clip: 1.0}
evaluate: {heldout: {every: 25%, batches: 2}}
phases:
  adapters:
    until: 100%
    model:
      freeze: [embedding, rack, head]
      weight_adapters: {style: {use: transformer.lora, select: ["*.attention.*", "*.mlp.*"], rank: 8}}
# Afterwards: stackwise export runs/finetune-001 adapters --format hf
"""

IMAGES = """\
# Small images are classified, seen in square patches.
run: {name: images, seed: 7, horizon: 300 steps, device: auto}
task: {use: transformer.classification, input: image}
data:
  sources:
    # Arrays `image` [rows, height, width, channels] from 0 to 1 and `label` [rows], as numpy.savez writes them.
    images: {use: data.array-files, files: {image: "images.npz:image", label: "images.npz:label"}, heldout: 0.2}
  transforms: [{use: data.feature-noise, field: image, std: 0.1}]  # of training alone
  batch_size: 32
model:
  embedding: {use: transformer.patch, patch: 2}
  rack: {use: transformer.decoder, width: 64, heads: 4, stacks: [{base: 2}], dropout: 0.1}
  head: {use: transformer.classifier, classes: 3}
optimizer: {use: optim.adamw, lr: {wsd: {peak: 2e-3, warmup: 5%, decay: 40%}}, weight_decay: 0.1}
evaluate: {heldout: {every: 20%, batches: 1, batch_size: 80}}
"""

TABLE = """\
# A number of each row of a table, from numbers and a category.
run: {name: table, seed: 7, horizon: 300 steps, device: auto}
task: {use: transformer.regression}  # or transformer.classification, and `label` with `classes` in place of `target`
data:
  sources:
    table:
      use: data.csv  # or data.parquet
      paths: ["table.csv"]
      numbers: [size, age]
      categories: {town: 3}  # at most so many values, or their list
      target: [price]
      heldout: 0.2
  batch_size: 32
model:
  embedding: {use: transformer.features}
  rack: {use: transformer.mlp, width: 32, stacks: [{base: 2}]}
  head: {use: transformer.regression}
optimizer: {use: optim.adamw, lr: {wsd: {peak: 3e-3, warmup: 5%, decay: 40%}}, weight_decay: 0.1}
evaluate: {heldout: {every: 20%, batches: 2, batch_size: 50}}
"""

CODE = '''\
"""A module of your own, a DataLoader and a loss; the module grows on the way."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import stackwise
from stackwise import Built, Loss, Phase


class Net(nn.Module):
    """Any module; `depth` is an option of its constructor, so that a phase can change it."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.inlet, self.outlet = nn.Linear(2, width), nn.Linear(width, 2)
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(depth)))

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """[batch, 2] to scores of two classes."""
        return self.outlet(self.layers(self.inlet(points)))


def main() -> None:
    """Train, and say where the files are."""
    points = torch.randn(1024, 2, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(points, (points.prod(dim=1) > 0).long()), batch_size=32, shuffle=True)
    experiment = stackwise.experiment(
        run={"name": "code", "seed": 1, "horizon": "4 epochs"},
        task=Loss(nn.CrossEntropyLoss(), "labels"),
        data={"sources": {"points": loader}, "fields": ["points", "labels"]},
        model={"module": Built(Net, width=16, depth=2), "blocks": {"layers": "depth"}},
        optimizer=Built(torch.optim.AdamW, lr=3e-3),
        phases=[
            Phase("shallow", until="50%"),
            Phase("deep", model={"module": {"depth": 4}}, enter={"growth": {"use": "transformer.stack"}}),
        ],
    )
    print(stackwise.run(experiment).directory)


if __name__ == "__main__":
    main()
'''


def _conversations(count: int = 200) -> str:
    """Sums of two numbers, asked and answered."""
    draw, lines = random.Random(0), []
    for _ in range(count):
        a, b = draw.randrange(20), draw.randrange(20)
        turns = [("user", f"What is {a} + {b}?"), ("assistant", f"{a} + {b} = {a + b}.")]
        lines.append(json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}) + "\n")
    return "".join(lines)


def _images(count: int = 400) -> bytes:
    """Noisy images of 8 by 8 pixels with a horizontal bar, a vertical one, or both."""
    draw = np.random.default_rng(0)
    image, label = draw.uniform(0, 0.5, (count, 8, 8, 1)).astype(np.float32), draw.integers(3, size=count)
    for row, shape, (y, x) in zip(image, label, draw.integers(1, 7, (count, 2)), strict=True):
        if shape != 1:
            row[y, :] += 0.5
        if shape != 0:
            row[:, x] += 0.5
    file = io.BytesIO()
    np.savez(file, image=np.minimum(image, 1.0), label=label)
    return file.getvalue()


def _homes(count: int = 500) -> str:
    """Prices of homes that nobody lives in."""
    draw, file = random.Random(0), io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["size", "age", "town", "price"])
    for _ in range(count):
        size, age, town = draw.uniform(30, 200), draw.randrange(100), draw.choice(["hill", "lake", "field"])
        price = 2.0 * size * {"hill": 1.2, "lake": 1.5, "field": 1.0}[town] - age + draw.gauss(0, 5)
        rows.writerow([f"{size:.1f}", age, town, f"{price:.1f}"])
    return file.getvalue()


CHAT_LINES, IMAGE_ARRAYS, TABLE_ROWS = _conversations(), _images(), _homes()
