"""README, tutorials and how-to pages: every block of each is written, run or planned in the order of the page, or has a reason here.

Files are written under their titles, Python runs, commands are called as they are written (runs are cut to a few steps), sections of a
config are planned on top of one, and what is shown under a command is what it printed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from attrs import field, frozen
from click.testing import CliRunner
from longer_tokenizer import write_longer
from shown_runs import make_run

from stackwise.cli import main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(path for folder in ("tutorials", "how-to") for path in (DOCS / folder).glob("*.md"))]
NAMES = [path.relative_to(DOCS if DOCS in path.parents else ROOT).as_posix() for path in PAGES]
BLOCK = re.compile(r"^```(\w*)(?: title=(\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: str) -> list[tuple[str, str, str]]:
    """(language, file name or nothing, text) of each block; none is written in another form."""
    text = PAGES[NAMES.index(page)].read_text(encoding="utf-8")
    found = [(each[1], each[2] or "", each[3]) for each in BLOCK.finditer(text)]
    assert len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)) == 2 * len(found), f"{page} has a block that this test cannot read"
    return found


# What stands in the reader's folder already.


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
        (folder / name).symlink_to(ROOT / name)


def write_both(folder: Path) -> None:
    """Text, and a pretrained folder."""
    write_notes(folder)
    write_pretrained(folder)


def write_folder(folder: Path) -> None:
    """Text, a small pretrained folder, and a longer tokenizer file."""
    write_notes(folder)
    write_longer(folder)


def make_runs(folder: Path) -> None:
    """Runs of the names that the page has, two of them apart by their seed alone."""
    make_run(folder / "runs", "grow-bytes-001")
    make_run(folder / "runs", "seed-2", seed=4)
    shutil.copytree(folder / "runs" / "grow-bytes-001", folder / "runs" / "seed-1")
    shutil.copytree(folder / "runs" / "grow-bytes-001", folder / "runs" / "other")
    shutil.copy(folder / "runs" / "grow-bytes-001.yaml", folder / "grow-bytes.yaml")


def write_trunk(folder: Path) -> None:
    """A run that has finished, and a config whose learning rate may be anything."""
    link_clone(folder)
    make_run(folder / "runs", "grow-bytes-001")
    text = (folder / "runs" / "grow-bytes-001.yaml").read_text(encoding="utf-8").replace("24 steps", "100 steps")
    text = re.sub(r"^optimizer:.*$", "optimizer: {use: optim.adamw, lr: 1e-3}", text, flags=re.MULTILINE)
    text = text.replace("evaluate: {held: {every: 25%, batches: 2}}\n", "").replace(", best: held.loss", "")
    (folder / "trunk.yaml").write_text(text, encoding="utf-8")


def write_split(folder: Path) -> None:
    """A config of four micro-batches a step."""
    make_run(folder, "exp", steps=8)
    text = (folder / "exp.yaml").read_text(encoding="utf-8").replace("batch_size: 2", "batch_size: 2\n  accumulate: 4")
    (folder / "exp.yaml").write_text(text.replace("name: shown", "name: exp"), encoding="utf-8")


def write_script(folder: Path) -> None:
    """A reader's own program that takes what the environment says."""
    told = '[os.environ[n] for n in ("GOMP_SPINCOUNT", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")]'
    program = f"import os, torch, stackwise\nassert {told} == ['1000', '2147483647', '33554432']\n"
    (folder / "my_training.py").write_text(program, encoding="utf-8")


BEFORE: dict[str, Callable[[Path], None]] = {
    "README.md": link_clone,
    "how-to/fine-tune.md": write_both,
    "how-to/grow.md": write_folder,
    "how-to/reports.md": make_runs,
    "how-to/resume.md": write_trunk,
    "how-to/several-processes.md": write_split,
    "how-to/speed.md": write_script,
    "tutorials/chat-model.md": write_pretrained,
    "tutorials/five-stages.md": link_clone,
}
"""Page → what stands in the reader's folder already; else notes."""

SETTINGS = {
    "README.md": ("data.seq_len=16", "data.batch_size=1", "model.rack.width=16", "evaluate.heldout.batches=1"),
    "how-to/resume.md": (),
    "how-to/several-processes.md": (),
}
"""Page → what makes its runs short, where fewer steps would change what it shows; else `run.horizon=20 steps`."""

UNDER = {"how-to/reports.md": "grow-bytes.yaml", "how-to/resume.md": "trunk.yaml"}
"""Page → the config that its sections, such as `observers:`, are laid on and planned with."""

