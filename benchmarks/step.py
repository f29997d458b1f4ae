"""nanoGPT's recipe for a CPU (4 blocks, width 128, batch 12 × 64), a step of it: written by hand as published, and by `stackwise run`.

Every variant is a process of its own, as a user would start it, and the processes take turns for some steps a round. "as published" is
the recipe of nanoGPT's README on its own terms: float32, the optimizer torch gives by default, a batch stacked row by row, the loss read
at every step. "best by hand" is the same model compiled, with the fused optimizer and freed memory kept mapped; in bf16 its products are
so and its attention is not. "products alone" is what no step can fall below. Rows in bf16 are measured where the processor has
instructions for it, or where `--only` asks for them. "its defaults" is StackWise's decoder as it comes, with rotary positions, RMS norms
and SwiGLU. What StackWise measures is all of a run but its checkpoints: batches, log, metrics, progress lines.

Of a step the median of its wall time, and the median and the fastest tenth of its CPU time, which other load disturbs less.

Run: python benchmarks/step.py [--rounds 9] [--steps 20] [--threads 1] [--only PART_OF_NAME/…] [--profile VARIANT]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

BLOCKS, WIDTH, HEADS, ROWS, LENGTH, VOCAB = 4, 128, 4, 12, 64, 65
REFERENCE = "by hand, as published"
FUSED, BEST_FLOAT32, BEST = "by hand, fused AdamW", "by hand, best float32", "by hand, best bf16"
PRODUCTS, PRODUCTS_FLOAT32 = "products alone, bf16", "products alone, float32"
BY_HAND = (REFERENCE, FUSED, BEST_FLOAT32, BEST, PRODUCTS_FLOAT32, PRODUCTS)
BF16, COMPILED, WHOLE = "run.precision=bf16", "run.compile=true", "run.compile=whole"
DEFAULTS = ("mlp=swiglu", "norm=rmsnorm", "positions=rope", "max_positions=null")
"""The decoder with its own defaults in place of the recipe's parts."""
OURS = {
    "StackWise float32": (),
    "StackWise bf16": (BF16,),
    "StackWise float32 compiled": (COMPILED,),
    "StackWise float32 compiled whole": (WHOLE,),
    "StackWise bf16 compiled": (BF16, COMPILED),
    "StackWise bf16 compiled whole": (BF16, WHOLE),
    "its defaults float32": tuple(f"model.rack.{option}" for option in DEFAULTS),
    "its defaults bf16": (BF16, *(f"model.rack.{option}" for option in DEFAULTS)),
    "its defaults bf16 compiled": (BF16, COMPILED, *(f"model.rack.{option}" for option in DEFAULTS)),
    "its defaults bf16 compiled whole": (BF16, WHOLE, *(f"model.rack.{option}" for option in DEFAULTS)),
}
CONFIG = f"""
run: {{name: step, horizon: 100000000 steps, device: cpu}}
task: {{use: transformer.causal-lm}}
data:
  sources: {{text: {{use: data.array-files, files: {{tokens: tokens.npy}}, vocab: {VOCAB}}}}}
  batch_size: {ROWS}
  seq_len: {LENGTH}
model:
  embedding: {{use: transformer.token}}
  rack:
    use: transformer.decoder
    width: {WIDTH}
    heads: {HEADS}
    stacks: [{{base: {BLOCKS}}}]
    mlp: gelu
    norm: {{kind: layernorm, eps: 1e-5}}
    positions: learned
    max_positions: {LENGTH}
  head: {{use: transformer.lm, tied: true}}
optimizer: {{use: optim.adamw, lr: 1e-3, beta2: 0.99, weight_decay: 0.1, clip: 1.0}}
"""


