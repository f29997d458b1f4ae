"""`generate` on runs on disk: the weights, the task and the tokens are those of the run, and what cannot be is told."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

import stackwise
from stackwise import GenerationSettings, UserError, generate
from stackwise.cli import main
from stackwise.runs.run import run
from stackwise.saved.generate import open_text_model
from stackwise.saved.text_pieces import Continuation

HALF, LAST = 50, 100
GREEDY = GenerationSettings(tokens=12, temperature=0)
DECODER = {"use": "transformer.decoder", "width": 16, "heads": 2, "stacks": [{"base": 1}]}
TEXT = "abc" * 400
LORA = {"style": {"use": "transformer.lora", "rank": 2, "select": ["rack"]}}


def config_of(**sections: Any) -> dict[str, Any]:
    """Learns that c follows b follows a."""
    return {
        "run": {"horizon": f"{LAST} steps", "seed": 3, "device": "cpu", "checkpoint": {"every": f"{HALF} steps", "keep_last": 9}},
        "task": {"use": "transformer.causal-lm"},
        "data": {"sources": {"text": {"use": "data.text-files", "paths": ["*.txt"], "heldout": 0}}, "batch_size": 4, "seq_len": 12},
        "model": {"embedding": {"use": "transformer.token"}, "rack": DECODER, "head": {"use": "transformer.lm"}},
        "optimizer": {"use": "optim.adamw", "lr": 0.02},
        **sections,
    }


def trained(folder: Path, name: str = "out", **sections: Any) -> Path:
    (folder / "exp.yaml").write_text(yaml.safe_dump(config_of(**sections), sort_keys=False))
    return run(folder / "exp.yaml", output=folder / name, stream=io.StringIO()).directory


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    for name in ("one", "two"):
        Path(f"{name}.txt").write_text(TEXT)
    return tmp_path


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["generate", *map(str, arguments)])


def by_hand(model: Any, ids: list[int], count: int) -> list[int]:
    """The likeliest next id, one whole forward pass after the other."""
    with torch.no_grad():
        for _ in range(count):
            ids = [*ids, int(model({"tokens": torch.tensor([ids])})["logits"][0, -1, :256].argmax())]
    return ids


def test_final_weights_go_on_as_the_exported_model_does(here: Path) -> None:
    directory = trained(here)
    made = generate(directory, "abca", GREEDY)
    assert made.text == "abcabcabcabcabca" and (made.step, made.prompt_tokens) == (LAST, 4)
    assert list(made.ids) == by_hand(stackwise.load_exported(directory / "final"), list(b"abca"), 12)
    assert generate(directory, list(b"abca"), GREEDY).ids == made.ids
    assert generate(directory, list(b"abca"), GREEDY).text is None


def test_a_run_that_has_not_finished_goes_on_from_its_newest_whole_checkpoint(here: Path) -> None:
    directory = trained(here)
    shutil.rmtree(directory / "final")
    assert (made := generate(directory, "ab", GREEDY)).step == LAST and made.text == "abcabcabcabcab"
    newest = max(path for path in (directory / "checkpoints").iterdir())
    for path in newest.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert generate(directory, "ab", GREEDY).step == HALF
    shutil.rmtree(directory / "checkpoints")
    with pytest.raises(UserError, match="holds no weights yet"):
        generate(directory, "ab", GREEDY)
    with pytest.raises(UserError, match="is not a run directory"):
        generate(here / "nowhere", "ab", GREEDY)


GATE = {"use": "transformer.gated", "gate": {"linear": {"from": 0, "to": 1, "over": "phase"}}}
CURRICULA: dict[str, dict[str, Any]] = {
    "adapters beside": {"two": {"model": {"weight_adapters": LORA, "freeze": ["embedding", "rack"]}}},
    "an optimizer that trains at other points": {"two": {"optimizer": {"use": "optim.schedule-free", "lr": 0.02}}},
    "a gate half open": {"two": {"model": {"rack": {"stacks": [{"base": 2}]}}, "enter": {"growth": GATE}}},
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model({"tokens": torch.arange(90, 110)[None]})["logits"]
    return found


def judged(machine: stackwise.TrainingMachine) -> Any:
    """What an evaluation would see now."""
    with machine.optimizer.evaluating():
        return logits(machine.model.model.eval())


@pytest.mark.parametrize("name", CURRICULA)
def test_what_stands_beside_the_weights_counts(here: Path, name: str) -> None:
    """Weights at the end and at a step in the middle of the phase compute what they did in training."""
    phases = {"one": {"until": f"{HALF // 2} steps"}, **CURRICULA[name]}
    directory, expected = trained(here, phases=phases), {}
    machine = stackwise.assemble(stackwise.experiment(config_of(phases=phases)))
    for event in machine.train():
        if isinstance(event, stackwise.StepDone) and event.step == HALF - 1:
            machine.model.apply_values(machine.schedule.clock.t(HALF))
            expected[HALF] = judged(machine)
            machine.model.train()
    expected[LAST] = judged(machine)
    assert torch.equal(logits(open_text_model(directory).model), expected[LAST])
    assert generate(directory, "zq", GREEDY).step == LAST
    shutil.rmtree(directory / "final")
    shutil.rmtree(max((directory / "checkpoints").iterdir()))
    assert torch.equal(logits(open_text_model(directory).model), expected[HALF])
    assert generate(directory, "zq", GREEDY).step == HALF


def test_the_command_is_seeded_and_its_cache_changes_nothing(here: Path) -> None:
    directory = trained(here)
    sampled = (directory, "--prompt", "ab", "--tokens", "30", "--temperature", "3", "--top-k", "40", "--top-p", "0.95")
    first = call(*sampled, "--seed", "1")
    assert first.exit_code == 0 and first.output.startswith("ab")
    assert call(*sampled, "--seed", "1").output == first.output == call(*sampled, "--seed", "1", "--no-cache").output
    assert call(*sampled, "--seed", "2").output != first.output
    assert call(directory, "--ids", "--prompt", "97 98", "--tokens", "2", "--temperature", "0").output == "97 98 99 97\n"


def test_a_process_of_its_own_prints_the_text_and_nothing_else(
    distributions: ModuleType, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No provider is blamed for what torch sets in the environment as parts of it are first imported."""
    directory = trained(here, run={"horizon": "1 steps", "device": "cpu"})
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # as a shell has it
    done = distributions.run_stackwise("generate", str(directory), "--ids", "--prompt", "97", "--tokens", "1")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("97 ")


