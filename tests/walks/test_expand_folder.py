"""`examples/expand_folder.py`: a folder of transformers goes in, a deeper one comes out that transformers loads and generates with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers
from watched_network import watched_environment

EXAMPLE = Path(__file__).parents[2] / "examples" / "expand_folder.py"


@pytest.mark.slow
def test_a_folder_is_expanded_trained_and_handed_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, num_hidden_layers=5, bos_token_id=1, eos_token_id=2)).save_pretrained(tmp_path / "folder")
    words = Tokenizer(models.WordLevel({**{f"w{i}": i for i in range(63)}, "?": 63}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "folder" / "tokenizer.json"))
    for i in range(6):
        (tmp_path / f"{i}.txt").write_text(" ".join(f"w{i * j % 60}" for j in range(400)))
    call = [sys.executable, str(EXAMPLE), "folder", "out", "--every", "2", "--horizon", "20 steps", "--seq-len", "16"]
    watched, attempts = watched_environment(tmp_path)
    surroundings = {
        **watched,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "STACKWISE_CACHE": str(tmp_path),
    }
    done = subprocess.run(call, cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not attempts.exists()
    lines = (tmp_path / "runs" / "expand" / "events.jsonl").read_text().splitlines()
    entered = {event["phase"]: event for event in map(json.loads, lines) if event["event"] == "phase_entered"}
    assert entered["new"]["trainable"] == entered["new"]["parameters"] - entered["before"]["parameters"]
    assert entered["new"]["probe_change"] == 0 and entered["all"]["trainable"] == entered["all"]["parameters"]
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.config.num_hidden_layers == 8 and again.config.eos_token_id == 2
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text()) == json.loads((tmp_path / "folder" / "tokenizer.json").read_text())
    made = again.generate(torch.tensor([[5, 6]]), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert made.shape == (1, 5)
