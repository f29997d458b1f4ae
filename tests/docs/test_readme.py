"""README.md shows files as they are, what `plan` prints, and links that lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from stackwise import config
from stackwise.cli import COMMANDS, main
from stackwise.host.discovery import discover
from stackwise.plan import make_plan

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 125


def test_the_config_is_that_of_the_example() -> None:
    assert blocks("yaml") == [(ROOT / "examples" / "grow-bytes.yaml").read_text(encoding="utf-8")]


def test_the_code_is_that_of_the_example() -> None:
    source = (ROOT / "examples" / "code_first_module.py").read_text(encoding="utf-8")
    assert len(blocks("python")) == 1 and all(block in source for block in blocks("python"))


def test_every_example_is_listed() -> None:
    listed = set(re.findall(r"\]\(([\w-]+\.(?:yaml|py|ipynb))\)", (ROOT / "examples" / "README.md").read_text(encoding="utf-8")))
    found = {path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".yaml", ".py", ".ipynb")}
    assert listed == {name for name in found if not name.startswith("prepare_")}


def without_epochs(plan: str) -> str:
    """How many epochs a run reads depends on the Python whose library is read."""
    return re.sub(r"\(\d+\.\d+ epochs\)", "(… epochs)", plan)


def test_the_plan_is_what_the_command_prints() -> None:
    printed = CliRunner().invoke(main, ["plan", str(ROOT / "examples" / "grow-bytes.yaml")])
    assert printed.exit_code == 0, printed.output
    (shown,) = blocks("text")
    assert shown.endswith("⋮\n") and without_epochs(printed.stdout).startswith(without_epochs(shown.removesuffix("⋮\n")))


def test_the_commands_on_configs_and_runs_do_what_they_are_there_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is cut short; every other `stackwise` command is called as it is written, in its order."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    short = ["--set", "run.horizon=10 steps", "--set", "data.batch_size=2", "--set", "evaluate.heldout.batches=1"]
    commands = [
        shlex.split(line, comments=True)
        for block in blocks("console")
        for line in block.splitlines()
        if line.startswith("stackwise") and (" examples/" in line or " runs/" in line)
    ]
    called = []
    for _, command, *rest in commands:
        result = CliRunner().invoke(main, [command, *rest, *(short if command == "run" else [])])
        assert result.exit_code == 0, result.output
        called.append(command)
    assert called == ["plan", "run", "resume", "branch", "report", "export"]
    assert (tmp_path / "runs/grow-bytes-001/status.json").exists() and (tmp_path / "weights/weights.safetensors").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    anchors = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        assert (page.parent / path).exists() if path else anchor in anchors, f"{page.name}: {target}"


def named_commands() -> Iterator[str]:
    for page in PAGES:
        yield from re.findall(r"^stackwise ([a-z-]+)|`stackwise ([a-z][a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_command_that_is_named_exists() -> None:
    named = {"".join(pair) for pair in named_commands()}
    assert named and named <= set(COMMANDS)


def test_its_picture_is_the_timeline_of_its_config() -> None:
    root = ElementTree.parse(ROOT / "docs" / "timeline.svg").getroot()
    texts = ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]
    plan = make_plan(config.load(ROOT / "examples" / "grow-bytes.yaml"), discover())
    names = [phase.name for phase in plan.schedule]
    assert [text for text in texts if text in names] == names
    copies = [
        f"{new[1]} ← {origin.source[1]}" for new, origin in plan.schedule.phases[1].blocks.items() if origin.source not in (None, new)
    ]
    assert sorted(text for text in texts if "←" in text) == sorted(copies)
