"""Tokens a second of generation on equal weights: StackWise and transformers.generate, greedy, one prompt and four.

A Llama of four blocks, width 256, vocabulary 8,192, written as a folder of transformers and read as `transformer.hf` reads it; a prompt
of 32 tokens and 64 after it; one thread, CPU seconds, interleaved round by round, medians. The tokens are compared first.
`python benchmarks/generation.py [ROUNDS]`; 9 when left out.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import torch
import transformers

import stackwise
from stackwise_providers_transformer.causal_lm import CausalLM
from stackwise_providers_transformer.options import CausalLMOptions

PROMPT, TOKENS, VOCAB = 32, 64, 8192


def llama() -> transformers.PreTrainedModel:
    """A model with weights at random."""
    torch.manual_seed(0)
    settings = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(settings).eval()


def config(folder: Path) -> dict:
    """A run that begins from the folder."""
    return {
        "run": {"name": "llama", "seed": 0, "horizon": "1 steps", "device": "cpu"},
        "task": {"use": "transformer.causal-lm"},
        "data": {
            "sources": {"none": {"use": "data.memory", "arrays": {"tokens": torch.zeros(2, 9, dtype=torch.long)}}},
            "batch_size": 1,
            "seq_len": 8,
        },
        "model": {
            "embedding": {"use": "transformer.token", "vocab": VOCAB, "width": 256},
            "rack": {
                "use": "transformer.decoder",
                "width": 256,
                "heads": 8,
                "kv_heads": 4,
                "ff": 688,
                "stacks": [{"base": 4}],
            },
            "head": {"use": "transformer.lm", "tied": False},
            "start": {"from": str(folder)},
        },
        "optimizer": {"use": "optim.adamw", "lr": 1e-3},
    }


def main() -> None:
    """Print one line for each number of prompts."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    theirs, task = llama(), CausalLM(CausalLMOptions())
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        machine = stackwise.assemble(stackwise.make_plan(stackwise.experiment(config(Path(folder))), stackwise.discover()))
        next(event for event in machine.train() if isinstance(event, stackwise.PhaseEntered))
        ours = machine.model.model.eval()
    print(f"{PROMPT} tokens and {TOKENS} after them, greedy; one thread, tokens a CPU second, medians of {rounds} rounds\n")
    print(f"{'prompts':>7}{'StackWise':>12}{'transformers':>14}")
    for count in (1, 4):
        prompts = torch.randint(VOCAB, (count, PROMPT), generator=torch.Generator().manual_seed(1))
        settings = stackwise.GenerationSettings(tokens=TOKENS, temperature=0)

        def generated(prompts: torch.Tensor = prompts, settings: stackwise.GenerationSettings = settings) -> torch.Tensor:
            return torch.stack(list(task.generate_rows(ours, list(prompts), settings, [torch.Generator() for _ in prompts])))

        def by_transformers(prompts: torch.Tensor = prompts) -> torch.Tensor:
            mask = torch.ones_like(prompts)
            return theirs.generate(prompts, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)

        ways: dict[str, Callable[[], torch.Tensor]] = {"ours": generated, "theirs": by_transformers}
        assert torch.equal(generated(), by_transformers())
        spent: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, call in ways.items():
                start = process_time()
                call()
                spent[way].append(process_time() - start)
        mine, his = (count * TOKENS / statistics.median(spent[way]) for way in ways)
        print(f"{count:>7}{mine:>12.0f}{his:>14.0f}")


if __name__ == "__main__":
    main()