def by_hand(*, fused: bool, compiled: bool, best: bool) -> Iterator[None]:
    """The recipe in plain torch; one step at each `next`."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parts = self.qkv(self.first(x)).split(WIDTH, dim=2)
            q, k, v = (part.view(ROWS, LENGTH, HEADS, WIDTH // HEADS).transpose(1, 2) for part in parts)
            if best:
                with torch.autocast("cpu", enabled=False):
                    mixed = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
            else:
                mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).contiguous().view(ROWS, LENGTH, WIDTH))
            return x + self.down(F.gelu(self.up(self.second(x))))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(LENGTH, WIDTH)
            self.blocks, self.norm = nn.ModuleList(Block() for _ in range(BLOCKS)), nn.LayerNorm(WIDTH, bias=False)

        def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            x = self.tokens(tokens) + self.places(torch.arange(LENGTH))
            for block in self.blocks:
                x = block(x)
            logits = F.linear(self.norm(x), self.tokens.weight)
            return F.cross_entropy(logits.view(-1, VOCAB), targets.view(-1))

    text = np.load("tokens.npy", mmap_mode="r")
    model = Model()
    matrices, vectors = [p for p in model.parameters() if p.dim() > 1], [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True if fused else None)
    forward = torch.compile(model) if compiled else model
    while True:
        begins = torch.randint(len(text) - LENGTH, (ROWS,)).tolist()
        tokens = torch.stack([torch.from_numpy(text[i : i + LENGTH].astype(np.int64)) for i in begins])
        targets = torch.stack([torch.from_numpy(text[i + 1 : i + 1 + LENGTH].astype(np.int64)) for i in begins])
        with torch.autocast("cpu", torch.bfloat16, enabled=best):
            loss = forward(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        yield


def products(bf16: bool) -> Iterator[None]:
    """The matrix products of a step, without attention's: no step takes less."""
    import torch

    maps = [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)] * BLOCKS + [(WIDTH, VOCAB)]
    kind = torch.bfloat16 if bf16 else torch.float32
    sides = [[torch.randn(ROWS * LENGTH, size, dtype=kind) for size in pair] + [torch.randn(pair[::-1], dtype=kind)] for pair in maps]
    while True:
        for before, after, weight in sides:
            before @ weight.t(), after @ weight, after.t() @ before
        yield


def ours(overrides: tuple[str, ...]) -> Iterator[None]:
    """A run as the command line makes it, without its checkpoints; one step at each `next`."""
    from stackwise import StepDone, config
    from stackwise.assembly.machine import assemble
    from stackwise.host.discovery import discover
    from stackwise.plan import make_plan
    from stackwise.reports.progress import Progress
    from stackwise.runs.loop import RunLoop
    from stackwise.runs.rest import Declaration
    from stackwise.storage.run_directory import RunDirectory

    Path("config.yaml").write_text(CONFIG)
    plan = make_plan(config.load(Path("config.yaml"), overrides), discover()).with_tokenizers()
    machine = assemble(plan)
    directory = RunDirectory.create(None, "step", Declaration.of(plan).write)
    progress = Progress(plan.schedule, Path(os.devnull).open("w"))  # noqa: SIM115  # as long as the process
    loop = RunLoop.of(plan, machine, directory, progress)
    for event in loop.machine.train():
        if isinstance(event, StepDone):
            yield


def steps_of(variant: str) -> Iterator[None]:
    """The steps of a variant; nothing was imported before."""
    if variant in OURS:
        from stackwise.cli.process import load_torch, prepare_process

        prepare_process()
        load_torch()
        return ours(OURS[variant])
    if variant in (PRODUCTS, PRODUCTS_FLOAT32):
        return products(variant == PRODUCTS)
    return by_hand(fused=variant != REFERENCE, compiled=variant in (BEST_FLOAT32, BEST), best=variant == BEST)


def has_bf16() -> bool:
    """Whether the processor has instructions for bf16."""
    flags = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else {"avx512_bf16"}
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def serve(variant: str) -> None:
    """Warm up, then a round of steps for each line on standard input; answers with the seconds of each step."""
    start, steps = perf_counter(), steps_of(variant)
    next(steps)
    print(perf_counter() - start, flush=True)
    for _ in range(20):
        next(steps)
    for line in sys.stdin:
        pairs: list[float] = []
        for _ in range(int(line)):
            wall, busy = perf_counter(), process_time()
            next(steps)
            pairs += (perf_counter() - wall, process_time() - busy)
        print(*pairs, flush=True)


