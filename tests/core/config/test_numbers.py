"""Numbers of a config that cannot be meant: refused with the path, or taken as they are; never another value."""

from __future__ import annotations

from pathlib import Path

import pytest

from stackwise import config
from stackwise.errors import ConfigError, UserError

FILE = """\
run: {{name: a, horizon: 4 steps, {run}, checkpoint: {{{checkpoint}}}}}
task: {{use: t.t}}
data: {{sources: {{a: {{use: l.l}}}}, {data}}}
model: {{embedding: {{use: e.e}}, rack: {{use: r.r}}, head: {{use: h.h}}}}
optimizer: {{use: o.o, {optimizer}}}
evaluate: {{held: {{{evaluate}}}}}
"""
SOUND = {
    "run": "seed: 0",
    "checkpoint": "keep_last: 2",
    "data": "batch_size: 2",
    "optimizer": "clip: 1.0",
    "evaluate": "batches: 1",
}

WHOLE = {
    "run.seed": (0, 2**63 - 1),
    "run.threads": (1, 4096),
    "run.read_ahead": (0, 10_000),
    "run.workers": (0, 1024),
    "run.halt_after": (1, 1_000_000),
    "run.checkpoint.keep_last": (1, 1_000_000),
    "data.batch_size": (1, 2**24),
    "data.seq_len": (1, 2**24),
    "data.accumulate": (1, 2**24),
    "evaluate.held.batches": (1, 1_000_000),
}
"""Key → least and most."""
NO_WHOLE = ("1.5", "1e300", "true", '"3"', ".nan", ".inf", "1e400", "1e-400", "1" + "0" * 30, "9223372036854775808")


COUNTS = [
    ("2.0", "2.0 is not a whole number: write 2"),
    ("1e1", "10.0 is not a whole number: write 10"),
    ("1e30", "1e+30 is above the maximum of 16,777,216"),
]


def problems(tmp_path: Path, key: str, text: str) -> str | None:
    """What is wrong with the key; None: nothing."""
    section, _, name = key.rpartition(".")
    part = {"run.checkpoint": "checkpoint", "evaluate.held": "evaluate"}.get(section, section)
    path = tmp_path / "a.yaml"
    path.write_text(FILE.format(**{**SOUND, part: f"{name}: {text}"}))
    try:
        config.load(path).check()
    except ConfigError as error:
        return "\n".join(str(problem) for problem in error.problems)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("text", "said"), COUNTS)
def test_a_count_with_a_point_is_told_how_to_be_written(tmp_path: Path, text: str, said: str) -> None:
    assert said in str(problems(tmp_path, "data.batch_size", text))


@pytest.mark.parametrize("key", WHOLE)
def test_whole_numbers_have_bounds_and_no_other_type_passes_for_one(tmp_path: Path, key: str) -> None:
    least, most = WHOLE[key]
    for text in (str(least), str(most)):
        assert problems(tmp_path, key, text) is None, text
    for text in (str(least - 1), str(most + 1), *NO_WHOLE):
        told = problems(tmp_path, key, text)
        assert told is not None and (key in told or "a.yaml:" in told), (text, told)


@pytest.mark.parametrize(
    ("text", "right"), [("0", False), ("-1", False), ("1e-320", True), ("1e300", True), ("1e-400", False), ("3", True)]
)
def test_a_number_above_zero_is_one(tmp_path: Path, text: str, right: bool) -> None:
    assert (problems(tmp_path, "optimizer.clip", text) is None) is right


@pytest.mark.parametrize("text", ["1e-400", "-1e-400", "0.00001e-320", "1.0e-99999"])
def test_a_number_that_would_become_zero_is_refused(tmp_path: Path, text: str) -> None:
    told = problems(tmp_path, "optimizer.clip", text)
    assert told is not None and "a.yaml:5:" in told and "too small" in told


@pytest.mark.parametrize("text", ["0e5", "0.0", "-0.0e-400", "5e-324"])
def test_a_zero_is_none_of_them(tmp_path: Path, text: str) -> None:
    told = problems(tmp_path, "optimizer.clip", text)
    assert told is None or "too small" not in told
