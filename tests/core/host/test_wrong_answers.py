"""Whatever a provider answers wrongly, wherever it is called, is told as the provider's: never as the user's, never as a bug of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from wrong_answers import CALLBACKS, CODE

from stackwise import cli

CASES = [(component, callback, answer) for (component, callback), answers in CALLBACKS.items() for answer in answers]
FIRST = {(component, callback, answers[0]) for (component, callback), answers in CALLBACKS.items()}


def config(component: str, callback: str, answer: str) -> dict[str, Any]:
    """A run that calls every callback: it grows, merges, evaluates, reacts and saves. One component answers wrongly once."""

    def one(name: str, **options: Any) -> dict[str, Any]:
        wrong = {"at": callback, "answer": answer} if name == component else {}
        return {"use": "odd.one", **wrong, **options}

    return {
        "run": {"name": "odd", "horizon": "6 steps", "device": "cpu", "read_ahead": 0, "checkpoint": {"every": "3 steps", "keep_last": 9}},
        "task": one("task"),
        "data": {"sources": {"a": one("loader")}, "batch_size": 2, "seq_len": 4, "transforms": [one("transform")]},
        "model": {
            "embedding": one("embedding"),
            "rack": one("rack", stacks=[{"base": 1}]),
            "head": one("head"),
            "adapters": {"embedding-rack": [one("adapter")]},
            "weight_adapters": {"b": one("beside", select=["rack"])},
            "freeze": ["rack"],
        },
        "optimizer": one("optimizer", reaction=one("reaction")),
        "phases": {
            "first": {"until": "50%"},
            "second": {
                "model": {"rack": {"stacks": [{"base": 2}]}, "weight_adapters": None, "freeze": []},
                "enter": {"growth": one("growth")},
            },
        },
    }


@pytest.fixture
def odd(site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    site.install("odd", CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(case: tuple[str, str, str]) -> tuple[int, str]:
    """Exit code and output of the run; of the branch from its middle where the run itself calls nothing that is wrong."""
    Path("odd.yaml").write_text(yaml.safe_dump(config(*case), sort_keys=False))
    done = CliRunner().invoke(cli.main, ["run", "odd.yaml"])
    if done.exit_code == 0 and case[1] == "load_state_dict":
        done = CliRunner().invoke(cli.main, ["branch", "runs/odd-001", "--at", "step 3"])
    return done.exit_code, done.output


def test_the_components_are_right_but_for_that(odd: Path) -> None:
    assert run(("nobody", "", ""))[0] == 0


def marked(case: tuple[str, str, str]) -> Any:
    """One answer of every callback in every run of the tests, the others in the thorough one."""
    return pytest.param(case, id="-".join(case), marks=() if case in FIRST else pytest.mark.rare)


@pytest.mark.parametrize("case", list(map(marked, CASES)))
def test_a_wrong_answer_is_told_as_the_providers(case: tuple[str, str, str], odd: Path) -> None:
    code, said = run(case)
    assert code == 3, said
    assert "fake-odd 1.0" in said and "bug in StackWise" not in said, said
    assert "odd.one" in said or case == ("adapter", "forward", "raises"), said
