"""A wrong answer is told as the provider's wherever else it is asked for: of schedules, observers, formats and starters, of what a loader
says of its data and text, and of a trained model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from wrong_answers_beside import AFTER, BESIDE, FORMAT, RUN, TOLD

from stackwise import cli


def cases(table: Mapping[Any, Iterable[str]]) -> list[Any]:
    """One answer of every callback in every run of the tests, the others in the thorough one."""
    found = []
    for place, answers in table.items():
        name = place if isinstance(place, str) else "-".join(place)
        found += [pytest.param(place, a, id=f"{name}-{a}", marks=() if i == 0 else pytest.mark.rare) for i, a in enumerate(answers)]
    return found


def config(component: str = "", callback: str = "", answer: str = "") -> dict[str, Any]:
    """A run that asks for everything; one component answers wrongly once."""

    def one(name: str, **options: Any) -> dict[str, Any]:
        wrong = {"at": callback, "answer": answer} if name == component else {}
        return {"use": "odd.one", **wrong, **options}

    source = one("text") | {"use": "odd.text"} if component == "text" else one("loader")
    skips = {"workers": 2} if callback == "skip" else {"read_ahead": 0}
    horizon = "1 epochs" if callback in ("count_epoch", "options.epoch_size") else "6 steps"
    return {
        "run": {"name": "odd", "horizon": horizon, "device": "cpu", "checkpoint": {"every": "3 steps", "keep_last": 9}, **skips},
        "task": one("task", pace={"linear": {"from": 1, "to": 0}}),
        "data": {"sources": {"a": source}, "batch_size": 2, "seq_len": 4},
        "model": {"embedding": one("embedding"), "rack": one("rack", stacks=[{"base": 2}]), "head": one("head"), "freeze": ["embedding"]}
        | ({"cache": "frozen", "freeze": ["embedding", "rack.stacks.base.0"]} if callback == "forward_blocks" else {}),
        "optimizer": one("optimizer", reaction=one("reaction"), lr=one("schedule")),
        "observers": [one("observer")],
        "evaluate": {"held": {"batches": 1}},
    }


@pytest.fixture
def odd(site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    site.install("odd", BESIDE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.main, list(arguments))
    return done.exit_code, done.output


def trained(case: tuple[str, str, str] = ("", "", "")) -> tuple[int, str]:
    Path("odd.yaml").write_text(yaml.safe_dump(config(*case), sort_keys=False))
    return ask("run", "odd.yaml")


def test_the_components_are_right_but_for_that(odd: Path) -> None:
    code, said = trained()
    assert code == 0, said
    assert trained(("text", "", ""))[0] == 0
    for command in (*ASKED.values(), ("export", "runs/odd-001", "folder", "--format", "odd.one"), ("init", "--from", "folder")):
        Path("rows.txt").write_text("any")
        code, said = ask(*command)
        assert code == 0, said


@pytest.mark.parametrize(("place", "answer"), cases(RUN))
def test_a_wrong_answer_of_a_run_is_told_as_the_providers(place: tuple[str, str], answer: str, odd: Path) -> None:
    code, said = trained((*place, answer))
    if code == 0 and place[1] == "load_state_dict":
        code, said = ask("branch", "runs/odd-001", "--at", "step 3")
    told(code, said)


@pytest.mark.parametrize(("place", "answer"), cases(TOLD))
def test_a_run_survives_its_observers_and_says_which_failed(place: tuple[str, str], answer: str, odd: Path) -> None:
    with pytest.warns(RuntimeWarning, match=r"observer 'odd.one' \(fake-odd 1.0\)"):
        assert trained((*place, answer))[0] == 0


ASKED = {
    "generate": ("generate", "runs/odd-001", "--ids", "--prompt", "1 2", "--tokens", "3"),
    "generate_rows": ("generate", "runs/odd-001", "--ids", "--prompt", "1 2", "--prompt", "2 1", "--tokens", "3"),
    "generate_fields": ("generate", "runs/odd-001", "--count", "3", "--output", "new.safetensors"),
    "predict": ("predict", "runs/odd-001", "--data", "rows.txt"),
    "rows_of": ("predict", "runs/odd-001", "--data", "rows.txt"),
    "tell": ("predict", "runs/odd-001", "--data", "rows.txt"),
    "text_codec": ("generate", "runs/odd-001", "--prompt", "odd", "--tokens", "3"),
    "encode": ("generate", "runs/odd-001", "--prompt", "odd", "--tokens", "3"),
    "decode": ("generate", "runs/odd-001", "--prompt", "odd", "--tokens", "3"),
}
"""Callback → the command that asks it."""


@pytest.mark.parametrize(("place", "answer"), cases(AFTER))
def test_a_wrong_answer_of_a_trained_model_is_told(place: tuple[str, str], answer: str, odd: Path, monkeypatch: Any) -> None:
    assert trained()[0] == 0
    Path("rows.txt").write_text("any")
    monkeypatch.setenv("ODD", f"{place[1]}={answer}")
    told(*ask(*ASKED[place[1]]))


@pytest.mark.parametrize(("place", "answer"), cases(FORMAT))
def test_a_wrong_answer_of_a_format_is_told(place: str, answer: str, odd: Path, monkeypatch: Any) -> None:
    assert trained()[0] == 0
    assert ask("export", "runs/odd-001", "folder", "--format", "odd.one")[0] == 0
    begins = config()
    begins["model"]["start"] = {"from": "folder"}
    Path("again.yaml").write_text(yaml.safe_dump(begins, sort_keys=False))
    assert ask("run", "again.yaml")[0] == 0
    monkeypatch.setenv("ODD", f"format.{place}={answer}")
    told(*(ask("export", "runs/odd-001", "other", "--format", "odd.one") if place == "write" else ask("run", "again.yaml")))


def told(code: int, said: str) -> None:
    assert code == 3, said
    assert "fake-odd 1.0" in said and "bug in StackWise" not in said, said
    assert "odd.one" in said or "odd.text" in said or "odd" in said, said
