"""From the start of Python to the first step of the shortest example: `stackwise run`, and a bare script that does the same.

The script reads the standard library's own modules as bytes, builds the decoder of `examples/one-phase.yaml` from torch's parts and
steps once with torch's fused AdamW; it has no config, no plan, no run directory. `import torch` alone is the floor of both.
`resume` goes on behind the first step, from its checkpoint.

Whole processes in turn, one thread; each ends as soon as its step is done. Of each the least and the median CPU time, which other load
disturbs less than wall time.

Run: python benchmarks/start.py [--rounds 9]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from tempfile import TemporaryDirectory

EXAMPLE = Path(__file__).parents[1] / "examples" / "one-phase.yaml"
GOAL = 1.15

BARE = """
import os, sysconfig
from pathlib import Path
import torch, torch.nn.functional as F
from torch import nn
WIDTH, HEADS, ROWS, LENGTH, VOCAB = 64, 4, 16, 128, 256
library = Path(sysconfig.get_path("stdlib"))
files = []
for folder, folders, names in os.walk(library):
    folders[:] = [name for name in folders if name not in ("test", "tests", "idlelib", "site-packages", "__pycache__")]
    files += sorted(Path(folder) / name for name in names if name.endswith(".py"))
text = torch.frombuffer(bytearray(b"\\0".join(path.read_bytes() for path in files)), dtype=torch.uint8)
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(2 * WIDTH, WIDTH, bias=False)
    def forward(self, x):
        q, k, v = (part.view(ROWS, LENGTH, HEADS, -1).transpose(1, 2) for part in self.qkv(self.first(x)).chunk(3, dim=2))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(ROWS, LENGTH, WIDTH))
        gate, up = self.up(self.second(x)).chunk(2, dim=2)
        return x + self.down(F.silu(gate) * up)
torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(VOCAB, WIDTH), Block(), Block(), nn.RMSNorm(WIDTH), nn.Linear(WIDTH, VOCAB, bias=False))
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
rows = torch.stack([text[i : i + LENGTH + 1] for i in torch.randint(len(text) - LENGTH, (ROWS,)).tolist()]).long()
loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
loss.backward()
nn.utils.clip_grad_norm_(model.parameters(), 1.0)
optimizer.step()
print(f"loss {loss.item():.3f}")
os._exit(0)
"""

COMMAND = """
import os, sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
class UntilTheStep(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "stackwise.runs.loop":
            return None
        sys.meta_path.remove(self)
        spec, loop = find_spec(name), sys.modules
        run = spec.loader.exec_module
        def loaded(module):
            run(module)
            hear = module.RunLoop._hear
            def heard(self, event):
                hear(self, event)
                if type(event).__name__ == os.environ.get("UNTIL", "StepDone"):
                    os._exit(0)
            module.RunLoop._hear = heard
        spec.loader.exec_module = loaded
        return spec
sys.meta_path.insert(0, UntilTheStep())
from stackwise.cli import main
main(prog_name="stackwise")
"""
"""The command line, whose process ends when the first event UNTIL has been logged and shown."""


def seconds(*command: str, until: str = "StepDone") -> tuple[float, float]:
    """Wall and CPU seconds of a process, which must end well."""
    start, before = time.perf_counter(), getrusage(RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "UNTIL": until}
    done = subprocess.run([sys.executable, "-c", *command], capture_output=True, env=environment)
    wall, after = time.perf_counter() - start, getrusage(RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr.decode()
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    with TemporaryDirectory() as folder:
        run = Path(folder) / "saved"
        every = ("--set", "run.checkpoint.every=1 steps")
        seconds(COMMAND, "run", str(EXAMPLE), *every, "--output", str(run), until="CheckpointSaved")
        times: dict[str, list[tuple[float, float]]] = {}
        for number in range(rounds + 1):
            for name, command in {
                "import torch": ("import os, torch; os._exit(0)",),
                "bare script": (BARE,),
                "stackwise run": (COMMAND, "run", str(EXAMPLE), "--output", str(Path(folder) / f"run-{number}")),
                "stackwise resume": (COMMAND, "resume", str(run)),
            }.items():
                taken = seconds(*command)
                if number:  # the first round compiles bytecode
                    times.setdefault(name, []).append(taken)
    least = {name: min(cpu for _, cpu in taken) for name, taken in times.items()}
    print(f"to the first step of {EXAMPLE.name}, {rounds} interleaved rounds of whole processes; goal: {GOAL} times the bare script\n")
    print(f"{'':<20}{'CPU least s':>13}{'CPU median s':>14}{'wall median s':>15}{'of the script':>15}")
    for name, taken in times.items():
        wall, cpu = (median(column) for column in zip(*taken, strict=True))
        print(f"{name:<20}{least[name]:>13.2f}{cpu:>14.2f}{wall:>15.2f}{least[name] / least['bare script']:>13.2f} ×")


if __name__ == "__main__":
    main()
