"""`docs/how-to/from-a-training-script.md`: the script trains, its provider computes the same, and the page can be followed."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from shutil import copy
from textwrap import indent
from types import ModuleType
from typing import Any

import pytest
import torch
from clean_venvs import CORE, ROOT, Environment, build_wheel, run

from stackwise import BuildContext, ScheduleWindow, Stack

SOURCE = Path(__file__).parent / "names-for-stackwise"
PAGE = (ROOT / "docs" / "how-to" / "from-a-training-script.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(?:python|toml|yaml) title=(\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE) for line in block.splitlines()]


@pytest.mark.parametrize(("file", "code"), BLOCKS, ids=[f"{i}-{file}" for i, (file, _) in enumerate(BLOCKS)])
def test_a_block_is_the_code_of_its_file(file: str, code: str) -> None:
    """Methods stand on the page without their class, and so without its indentation."""
    text = "\n".join(_lines((SOURCE / file).read_text(encoding="utf-8")))
    assert any("\n".join(_lines(indent(code, margin))) in text for margin in ("", "    "))


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def test_all_code_but_commands_has_a_file() -> None:
    assert len(re.findall(r"^```(?!console)\w", PAGE, re.MULTILINE)) == len(BLOCKS) > 10


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module, and the provider on the path."""
    spec = importlib.util.spec_from_file_location("names_train", SOURCE / "train.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.insert(0, str(SOURCE / "src"))
    yield module
    sys.path.remove(str(SOURCE / "src"))


def test_its_parts_compute_what_the_script_computes(script: Any) -> None:
    from names_for_stackwise import model, options, task

    torch.manual_seed(1)
    whole = script.Reader(width=16, blocks=3)
    context = BuildContext(seed=0)
    embedding = model.build_letters(options.LettersOptions(width=16), context)
    rack = model.build_reader(options.ReaderOptions(width=16, stacks=(Stack("base", 2), Stack("top", 1))), context)
    head = model.build_kinds(options.KindsOptions(width=16), context)
    embedding.letters.load_state_dict(whole.letters.state_dict())
    head.kinds.load_state_dict(whole.kinds.state_dict())
    for block, own in zip([*rack.stacks["base"], *rack.stacks["top"]], whole.blocks, strict=True):
        block.load_state_dict(own.state_dict())
    rows = [script.Names(training=False)[i] for i in range(32)]
    letters, kinds = torch.stack([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    outputs = head(rack(embedding(letters)))
    total, count, metrics = task.Kind(options.KindOptions()).loss(outputs, {"kind": kinds})
    torch.testing.assert_close(total / count, script.loss_of(whole(letters), kinds))
    assert count == 32 and float(metrics["accuracy"][0]) == float((whole(letters).argmax(-1) == kinds).sum())


def test_its_learning_rate_is_that_of_the_script(script: Any) -> None:
    from names_for_stackwise import options, schedule

    made = schedule.build_rate(options.RateOptions(peak=4e-3), BuildContext(seed=0))
    window = ScheduleWindow.of_steps(300)
    assert [made.value(step, window) for step in range(301)] == pytest.approx([4e-3 * script.rate(step) for step in range(301)])


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_an_epoch_of_the_loader_holds_each_row_of_the_data_set_once(script: Any, split: str) -> None:
    from names_for_stackwise import data, options

    loader = data.build_names(options.NamesOptions(), BuildContext(seed=5, split=split))
    expected = [(tuple(script.encode(name)), kind) for name, kind in script.Names(training=split == "train").rows]
    batch = loader.take(len(expected), None)
    rows = list(zip(map(tuple, batch["letters"].tolist()), batch["kind"].tolist(), strict=True))
    assert Counter(rows) == Counter(expected)
    assert (rows == expected) == (split != "train")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The core, what the config takes of the project's providers, and the wheel of the page."""
    sources = [ROOT / CORE, ROOT / "stackwise-providers-optim", ROOT / "stackwise-providers-transformer", SOURCE]
    made = Environment(tmp_path_factory.mktemp("environment"), [build_wheel(source, tmp_path_factory) for source in sources])
    for name in ("train.py", "names.yaml"):
        copy(SOURCE / name, made.work)
    asked = ["LATIN SMALL LETTER Q WITH HOOK TAIL", "COMBINING DOUBLE TILDE ABOVE", "MATHEMATICAL BOLD DIGIT SEVEN", "BLACK FLORETTE"]
    (made.work / "new.txt").write_text("\n".join(asked), encoding="utf-8")
    return made


@pytest.mark.slow
@pytest.mark.rare  # a minute; blocks and parts are held to the script above, and clean environments to what they declare by test_wheels.py
def test_the_page_can_be_followed(environment: Environment) -> None:
    said = {}
    for command in COMMANDS:
        program, *arguments = command.split()
        if program == "python":
            said[command] = run(environment.folder / "bin" / "python", *arguments, cwd=environment.work).stdout
        elif program == "stackwise":
            said[command] = environment.stackwise(*arguments).stdout
        else:
            assert command == "pip install ."  # as the environment was made
    assert "held out: " in said["python train.py --steps 100"]
    lines = (environment.work / "runs" / "names-001" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    scores = [row["accuracy"] for row in map(json.loads, lines) if "evaluation" in row]
    commonest = 0.75  # most characters of these are letters: a model that always says so is right of so many
    assert scores[-1] > 0.92 > commonest > scores[0]
    told = [json.loads(line)["kind"] for line in said["stackwise predict runs/names-001 --data new.txt"].splitlines()]
    assert told[:3] == ["L", "M", "N"] and len(told) == 4


@pytest.mark.slow
@pytest.mark.rare
def test_it_passes_the_kit_there(environment: Environment) -> None:
    outcomes = json.loads(environment.stackwise("check", "names", "--json").stdout)
    assert {row["verdict"] for row in outcomes} == {"passed", "not applicable"}
    assert len({row["component"] for row in outcomes}) == 6