def test_diffusion_fills_in_masks(here: Path) -> None:
    directory = trained(here, task={"use": "transformer.mask-diffusion"})
    made = call(directory, "--prompt", "abcabc", "--tokens", "12", "--steps", "4", "--temperature", "0")
    assert made.exit_code == 0 and made.output.startswith("abcabc")
    assert generate(directory, "", GenerationSettings(tokens=9)).prompt_tokens == 0
    assert all(i < 256 for i in generate(directory, "", GenerationSettings(tokens=200, temperature=100.0)).ids)
    refused = call(directory, "--prompt", "a", "--tokens", "4", "--steps", "5")
    assert refused.exit_code == 2 and "5 steps for 4 tokens" in refused.output
    refused = call(directory, "--prompt", "a", "--no-cache")
    assert refused.exit_code == 2 and "keeps nothing" in refused.output


def test_a_model_of_preferences_goes_on_as_a_causal_one(here: Path) -> None:
    rows = [[97, 98, 99, 97], [97, 98, 97, 97]]
    arrays = {"chosen": [[*rows[0]] for _ in range(40)], "rejected": [[*rows[1]] for _ in range(40)], "prefix": [1] * 40}
    model = {**config_of()["model"], "embedding": {"use": "transformer.token", "vocab": 100}}
    data = {"sources": {"pairs": {"use": "data.memory", "arrays": arrays}}, "batch_size": 4, "seq_len": 3}
    directory = trained(here, task={"use": "transformer.preference", "method": "orpo"}, data=data, model=model)
    assert generate(directory, [97], GenerationSettings(tokens=3, temperature=0)).ids == tuple(rows[0])
    with pytest.raises(UserError, match=r"'pairs' \(data\.memory\); give the prompt as ids"):
        generate(directory, "a", GREEDY)
    with pytest.raises(UserError, match="id 100 is none of the 100 that the model knows"):
        generate(directory, [97, 100], GREEDY)
    with pytest.raises(UserError, match="-1 is not an id of the source: ids are not negative"):
        generate(directory, [97, -1], GREEDY)


ENCODER_DECODER = {
    "use": "transformer.encoder-decoder",
    "width": 16,
    "heads": 2,
    "stacks": [{"read": 1}, {"write": 1}],
    "encoder": ["read"],
}


