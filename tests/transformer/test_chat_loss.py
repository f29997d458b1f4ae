"""The loss of a chat run equals trl's rule, computed by transformers alone: its template, its mask of what the assistant wrote, its model,
its loss over labels that are -100 elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
import yaml
from chat_styles import FIRST, LAST, STYLES, SYSTEM, THANKS, USER
from products import covered
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import stackwise
from stackwise import StepDone
from stackwise.cli import main

MARKS = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>"]
MARKS += ["<end_of_turn>", "[INST]", "[/INST]", "<|assistant|>", "<|user|>", "<|system|>"]
CONVERSATIONS = [
    [SYSTEM, USER, FIRST, THANKS, LAST],
    [USER, {"role": "assistant", "content": "12, é 👍"}],
    [USER, FIRST, {"role": "user", "content": "and\nthen?"}, LAST],
    [SYSTEM, THANKS, LAST, USER, FIRST, THANKS],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama and a tokenizer of merges over bytes, with the marks of all styles."""
    place = tmp_path_factory.mktemp("chat")
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder, library.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=MARKS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    library.train_from_iterator(["It is noon. It is noon. the time? thanks Any time! be brief user assistant model"] * 9, trainer)
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=library, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = hf.LlamaConfig(vocab_size=len(tokenizer), **sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = hf.LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    main(["init", "--from", str(place), "--output", str(place / "model.yaml")], standalone_mode=False)
    (place / "chat.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in CONVERSATIONS), encoding="utf-8")
    return place


def by_transformers(folder: Path, template: str) -> tuple[float, int, int]:
    """The loss, how many tokens count, and how many there are."""
    tokenizer, model = hf.AutoTokenizer.from_pretrained(folder), hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    shown = [
        tokenizer.apply_chat_template(each, chat_template=template, return_dict=True, return_assistant_tokens_mask=True)
        for each in CONVERSATIONS
    ]
    length = max(len(each["input_ids"]) for each in shown)
    ids, labels = torch.zeros(len(shown), length, dtype=torch.long), torch.full((len(shown), length), -100)
    real = torch.zeros_like(ids)
    for row, each in enumerate(shown):
        size, counted = len(each["input_ids"]), torch.tensor(each["assistant_masks"], dtype=torch.bool)
        ids[row, :size], real[row, :size] = torch.tensor(each["input_ids"]), 1
        labels[row, :size] = torch.where(counted, ids[row, :size], -100)
    with torch.no_grad():
        return float(model(ids, attention_mask=real, labels=labels).loss), int((labels != -100).sum()), int(real.sum())


@pytest.mark.parametrize(
    ("style", "marked", "rows"),
    covered([*STYLES], [True, False], ["padded", "packed"], ids=[[*STYLES], ["marked", "by prefixes"], ["padded", "packed"]]),
)
def test_the_first_loss_of_a_run_is_that_of_trl_s_rule(style: str, marked: bool, rows: str, folder: Path) -> None:
    template = STYLES[style][0]
    own = template if marked else template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    chat = {"use": "data.jsonl", "paths": [str(folder / "chat.jsonl")], "messages": "messages", "template": {"text": own}}
    source: dict[str, Any] = {**chat, "tokenizer": {"file": str(folder)}, "heldout": 0.0, "shuffle": False, "rows": rows, "repeat": False}
    expected, targets, tokens = by_transformers(folder, template)
    shape = {"batch_size": 4, "seq_len": 200} if rows == "padded" else {"batch_size": 1, "seq_len": tokens - 1}  # a row has one more
    declared = {
        **yaml.safe_load((folder / "model.yaml").read_text()),
        "run": {"name": "chat", "horizon": "1 steps", "device": "cpu"},
        "task": {"use": "transformer.causal-lm"},
        "data": {"sources": {"chat": source}, **shape},
        "optimizer": {"use": "optim.adamw", "lr": 0.0},
    }
    machine = stackwise.assemble(stackwise.experiment(declared))
    (loss,) = (event.loss for event in machine.train() if isinstance(event, StepDone))
    machine.data.end()
    assert targets > 20
    assert loss == pytest.approx(expected, abs=1e-5)
