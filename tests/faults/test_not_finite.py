"""A step that is not finite changes nothing and is counted; what follows is the run's choice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fork_server import Ended, ForkServer
from safetensors.torch import load_file
from whole_runs import lines, losses, outcome, saved_steps, status

CONFIG = """\
run: {horizon: 30 steps, seed: 1, device: cpu, checkpoint: {every: 5 steps}}
task: {use: transformer.causal-lm}
data:
  sources: {a: {use: data.memory, arrays: {tokens: TOKENS}}}
  batch_size: 2
  seq_len: 4
model:
  embedding: {use: transformer.token, vocab: 8}
  rack: {use: transformer.decoder, width: 8, heads: 2, stacks: [{base: 1}]}
  head: {use: transformer.lm}
optimizer: {use: optim.adamw, lr: 1e-2}
"""

SICK = """
from stackwise_providers_transformer.causal_lm import CausalLM
loss, calls = CausalLM.loss, [0]
def sick(self, outputs, batch):
    total, weight, metrics = loss(self, outputs, batch)
    calls[0] += 1
    return (%s if %s else total), weight, metrics
CausalLM.loss = sick
"""
"""A loss that goes wrong in some of its calls, of which there is one a step."""

NAN = "total * float('nan')"
INFINITE_GRADIENT = "total + (outputs['logits'].tensor().sum() * 0).clamp(min=0).sqrt()"
"""The root of zero is zero and its slope is not finite."""


def run(server: ForkServer, folder: Path, *settings: str, wrong: str = NAN, when: str = "False") -> Ended:
    tokens = torch.randint(8, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    (folder / "exp.yaml").write_text(CONFIG.replace("TOKENS", str(tokens)))
    overrides = [word for setting in settings for word in ("--set", setting)]
    return server.stackwise("run", "exp.yaml", "--output", "run", *overrides, cwd=folder, patch=SICK % (wrong, when))


@pytest.mark.parametrize(("wrong", "finite_loss"), [(NAN, False), (INFINITE_GRADIENT, True)])
def test_one_such_step_leaves_every_bit_and_is_counted(server: ForkServer, tmp_path: Path, wrong: str, finite_loss: bool) -> None:
    ended = run(server, tmp_path, "run.checkpoint.every=1 steps", "run.checkpoint.keep_last=50", wrong=wrong, when="calls[0] == 8")
    assert ended.code == 0, ended.err
    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in metrics if line.get("skipped")] == [7]
    assert isinstance(metrics[7]["loss"], float) == finite_loss and metrics[7]["grad_norm"] in ("nan", "inf")
    assert lines(tmp_path / "run" / "events.jsonl")[-1]["skipped"] == 1
    before, after = (load_file(tmp_path / "run" / "checkpoints" / f"step-{k:09d}" / "tensors.safetensors") for k in (7, 8))
    assert before.keys() == after.keys()
    moved = {name for name in before if before[name].numpy().tobytes() != after[name].numpy().tobytes()}
    assert all(name.startswith("draws/") for name in moved), moved


def test_n_in_a_row_halt_with_their_own_code_and_keep_a_good_checkpoint(server: ForkServer, tmp_path: Path) -> None:
    ended = run(server, tmp_path, "run.halt_after=4", when="calls[0] > 12")
    assert ended.code == 4 and "not finite 4 steps in a row, last at step 15" in ended.err and "Traceback" not in ended.err
    assert status(tmp_path / "run")["status"].startswith("failed: loss or gradient was not finite")
    assert saved_steps(tmp_path / "run") == [10, 15]
    healthy = server.stackwise("resume", "run", cwd=tmp_path)
    assert healthy.code == 0, healthy.err
    assert len(losses(tmp_path / "run")) == 30


def test_halt_stops_at_the_first(server: ForkServer, tmp_path: Path) -> None:
    ended = run(server, tmp_path, "run.non_finite=halt", when="calls[0] == 8")
    assert ended.code == 4 and "1 steps in a row, last at step 7" in ended.err


def test_rewind_goes_back_to_a_good_state_and_passes_over_the_data(server: ForkServer, tmp_path: Path) -> None:
    """Calls 13 to 15 are steps 12 to 14; the checkpoint of step 10 is the newest good one."""
    ended = run(server, tmp_path, "run.non_finite=rewind", when="13 <= calls[0] <= 15")
    assert ended.code == 0, ended.err
    assert "back from step 15 to 10" in ended.err
    told = [line for line in lines(tmp_path / "run" / "events.jsonl") if line["event"] == "rewound"]
    assert [(line["step"], line["halted_at"]) for line in told] == [(10, 15)]
    assert sorted(losses(tmp_path / "run")) == list(range(30))
    assert not any(line.get("skipped") for line in lines(tmp_path / "run" / "metrics.jsonl"))
    ledger = status(tmp_path / "run")["data"]["a"]["rows"]
    assert ledger == 2 * (30 + 5)  # the five steps from 10 to 15 were read and are read past
    read = [line.split(", ")[1] for line in (tmp_path / "witness.jsonl").read_text().splitlines()]
    assert len(read) == 35 and len(set(read)) == 35  # no batch came twice


def rows(count: int) -> list[list[int]]:
    return torch.randint(8, (count, 5), generator=torch.Generator().manual_seed(4)).tolist()


def write(folder: Path, table: list[list[int]]) -> None:
    """A run that reads the rows of a table in their order, with dropout."""
    text = CONFIG.replace("{tokens: TOKENS}", f"{{tokens: {table}}}, shuffle: false").replace("heads: 2,", "heads: 2, dropout: 0.2,")
    folder.mkdir(exist_ok=True)
    (folder / "exp.yaml").write_text(text)


def test_a_rewound_run_is_the_one_that_never_met_what_was_passed_over(server: ForkServer, tmp_path: Path) -> None:
    """Back from step 15 to 10 rows 20 to 29 are lost: to the bit the run of a table that does not have them."""
    table = rows(70)
    write(tmp_path / "rewound", table)
    write(tmp_path / "without", table[:20] + table[30:])
    command = ("run", "exp.yaml", "--output", "run", "--set", "run.non_finite=rewind")
    assert server.stackwise(*command, cwd=tmp_path / "rewound", patch=SICK % (NAN, "13 <= calls[0] <= 15")).code == 0
    assert server.stackwise(*command, cwd=tmp_path / "without").code == 0
    one, other = outcome(tmp_path / "rewound", once=False), outcome(tmp_path / "without")
    assert one.weights == other.weights and one.stream == other.stream
    for plane in ("model", "optimizer"):
        assert one.state[plane] == other.state[plane]
    assert [line["event"] for line in one.log if line["event"] == "rewound"] == ["rewound"]


def test_a_rewind_leaves_nothing_of_the_future_that_it_gave_up(server: ForkServer, tmp_path: Path) -> None:
    """Checkpoint 15 was saved among the sick steps; killed on the way anew, the run goes on from 10 and tells every step once."""
    dies = "13 <= calls[0] <= 15 or calls[0] == 17 and __import__('os').kill(__import__('os').getpid(), 9)"
    assert run(server, tmp_path, "run.non_finite=rewind", when=dies).code == -9
    assert saved_steps(tmp_path / "run") == [10]
    told = server.stackwise("resume", "run", cwd=tmp_path)
    assert told.code == 0 and "at step 10 of 30" in told.err, told.err
    (tmp_path / "healthy").mkdir()
    assert run(server, tmp_path / "healthy").code == 0
    assert list(losses(tmp_path / "run").items()) == list(losses(tmp_path / "healthy" / "run").items())


def test_rewinding_is_given_up_when_it_does_not_help(server: ForkServer, tmp_path: Path) -> None:
    ended = run(server, tmp_path, "run.non_finite=rewind", when="calls[0] > 12")
    assert ended.code == 4 and "3 rewinds to step 10 ended alike" in ended.err
    assert status(tmp_path / "run")["rewinds"] == {"10": 4}
    again = server.stackwise("resume", "run", cwd=tmp_path, patch=SICK % (NAN, "True"))  # a new process does not begin to count anew
    assert again.code == 4 and "rewinds to step 10 ended alike" in again.err and "back from step" not in again.err, again.err


def test_without_a_good_checkpoint_there_is_nothing_to_rewind_to(server: ForkServer, tmp_path: Path) -> None:
    ended = run(server, tmp_path, "run.non_finite=rewind", when="calls[0] > 2")
    assert ended.code == 4 and "3 steps in a row" in ended.err


def test_a_state_that_is_not_finite_is_never_saved_as_a_good_one(server: ForkServer, tmp_path: Path) -> None:
    poison = """