CONFIG = re.search(r"^CONFIG \?= (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)

EXCUSED = {
    "# A byte-level language model": "the file of the examples, as docs/test_readme.py holds it and walks/test_plan_agrees.py trains it",
    "source .venv/bin/activate": "the environment of the tests is the one that is active",
    "stackwise report --live": "it serves until it is interrupted: core/reports/test_live_page.py",
    "http://127.0.0.1": "what it says: core/reports/test_live_page.py",
    "python examples/one_trunk.py": "minutes: walks/test_one_trunk.py, with smaller budgets",
    "resume runs/grow-bytes-001 at": "of a run that was killed: faults/test_killed_runs.py",
    "stackwise run exp.yaml --ranks 8": "eight processes: faults/test_divided_models.py, in two and in four",
    "torchrun --standalone": "eight GPUs: faults/test_several_processes.py, in two processes",
    "torchrun --nnodes 2": "two machines: faults/test_several_processes.py, both on this one",
    "#!/bin/sh\n#SBATCH --nodes 2": "Slurm: faults/test_several_processes.py, with programs of these names",
}
"""What a command or a block begins with → why it is not run here, and which test stands in for it."""

ELSEWHERE: dict[str, dict[str, str]] = {
    "how-to/from-a-training-script.md": {"": "third_party/test_from_a_training_script.py"},
    "how-to/hugging-face.md": {
        "stackwise init --from folder": "docs/test_hugging_face_page.py",
        "extends: model.yaml": "docs/test_hugging_face_page.py",
        "model:\n  start: {from: folder}": "transformer/test_wrapped_models.py",
        "model:\n  start: {from: adapters": "transformer/test_peft.py",
        "phases:\n  short": "transformer/test_longer_context.py",
        "pip install": "core/saved/test_harness.py",
    },
    "how-to/module.md": {"": "docs/test_module_page.py"},
    "how-to/write-a-provider.md": {
        "stackwise new-provider waves": "core/scaffold/test_clean_environment.py",
        "pip install .": "third_party/test_waves_distribution.py",
        "": "docs/test_write_a_provider.py",
    },
}
"""Page → what a block begins with → the test that runs it, because it takes more than a folder and a command line."""


def excused(text: str) -> bool:
    return any(text.startswith(each) for each in EXCUSED)


@frozen
class Reader:
    """Follows a page in a folder."""

    page: str
    folder: Path
    names: dict[str, Any] = field(factory=dict)
    """What the Python of the page has named so far."""
    printed: list[str] = field(factory=list)
    """What the last block of commands, or of Python, printed."""

    def take(self, language: str, name: str, text: str) -> None:
        """One block."""
        if excused(text):
            return
        if name:
            (self.folder / name).write_text(text, encoding="utf-8")
        elif language == "python":
            with redirect_stdout(StringIO()) as told:
                exec(compile(text, self.page, "exec"), self.names)
            self.printed[:] = [told.getvalue()]
        elif language == "bash":
            self._shell(text)
        elif language == "console":
            self.printed.clear()
            for line in filter(None, text.splitlines()):
                self.call(line)
        elif language == "yaml":
            (self.folder / "section.yaml").write_text(f"extends: {UNDER[self.page]}\n{text}", encoding="utf-8")
            self._stackwise(["plan", "section.yaml"])
        elif language == "text":
            self.compare(text)
        else:
            pytest.fail(f"a block of {language!r} without a title is neither written nor run")

    def call(self, line: str) -> None:
        """One command, in this process where it is ours."""
        if excused(line):
            return
        if line == "make run":
            assert CONFIG is not None
            line = f"stackwise run {CONFIG[1]}"
        command, *arguments = shlex.split(line, comments=True)
        if "&&" in arguments or command == "pip":
            self._install(arguments)
        elif command == "cd":
            os.chdir(arguments[0])
        elif command != "stackwise":
            self._shell(line)
        elif "--ranks" in arguments:
            self._shell(shlex.join([command, *arguments, *self._short(arguments)]))
        elif arguments[0] == "check":  # by a process of its own, since the distribution is new
            self._shell(shlex.join([command, *arguments]))
        else:
            self._stackwise([*arguments, *self._short(arguments)])

    def _short(self, arguments: list[str]) -> list[str]:
        """What cuts a run to a few steps."""
        chosen = SETTINGS.get(self.page, ("run.horizon=20 steps",)) if arguments[0] == "run" else ()
        return [word for setting in chosen for word in ("--set", setting)]

    def _stackwise(self, arguments: list[str]) -> None:
        if "wandb.yaml" in arguments and importlib.util.find_spec("wandb") is None:
            arguments = ["plan", "wandb.yaml"]  # with the library: core/builtin/test_tracker_libraries.py
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, f"{shlex.join(arguments)}\n{result.output}"
        self.printed.append(result.output)

    def _shell(self, text: str) -> None:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(self.folder / "site"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(["bash", "-ec", text], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        self.printed.append(done.stdout)

    def _install(self, arguments: list[str]) -> None:
        """`cd FOLDER && pip install -e .`, into a folder of its own and without an index."""
        assert arguments[-4:] == ["pip", "install", "-e", "."], arguments
        where = ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(self.folder / "site")]
        install = [sys.executable, "-m", "pip", "install", *where, "."]
        subprocess.run(install, cwd=arguments[0], capture_output=True, check=True)

    def compare(self, shown: str) -> None:
        """What is shown under commands is what they printed, line by line; `⋮` stands for lines that are left out."""
        printed = "".join(self.printed)
        for piece in filter(None, re.split(r"^⋮\n", shown, flags=re.MULTILINE)):
            assert piece in printed, f"{self.page} shows\n{piece}\nand its commands print\n{printed}"
            printed = printed[printed.index(piece) + len(piece) :]


@pytest.mark.parametrize("page", [name for name in NAMES if name not in ELSEWHERE])
def test_a_page_can_be_followed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(DOCS)
    BEFORE.get(page, write_notes)(tmp_path)
    reader = Reader(page, tmp_path)
    for block in blocks(page):
        reader.take(*block)


@pytest.mark.parametrize("page", ELSEWHERE)
def test_every_block_of_a_page_that_is_not_followed_here_has_a_test(page: str) -> None:
    assert all((ROOT / "tests" / path).is_file() for path in ELSEWHERE[page].values())
    for _, _, text in blocks(page):
        assert any(text.startswith(each) for each in ELSEWHERE[page]), text


def test_no_excuse_is_left_over() -> None:
    held = [text for name in NAMES for _, _, text in blocks(name)]
    lines = [line for text in held for line in text.splitlines()]
    for excuse, why in EXCUSED.items():
        assert any(each.startswith(excuse) for each in [*held, *lines]), excuse
        assert all((ROOT / "tests" / path).is_file() for path in re.findall(r"[\w/]+\.py", why))
