"""Memory that does not suffice is nobody's defect: exit code 2, what was tried, the bytes asked for, and no directory left."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from fork_server import ForkServer

from stackwise.errors import asks_too_much, bytes_asked, lacks_memory

CONFIG = """\
run: {name: small, horizon: 2 steps, seed: 1, device: cpu}
task: {use: transformer.causal-lm}
data:
  sources: {a: {use: data.memory, arrays: {tokens: TOKENS}, heldout: 0.2}}
  batch_size: 2
  seq_len: 4
model:
  embedding: {use: transformer.token, vocab: 8}
  rack: {use: transformer.decoder, width: 8, heads: 2, stacks: [{base: 1}]}
  head: {use: transformer.lm}
optimizer: {use: optim.adamw, lr: 1e-2}
"""
LITTLE = """
import resource
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (200 << 20), resource.RLIM_INFINITY))
"""
"""The process may have 200 MiB more than it has."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokens = torch.randint(8, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    (tmp_path / "exp.yaml").write_text(CONFIG.replace("TOKENS", str(tokens)))
    return tmp_path


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("model.rack.width=16384", r"rack 'transformer\.decoder'.*\(\d+ bytes were asked for at once\)"),
        ("data.batch_size=300000", r"not enough memory.*data\.batch_size"),
        ("model.start.from=nowhere", r"there are no weights at nowhere"),
    ],
    ids=["a part", "a step", "weights to start from"],
)
def test_what_fails_before_its_first_step_says_why_and_leaves_no_directory(
    server: ForkServer, folder: Path, setting: str, told: str
) -> None:
    for output in (("--output", "run"), ()):
        ended = server.stackwise("run", "exp.yaml", "--set", setting, *output, cwd=folder, patch=LITTLE)
        assert ended.code == 2 and re.search(told, ended.err) and "Traceback" not in ended.err, ended.err
        assert not (folder / "run").exists() and not list((folder / "runs").glob("*") if (folder / "runs").exists() else ())


def test_a_run_that_fails_after_its_first_step_is_kept(server: ForkServer, folder: Path) -> None:
    fails = """
from stackwise.planes.data.plane import DataPlane
deliver = DataPlane.batches
def batches(plane, moment):
    if moment.step == 1:
        raise MemoryError("Unable to allocate 7.28 TiB for an array")
    return deliver(plane, moment)
DataPlane.batches = batches
"""
    ended = server.stackwise("run", "exp.yaml", "--output", "run", cwd=folder, patch=fails)
    assert ended.code == 2 and "(7.28 TiB were asked for at once)" in ended.err, ended.err
    assert (folder / "run" / "events.jsonl").exists()


def test_other_errors_are_not_about_memory() -> None:
    for error in (RuntimeError("shape mismatch"), ValueError("can't allocate memory"), OverflowError("math range error")):
        assert not lacks_memory(error) and bytes_asked(error) == ""
    assert asks_too_much(OverflowError()) and lacks_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert bytes_asked(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")) == " (2.00 GiB were asked for at once)"
