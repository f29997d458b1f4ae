"""Whatever a config holds: `stackwise validate` answers with a verdict, in time, and never with a traceback or our own exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType

import pytest
from click.testing import CliRunner
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutated

from stackwise.cli import main

EXAMPLES = {path.stem: path for path in sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in EXAMPLES.items()}
CPU_BUDGET_S = 10
"""Of one case: a hundred times what the slowest example needs, and counted in CPU time, as machines are busy."""

randoms = st.integers(0, 2**32 - 1).map(Random)


class Hung(BaseException):
    """Past its budget; no handler of the product may take it for an error of its own."""


@contextmanager
def budget() -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Hung

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_BUDGET_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def verdict(path: Path, *more: str) -> int:
    """The exit code of `stackwise --debug validate`; fails where it gives no verdict."""
    with budget():
        done = CliRunner().invoke(main, ["--debug", "validate", str(path), *more])
    shown = f"{path.read_bytes()[:4000]!r} {more}\n{done.output[-4000:]}"
    assert done.exit_code in (0, 2), shown
    if done.exit_code == 2:
        assert done.output.strip() and "this is a bug" not in done.output, shown
    else:
        assert "is valid" in done.output, shown
    return done.exit_code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=examples(100), deadline=None)
@given(st.sampled_from(sorted(TEXTS)), randoms)
def test_mutations_of_every_example_get_a_verdict_cold(folder: Path, name: str, random: Random) -> None:
    path = folder / "cold.yaml"
    path.write_bytes(mutated(TEXTS[name], random))
    verdict(path, "--cold")


@settings(max_examples=examples(30), deadline=None)
@given(st.sampled_from(sorted(TEXTS)), randoms)
def test_one_mutation_of_an_example_gets_a_verdict_when_parts_are_built(folder: Path, name: str, random: Random) -> None:
    """A single change leaves most configs whole enough to reach the parts on the meta device."""
    path = folder / "hot.yaml"
    path.write_bytes(mutated(TEXTS[name], random, most=1))
    verdict(path)


@settings(max_examples=examples(60), deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_bytes_of_any_kind_get_a_verdict(folder: Path, content: bytes) -> None:
    path = folder / "bytes.yaml"
    path.write_bytes(content)
    verdict(path, "--cold")


ODD_BYTES = {
    "utf-16": "run: {horizon: 3 steps}".encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + TEXTS["one-phase"].encode(),
    "carriage returns": TEXTS["one-phase"].replace("\n", "\r\n").encode(),
    "old line ends": TEXTS["one-phase"].replace("\n", "\r").encode(),
    "next lines": TEXTS["one-phase"].replace("\n", "\u2028").encode(),
    "zeros": b"\0" * 10_000,
    "an archive": b"PK\x03\x04" + bytes(range(256)) * 40,
    "a pickle": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "cut inside a character": "run: {name: é}".encode()[:-2],
    "a lone surrogate": "run: {name: \ud800}".encode("utf-8", "surrogatepass"),
    "ten megabytes": b"a: 1\n" * 2_000_000,
    "brackets": b"[" * 200_000,
    "braces": b"{a: " * 100_000,
    "dashes": b"- " * 100_000,
    "steps of indentation": "".join(" " * i + f"k{i}:\n" for i in range(3000)).encode(),
    "an alias bomb": ("a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(50))).encode(),
    "a merge bomb": b"a: &a {x: 1}\nb: {<<: [*a, *a]}\n",
    "a long key": b"k" * 100_000 + b": 1",
    "a long line": b"run: {name: " + b"x" * 900_000 + b"}",
    "many sections": b"".join(b"k%d: {a: 1}\n" % i for i in range(20_000)),
    "one wrong key many times": b"evaluate: {" + b", ".join(b"e%d: {evry: 1}" % i for i in range(3000)) + b"}",
}


@pytest.mark.parametrize("case", ODD_BYTES)
def test_odd_files_get_a_verdict(case: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(ODD_BYTES[case])
    valid = case in ("a byte order mark", "carriage returns", "old line ends", "next lines")
    assert verdict(path, "--cold") == (0 if valid else 2)


VAST = (
    *("run.horizon=1e18 steps", "run.horizon=99999999999999999999 steps", "run.horizon=1e300 tokens", f"run.horizon={'9' * 400} steps"),
    *("data.batch_size=1000000000000", f"data.batch_size={10**23}", f"data.seq_len={10**23}", f"data.accumulate={10**23}"),
    *(f"model.rack.width={10**23}", f"model.rack.width={2**62}", "model.rack.heads=1000000000", f"model.embedding.vocab={2**63}"),
    *("model.rack.stacks=[{base: 100000000}]", f"model.rack.stacks=[{{base: {10**23}}}]"),
    *("evaluate.heldout.every=1e-7%", f"evaluate.heldout.batches={10**23}", f"run.seed={10**30}", "run.seed=-1", f"run.threads={10**14}"),
    *("optimizer.lr.wsd.peak=1e308", "optimizer.lr.wsd.warmup=1e30 steps", "optimizer.weight_decay=1e308"),
    *(
        "model.freeze=[rack.stacks.base.0-99999999999999999999]",
        f"model.freeze=['{'*' * 200}x']",
        "model.rack.stacks=[{base: 20000}]",
        f"model.rack.ff={2**31}",
        f"model.freeze=['{'*a' * 60}!']",
    ),
    *(
        "phases.shallow.until=1e-300%",
        f"phases.shallow.until={10**20} steps",
        "run.device=cuda:99",
        "run.device=tpu",
        "model.start=/dev/zero",
    ),
)


@pytest.mark.parametrize("setting", VAST)
@pytest.mark.parametrize("cold", [True, False], ids=["cold", "built"])
def test_vast_values_get_a_verdict(setting: str, cold: bool) -> None:
    verdict(EXAMPLES["grow-bytes"], "--set", setting, *["--cold"] * cold)


def test_weights_that_move_over_a_vast_run_are_summed_in_time() -> None:
    assert verdict(EXAMPLES["mixture-shift"], "--set", f"run.horizon={10**15} steps") == 0


@settings(max_examples=examples(50), deadline=None)
@given(st.text(max_size=30), st.sampled_from(["", "optimizer.lr=", "phases.shallow.until=", "model.rack.stacks="]))
def test_any_override_gets_a_verdict(setting: str, key: str) -> None:
    verdict(EXAMPLES["grow-bytes"], "--cold", "--set", key + setting)


def extended(folder: Path, case: str) -> str:
    """What `extends` names in a case."""
    if case == "a loop":
        (folder / "other.yaml").write_text("extends: exp.yaml\n")
        return "other.yaml"
    if case == "a long chain":
        for i in range(2000):
            (folder / f"{i}.yaml").write_text(f"extends: {i + 1}.yaml\n")
        return "0.yaml"
    if case == "a wide tree":
        for i in range(30):
            (folder / f"{i}.yaml").write_text(f"extends: [{i + 1}.yaml, {i + 1}.yaml]\n" if i < 29 else "run: {seed: 1}\n")
        return "0.yaml"
    if case == "a link to itself":
        (folder / "link.yaml").symlink_to("link.yaml")
        return "link.yaml"
    if case == "a named pipe":
        os.mkfifo(folder / "pipe.yaml")
        return "pipe.yaml"
    return {
        "itself": "exp.yaml",
        "a folder": ".",
        "nothing": "nowhere.yaml",
        "no end": "/dev/zero",
        "a zero": '"a\\0b"',
        "a long name": "n" * 5000,
    }[case]


EXTENDED = (
    "itself",
    "a loop",
    "a long chain",
    "a wide tree",
    "a link to itself",
    "a named pipe",
    "a folder",
    "nothing",
    "no end",
    "a zero",
    "a long name",
)


@pytest.mark.parametrize("case", EXTENDED)
def test_what_a_config_extends_gets_a_verdict(case: str, tmp_path: Path) -> None:
    path = tmp_path / "exp.yaml"
    path.write_text(f"extends: {extended(tmp_path, case)}\n" + TEXTS["one-phase"])
    verdict(path, "--cold")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(EXAMPLES)[::8])
def test_processes_give_a_verdict(name: str, tmp_path: Path) -> None:
    """The same in processes of their own: nothing of a run before can help, and nothing but sentences is printed."""
    path = tmp_path / "exp.yaml"
    path.write_bytes(mutated(TEXTS[name], Random(f"processes {name}")))
    command = [sys.executable, "-c", "from stackwise.cli import main; main(prog_name='stackwise')", "validate", str(path)]
    done = subprocess.run(command, capture_output=True, timeout=120)
    assert done.returncode in (0, 2) and b"Traceback" not in done.stderr + done.stdout, (path.read_bytes(), done.stderr)
