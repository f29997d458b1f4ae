"""Whatever the tokenizer of a run, an export or a folder for another tool says: exit code 0 with the same result, or 2 with a sentence.

The digests of a record are made right after each change of what it describes, so that only its content is wrong. A sample runs always, all
of it rarely.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from random import Random

import attrs
import pytest
from attrs import frozen
from click.testing import CliRunner
from damaged_documents import Damage, as_bytes, damages

from stackwise.cli import main

TEXT = "\n".join(f"the cat number {i} sat on the mat and looked at the dog {i * i % 7}" for i in range(60))
CONFIG = """\
run: {name: small, horizon: 2 steps, seed: 1, device: cpu, probe: false, checkpoint: {every: 1 steps, keep_last: 4}}
task: {use: transformer.causal-lm}
data: {sources: {a: {use: data.text-files, paths: [a.txt], tokenizer: TOKENIZER, heldout: 0.2}}, batch_size: 2, seq_len: 8}
model:
  embedding: {use: transformer.token}
  rack: {use: transformer.decoder, width: 8, heads: 2, mlp: swiglu, ff: 24, stacks: [{base: 1}]}
  head: {use: transformer.lm}
optimizer: {use: optim.adamw, lr: 1e-2}
"""
LEARNT = "{bpe: {vocab: 280}}"
STARTED = CONFIG.replace("model:\n", "model:\n  start: {from: FROM}\n")

GENERATE = ("generate", "run", "--prompt", "the cat", "--tokens", "2", "--temperature", "0")
RESUME = ("resume", "run")
EXPORT = ("export", "run", "written")
FROM_EXPORT, FROM_FOLDER = (("run", f"{name}.yaml", "--output", "run") for name in ("from_export", "from_folder"))


@frozen
class Document:
    """A document, and who reads it.

    Args:
        of: what is copied to its place.
        place: where it is copied to.
        name: the document in it, `*` for the folder of the vocabulary.
        commands: those that read it.
    """

    of: str
    place: str
    name: str
    commands: tuple[tuple[str, ...], ...]


DOCUMENTS: Mapping[str, Document] = {
    "record of a run": Document("interrupted", "run", "tokenizers/*/stackwise.json", (RESUME, GENERATE)),
    "tokenizer of a run": Document("interrupted", "run", "tokenizers/*/tokenizer.json", (RESUME, GENERATE)),
    "settings of a run": Document("interrupted", "run", "tokenizers/*/tokenizer_config.json", (RESUME, GENERATE)),
    "record of final": Document("finished", "run", "final/tokenizers/*/stackwise.json", (GENERATE, EXPORT)),
    "tokenizer of final": Document("finished", "run", "final/tokenizers/*/tokenizer.json", (GENERATE, EXPORT)),
    "weights of an export": Document("exported", "exported", "weights.json", (FROM_EXPORT,)),
    "record of an export": Document("exported", "exported", "tokenizers/*/stackwise.json", (FROM_EXPORT,)),
    "config of a folder": Document("folder", "folder", "config.json", (FROM_FOLDER,)),
    "tokenizer of a folder": Document("folder", "folder", "tokenizer.json", (FROM_FOLDER,)),
    "settings of a folder": Document("folder", "folder", "tokenizer_config.json", (FROM_FOLDER,)),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `finished`, `interrupted` before its last step, `exported` and, for another tool, `folder`."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("STACKWISE_CACHE", str(folder / "cache"))
        (folder / "a.txt").write_text(TEXT)
        (folder / "exp.yaml").write_text(CONFIG.replace("TOKENIZER", LEARNT))
        (folder / "from_export.yaml").write_text(STARTED.replace("FROM", "exported").replace("TOKENIZER", LEARNT))
        (folder / "from_folder.yaml").write_text(STARTED.replace("FROM", "folder").replace("TOKENIZER", "{file: folder}"))
        for command in ("run exp.yaml --output finished", "export finished exported", "export finished folder --format hf"):
            done = CliRunner().invoke(main, command.split())
            assert done.exit_code == 0, done.output
        shutil.copytree("finished", "interrupted")
        shutil.rmtree("interrupted/checkpoints/step-000000002")
        shutil.rmtree("interrupted/final")
        (folder / "interrupted" / "status.json").write_text('{"status": "running", "steps": 1, "data": {}}')
    return folder


def place_of(document: Document, base: Path) -> Path:
    (found,) = base.glob(document.name)
    return found


def every_damage(document: Document, made: Path) -> Iterator[Damage]:
    """All damages of a document; of a vocabulary two ids changing places, for all others."""
    content = place_of(document, made / document.of).read_bytes()
    tree = json.loads(content)
    for kind, cut in (("cut", content[: len(content) // 2]), ("empty", b""), ("no text", b"\xff" + content)):
        yield Damage(document.name, "", kind, cut)
    if not document.name.endswith("/tokenizer.json") and document.name != "tokenizer.json":
        yield from damages(document.name, tree)
        return
    words = tree["model"].pop("vocab")
    first, second = list(words)[100], list(words)[200]
    for kind, changed in (
        ("two ids changed", {**words, first: words[second], second: words[first]}),
        ("an id twice", {**words, first: words[second]}),
        ("an id beyond", {**words, first: 10**6}),
        ("no words", {}),
    ):
        yield Damage(document.name, "model.vocab", kind, as_bytes({**tree, "model": {**tree["model"], "vocab": changed}}))
    merges = tree["model"].pop("merges")
    inside = ', "vocab": ' + json.dumps(words) + ', "merges": ' + json.dumps(merges) + "}"
    for damage in damages(document.name, tree):
        text = damage.content.decode()
        yield attrs.evolve(damage, content=text.replace('"type": "BPE"', '"type": "BPE"' + inside[:-1]).encode())


def signed(file: Path) -> None:
    """Write the digest of a changed file of a tokenizer into the record beside it."""
    record = file.parent / "stackwise.json"
    if record.exists() and record != file:
        about = json.loads(record.read_bytes())
        about["sha256"][file.name] = sha256(file.read_bytes()).hexdigest()
        record.write_text(json.dumps(about))


def run(document: Document, command: tuple[str, ...], made: Path, here: Path, content: bytes | None = None) -> tuple[int, str, object]:
    """Exit code, what was said, and the result: the final weights, or the generated text."""
    for leftover in ("run", "written", "exported", "folder"):
        shutil.rmtree(here / leftover, ignore_errors=True)
    shutil.copytree(made / document.of, here / document.place)
    if content is not None:
        file = place_of(document, here / document.place)
        file.write_bytes(content)
        signed(file)
    done = CliRunner().invoke(main, list(command))
    weights = here / ("written/weights.safetensors" if command[0] == "export" else "run/final/weights.safetensors")
    result: object = done.stdout if command[0] == "generate" else weights.read_bytes() if weights.exists() else None
    return done.exit_code, done.output.strip(), result


def faults(name: str, damaged: list[Damage], made: Path, here: Path) -> list[str]:
    document, found = DOCUMENTS[name], []
    for command in document.commands:
        code, said, right = run(document, command, made, here)
        assert code == 0, said
        for damage in damaged:
            code, said, result = run(document, command, made, here, damage.content)
            if code not in (0, 2) or "Traceback" in said or (code == 2 and not said):
                found.append(f"{damage}: {command[0]} exits {code}: {said[-300:]}")
            elif code == 0 and damage.place == "model.vocab" and document.place == "run" and command is not EXPORT:  # a copy is not read
                found.append(f"{damage}: {command[0]} takes another vocabulary than the model was trained with")
            elif code == 0 and result != right:
                found.append(f"{damage}: {command[0]} goes on to another result")
    return found


def prepare(made: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    monkeypatch.setenv("STACKWISE_CACHE", str(made / "cache"))
    for name in ("a.txt", "from_export.yaml", "from_folder.yaml"):
        shutil.copy(made / name, here / name)


@pytest.mark.parametrize("name", ["record of a run", "tokenizer of a run", "tokenizer of final", "config of a folder"])
def test_a_sample_of_damages(name: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(made, tmp_path, monkeypatch)
    every = list(every_damage(DOCUMENTS[name], made))
    chosen = [damage for damage in every if damage.kind == "two ids changed"] or Random(name).sample(every, 2)
    assert faults(name, chosen, made, tmp_path) == []


@pytest.mark.rare
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_damage(name: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(made, tmp_path, monkeypatch)
    assert faults(name, list(every_damage(DOCUMENTS[name], made)), made, tmp_path) == []
