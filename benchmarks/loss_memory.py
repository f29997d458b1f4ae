"""Peak memory and time of a language-model loss over a large vocabulary: in chunks as tasks sum it, and with all logits made at once.

A decoder of two blocks, width 64, vocabulary 50,304, trained on 8 × 512 tokens by the whole machine (AdamW), each way in processes of its
own, interleaved; torch's own chunked loss on the last product alone stands beside. `python benchmarks/loss_memory.py [ROUNDS]`; 3 when left
out.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from time import process_time

import torch
import torch.nn.functional as F

from stackwise import BuildContext, Model, ParameterGroup, PhaseSchedule, StepDone, TrainingMachine
from stackwise_providers_optim import AdamWOptions, build_adamw
from stackwise_providers_transformer import token_nats
from stackwise_providers_transformer.causal_lm import CausalLM
from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.embedding import TokenEmbedding
from stackwise_providers_transformer.head import LMHead
from stackwise_providers_transformer.options import CausalLMOptions, DecoderOptions, LMOptions, TokenOptions

ROWS, TIME, WIDTH, VOCAB, STEPS = 8, 512, 64, 50_304, 4


def tokens(length: int) -> torch.Tensor:
    """Random ids, [ROWS, length]."""
    return torch.randint(VOCAB, (ROWS, length), generator=torch.Generator().manual_seed(0))


def trained() -> list[float]:
    """CPU seconds of each step of a whole run."""
    rack = Decoder(DecoderOptions(width=WIDTH, heads=2, stacks={"base": 2}))
    model = Model(TokenEmbedding(TokenOptions(vocab=VOCAB, width=WIDTH)), rack, LMHead(LMOptions(vocab=VOCAB, width=WIDTH)))
    optimizer = build_adamw(
        AdamWOptions(),
        BuildContext(seed=0),
        [ParameterGroup(name="default", parameters=dict(model.named_parameters()), values={"lr": 1e-3})],
    )
    schedule = PhaseSchedule.single(steps=STEPS)
    batches = [{"tokens": tokens(TIME + 1)}]
    machine = TrainingMachine(model=model, data=batches, task=CausalLM(CausalLMOptions()), optimizer=optimizer, schedule=schedule)
    marks = [process_time()]
    for event in machine.train():
        if isinstance(event, StepDone):
            marks.append(process_time())
    return [after - before for before, after in pairwise(marks)]


def in_chunks() -> list[float]:
    """As StackWise does."""
    return trained()


def at_once() -> list[float]:
    """With all logits made."""
    token_nats.LARGE = 2**62
    return trained()


def torch_chunked() -> list[float]:
    """torch's linear_cross_entropy with its chunking options: the last product and its loss alone, no model, no optimizer."""
    hidden = torch.randn(ROWS * TIME, WIDTH, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(VOCAB, WIDTH) / 50)
    targets, spent = tokens(TIME).flatten(), []
    for _ in range(STEPS):
        start = process_time()
        F.linear_cross_entropy(hidden, weight, targets, reduction="sum", options=torch.nn.LinearCrossEntropyOptions()).backward()
        spent.append(process_time() - start)
        hidden.grad = weight.grad = None
    return spent


WAYS: dict[str, Callable[[], list[float]]] = {"in chunks": in_chunks, "logits at once": at_once, "torch, the product alone": torch_chunked}


def main() -> None:
    """Print one line a way; `--child WAY` measures one."""
    if sys.argv[1:2] == ["--child"]:
        torch.set_num_threads(1)
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        spent = WAYS[sys.argv[2]]()
        print(json.dumps([start / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, statistics.median(spent)]))
        return
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            made = subprocess.run([sys.executable, __file__, "--child", way], check=True, capture_output=True, text=True)
            found[way].append(json.loads(made.stdout))
    print(f"{ROWS} × {TIME} tokens, vocabulary {VOCAB:,}, width {WIDTH}; one thread, medians of {rounds} processes of {STEPS} steps\n")
    print(f"{'':26}{'before MB':>10}{'peak MB':>10}{'CPU s a step':>14}")
    for way, rows in found.items():
        before, peak, seconds = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{way:26}{before:>10.0f}{peak:>10.0f}{seconds:>14.2f}")


if __name__ == "__main__":
    main()
