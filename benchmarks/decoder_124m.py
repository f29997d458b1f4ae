"""A decoder of 124 million parameters (12 blocks, width 768, 1,024 tokens, GPT-2's vocabulary) in bf16: tokens a second, share of the
device's peak (MFU) and peak memory, compiled and not, of StackWise and of a loop written by hand after nanoGPT's, which is the peer.

Each variant is a process of its own, or with `--ranks N` N processes with a micro-batch each a step (by hand with torch's DDP), on the
GPUs of their numbers. They take turns for some steps a round; figures are medians over rounds. A token costs 6 FLOPs a weight of a
product and 12 × blocks × width × length for attention (arXiv 2204.02311, appendix B). The peak is what one large product reaches
on the device here, unless `--peak` says what the maker promises. StackWise runs without logs and checkpoints.

Where there is no GPU a tiny model shows that the script works: its figures say nothing of the large one. The large one has not been run on
a GPU by the project yet.

Run: python benchmarks/decoder_124m.py [--ranks 1] [--rounds 9] [--steps 10] [--rows 16] [--peak TFLOPS] [--tiny]
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

VARIANTS = ("by hand", "by hand, compiled", "StackWise", "StackWise, compiled")


class Size(NamedTuple):
    """Of the model and of a micro-batch."""

    blocks: int
    width: int
    heads: int
    length: int
    vocab: int
    rows: int

    def flops_of_a_token(self) -> int:
        """Of forward and backward."""
        weights = self.blocks * 12 * self.width**2 + self.vocab * self.width
        return 6 * weights + 12 * self.blocks * self.width * self.length


LARGE, TINY = Size(12, 768, 12, 1024, 50304, 16), Size(2, 64, 4, 64, 256, 4)


def by_hand(size: Size, compiled: bool, ranks: int) -> Iterator[None]:
    """The loop in plain torch; one step at each `next`."""
    import torch
    import torch.nn.functional as F
    from torch import distributed, nn

    blocks, width, heads, length, vocab, rows = size
    cuda, rank = torch.cuda.is_available(), int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
            self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
            self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (part.view(*x.shape[:2], heads, -1).transpose(1, 2) for part in self.qkv(self.first(x)).split(width, dim=2))
            x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).contiguous().view(x.shape))
            return x + self.down(F.gelu(self.up(self.second(x))))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(vocab, width), nn.Embedding(length, width)
            self.blocks, self.norm = nn.ModuleList(Block() for _ in range(blocks)), nn.LayerNorm(width, bias=False)
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, std=0.02)

        def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            x = self.tokens(tokens) + self.places.weight
            for block in self.blocks:
                x = block(x)
            return F.cross_entropy(F.linear(self.norm(x), self.tokens.weight).flatten(0, 1), targets.flatten())

    if ranks > 1:
        distributed.init_process_group("nccl" if cuda else "gloo")
    torch.manual_seed(0)
    model: nn.Module = Model().to(device)
    matrices, vectors = [p for p in model.parameters() if p.dim() > 1], [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)
    forward = torch.compile(model) if compiled else model
    if ranks > 1:
        forward = nn.parallel.DistributedDataParallel(forward, device_ids=[rank] if cuda else None)
    text, draw = torch.randint(vocab, (200_000,)), torch.Generator().manual_seed(rank)
    while True:
        begins = torch.randint(len(text) - length, (rows,), generator=draw).tolist()
        batch = torch.stack([text[i : i + length + 1] for i in begins])
        batch = batch.pin_memory().to(device, non_blocking=True) if cuda else batch
        with torch.autocast(device.type, torch.bfloat16):
            loss = forward(batch[:, :-1], batch[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield


def ours(size: Size, compiled: bool, ranks: int) -> Iterator[None]:
    """The training machine, with the same model; one step at each `next`."""
    import torch

    import stackwise
    from stackwise.assembly.machine import assemble
    from stackwise.processes.ranks import joined

    blocks, width, heads, length, vocab, rows = size
    tokens = torch.randint(vocab, (200_000,), generator=torch.Generator().manual_seed(0))
    config: dict[str, Any] = {
        "run": {"name": "decoder", "horizon": "100000000 steps", "precision": "bf16", "compile": compiled, "probe": False},
        "task": {"use": "transformer.causal-lm"},
        "data": {
            "sources": {"random": {"use": "data.memory", "arrays": {"tokens": tokens}}},
            "batch_size": rows,
            "accumulate": ranks,
            "seq_len": length,
        },
        "model": {
            "embedding": {"use": "transformer.token", "vocab": vocab},
            "rack": {
                "use": "transformer.decoder",
                "width": width,
                "heads": heads,
                "stacks": [{"base": blocks}],
                "mlp": "gelu",
                "norm": {"kind": "layernorm", "eps": 1e-5},
                "positions": "learned",
                "max_positions": length,
            },
            "head": {"use": "transformer.lm", "tied": True},
        },
        "optimizer": {"use": "optim.adamw", "lr": 6e-4, "beta2": 0.95, "weight_decay": 0.1, "clip": 1.0},
    }
    with joined() as group:
        machine = assemble(stackwise.make_plan(stackwise.experiment(config), stackwise.discover()), ranks=group)
        for event in machine.train():
            if isinstance(event, stackwise.StepDone):
                yield


def serve(variant: str, size: Size, ranks: int) -> None:
    """Warm up, then a round of steps for each line on standard input; answers with seconds, and with the peak of memory so far in GB."""
    if "RANK" not in os.environ:
        from stackwise.cli.process import prepare_process

        prepare_process()
    import torch

    compiled = variant.endswith("compiled")
    steps = (ours if variant.startswith("StackWise") else by_hand)(size, compiled, ranks)
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else nullcontext
    for _ in range(5):
        next(steps)
    print("ready", flush=True)
    for line in sys.stdin:
        synchronize()
        start = perf_counter()
        for _ in range(int(line)):
            next(steps)
        synchronize()
        print(perf_counter() - start, peak_memory() / 1e9, flush=True)


def peak_memory() -> int:
    """Bytes: of the GPU where there is one, else of the process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def product_rate() -> float:
    """FLOPs a second of a large product, the best of ten: in bf16, or in float32 where a processor is faster so."""
    import torch

    cuda = torch.cuda.is_available()
    side, seconds = 8192 if cuda else 512, []
    for kind in (torch.bfloat16,) if cuda else (torch.bfloat16, torch.float32):
        left, right = (torch.randn(side, side, dtype=kind, device="cuda" if cuda else "cpu") for _ in range(2))
        for _ in range(10):
            start = perf_counter()
            left @ right
            if cuda:
                torch.cuda.synchronize()
            seconds.append(perf_counter() - start)
    return 2 * side**3 / min(seconds)