@pytest.mark.parametrize("form", ["prefix", "encoder-decoder"])
def test_a_source_is_followed_by_its_target(here: Path, form: str) -> None:
    """Learns that every line is answered by the same word."""
    records = "".join(json.dumps({"ask": f"{name}{i}?", "answer": "yes."}) + "\n" for name in "abc" for i in range(10))
    Path("pairs.jsonl").write_text(records)
    layout = {} if form == "prefix" else {"layout": "separate"}
    source = {"use": "data.jsonl", "paths": ["pairs.jsonl"], "prompt": "ask", "response": "answer", "heldout": 0, **layout}
    model = {**config_of()["model"], "rack": DECODER if form == "prefix" else ENCODER_DECODER}
    task = {"use": "transformer.seq2seq", "form": form}
    data = {"sources": {"pairs": source}, "batch_size": 8, "seq_len": 8}
    directory = trained(here, task=task, model=model, data=data)
    called = call(directory, "--prompt", "a7?", "--tokens", "4", "--temperature", "0")
    assert (called.exit_code, called.output) == (0, "a7?yes.\n")
    assert generate(directory, list(b"a7?"), GREEDY).ids[:8] == tuple(b"a7?yes.\0")  # the separator that ended every response
    refused = call(directory, "--prompt", "a", "--steps", "3")
    assert refused.exit_code == 2 and "one token at a time" in refused.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--prompt", ""], "give at least one token"),
        (["--prompt", "a", "--steps", "3"], "steps have no effect"),
        (["--prompt", "a", "--top-p", "0"], "top_p: 0.0 is out of range"),
        (["--prompt", "a", "--temperature", "nan"], "temperature: nan is out of range"),
        (["--prompt", "a", "--tokens", "0"], "--tokens"),
        (["--ids", "--prompt", "1 b"], "is not a list of token ids"),
        (["--ids", "--prompt", "1 256"], "ids lie in [0, 256)"),
        (["--prompt", "abcdefghi", "--tokens", "9"], "take 17 positions, and the model has learned 16"),
        ([], "--prompt"),
    ],
)
def test_a_wrong_call_is_told_and_costs_nothing(here: Path, arguments: list[str], told: str) -> None:
    rack = {**DECODER, "positions": "learned", "max_positions": 16}
    model = {"embedding": {"use": "transformer.token"}, "rack": rack, "head": {"use": "transformer.lm"}}
    directory = trained(here, run={"horizon": "1 steps", "device": "cpu"}, model=model)
    refused = call(directory, *arguments)
    assert refused.exit_code == 2 and told in refused.output, refused.output


def test_a_task_that_generates_nothing_is_named(here: Path) -> None:
    directory = trained(here, run={"horizon": "1 steps", "device": "cpu"}, task={"use": "transformer.masked-lm"})
    refused = call(directory, "--prompt", "a")
    assert refused.exit_code == 2
    assert "task 'transformer.masked-lm' (stackwise-providers-transformer" in refused.output and "generates nothing" in refused.output


def test_a_task_that_loses_the_prompt_is_the_providers_fault(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stackwise_providers_transformer.causal_lm import CausalLM

    directory = trained(here, run={"horizon": "1 steps", "device": "cpu"})
    monkeypatch.setattr(CausalLM, "generate", lambda self, model, prompt, settings, generator: prompt + 1)
    refused = call(directory, "--prompt", "a", "--tokens", "1")
    assert (
        refused.exit_code == 3
        and "transformer.causal-lm of stackwise-providers-transformer" in refused.output
        and "in generate: " in refused.output
    )


# -- several prompts, ends and pieces -------------------------------------------------------------------------------------


def test_prompts_end_at_a_text_and_pieces_add_up(here: Path) -> None:
    directory = trained(here)
    pieces: dict[int, str] = {0: "", 1: ""}

    def hear(number: int, piece: str | int) -> None:
        pieces[number] += str(piece)

    alone = generate(directory, "abca", GREEDY)
    first, second = stackwise.generate_all(directory, ["abca", "cab"], GREEDY, hear=hear)
    assert first == alone
    assert alone.text is not None and second.text is not None
    assert ["abca" + pieces[0], "cab" + pieces[1]] == [alone.text, second.text]
    behind = alone.text[4:]
    stop = behind[5:8]
    where = behind.index(stop)
    pieces[0] = ""
    ended = generate(directory, "abca", GREEDY, stop=[stop, "never"], hear=hear)
    assert ended.text == "abca" + behind[:where]
    assert pieces[0] == behind[:where]
    assert len(ended.ids) == 4 + where + len(stop)
    with pytest.raises(UserError, match="one kind"):
        stackwise.generate_all(directory, ["abca", [97]], GREEDY)
    with pytest.raises(UserError, match=r"settings\.stop"):
        generate(directory, [97], GREEDY, stop=["c"])
    assert generate(directory, list(b"abca"), GenerationSettings(tokens=12, temperature=0, stop=(alone.ids[6],))).ids[-1] == alone.ids[6]
    said = call(directory, "--prompt", "abca", "--tokens", "12", "--temperature", "0", "--stop", stop, "--stream")
    assert said.output == f"abca{behind[:where]}\n"
    said = call(directory, "--prompt", "abca", "--prompt", "cab", "--tokens", "12", "--temperature", "0")
    assert said.output == f"{alone.text}\n{second.text}\n"
    assert call(directory, "--prompt", "a", "--prompt", "b", "--stream").exit_code == 2


def test_a_letter_is_told_once_all_of_its_bytes_are_there() -> None:
    class Bytes:
        def encode(self, text: str) -> list[int]:
            return list(text.encode())

        def decode(self, ids: Any) -> str:
            return bytes(ids).decode(errors="replace")

    continuation = Continuation(Bytes(), ("END",))
    told = [continuation.take(byte) for byte in "aé€ EN, END".encode()]
    assert "".join(str(piece) for piece, _ in told) == "aé€ EN, "
    assert [ends for _, ends in told] == [False] * (len(told) - 1) + [True]
    open_ended = Continuation(Bytes(), ("END",))
    assert "".join(str(open_ended.take(byte)[0]) for byte in b"so EN") + open_ended.rest() == "so EN"