import torch
from stackwise.machine.machine import TrainingMachine
step = TrainingMachine._train_step
def poisoned(self, moment):
    found = step(self, moment)
    if moment.step == 11:
        next(iter(self.model.model.parameters())).data[0] = float("inf")
    return found
TrainingMachine._train_step = poisoned
"""
    (tmp_path / "exp.yaml").write_text(CONFIG.replace("TOKENS", str([1, 2, 3, 4, 5, 6, 7] * 40)))
    ended = server.stackwise("run", "exp.yaml", "--output", "run", cwd=tmp_path, patch=poison)
    assert ended.code == 4
    assert saved_steps(tmp_path / "run")[-1] == 10
    ended = server.stackwise("resume", "run", cwd=tmp_path)
    assert ended.code == 0, ended.err


def test_rewind_across_growth_crosses_the_boundary_anew(server: ForkServer, tmp_path: Path) -> None:
    """The growth probe at step 15 asks twice, so calls 19 to 21 are steps 16 to 18; checkpoint 10 is of the smaller model."""
    tokens = torch.randint(8, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    phases = """\
phases:
  small: {until: 50%}
  grown: {model: {rack: {stacks: [{base: 2}]}}, enter: {growth: {use: transformer.stack}}}
"""
    (tmp_path / "exp.yaml").write_text(CONFIG.replace("TOKENS", str(tokens)) + phases)
    settings = ("--set", "run.non_finite=rewind", "--set", "run.checkpoint={every: 10 steps, at_phases: false}")
    patch = SICK % (NAN, "19 <= calls[0] <= 21")
    ended = server.stackwise("run", "exp.yaml", "--output", "run", *settings, cwd=tmp_path, patch=patch)
    assert ended.code == 0, ended.err
    assert "back from step 19 to 10" in ended.err, ended.err
    events = lines(tmp_path / "run" / "events.jsonl")
    assert [(line["step"], line["halted_at"]) for line in events if line["event"] == "rewound"] == [(10, 19)]
    entered = [(line["phase"], line["step"]) for line in events if line["event"] == "phase_entered"]
    assert entered[0] == ("small", 0) and entered[-1] == ("grown", 15)
    assert sorted(losses(tmp_path / "run")) == list(range(30))
    assert not any(line.get("skipped") for line in lines(tmp_path / "run" / "metrics.jsonl"))
    assert status(tmp_path / "run")["data"]["a"]["rows"] == 2 * (30 + 9)  # the nine steps from 10 to 19 are read past
    read = [line.split(", ")[1] for line in (tmp_path / "witness.jsonl").read_text().splitlines()]
    assert len(read) == len(set(read)) == 39  # no batch came twice