def start(variant: str, given: argparse.Namespace) -> list[subprocess.Popen[str]]:
    """The processes of a variant, ready to step."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, __file__, "--serve", variant, "--ranks", str(given.ranks), "--rows", str(given.rows)]
    command += ["--tiny"] if given.tiny else []
    processes = []
    for rank in map(str, range(given.ranks)):
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(given.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {"OMP_NUM_THREADS": "1", **os.environ, **(group if given.ranks > 1 else {})}
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment))
    for process in processes:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"{variant}: a process ended before its first step")
    return processes


def ask(processes: Sequence[subprocess.Popen[str]], steps: int) -> tuple[float, float]:
    """One round; seconds of the slowest process, and GB of the one that took most."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{steps}\n")
        process.stdin.flush()
    answers = [[float(word) for word in process.stdout.readline().split()] for process in processes if process.stdout is not None]
    return max(seconds for seconds, _ in answers), max(memory for _, memory in answers)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rows", type=int, default=0, help="of a micro-batch")
    parser.add_argument("--peak", type=float, default=0.0, help="TFLOP/s of one device in bf16, as its maker says")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, as where there is no GPU")
    parser.add_argument("--serve", choices=VARIANTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        size = TINY if given.tiny else LARGE
        serve(given.serve, size._replace(rows=given.rows), given.ranks)
        return
    import torch

    cuda = torch.cuda.is_available()
    given.tiny = given.tiny or not cuda
    size = TINY if given.tiny else LARGE
    given.rows = given.rows or size.rows
    peak = given.peak * 1e12 or product_rate()
    running: dict[str, list[subprocess.Popen[str]]] = {}
    rounds: dict[str, list[tuple[float, float]]] = {variant: [] for variant in VARIANTS}
    try:
        for variant in VARIANTS:
            running[variant] = start(variant, given)
        for number in range(given.rounds):
            for variant in VARIANTS if number % 2 else VARIANTS[::-1]:
                rounds[variant].append(ask(running[variant], given.steps))
    finally:
        for process in (process for processes in running.values() for process in processes):
            process.kill()
            process.wait()
    device = torch.cuda.get_device_name() if cuda else f"a processor ({torch.backends.cpu.get_cpu_capability()})"
    tokens = given.ranks * given.rows * size.length * given.steps
    print(f"{size.blocks} blocks, width {size.width}, {given.rows} × {size.length} tokens, vocabulary {size.vocab}, on {device}")
    print(f"torch {torch.__version__}, {given.ranks} process(es), {given.rounds} interleaved rounds of {given.steps} steps")
    told = "as its maker says" if given.peak else "as one large product reaches here, the most that a step can"
    print(f"peak of a device: {peak / 1e12:.3f} TFLOP/s, {told}\n")
    print(f"{'':22}{'tokens/s':>12}{'× by hand':>11}{'of the peak':>13}{'peak memory GB':>16}")
    rates = {variant: tokens / median(seconds for seconds, _ in each) for variant, each in rounds.items()}
    for variant, rate in rates.items():
        share = rate * size.flops_of_a_token() / peak / given.ranks
        memory = max(memory for _, memory in rounds[variant])
        print(f"{variant:22}{rate:>12,.0f}{rate / rates['by hand']:>11.2f}{share:>12.1%} {memory:>15.2f}")


if __name__ == "__main__":
    main()
