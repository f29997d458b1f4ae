"""A wrong answer is told as the provider's wherever else it is asked for: of schedules, observers, formats and starters, of what a loader
says of its data and text, and of a trained model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from wrong_answers import CALLBACKS
from wrong_answers_beside import AFTER, BESIDE, FORMAT, LATER, RUN, STARTER, TOLD

import stackwise
from stackwise import cli
from stackwise.errors import StackwiseError
from stackwise.saved.generate import open_text_model
from stackwise.saved.harness import Asked, HarnessSettings


def cases(table: Mapping[Any, Iterable[str]]) -> list[Any]:
    """One answer of every callback in every run of the tests, the others in the thorough one."""
    found = []
    for place, answers in table.items():
        name = place if isinstance(place, str) else "-".join(map(str, place))
        found += [pytest.param(place, a, id=f"{name}-{a}", marks=() if i == 0 else pytest.mark.rare) for i, a in enumerate(answers)]
    return found


def config(component: str = "", callback: str = "", answer: str = "", after: int = 0) -> dict[str, Any]:
    """A run that asks for everything; one component answers wrongly, behind so many right answers."""

    def one(name: str, **options: Any) -> dict[str, Any]:
        wrong = {"at": callback, "answer": answer, "after": after} if name == component else {}
        return {"use": "odd.one", **wrong, **options}

    source = one("text") | {"use": "odd.text"} if component == "text" else one("loader")
    skips = {"workers": 2} if callback == "skip" else {"read_ahead": 0}
    horizon = "1 epochs" if callback in ("count_epoch", "options.epoch_size") else "6 steps"
    return {
        "run": {"name": "odd", "horizon": horizon, "device": "cpu", "checkpoint": {"every": "3 steps", "keep_last": 9}, **skips},
        "task": one("task", pace={"linear": {"from": 1, "to": 0}})
        | ({"auxiliary": {"rack.balance": 0.1}} if callback == "reported" else {}),
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


def trained(case: tuple[str, str, str] = ("", "", ""), after: int = 0) -> tuple[int, str]:
    Path("odd.yaml").write_text(yaml.safe_dump(config(*case, after), sort_keys=False))
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


@pytest.mark.parametrize(("place", "answer"), cases(LATER))
def test_a_wrong_answer_behind_right_ones_is_told_as_the_providers(place: tuple[str, str, int], answer: str, odd: Path) -> None:
    code, said = trained((*place[:2], answer), after=place[2])
    told(code, said)
    assert Path("runs/odd-001").is_dir(), "the run had begun"


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
    **dict.fromkeys(("start", "codec_of"), ("generate", "runs/odd-001", "--prompt", "odd", "--tokens", "3")),
    "text_codec": ("generate", "runs/odd-001", "--prompt", "odd", "--tokens", "3"),
    "encode": ("generate", "runs/odd-001", "--prompt", "odd", "--tokens", "3"),
    "decode": ("generate", "runs/odd-001", "--prompt", "odd", "--tokens", "3"),
}
"""Callback → the command that asks it."""


@pytest.mark.parametrize(("place", "answer"), cases(AFTER))
def test_a_wrong_answer_of_a_trained_model_is_told(place: tuple[str, str], answer: str, odd: Path, monkeypatch: Any) -> None:
    assert trained(("text", "", "") if place[0] == "text" else ("", "", ""))[0] == 0
    Path("rows.txt").write_text("any")
    monkeypatch.setenv("ODD", f"{place[1]}={answer}")
    told(*(scored() if place[1].startswith("score") else ask(*ASKED[place[1]])))


def scored() -> tuple[int, str]:
    """What `stackwise evaluate --tasks` asks of a run, without the library that asks."""
    source = open_text_model(Path("runs/odd-001"))
    try:
        Asked(source, source.codec(), HarnessSettings(tasks=()), torch.device("cpu")).continuations([("odd", "odder")])
    except StackwiseError as error:
        return error.exit_code, str(error)
    return 0, ""


def test_a_right_score_is_taken(odd: Path) -> None:
    assert trained()[0] == 0
    assert scored() == (0, "")


@pytest.mark.parametrize(("place", "answer"), cases(FORMAT))
def test_a_wrong_answer_of_a_format_is_told(place: str, answer: str, odd: Path, monkeypatch: Any) -> None:
    assert trained()[0] == 0
    assert ask("export", "runs/odd-001", "folder", "--format", "odd.one")[0] == 0
    begins = config()
    begins["model"]["start"] = {"from": "folder"}
    Path("again.yaml").write_text(yaml.safe_dump(begins, sort_keys=False))
    assert ask("run", "again.yaml")[0] == 0
    Path("old.yaml").write_text(yaml.safe_dump({"odd": yaml.safe_dump(config())}))
    assert ask("migrate", "old.yaml")[0] == 0
    monkeypatch.setenv("ODD", f"format.{place}={answer}")
    asked = {"write": ("export", "runs/odd-001", "other", "--format", "odd.one")}
    asked |= dict.fromkeys(("translates", "translate", "text", "dropped"), ("migrate", "old.yaml"))
    told(*ask(*asked.get(place, ("run", "again.yaml"))))


@pytest.mark.parametrize(("place", "answer"), cases(STARTER))
def test_a_wrong_answer_of_a_starter_is_told(place: str, answer: str, odd: Path, monkeypatch: Any) -> None:
    assert ask("init", "odd", "-o", "right/odd.yaml")[0] == 2  # no folder
    assert ask("init", "odd", "-o", "right.yaml")[0] == 0
    monkeypatch.setenv("ODD", f"starter.{place}={answer}")
    told(*ask("init", "odd", "-o", "wrong.yaml"))


def test_every_callback_of_the_contract_is_in_a_table() -> None:
    named = {callback.rpartition(".")[2] for _, callback in (*CALLBACKS, *RUN, *TOLD, *AFTER)} | {*FORMAT}
    same = {"__call__": "call"}
    unasked = {"example"}  # of a format, which the kit alone asks
    protocols = [value for name in stackwise.__all__ if getattr(value := getattr(stackwise, name), "_is_protocol", False)]
    assert len(protocols) > 30
    for protocol in protocols:
        members = {name for name in (*vars(protocol), *vars(protocol).get("__annotations__", ())) if not name.startswith("_")}
        members |= {"__call__"} & set(vars(protocol))
        assert {same.get(name, name) for name in members} <= named | unasked, protocol.__name__


def told(code: int, said: str) -> None:
    assert code == 3, said
    assert "fake-odd 1.0" in said and "bug in StackWise" not in said, said
    assert any(component in said for component in ("odd.one", "odd.text", "odd.odd")), said
