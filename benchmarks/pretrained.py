"""What reading a folder costs: time against safetensors plus one copy, and memory beside that of the model.

About 200 MB in float32 by default. Each case runs in a process of its own, in turns; the figures are minima of CPU seconds, and the growth
of anonymous memory over that of the model alone. Run: python benchmarks/pretrained.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import process_time

import torch
from safetensors.torch import load_file

from stackwise import BuildContext, Model, discover
from stackwise.assembly.start import read_folder
from stackwise.assembly.stored import build_stored
from stackwise.planes.model.plane import ModelPlane  # noqa: F401  # imported before anything is measured
from stackwise.planes.model.start import check_start, fill_start
from stackwise.planes.model.transfer import origins
from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.embedding import TokenEmbedding
from stackwise_providers_transformer.format_options import HuggingFaceOptions
from stackwise_providers_transformer.head import LMHead
from stackwise_providers_transformer.hugging_face.format import build_hugging_face
from stackwise_providers_transformer.options import DecoderOptions, LMOptions, TokenOptions

MB = 2**20


def make(folder: Path, width: int, blocks: int) -> None:
    """A folder of a Llama."""
    rack = DecoderOptions(width=width, heads=width // 64, ff=3 * width, stacks=[{"base": blocks}])
    model = Model(TokenEmbedding(TokenOptions(vocab=8000, width=width)), Decoder(rack), LMHead(LMOptions(vocab=8000, width=width)))
    model.wire()
    build_hugging_face(HuggingFaceOptions(), BuildContext(seed=0)).write(model, folder, None, {})


def anonymous() -> int:
    """Anonymous memory of this process, in bytes; pages of a mapped file are not in it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def peak() -> int:
    """Largest resident memory so far, in bytes, mapped files included."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def ours(folder: Path) -> dict[str, float]:
    """Read into a model that is there, as a run does at its start."""
    registry = discover()
    model = build_stored(read_folder(folder, registry), registry, "cpu")
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    largest = max(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    before, begun = anonymous(), process_time()
    stored = read_folder(folder, registry)
    tensors, names = check_start(stored.tensors, model, ())
    fill_start(tensors, names, model, origins(names, model, lambda name: name), device=torch.device("cpu"), dtype_of=lambda name: None)
    return {"seconds": process_time() - begun, "more": anonymous() - before, "largest": largest, "model": size, "peak": peak()}


def theirs(folder: Path) -> dict[str, float]:
    """safetensors, and one copy of each tensor."""
    held = load_file(folder / "model.safetensors")
    places = {name: torch.empty_like(tensor).fill_(0) for name, tensor in held.items()}
    del held
    begun = process_time()
    for name, tensor in load_file(folder / "model.safetensors").items():
        places[name].copy_(tensor)
    return {"seconds": process_time() - begun}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2)
    arguments = parser.parse_args()
    if arguments.child:
        case, folder = arguments.child
        print(json.dumps({"ours": ours, "theirs": theirs}[case](Path(folder))))
        return
    with tempfile.TemporaryDirectory() as place:
        make(Path(place), arguments.width, arguments.blocks)
        found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
        for _ in range(arguments.rounds):
            for case, rounds in found.items():
                done = subprocess.run([sys.executable, __file__, "--child", case, place], capture_output=True, text=True, check=True)
                rounds.append(json.loads(done.stdout))
    best = {case: min(rounds, key=lambda each: each["seconds"]) for case, rounds in found.items()}
    own = best["ours"]
    print(f"model {own['model'] / MB:.0f} MB, largest tensor {own['largest'] / MB:.1f} MB")
    print(f"seconds: {own['seconds']:.3f} here, {best['theirs']['seconds']:.3f} safetensors and a copy")
    print(f"ratio {own['seconds'] / best['theirs']['seconds']:.2f}; anonymous memory beside the model {own['more'] / MB:.1f} MB")


if __name__ == "__main__":
    main()