def start(variant: str, threads: int, place: str, **settings: str) -> subprocess.Popen[str]:
    """The process of a variant, in the environment that a user of it would have, with these settings."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **settings}
    if variant in (FUSED, BEST_FLOAT32, BEST):
        environment |= {"MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_MMAP_THRESHOLD_": "33554432"}
    command = [sys.executable, str(Path(__file__).resolve()), "--serve", variant]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=place)


def ask(process: subprocess.Popen[str], steps: int) -> list[tuple[float, float]]:
    """One round; wall and CPU seconds of each step."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{steps}\n")
    process.stdin.flush()
    words = [float(word) for word in process.stdout.readline().split()]
    return list(zip(words[::2], words[1::2], strict=True))


Times = dict[str, list[tuple[float, float]]]
"""Wall and CPU seconds of every step by variant."""


def measure(variants: Sequence[str], rounds: int, steps: int, threads: int) -> tuple[Times, dict[str, float]]:
    """The times, and the wall seconds of each first step."""
    import numpy as np

    processes: dict[str, subprocess.Popen[str]] = {}
    firsts: dict[str, float] = {}
    with TemporaryDirectory() as place:
        np.save(Path(place) / "tokens.npy", np.random.default_rng(0).integers(0, VOCAB, 1_000_000).astype(np.uint16))
        try:
            for variant in variants:  # one after the other, as compiling uses every core
                process = processes[variant] = start(variant, threads, place)
                assert process.stdout is not None
                firsts[variant] = float(process.stdout.readline())
            seconds: Times = {variant: [] for variant in variants}
            for i in range(rounds):
                for variant in variants if i % 2 else variants[::-1]:
                    seconds[variant] += ask(processes[variant], steps)
        finally:
            for process in processes.values():
                process.kill()
                process.wait()
    return seconds, firsts


def profile(variant: str) -> None:
    """Where the time of a step goes, by operation."""
    import numpy as np

    with TemporaryDirectory() as place:
        os.chdir(place)
        np.save("tokens.npy", np.random.default_rng(0).integers(0, VOCAB, 1_000_000).astype(np.uint16))
        steps = steps_of(variant)
        for _ in range(20):
            next(steps)
        import torch
        from torch.profiler import ProfilerActivity

        with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(20):
                next(steps)
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))
        os.chdir("/")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="parts of the names of variants to measure beside the published one, / between them")
    parser.add_argument("--profile", choices=(*BY_HAND, *OURS))
    parser.add_argument("--serve", choices=(*BY_HAND, *OURS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    served: Callable[[str], None] = serve if given.serve else profile
    if variant := given.serve or given.profile:
        served(variant)
        return
    variants = [variant for variant in (*BY_HAND, *OURS) if any(part in variant for part in given.only.split("/")) or variant == REFERENCE]
    if not given.only and not has_bf16():
        variants = [variant for variant in variants if "bf16" not in variant]
    seconds, firsts = measure(variants, given.rounds, given.steps, given.threads)
    import torch

    print(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, threads {given.threads}, {given.rounds} interleaved rounds"
    )
    print(f"{'':33} {'wall ms':>9} {'CPU ms':>9} {'fastest':>9} {'as published takes':>20} {'first step s':>13}")
    fastest = {variant: quantiles([busy for _, busy in each], n=10)[0] for variant, each in seconds.items()}
    for variant, each in seconds.items():
        wall, busy = (median(times) * 1e3 for times in zip(*each, strict=True))
        times = f"{fastest[REFERENCE] / fastest[variant]:.2f} × as long"
        print(f"{variant:33} {wall:9.1f} {busy:9.1f} {fastest[variant] * 1e3:9.1f} {times:>20} {firsts[variant]:13.1f}")


if __name__ == "__main__":
    main()
