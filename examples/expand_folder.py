"""A pretrained folder made deeper, and trained in three phases: as it is, its new blocks alone, all of it (LLaMA-Pro, arXiv 2401.02415).

python examples/expand_folder.py FOLDER OUT [--every 4] [--horizon "3000 steps"] [--text "*.txt"]

FOLDER holds a model of transformers and its tokenizer.json; OUT will hold the deeper one. Files between the two stay in the working
directory: `model.yaml` (the section of the folder), `expand.yaml` (the run) and `runs/`.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import yaml


def stackwise(*arguments: str) -> None:
    """One command of the command line."""
    subprocess.run(["stackwise", *arguments], check=True)


def deeper(blocks: int, every: int) -> tuple[list[str], list[str]]:
    """The map of the deeper stack, and selectors of its old blocks."""
    entries: list[str] = []
    old: list[str] = []
    for first in range(0, blocks, every):
        last = min(first + every, blocks) - 1
        place = first + len(entries) // 2
        entries += [f"{first}-{last}", "identity"]
        old.append(f"rack.stacks.base.{place}-{place + last - first}")
    return entries, old


def main() -> None:
    """Read, expand, train, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--every", type=int, default=4, help="old blocks before each new one")
    parser.add_argument("--horizon", default="3000 steps")
    parser.add_argument("--text", default="*.txt", help="glob of text files")
    parser.add_argument("--seq-len", type=int, default=512)
    asked = parser.parse_args()
    stackwise("init", "--from", str(asked.folder), "--output", "model.yaml")
    model = yaml.safe_load(Path("model.yaml").read_text(encoding="utf-8"))["model"]
    ((stack, blocks),) = model["rack"]["stacks"][0].items()
    entries, old = deeper(blocks, asked.every)
    frozen = ["embedding", "rack.norm", *old, *([] if model["head"]["tied"] else ["head"])]
    grown = {"stacks": [{stack: blocks + len(entries) // 2}]}
    source = {"use": "data.text-files", "paths": [asked.text], "tokenizer": {"file": str(asked.folder / "tokenizer.json")}}
    config = {
        "extends": "model.yaml",
        "run": {"name": "expand", "horizon": asked.horizon},
        "task": {"use": "transformer.causal-lm"},
        "data": {"sources": {"text": source}, "batch_size": 4, "seq_len": asked.seq_len},
        "optimizer": {"use": "optim.adamw", "lr": {"wsd": {"peak": 2e-4, "warmup": "2%", "decay": "20%"}}},
        "phases": {
            "before": {"until": "5%"},
            "new": {
                "until": "70%",
                "model": {"rack": grown, "freeze": frozen},
                "enter": {"growth": {"use": "transformer.blocks", "map": {stack: entries}}},
            },
            "all": {"until": "100%", "model": {"freeze": []}},
        },
    }
    Path("expand.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    stackwise("run", "expand.yaml", "--output", "runs/expand")
    stackwise("export", "runs/expand", str(asked.out), "--format", "hf")


if __name__ == "__main__":
    main()
