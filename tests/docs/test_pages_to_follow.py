"""Tutorials and how-to pages: their files are written, their Python runs and their commands are called, in the order of the page.

Runs are cut to a few steps; everything else is called as it is written.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stackwise.cli import main

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for folder in ("tutorials", "how-to") for path in (DOCS / folder).glob("*.md"))
BLOCK = re.compile(r"^```(\w+)(?: title=(\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHORT = "run.horizon=20 steps"


def blocks(page: str) -> Iterator[tuple[str, str, str]]:
    """(language, file name or nothing, text) of each block."""
    for found in BLOCK.finditer((DOCS / page).read_text(encoding="utf-8")):
        yield found[1], found[2] or "", found[3]


def write_notes(folder: Path) -> None:
    """The text that a reader has."""
    (folder / "notes").mkdir()
    for name in ("data", "growth", "tasks", "resume"):
        shutil.copy(next(DOCS.glob(f"*/{name}.md")), folder / "notes" / f"{name}.txt")


def write_pretrained(folder: Path) -> None:
    """A folder as transformers writes it: 30 narrow blocks and a tokenizer with the tokens of chatml."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(["a rack of stacks"], trainer)
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 30, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=tokenizer.get_vocab_size(), tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, **shape)
    LlamaForCausalLM(config).save_pretrained(folder / "pretrained")
    tokenizer.save(str(folder / "pretrained" / "tokenizer.json"))
    roles = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (folder / "pretrained" / "tokenizer_config.json").write_text(json.dumps(roles), encoding="utf-8")


def link_clone(folder: Path) -> None:
    """The parts of a clone that the page names."""
    for name in ("examples", "README.md"):
        (folder / name).symlink_to(DOCS.parent / name)


def write_both(folder: Path) -> None:
    """Text, and a pretrained folder."""
    write_notes(folder)
    write_pretrained(folder)


BEFORE: dict[str, Callable[[Path], None]] = {
    "how-to/fine-tune.md": write_both,
    "tutorials/chat-model.md": write_pretrained,
    "tutorials/five-stages.md": link_clone,
}
"""Page → what stands in the reader's folder already; else notes."""

ELSEWHERE: dict[str, str] = {
    "how-to/from-a-training-script.md": "third_party/test_from_a_training_script.py",
    "how-to/hugging-face.md": "docs/test_hugging_face_page.py",
    "how-to/module.md": "docs/test_module_page.py",
    "how-to/reports.md": "docs/test_reports_page.py",
    "how-to/resume.md": "faults/test_killed_runs.py",
    "how-to/several-processes.md": "faults/test_several_processes.py",
    "how-to/speed.md": "core/cli/test_start_up.py",
    "how-to/troubleshooting.md": "docs/test_reference.py",
    "how-to/write-a-provider.md": "docs/test_write_a_provider.py",
}
"""Page → the test that holds what it says, because it takes more than a folder and a command line."""


def call(line: str) -> None:
    """One command, in this process where it is ours."""
    command, *arguments = shlex.split(line, comments=True)
    if arguments[0] == "run":
        line, arguments = f"{line} --set {shlex.quote(SHORT)}", [*arguments, "--set", SHORT]
    if command != "stackwise" or "--ranks" in arguments:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        subprocess.run(line, shell=True, check=True, env={**os.environ, "PATH": path})
        return
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, f"{line}\n{result.output}"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE])
def test_a_page_can_be_followed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(DOCS)
    BEFORE.get(page, write_notes)(tmp_path)
    commands = 0
    for language, name, text in blocks(page):
        if name:
            (tmp_path / name).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, page, "exec"), {})
        elif language == "console":
            for line in filter(None, text.splitlines()):
                call(line)
                commands += 1
        else:
            pytest.fail(f"a block of {language} without a title is neither written nor run")
    assert commands


def test_pages_that_are_not_followed_here_have_a_test_of_their_own() -> None:
    assert set(ELSEWHERE) <= set(PAGES)
    assert all((DOCS.parent / "tests" / path).is_file() for path in ELSEWHERE.values())
