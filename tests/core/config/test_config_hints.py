"""What a message shows of the form to write: keys in the wrong section, words of other trainers, indentation, absurd numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from stackwise import config
from stackwise.config.hints import unknown_key
from stackwise.errors import ConfigError, Problem

BASE = """\
run: {name: t, horizon: 100 steps}
task: {use: a.task}
data:
  sources: {text: {use: a.loader}}
  batch_size: 4
  seq_len: 32
model: {embedding: {use: a.e}, rack: {use: a.r}, head: {use: a.h}}
optimizer: {use: a.sgd, lr: 1e-3}
evaluate: {heldout: {batches: 2}}
"""


def problems(path: Path, text: str = BASE, *settings: str) -> tuple[Problem, ...]:
    (path / "case.yaml").write_text(text)
    try:
        return config.load(path / "case.yaml", settings).problems
    except ConfigError as error:
        return error.problems


@pytest.mark.parametrize(
    ("line", "path", "form"),
    [
        ("seq_len: 32", "seq_len", "`data: {seq_len: 32}`"),
        ("learning_rate: 1e-3", "learning_rate", "`optimizer: {lr: 0.001}`"),
        ("epochs: 3", "epochs", "`run: {horizon: 3 epochs}`"),
        ("max_steps: 50", "max_steps", "`run: {horizon: 50 steps}`"),
        ("seed: 3", "seed", "`run: {seed: 3}`"),
        ("keep_last: 3", "keep_last", "`run: {checkpoint: {keep_last: 3}}`"),
        ("num_workers: 2", "num_workers", "`run: {workers: 2}`"),
        ("optimiser: {use: a.sgd}", "optimiser", "did you mean 'optimizer'?"),
    ],
)
def test_a_stray_key_at_the_top_is_shown_where_it_belongs(tmp_path: Path, line: str, path: str, form: str):
    (problem,) = problems(tmp_path, BASE + line + "\n")
    assert problem.path == path and form in problem.message
    assert problem.where is not None and problem.where.line == 10


@pytest.mark.parametrize(
    ("old", "new", "path", "form"),
    [
        ("  seq_len: 32", "  block_size: 32", "data.block_size", "did you mean 'seq_len'?"),
        ("horizon: 100 steps", "horizon: 100 steps, batch_size: 3", "run.batch_size", "`data: {batch_size: 3}`"),
        ("horizon: 100 steps", "horizon: 3", "run.horizon", "'3 steps' or '3 epochs'"),
        ("horizon: 100 steps", "seed: 1", "run.horizon", "`horizon: 1200 steps`"),
    ],
)
def test_a_key_in_the_wrong_section_is_shown_where_it_belongs(tmp_path: Path, old: str, new: str, path: str, form: str):
    (problem,) = problems(tmp_path, BASE.replace(old, new))
    assert problem.path == path and form in problem.message


def test_the_nearest_known_key_comes_before_another_section():
    assert unknown_key("horizn", ["horizon", "seed"]) == "unknown key — did you mean 'horizon'?"
    assert "known: alpha, beta" in unknown_key("zzz", ["alpha", "beta"])
    assert "known: alpha" in unknown_key("seed", ["alpha"], elsewhere=False)  # an option of a component is not a key of the core


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        (BASE.replace("  batch_size", "batch_size"), 6, "deeper than `batch_size`"),
        (BASE.replace("  batch_size", "   batch_size"), 5, "deeper than `sources`"),
        (BASE.replace("  batch_size", " batch_size"), 5, "indented by 1 space, and no line above it is"),
    ],
)
def test_a_wrong_indent_is_named_with_its_line(tmp_path: Path, text: str, line: int, hint: str):
    (problem,) = problems(tmp_path, text)
    assert problem.where is not None and problem.where.line == line and hint in problem.message


def test_a_key_beside_the_phases_is_no_phase(tmp_path: Path):
    found = problems(tmp_path, BASE + "phases:\n  a: {until: 50%}\n  enter: {fresh: [head]}\n  b: {}\n")
    assert [problem.path for problem in found] == ["phases.enter"] and "<name>: {enter: …}" in found[0].message


def test_a_setting_of_a_phase_needs_phases(tmp_path: Path):
    (problem,) = problems(tmp_path, BASE, "phases.decay.optimizer.lr=1e-4")
    assert "`phases: {decay: {until: 100%}}`" in problem.message
    (problem,) = problems(tmp_path, BASE + "phases: {decay: {}}\n", "phases.decoy.optimizer.lr=1e-4")
    assert "did you mean 'decay'?" in problem.message


@pytest.mark.parametrize(
    "setting",
    [
        "data.batch_size=1000000000000",
        "data.seq_len=1000000000000",
        "data.step_tokens=1000000000000",
        "data.batch_size={piecewise: {values: {0%: 1, 50%: 1e12}}}",
        "run.workers=1000000",
        "run.threads=1000000000",
        "run.read_ahead=1000000000",
        "run.horizon=1e17 steps",
        "evaluate.heldout.batches=1000000000",
        "evaluate.heldout.batch_size=1000000000000",
    ],
)
def test_an_absurd_number_is_refused_by_its_range(tmp_path: Path, setting: str):
    (problem,) = problems(tmp_path, BASE, setting)
    assert problem.path == setting.partition("=")[0]


@pytest.mark.parametrize("count", [41, 2000])
def test_a_setting_of_very_many_names_is_refused(tmp_path: Path, count: int):
    (problem,) = problems(tmp_path, BASE, ".".join(["a"] * count) + "=1")
    assert f"a key of {count} names" in problem.message and len(str(problem)) < 400
