"""What reading a folder costs: time against safetensors plus one copy, and memory beside that of the model.

About 500 MB in float32 by default. Each case runs in a process of its own, in turns; the figures are minima of CPU seconds, and the largest
resident memory (pages of mapped files included) over that of the model alone: while a model that is there is filled, and from before it is
built. `wrapped` has the same folder computed by transformers. Run: python benchmarks/pretrained.py
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from time import process_time

import torch
from safetensors.torch import load_file

from stackwise import BuildContext, Model, discover
from stackwise.assembly.start import read_folder
from stackwise.assembly.stored import build_stored, stored_format
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


def resident(field: str) -> int:
    """Memory of this process in bytes by a field of Linux: VmRSS now, VmHWM at most since `forget`; pages of mapped files are in both."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def forget() -> int:
    """Begin to count the largest resident memory anew, from what is returned."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident("VmRSS")


def ours(folder: Path, *, wrap: bool = False) -> dict[str, float]:
    """Build a model, and read the folder into it, as a run does at its start."""
    registry = discover()
    form = stored_format({"use": "transformer.hf", "wrap": wrap}, registry)
    build_stored(read_folder(folder, registry, form), registry)  # whatever is imported, it is now
    start = forget()
    model = build_stored(read_folder(folder, registry, form), registry, "cpu")
    sizes = [parameter.numel() * parameter.element_size() for parameter in model.parameters()]
    built, before, begun = resident("VmHWM") - start - sum(sizes), forget(), process_time()
    stored = read_folder(folder, registry, form)
    tensors, names = check_start(stored.tensors, model, ())
    fill_start(tensors, names, model, origins(names, model, lambda name: name), device=torch.device("cpu"), dtype_of=lambda name: None)
    seconds = process_time() - begun
    return {"seconds": seconds, "more": resident("VmHWM") - before, "built": built, "largest": max(sizes), "model": sum(sizes)}


def theirs(folder: Path) -> dict[str, float]:
    """safetensors, and one copy of each tensor."""
    held = load_file(folder / "model.safetensors")
    places = {name: torch.empty_like(tensor).fill_(0) for name, tensor in held.items()}
    del held
    begun = process_time()
    for name, tensor in load_file(folder / "model.safetensors").items():
        places[name].copy_(tensor)
    return {"seconds": process_time() - begun}


CASES = {"ours": ours, "wrapped": partial(ours, wrap=True), "theirs": theirs}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2)
    arguments = parser.parse_args()
    if arguments.child:
        case, folder = arguments.child
        print(json.dumps(CASES[case](Path(folder))))
        return
    with tempfile.TemporaryDirectory() as place:
        make(Path(place), arguments.width, arguments.blocks)
        found: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
        for _ in range(arguments.rounds):
            for case, rounds in found.items():
                done = subprocess.run([sys.executable, __file__, "--child", case, place], capture_output=True, text=True, check=True)
                rounds.append(json.loads(done.stdout))
    best = {case: min(rounds, key=lambda each: each["seconds"]) for case, rounds in found.items()}
    print(f"model {best['ours']['model'] / MB:.0f} MB, largest tensor {best['ours']['largest'] / MB:.1f} MB")
    print(f"theirs   {best['theirs']['seconds']:.3f} s for safetensors and a copy")
    for case in ("ours", "wrapped"):
        own, ratio = best[case], best[case]["seconds"] / best["theirs"]["seconds"]
        memory = f"{own['more'] / MB:.1f} MB beside the model while it is read, {own['built'] / MB:.1f} MB while it is built"
        print(f"{case:<8} {own['seconds']:.3f} s, ratio {ratio:.2f}; {memory}")


if __name__ == "__main__":
    main()
